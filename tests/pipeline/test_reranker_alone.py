"""Stages without a pipeline: as context managers, and rerankers called on plain texts."""

import asyncio
import logging
import threading
import time

import pytest

from milvus_pipeline import DeadlineError, QueryError, RerankResult, StageError
from milvus_pipeline.plugin import Reranker
from support.fake_stages.basic import ListedSearch
from support.fake_stages.paid import Paid

TEXTS = ["blue sky", "red apple", "red red plum"]


class Watched(Reranker):
    """Scores by length; warns, fails or takes its time as the test asks."""

    type = "watched"
    hang: float = 0.0
    wrong: str = ""

    def score(self, query, texts):
        """The lengths."""
        return [float(len(text)) for text in texts]

    def score_batch(self, jobs, context):
        """With a warning for its only query."""
        context.warn("a figure is off", 0)
        context.warn("all are reported")
        if self.wrong == "raise":
            raise StageError("broken")
        if self.wrong == "fail":
            context.fail(0, StageError("refused"))
        if self.wrong == "late":
            raise TimeoutError("of the socket")
        return [self.score(job.query, job.texts) for job in jobs] * (2 if self.wrong == "twice" else 1)

    async def ascore_batch(self, jobs, context):
        """After a while."""
        await asyncio.sleep(self.hang)
        return self.score_batch(jobs, context)


def called(reranker, way, *arguments):
    """The result of a call, blocking or on an event loop."""

    async def main():
        async with reranker as entered:
            assert entered is reranker
            return await reranker.acall(*arguments)

    if way == "async":
        return asyncio.run(main())
    with reranker as entered:
        assert entered is reranker
        return reranker(*arguments)


both_ways = pytest.mark.parametrize("way", ["sync", "async"])


def test_a_block_that_fails_closes_its_stage():
    """The context managers, blocking and async, do not swallow a failure."""
    stage = ListedSearch()

    async def main():
        async with stage as entered:
            assert entered.is_open
            raise KeyError

    with pytest.raises(KeyError):
        asyncio.run(main())
    assert not stage.is_open
    with pytest.raises(KeyError), stage as entered:
        assert entered.is_open
        raise KeyError
    assert not stage.is_open


@both_ways
def test_a_call_ranks_plain_texts(way):
    """A blocking and an awaited call give the same, cut by the call's or the stage's top_k."""
    whole = [RerankResult(TEXTS[2], 12.0, 2), RerankResult(TEXTS[1], 9.0, 1), RerankResult(TEXTS[0], 8.0, 0)]
    assert called(Watched(), way, "red", TEXTS) == whole
    assert called(Watched(), way, "red", iter(TEXTS), 2) == whole[:2]
    assert called(Watched(top_k=1), way, "red", TEXTS) == whole[:1]
    assert called(Watched(top_k=1), way, "red", TEXTS, 2) == whole[:2]
    assert called(Watched(), way, "red", []) == []


@both_ways
def test_a_call_refuses_what_it_cannot_read(way):
    """Wrong arguments are refused, blocking and awaited."""
    for arguments in (("", TEXTS), ("red", "blue sky"), ("red", [1]), ("red", TEXTS, 0), ("red", TEXTS, True)):
        with pytest.raises(QueryError):
            called(Watched(), way, *arguments)


def test_an_awaited_call_opens_the_stage_once(monkeypatch):
    """Calls that begin at the same time open the stage once; it stays open."""
    monkeypatch.setenv("PAID_API_KEY", "a-key")
    stage = Paid()

    async def main():
        rankings = await asyncio.gather(*(stage.acall("red", TEXTS, 1) for _ in range(8)))
        assert [ranking[0].index for ranking in rankings] == [1] * 8

    asyncio.run(main())
    assert stage.is_open
    stage.close()
    assert not stage.is_open


def test_an_awaited_call_does_not_block_its_loop():
    """An awaited call blocks no event loop, even if the reranker is blocking."""
    entered, leave = threading.Event(), threading.Event()

    class Blocking(Watched):
        ascore_batch = Reranker.ascore_batch

        def score_batch(self, jobs, context):
            entered.set()
            assert leave.wait(30)
            return super().score_batch(jobs, context)

    async def main():
        task = asyncio.create_task(Blocking().acall("red", TEXTS))
        assert await asyncio.to_thread(entered.wait, 30)
        leave.set()
        return await task

    assert [result.index for result in asyncio.run(main())] == [2, 1, 0]


@both_ways
@pytest.mark.parametrize(
    ("wrong", "says"),
    [("raise", "broken"), ("fail", "refused"), ("twice", "expected 1 lists of scores, got 2")],
)
def test_the_failure_of_a_call_is_raised(way, wrong, says):
    """The failure of a call is raised, whether the batch or the query failed."""
    with pytest.raises(StageError, match=says):
        called(Watched(wrong=wrong), way, "red", TEXTS)


@both_ways
@pytest.mark.parametrize("wrong", ["", "raise", "fail"])
def test_the_warnings_of_a_call_are_logged(way, wrong, caplog):
    """Warnings are logged with the stage's name, even if the call fails, as there is no report."""
    with caplog.at_level(logging.WARNING):
        try:
            called(Watched(name="mine", wrong=wrong), way, "red", TEXTS)
        except StageError:
            assert wrong
    logged = [(record.name, record.getMessage()) for record in caplog.records]
    assert logged == [("milvus_pipeline.reranker", f"mine: {what}") for what in ("a figure is off", "all are reported")]


def test_the_time_of_an_awaited_call_is_bounded():
    """An awaited call ends at the stage's timeout; another TimeoutError is raised as it is."""
    began = time.monotonic()
    with pytest.raises(DeadlineError, match=r"timed out after 0\.05 s; increase `timeout`"):
        called(Watched(hang=30.0, timeout=0.05), "async", "red", TEXTS)
    assert time.monotonic() - began < 20
    for timeout in (None, 60.0):
        with pytest.raises(TimeoutError, match="of the socket") as caught:
            called(Watched(wrong="late", timeout=timeout), "async", "red", TEXTS)
        assert not isinstance(caught.value, DeadlineError)


def test_a_reranker_defines_one_of_two_methods():
    """`score` and `score_batch` are each defined by the other; a reranker with neither fails."""

    class Batched(Reranker):
        def score_batch(self, jobs, context):
            return [[float(len(text)) for text in job.texts] for job in jobs]

    assert Batched().score("red", TEXTS) == [8.0, 9.0, 12.0]
    with pytest.raises(NotImplementedError, match=r"must define score\(\) or score_batch\(\)"):
        Reranker()("red", TEXTS)
