"""Opening and closing pipelines, sharing stages, threads."""

import asyncio
import threading
import time

import pytest

from milvus_pipeline import Pipeline, StageError
from support.fake_stages.basic import Faulty, ListedSearch, NeedsOpen, Slow, WordOverlap


def words(**fields):
    return Pipeline([ListedSearch(), WordOverlap(**fields)], name="words")


def test_a_context_manager_opens_and_closes_every_stage():
    """`with` and `async with` leave nothing open."""
    search, rerank = ListedSearch(), WordOverlap()
    with Pipeline([search, rerank]):
        assert search.is_open and rerank.is_open
    assert not search.is_open and not rerank.is_open

    async def run():
        async with Pipeline([search]) as pipeline:
            assert search.is_open
            return await pipeline.arun("red")

    assert len(asyncio.run(run()).hits) == 4
    assert not search.is_open


def test_two_pipelines_share_a_stage():
    """A stage stays open until the last of its pipelines closes; a run after that opens it again."""
    search = ListedSearch()
    one, two = Pipeline([search]), Pipeline([search, WordOverlap()])
    one.run("a")
    two.run("a")
    one.close()
    one.close()
    assert search.is_open
    assert two.run("a").status == "ok"
    two.close()
    assert not search.is_open
    assert two.run("a").status == "ok"  # a run opens it again
    two.close()


def test_closing_waits_for_the_runs_in_flight():
    """A query that runs while another thread closes the pipeline gets its result; then everything is closed."""
    search, slow = ListedSearch(), Slow(seconds=0.2)
    pipeline = Pipeline([search, slow, NeedsOpen()])
    answers = []
    thread = threading.Thread(target=lambda: answers.append(pipeline.run("red")))
    thread.start()
    while not slow.is_open:
        time.sleep(0.005)
    pipeline.close()
    thread.join()
    assert answers[0].status == "ok"
    assert not any(stage.is_open for stage in pipeline.stages)


def test_closing_waits_for_the_tasks_in_flight():
    """The same on an event loop: no task of a closed pipeline fails or is cancelled."""
    pipeline = Pipeline([ListedSearch(), Slow(seconds=0.1), NeedsOpen()])

    async def run():
        await pipeline.aopen()
        tasks = [asyncio.create_task(pipeline.arun("red")) for _ in range(20)]
        await asyncio.sleep(0.02)
        await pipeline.aclose()
        return await asyncio.gather(*tasks)

    assert [result.status for result in asyncio.run(run())] == ["ok"] * 20
    assert not any(stage.is_open for stage in pipeline.stages)


def test_a_call_that_is_cancelled_while_it_opens_holds_nothing():
    """Opening goes on in its thread after a cancellation; closing then leaves no stage open."""
    slow = Slow(setup_seconds=0.1)
    pipeline = Pipeline([ListedSearch(), slow])

    async def run():
        task = asyncio.create_task(pipeline.arun("red"))
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await pipeline.aopen()
        await pipeline.aclose()

    asyncio.run(run())
    assert not any(stage.is_open for stage in pipeline.stages)


def test_a_stage_that_cannot_close_does_not_keep_the_others_open():
    """Every stage is closed, then the error is raised, with the stage's name."""
    first, last = ListedSearch(), WordOverlap()
    pipeline = Pipeline([first, Faulty(how="teardown"), last], name="papers").open()
    with pytest.raises(StageError, match=r"papers: stages\[1\] \(faulty\): cannot be closed: OSError: stuck"):
        pipeline.close()
    assert not any(stage.is_open for stage in pipeline.stages)


def test_an_error_in_closing_does_not_hide_the_error_in_opening():
    """The error of opening is raised, not that of closing."""
    stages = [ListedSearch(), Faulty(how="teardown"), Faulty(how="setup", name="broken")]
    with pytest.raises(StageError, match=r"stages\[2\] \(broken\): cannot be opened: OSError: no such device"):
        Pipeline(stages).open()
    assert not any(stage.is_open for stage in stages)


def test_an_interrupted_opening_leaves_nothing_open():
    """Ctrl-C while a model loads passes through, after the stages before it are closed."""
    search = ListedSearch()
    with pytest.raises(KeyboardInterrupt):
        Pipeline([search, Faulty(how="interrupt")]).open()
    assert not search.is_open


def test_threads_that_call_a_closed_reranker_open_it_once():
    """Six threads open the pipeline once, so that one close is enough."""
    reranker = WordOverlap()
    threads = [threading.Thread(target=reranker, args=("red", ["red"])) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    reranker.close()
    assert not reranker.is_open


def test_threads_share_a_pipeline():
    """Each of eight threads gets its own results from one pipeline."""
    pipeline = words(top_k=1)
    asked = ["red plum", "blue", "green", "apple"] * 50
    answers: list[tuple[str, int]] = []

    def ask(part):
        answers.extend((query, pipeline.run(query).hits[0].id) for query in part)

    threads = [threading.Thread(target=ask, args=(asked[start::8],)) for start in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 200
    assert set(answers) == {("red plum", 1), ("blue", 2), ("green", 1), ("apple", 0)}


def test_a_stage_is_found_by_its_name():
    """`stage` returns the stage, or lists those there are."""
    pipeline = words()
    assert pipeline.stage("word_overlap") is pipeline.stages[1]
    with pytest.raises(KeyError, match="has no stage 'bge'"):
        pipeline.stage("bge")
