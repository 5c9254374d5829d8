"""Work that nobody waits for any more ends: a thread of a stage asks, and is told."""

import asyncio
import threading

import pytest

from milvus_pipeline import DeadlineError, Pipeline
from milvus_pipeline.plugin import Context, Deadline, Reranker
from support.fake_stages.basic import DOCUMENTS, ListedSearch

WAIT = 20.0


class Patient(Reranker):
    """Scores for as long as anybody waits."""

    type = "patient"

    def setup(self):
        """What the test looks at."""
        self.__dict__["began"], self.__dict__["ended"] = threading.Event(), threading.Event()

    def score(self, query, texts):
        """No score of its own."""
        raise NotImplementedError

    def score_batch(self, jobs, context):
        """Goes on until the context says that there is no sense in it."""
        self.began.set()
        try:
            while True:
                context.check()
        finally:
            self.ended.set()


async def begun(stage):
    """Wait until the stage's thread works."""
    assert await asyncio.to_thread(stage.began.wait, WAIT)


def test_cancelling_a_call_ends_the_work_of_its_thread():
    """The stage's context says that the call is given up, in the part of it that a reranker works with, too."""

    async def run():
        stage = Patient()
        async with Pipeline([ListedSearch(), stage]) as pipeline:
            task = asyncio.create_task(pipeline.arun("red"))
            await begun(stage)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await asyncio.to_thread(stage.ended.wait, WAIT)

    asyncio.run(run())


def test_a_call_that_is_given_up_at_its_deadline_ends_the_work_of_its_thread():
    """A stage's own timeout is enough for that, though the query goes on."""

    async def run():
        stage = Patient(timeout=0.05, on_error="skip")
        async with Pipeline([ListedSearch(), stage]) as pipeline:
            assert (await pipeline.arun("red")).status == "degraded"
            assert await asyncio.to_thread(stage.ended.wait, WAIT)

    asyncio.run(run())


def test_a_reranker_alone_is_cancelled_too():
    """`acall` ends its waits and the work of its thread."""

    async def run():
        async with Patient() as stage:
            task = asyncio.create_task(stage.acall("red", list(DOCUMENTS)))
            await begun(stage)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await asyncio.to_thread(stage.ended.wait, WAIT)

    asyncio.run(run())


def test_a_context_is_checked_by_deadline_and_cancellation():
    """Both are told as a DeadlineError; the parts of a context are given up with it, and not the other way round."""
    Context(Deadline(), 1).check()
    with pytest.raises(DeadlineError, match="timed out"):
        Context(Deadline.after(-1), 1).check()
    whole = Context(Deadline(), 2)
    part = whole.part([1])
    inner = part.part([0])
    inner.cancel()
    assert (whole.cancelled, part.cancelled, inner.cancelled) == (False, False, True)
    whole.cancel()
    assert part.cancelled
    with pytest.raises(DeadlineError, match="was cancelled"):
        part.check()


def test_what_a_part_says_is_the_wholes():
    """Partial results are brought back to the positions of the batch; the first reason counts."""
    whole = Context(Deadline(), 3)
    part = whole.part([2, 0])
    part.partial(0, "half of it", "deadline")
    part.partial(0, "less of it", "error")
    whole.merge(part, [2, 0])
    assert whole.partials == [None, None, ("half of it", "deadline")]


def test_a_wait_is_ended_when_the_call_is_given_up():
    """Who waits is told by the one who cancels, also where he has a part of the context; not before, and not after."""
    whole, told = Context(Deadline(), 2), []
    part = whole.part([1])
    with part.on_cancel(lambda: told.append("part")):
        pass
    with part.on_cancel(lambda: told.append("part")), whole.on_cancel(lambda: told.append("whole")):
        assert told == []
        whole.cancel()
        assert told == ["part", "whole"]
    whole.cancel()
    assert told == ["part", "whole"]
    with part.on_cancel(lambda: told.append("late")):
        assert told[2:] == ["late"]
