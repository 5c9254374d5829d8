"""One deadline for local rerankers: the best hits first, an end in time, and no work for nobody."""

import asyncio
import gc
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from milvus_pipeline import DeadlineError, Hit, Pipeline, Query, SearchResult, StageError
from milvus_pipeline.plugin import Context, Deadline, RerankJob
from milvus_stages import BGE, CrossEncoder, LateInteraction, Truncate
from milvus_stages.local.anytime import Clock, until_time_is_up
from support.checkpoints import WORDS
from support.fake_stages.basic import ListedSearch
from support.fake_stages.slow_model import slowed

NAMES = [word for word in WORDS if len(word) > 1]
TEXTS = [f"the {NAMES[number % 30]} of {NAMES[number // 30]}" for number in range(60)]
"""Of equal length, so that a chunk keeps their order whatever the machine does meanwhile."""

KINDS = [(CrossEncoder, "bert"), (BGE, "xlm_roberta"), (LateInteraction, "small_encoder")]


@pytest.fixture
def opened(request):
    """Opens stages on small checkpoints, and closes them."""
    stages = []

    def open_stage(kind, checkpoint: str, **fields):
        stages.append(kind(model=request.getfixturevalue(checkpoint), device="cpu", **fields))
        stages[-1].open()
        return stages[-1]

    yield open_stage
    for stage in stages:
        stage.close()


def found(query: str, texts: list[str]) -> SearchResult:
    """A result whose hits have these texts."""
    return SearchResult(Query(query), [Hit(place, text, 0.0) for place, text in enumerate(texts)])


def in_time(seconds: float, queries: int = 1) -> Context:
    """A context whose deadline is so many seconds ahead."""
    return Context(Deadline.after(seconds), queries)


@pytest.mark.parametrize(("kind", "checkpoint"), KINDS)
def test_the_best_hits_are_scored_and_the_others_keep_their_order(opened, kind, checkpoint):
    """The first so many have the scores of a run without deadline; behind them are the rest, as retrieved."""
    stage = opened(kind, checkpoint)
    full = dict(enumerate(stage.score("red plum", TEXTS)))
    context = in_time(0.6)
    with slowed(stage.loaded, 0.02):
        began = time.monotonic()
        (result,) = stage.process([found("red plum", TEXTS)], context)
        seconds = time.monotonic() - began
    scored = {hit.id: hit.score for hit in result if hit.scores}
    count = len(scored)
    assert 1 <= count < len(TEXTS)
    assert scored == pytest.approx({place: full[place] for place in range(count)}, abs=1e-5)
    assert [hit.score for hit in result][:count] == sorted(scored.values(), reverse=True)
    assert [hit.id for hit in result][count:] == list(range(count, len(TEXTS)))
    assert context.partials[0].reason == f"{60 - count} of 60 documents were not scored in the time given (0.6 s)"
    assert context.partials[0].code == "deadline"
    assert seconds < 2.0


@pytest.mark.parametrize(("kind", "checkpoint"), KINDS)
def test_only_texts_that_were_scored_are_told_to_be_cut(opened, kind, checkpoint):
    """Those that were read ahead, and not reached in time, lost no end."""
    stage = opened(kind, checkpoint)
    context = in_time(0.6)
    with slowed(stage.loaded, 0.03):
        (scores,) = stage.score_batch([RerankJob("plum", [f"{text}{' plum' * 600}" for text in TEXTS])], context)
    assert context.details[0]["documents_cut"] == len(TEXTS) - scores.count(None)
    assert None in scores


@pytest.mark.parametrize(("kind", "checkpoint"), KINDS)
def test_a_deadline_that_is_far_changes_nothing(opened, kind, checkpoint, queries, documents):
    """Texts of every length get the scores of a run without deadline, and the work is whole."""
    stage = opened(kind, checkpoint, batch_size=4)
    jobs = [RerankJob(query, documents[start:]) for start, query in enumerate(queries)]
    unbounded, bounded = Context(Deadline(), len(jobs)), in_time(600.0, len(jobs))
    expected, scores = stage.score_batch(jobs, unbounded), stage.score_batch(jobs, bounded)
    for own, others in zip(scores, expected, strict=True):
        assert own == pytest.approx(others, abs=1e-5)
    assert (bounded.partials, bounded.warnings, bounded.details) == ([None] * 5, unbounded.warnings, unbounded.details)


def test_every_query_gets_its_part_of_the_time(opened):
    """The first hit of each query comes before the second of any."""
    stage = opened(CrossEncoder, "bert")
    context = in_time(0.6, 3)
    with slowed(stage.loaded, 0.02):
        scores = stage.score_batch([RerankJob(query, TEXTS) for query in ("plum", "sky", "sea")], context)
    counts = [sum(score is not None for score in own) for own in scores]
    assert 1 <= max(counts) < 60
    assert max(counts) - min(counts) <= 1


def test_nothing_scored_is_a_failure_that_on_error_decides_on(opened):
    """Where a model does not manage one hit in time, its pass ends between two layers, and the query goes on."""
    stage = opened(CrossEncoder, "bert", on_error="skip")
    layers = []
    hook = stage.loaded.network.bert.encoder.layer[-1].register_forward_pre_hook(lambda *_: layers.append(1))
    with slowed(stage.loaded, 0.4), Pipeline([ListedSearch(documents=tuple(TEXTS)), stage]) as pipeline:
        result = pipeline.run("plum", timeout=0.2)
    hook.remove()
    assert layers == []
    assert result.status == "degraded"
    assert [hit.id for hit in result] == list(range(60))
    assert result.report("cross_encoder").reason_code == "deadline"
    assert "not one of 60 documents was scored in the time given (0.2 s)" in result.report("cross_encoder").reason


@pytest.mark.parametrize("mode", ["blocking", "event loop"])
def test_a_partial_result_goes_through_the_pipeline(opened, mode):
    """It is cut to top_k, a threshold drops what has no score, and the result says partial."""
    stage = opened(CrossEncoder, "bert", top_k=50, timeout=0.6)
    cut = Truncate(min_score=-1e9, score_of="cross_encoder")
    with slowed(stage.loaded, 0.02), Pipeline([ListedSearch(documents=tuple(TEXTS)), stage, cut]) as pipeline:
        result = pipeline.run("plum") if mode == "blocking" else asyncio.run(pipeline.arun("plum"))
    assert result.status == "partial"
    assert result.report("cross_encoder").status == "partial"
    assert result.report("cross_encoder").hits_out == 50
    assert 1 <= len(result) < 50
    assert sorted(hit.id for hit in result) == list(range(len(result)))


def test_called_alone_it_ranks_what_it_did_not_reach_last(opened, caplog):
    """Without a pipeline the unscored documents come last with None for a score, and the log says how many."""
    stage = opened(CrossEncoder, "bert", timeout=0.6)
    with slowed(stage.loaded, 0.02), caplog.at_level(logging.WARNING):
        for ranked in (stage("plum", TEXTS), asyncio.run(stage.acall("plum", TEXTS))):
            count = sum(one.score is not None for one in ranked)
            assert 1 <= count < 60
            assert [one.index for one in ranked[count:]] == list(range(count, 60))
            assert f"cross_encoder: {60 - count} of 60 documents were not scored" in caplog.text


def test_a_model_that_becomes_slow_is_planned_for_anew(opened):
    """The best hits are done though they are short and the chunk has begun with the long ones."""
    stage = opened(CrossEncoder, "bert", batch_size=4)
    texts = [*TEXTS[:5], *(f"{text} {text}" for text in TEXTS)]
    context = in_time(1.5)

    def before(module, arguments, options) -> None:
        if len(passes) > 1:
            time.sleep(0.05 * len(options["input_ids"]))

    with slowed(stage.loaded) as passes:
        hook = stage.loaded.network.register_forward_pre_hook(before, with_kwargs=True)
        (scores,) = stage.score_batch([RerankJob("plum", texts)], context)
        hook.remove()
    assert len(passes) > 3
    assert None not in scores[:5]
    assert None in scores


# -- others ------------------------------------------------------------------------------------------------------


def test_waiting_for_the_model_ends_with_the_deadline(opened):
    """Others in their forward pass hold a query up for no longer than it has time, and it fails alone."""
    stage = opened(CrossEncoder, "bert")
    context = in_time(0.2)
    with stage.loaded.lock:
        began = time.monotonic()
        stage.score_batch([RerankJob("plum", TEXTS)], context)
        assert time.monotonic() - began < 5.0
    assert isinstance(context.failures[0], DeadlineError)
    assert None not in stage.score_batch([RerankJob("plum", TEXTS)], in_time(600.0))[0]


def test_a_long_batch_lets_others_have_their_turn(opened):
    """A query with a deadline is answered while a batch without one goes on."""
    stage = opened(CrossEncoder, "bert", batch_size=1)
    job = Context(Deadline(), 1)
    with slowed(stage.loaded, 0.03) as passes, ThreadPoolExecutor(1) as pool:
        batch = pool.submit(stage.score_batch, [RerankJob("plum", TEXTS * 100)], job)
        assert passes.first.wait(30)
        scores = stage.score_batch([RerankJob("plum", TEXTS[:2])], in_time(20.0))
        job.cancel()
        with pytest.raises(DeadlineError, match="given up"):
            batch.result(30)
    assert None not in scores[0]
    assert len(passes) < 600  # of 6000


def test_cancelling_a_call_frees_the_model(opened):
    """The forward passes of a cancelled arun stop, and another query has the model."""
    stage = opened(CrossEncoder, "bert")
    pipeline = Pipeline([ListedSearch(documents=tuple(TEXTS * 100)), stage])

    async def cancelled() -> None:
        task = asyncio.create_task(pipeline.arun("plum"))
        await asyncio.to_thread(passes.first.wait, 30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with pipeline, slowed(stage.loaded, 0.01) as passes:
        asyncio.run(cancelled())  # waits for the thread, too
        rows = sum(passes)
        assert None not in stage.score("plum", TEXTS[:3])
    assert rows <= 2 * 32  # of 6000
    assert passes[-1] == 3


def test_work_that_ends_as_its_caller_is_cancelled_logs_nothing():
    """Its error is told to nobody, and the event loop does not complain that nobody took it."""
    complaints, begun, over = [], threading.Event(), threading.Event()

    def work(clock: Clock) -> None:
        begun.set()
        over.wait(30)
        raise DeadlineError("timed out")

    async def cancelled() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, told: complaints.append(told["message"]))
        caller = asyncio.create_task(until_time_is_up(work, in_time(600.0)))
        await asyncio.to_thread(begun.wait, 30)
        (thread,) = asyncio.all_tasks() - {caller, asyncio.current_task()}
        thread.add_done_callback(lambda _: caller.cancel())
        del thread
        over.set()
        with pytest.raises(asyncio.CancelledError):
            await caller

    asyncio.run(cancelled())
    gc.collect()
    assert complaints == []


def test_a_hundred_queries_at_once_all_end_in_time(opened):
    """They are more than the event loop has threads: each is answered or fails by its deadline, and none runs after."""
    stage = opened(CrossEncoder, "bert", on_error="skip")
    pipeline = Pipeline([ListedSearch(documents=tuple(TEXTS)), stage])

    async def crowd() -> tuple[list[SearchResult], float, float]:
        began = time.monotonic()
        results = await asyncio.gather(*(pipeline.arun(f"plum {number}", timeout=1.0) for number in range(100)))
        return results, began, time.monotonic()

    with pipeline, slowed(stage.loaded, 0.02) as passes:
        results, began, ended = asyncio.run(crowd())
    reports = [result.report("cross_encoder") for result in results]
    assert {report.status for report in reports} <= {"ok", "partial", "skipped"}
    assert any(report.status == "partial" for report in reports)
    assert all(report.reason_code == "deadline" for report in reports)
    assert all(len(result) == 60 for result in results)
    assert ended - began < 4.0
    assert max(passes.begun) < began + 3.0


# -- memory ------------------------------------------------------------------------------------------------------


def small_memory(rows: int):
    """A hook of a network whose device holds so many rows."""

    def before(module, arguments, options) -> None:
        if len(options["input_ids"]) > rows:
            raise torch.OutOfMemoryError("CUDA out of memory")

    return before


@pytest.mark.parametrize(("kind", "checkpoint"), KINDS)
def test_a_batch_too_large_for_the_memory_is_halved(opened, kind, checkpoint):
    """The scores are those of whole batches, and the report tells the batch size that went."""
    stage = opened(kind, checkpoint)
    expected = list(stage.score("plum", TEXTS))
    hook = stage.loaded.network.register_forward_pre_hook(small_memory(5), with_kwargs=True)
    context = Context(Deadline(), 1)
    (scores,) = stage.score_batch([RerankJob("plum", TEXTS)], context)
    hook.remove()
    assert scores == pytest.approx(expected, abs=1e-5)
    assert context.details == [{"batch_size": 4}]


def test_a_text_too_large_for_the_memory_is_an_error(opened):
    """Where a single text does not go, the message says what to change."""
    stage = opened(CrossEncoder, "bert")
    stage.loaded.network.register_forward_pre_hook(small_memory(0), with_kwargs=True)
    with pytest.raises(
        StageError, match=r"cpu has too little memory for a text of \d+ tokens; lower max_length"
    ) as caught:
        stage.score("plum", TEXTS[:3])
    assert caught.value.reason_code == "too_large"
