"""Work that nobody waits for ends: the thread of a stage checks its context."""

import asyncio
import threading

import pytest

from milvus_pipeline import DeadlineError, Pipeline
from milvus_pipeline.plugin import Context, Deadline, Reranker
from support.fake_stages.basic import DOCUMENTS, ListedSearch

WAIT = 20.0


class Patient(Reranker):
    """A reranker that works until it is cancelled."""

    type = "patient"

    def setup(self):
        """What the test observes."""
        self.__dict__["began"], self.__dict__["ended"] = threading.Event(), threading.Event()

    def score_batch(self, jobs, context):
        """Work until the context is cancelled."""
        self.began.set()
        try:
            while True:
                context.check()
        finally:
            self.ended.set()


async def begun(stage):
    """Wait until the stage's thread works."""
    assert await asyncio.to_thread(stage.began.wait, WAIT)


@pytest.mark.parametrize("alone", [False, True])
def test_cancelling_a_call_ends_the_work_of_its_thread(alone):
    """A cancelled `arun` or `acall` cancels the stage's context, and the part of it that a reranker works with."""

    async def run():
        stage = Patient()
        pipeline = Pipeline([ListedSearch(), stage])
        async with stage if alone else pipeline:
            call = stage.acall("red", list(DOCUMENTS)) if alone else pipeline.arun("red")
            task = asyncio.create_task(call)
            await begun(stage)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await asyncio.to_thread(stage.ended.wait, WAIT)

    asyncio.run(run())


def test_a_call_that_is_given_up_at_its_deadline_ends_the_work_of_its_thread():
    """A stage's own timeout ends its work, even if the query goes on."""

    async def run():
        stage = Patient(timeout=0.05, on_error="skip")
        async with Pipeline([ListedSearch(), stage]) as pipeline:
            assert (await pipeline.arun("red")).status == "degraded"
            assert await asyncio.to_thread(stage.ended.wait, WAIT)

    asyncio.run(run())


def test_a_context_is_checked_by_deadline_and_cancellation():
    """Deadline and cancellation raise DeadlineError; a context's parts are cancelled with it, but not the reverse."""
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
    """Partial results get the positions of the batch; the first reason counts."""
    whole = Context(Deadline(), 3)
    part = whole.part([2, 0])
    part.partial(0, "half of it", "deadline")
    part.partial(0, "less of it", "error")
    whole.merge(part, [2, 0])
    assert whole.partials == [None, None, ("half of it", "deadline")]


def test_a_wait_is_ended_when_the_call_is_given_up():
    """A cancellation calls the callbacks whose blocks run, also those of parts of the context, and no others."""
    whole, calls = Context(Deadline(), 2), []
    part = whole.part([1])
    with part.on_cancel(lambda: calls.append("part")):
        pass
    with part.on_cancel(lambda: calls.append("part")), whole.on_cancel(lambda: calls.append("whole")):
        assert calls == []
        whole.cancel()
        assert calls == ["part", "whole"]
    whole.cancel()
    assert calls == ["part", "whole"]
    with part.on_cancel(lambda: calls.append("late")):
        assert calls[2:] == ["late"]
