"""Deadlines of local rerankers: the best hits first, an end in time, and no work that nobody waits for."""

import asyncio
import gc
import logging
from concurrent.futures import Executor, Future, ThreadPoolExecutor

import pytest
import torch

from milvus_pipeline import DeadlineError, Hit, Pipeline, Query, SearchResult, StageError
from milvus_pipeline.plugin import Context, Deadline, RerankJob
from milvus_stages import BGE, CrossEncoder, LateInteraction, Truncate
from milvus_stages.local.anytime import arun_in_time
from support.checkpoints import WORDS
from support.fake_stages.basic import ListedSearch
from support.fake_stages.slow_model import slowed

NAMES = [word for word in WORDS if len(word) > 1]
TEXTS = [f"the {NAMES[number % 30]} of {NAMES[number // 30]}" for number in range(60)]
"""Of equal length, so that a window keeps their order."""

KINDS = [(CrossEncoder, "bert"), (BGE, "xlm_roberta"), (LateInteraction, "small_encoder")]

IN_TIME = 15
"""Texts scored in 6 s at 0.2 s each: windows of 1, 2, 4 and 8. The next, of 16, would take 3.2 s more."""


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
    """A context whose deadline is that many seconds ahead."""
    return Context(Deadline.after(seconds), queries)


@pytest.mark.parametrize(("kind", "checkpoint"), KINDS)
def test_the_best_hits_are_scored_and_the_others_keep_their_order(opened, fake_time, kind, checkpoint):
    """The first hits have the scores of a run without deadline; behind them are the rest, as retrieved."""
    stage = opened(kind, checkpoint)
    full = dict(enumerate(stage.score("red plum", TEXTS)))
    context = in_time(6.0)
    with slowed(stage.loaded, 0.2, fake_time.sleep):
        (result,) = stage.process([found("red plum", TEXTS)], context)
    scored = {hit.id: hit.score for hit in result if hit.scores}
    assert scored == pytest.approx({place: full[place] for place in range(IN_TIME)}, abs=1e-5)
    assert [hit.score for hit in result][:IN_TIME] == sorted(scored.values(), reverse=True)
    assert [hit.id for hit in result][IN_TIME:] == list(range(IN_TIME, len(TEXTS)))
    assert context.partials[0].reason == "45 of 60 documents were not scored in the time given (6 s)"
    assert context.partials[0].code == "deadline"


@pytest.mark.parametrize(("kind", "checkpoint"), KINDS)
def test_only_texts_that_were_scored_are_reported_as_cut(opened, fake_time, kind, checkpoint):
    """Texts that were read and not reached in time do not count."""
    stage = opened(kind, checkpoint)
    context = in_time(6.0)
    with slowed(stage.loaded, 0.2, fake_time.sleep):
        (scores,) = stage.score_batch([RerankJob("plum", [f"{text}{' plum' * 600}" for text in TEXTS])], context)
    assert context.details[0]["documents_cut"] == len(TEXTS) - scores.count(None) == IN_TIME


@pytest.mark.parametrize(("kind", "checkpoint"), KINDS)
def test_a_deadline_that_is_far_changes_nothing(opened, kind, checkpoint, queries, documents):
    """Texts of every length get the scores of a run without deadline, and the work is complete."""
    stage = opened(kind, checkpoint, batch_size=4)
    jobs = [RerankJob(query, documents[start:]) for start, query in enumerate(queries)]
    unbounded, bounded = Context(Deadline(), len(jobs)), in_time(600.0, len(jobs))
    expected, scores = stage.score_batch(jobs, unbounded), stage.score_batch(jobs, bounded)
    for own, others in zip(scores, expected, strict=True):
        assert own == pytest.approx(others, abs=1e-5)
    assert (bounded.partials, bounded.warnings, bounded.details) == ([None] * 5, unbounded.warnings, unbounded.details)


def test_windows_grow_to_four_batches(opened, fake_time):
    """With a deadline, a pass has one text, then two, and so on to a batch; without one, each is a whole batch."""
    stage = opened(CrossEncoder, "bert", batch_size=8)
    with slowed(stage.loaded) as passes:
        stage.score_batch([RerankJob("plum", TEXTS)], in_time(600.0))
        stage.score_batch([RerankJob("plum", TEXTS)], Context(Deadline(), 1))
    assert passes == [1, 2, 4, 8, 8, 8, 8, 8, 8, 5] + [8] * 7 + [4]


def test_every_query_gets_its_share_of_the_time(opened, fake_time):
    """The first hit of each query is scored before the second of any."""
    stage = opened(CrossEncoder, "bert")
    context = in_time(6.0, 3)
    with slowed(stage.loaded, 0.2, fake_time.sleep):
        scores = stage.score_batch([RerankJob(query, TEXTS) for query in ("plum", "sky", "sea")], context)
    assert [sum(score is not None for score in own) for own in scores] == [IN_TIME // 3] * 3


def test_nothing_scored_is_a_failure_that_on_error_decides_on(opened, fake_time):
    """If a model does not score one hit in time, its pass ends between two layers, and the query goes on."""
    stage = opened(CrossEncoder, "bert", on_error="skip")
    layers = []
    hook = stage.loaded.network.bert.encoder.layer[-1].register_forward_pre_hook(lambda *_: layers.append(1))
    search = ListedSearch(documents=tuple(TEXTS))
    with slowed(stage.loaded, 0.4, fake_time.sleep), Pipeline([search, stage]) as pipeline:
        result = pipeline.run("plum", timeout=0.2)
    hook.remove()
    assert layers == []
    assert result.status == "degraded"
    assert [hit.id for hit in result] == list(range(60))
    assert result.report("cross_encoder").reason_code == "deadline"
    assert "60 of 60 documents were not scored in the time given (0.2 s)" in result.report("cross_encoder").reason


@pytest.mark.parametrize("mode", ["blocking", "event loop"])
def test_a_partial_result_goes_through_the_pipeline(opened, fake_time, mode):
    """It is cut to top_k, a threshold drops what has no score, and the result is partial."""
    stage = opened(CrossEncoder, "bert", top_k=50, timeout=6.0)
    cut = Truncate(min_score=-1e9, score_of="cross_encoder")
    search = ListedSearch(documents=tuple(TEXTS))
    with slowed(stage.loaded, 0.2, fake_time.sleep), Pipeline([search, stage, cut]) as pipeline:
        result = pipeline.run("plum") if mode == "blocking" else asyncio.run(pipeline.arun("plum"))
    assert result.status == "partial"
    assert result.report("cross_encoder").status == "partial"
    assert result.report("cross_encoder").hits_out == 50
    assert sorted(hit.id for hit in result) == list(range(IN_TIME))


def test_called_alone_it_ranks_what_it_did_not_reach_last(opened, fake_time, caplog):
    """Without a pipeline the unscored documents come last, with None for a score, and the log says how many."""
    stage = opened(CrossEncoder, "bert", timeout=6.0)
    with slowed(stage.loaded, 0.2, fake_time.sleep), caplog.at_level(logging.WARNING):
        for ranked in (stage("plum", TEXTS), asyncio.run(stage.acall("plum", TEXTS))):
            assert sum(one.score is not None for one in ranked) == IN_TIME
            assert [one.index for one in ranked[IN_TIME:]] == list(range(IN_TIME, 60))
    assert caplog.text.count("cross_encoder: 45 of 60 documents were not scored") == 2


# -- others ------------------------------------------------------------------------------------------------------


def test_waiting_for_the_model_ends_with_the_deadline(opened):
    """Other queries in their forward pass hold a query up for no longer than it has time, and it fails alone."""
    stage = opened(CrossEncoder, "bert")
    context = in_time(0.2)
    with stage.loaded.lock:
        stage.score_batch([RerankJob("plum", TEXTS)], context)
    assert isinstance(context.failures[0], DeadlineError)
    assert None not in stage.score_batch([RerankJob("plum", TEXTS)], in_time(600.0))[0]


def test_a_long_batch_lets_others_have_their_turn(opened):
    """A query with a deadline is answered while a batch without one goes on."""
    stage = opened(CrossEncoder, "bert", batch_size=1)
    job = Context(Deadline(), 1)
    with slowed(stage.loaded, 0.03) as passes, ThreadPoolExecutor(1) as pool:
        batch = pool.submit(stage.score_batch, [RerankJob("plum", TEXTS * 100)], job)
        assert passes.first.wait(30)
        scores = stage.score_batch([RerankJob("plum", TEXTS[:2])], in_time(60.0))
        job.cancel()
        with pytest.raises(DeadlineError):
            batch.result(30)
    assert None not in scores[0]
    assert len(passes) < 6000


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
        asyncio.run(cancelled())
        rows = sum(passes)
        assert None not in stage.score("plum", TEXTS[:3])
    assert rows <= 2 * 32  # of 6000
    assert passes[-1] == 3


class ReadyExecutor(Executor):
    """Gives a future that the test completes."""

    def __init__(self) -> None:
        self.future: Future = Future()

    def submit(self, *_):
        """Run nothing."""
        return self.future


def test_work_that_ends_as_its_caller_is_cancelled_logs_nothing():
    """Nobody receives its error, and the event loop does not complain."""
    complaints = []

    async def cancelled() -> None:
        executor = ReadyExecutor()
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, details: complaints.append(details["message"]))
        caller = asyncio.create_task(arun_in_time(lambda _: None, in_time(600.0), executor))
        await asyncio.sleep(0)
        executor.future.set_exception(DeadlineError("late"))
        loop.call_soon(caller.cancel)
        with pytest.raises(asyncio.CancelledError):
            await caller

    asyncio.run(cancelled())
    gc.collect()
    assert complaints == []


def test_a_hundred_queries_at_once_all_end(opened):
    """They are more than the model has threads: each is answered or fails by its deadline, and none runs after."""
    stage = opened(CrossEncoder, "bert", on_error="skip")
    pipeline = Pipeline([ListedSearch(documents=tuple(TEXTS)), stage])

    async def crowd() -> list[SearchResult]:
        return await asyncio.gather(*(pipeline.arun(f"plum {number}", timeout=1.0) for number in range(100)))

    with pipeline, slowed(stage.loaded, 0.02) as passes:
        results = asyncio.run(crowd())
        count = len(passes)
        stage.executor.shutdown(wait=True)
        assert len(passes) <= count + 1
    reports = [result.report("cross_encoder") for result in results]
    assert {report.status for report in reports} <= {"ok", "partial", "skipped"}
    assert any(report.status != "ok" for report in reports)
    assert all(report.reason_code in (None, "deadline") for report in reports)
    assert all(len(result) == 60 for result in results)


# -- memory ------------------------------------------------------------------------------------------------------


def small_memory(rows: int):
    """A hook that makes a device run out of memory above that many rows."""

    def before(module, arguments, options) -> None:
        if len(options["input_ids"]) > rows:
            raise torch.OutOfMemoryError("CUDA out of memory")

    return before


@pytest.mark.parametrize(("kind", "checkpoint"), KINDS)
def test_a_batch_too_large_for_the_memory_is_halved(opened, kind, checkpoint):
    """The scores are those of whole batches, and the report gives the batch size that fits."""
    stage = opened(kind, checkpoint)
    expected = list(stage.score("plum", TEXTS))
    hook = stage.loaded.network.register_forward_pre_hook(small_memory(5), with_kwargs=True)
    context = Context(Deadline(), 1)
    (scores,) = stage.score_batch([RerankJob("plum", TEXTS)], context)
    hook.remove()
    assert scores == pytest.approx(expected, abs=1e-5)
    assert context.details == [{"batch_size": 4}]


def test_a_text_too_large_for_the_memory_is_an_error(opened):
    """If a single text does not fit, the message says what to change."""
    stage = opened(CrossEncoder, "bert")
    stage.loaded.network.register_forward_pre_hook(small_memory(0), with_kwargs=True)
    with pytest.raises(
        StageError, match=r"cpu has too little memory for a text of \d+ tokens; lower max_length"
    ) as caught:
        stage.score("plum", TEXTS[:3])
    assert caught.value.reason_code == "too_large"
