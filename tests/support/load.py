"""Many queries at once from threads and from an event loop, as a backend's requests come, while something breaks.

    with under_load(pipeline, questions) as ask:
        outcomes = ask(timeout=3, meanwhile=server.kill)     # every question once from a thread, once from a task
        codes = judged(outcomes, {"unavailable", "deadline"})     # Counter(ok=40, unavailable=160)

A question is a query with the keys of its right hits. ``meanwhile`` is called when a tenth of them is answered. At the
end of the block the pipeline is closed, on the event loop, whose tasks must have ended by then.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from milvus_pipeline import Pipeline, PipelineError, Query, SearchResult
from support.process_leaks import other_tasks

T = TypeVar("T")

SLACK = 2.0
"""Seconds that an answer may come after its deadline on a busy machine. What waits without end comes later still."""


@dataclass(frozen=True)
class Question:
    """A query, and the keys of the hits that are right: of a whole result, and of a degraded one if that differs."""

    query: Query
    keys: Sequence[int]
    degraded: Sequence[int] | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of a question: a result or an error, after so many seconds of the ``timeout`` that it was given."""

    question: Question
    way: str
    timeout: float
    seconds: float
    result: SearchResult | None
    error: BaseException | None

    @property
    def right(self) -> bool:
        """Whether the hits are the ones that they should be."""
        if self.result is None:
            return False
        asked = self.question
        whole = asked.degraded is None or self.result.status == "ok"
        return [hit.id for hit in self.result] == list(asked.keys if whole else asked.degraded or ())

    @property
    def code(self) -> str:
        """The reason of a result that is not whole, or of an error; "ok"; "wrong" for hits that are not right."""
        if isinstance(self.error, PipelineError):
            return self.error.reason_code
        if self.error is not None:
            return type(self.error).__name__
        assert self.result is not None
        if not self.right:
            return "wrong"
        return self.result.reasons[0].code if self.result.reasons else "ok"


def asked(pipeline: Pipeline, question: Question, timeout: float) -> Outcome:
    """The outcome of a question that this thread asks."""
    begun, result, error = time.monotonic(), None, None
    try:
        result = pipeline.run(question.query, timeout=timeout)
    except BaseException as raised:
        error = raised
    return Outcome(question, "thread", timeout, time.monotonic() - begun, result, error)


async def asked_by_task(pipeline: Pipeline, question: Question, timeout: float) -> Outcome:
    """The outcome of a question that this task asks."""
    begun, result, error = time.monotonic(), None, None
    try:
        result = await pipeline.arun(question.query, timeout=timeout)
    except BaseException as raised:
        error = raised
    return Outcome(question, "task", timeout, time.monotonic() - begun, result, error)


class Load:
    """Asks every question at once from as many threads, and from as many tasks; see the module.

    Args:
        pipeline: open.
        questions: to ask.
        loop: one that runs in another thread.
    """

    def __init__(self, pipeline: Pipeline, questions: Sequence[Question], loop: asyncio.AbstractEventLoop) -> None:
        self.pipeline = pipeline
        self.questions = questions
        self._loop = loop

    def __call__(
        self, timeout: float = 3.0, times: int = 1, meanwhile: Callable[[], Any] | None = None
    ) -> list[Outcome]:
        """The outcomes of all questions, each asked ``times`` times in a row in both ways.

        Raises:
            AssertionError: an answer has not come long after its deadline.
        """
        outcomes: list[Outcome] = []
        started = threading.Event()

        def put(outcome: Outcome) -> None:
            outcomes.append(outcome)
            if len(outcomes) * 10 >= total:
                started.set()

        def ask_in_thread(question: Question) -> None:
            for _ in range(times):
                put(asked(self.pipeline, question, timeout))

        async def ask_in_task(question: Question) -> None:
            for _ in range(times):
                put(await asked_by_task(self.pipeline, question, timeout))

        async def ask_all() -> None:
            await asyncio.gather(*map(ask_in_task, self.questions))

        total = 2 * times * len(self.questions)
        threads = [threading.Thread(target=ask_in_thread, args=(each,), daemon=True) for each in self.questions]
        for thread in threads:
            thread.start()
        tasks: Future[None] = asyncio.run_coroutine_threadsafe(ask_all(), self._loop)
        if meanwhile is not None:
            started.wait(timeout + SLACK)
            meanwhile()
        ended = time.monotonic() + times * (timeout + SLACK) + SLACK
        while time.monotonic() < ended and len(outcomes) < total:
            time.sleep(0.01)
        ways = Counter(outcome.way for outcome in outcomes)
        assert len(outcomes) == total, f"{total - len(outcomes)} of {total} have no answer after all that time: {ways}"
        tasks.result(SLACK)
        for thread in threads:
            thread.join()
        return outcomes

    def one(self, timeout: float = 3.0) -> Outcome:
        """The outcome of the first question, from this thread."""
        return asked(self.pipeline, self.questions[0], timeout)

    def until_right(self, seconds: float, codes: set[str]) -> Counter[str]:
        """Ask until the answer is right; the codes of those before that. Each must be one of ``codes``.

        Raises:
            AssertionError: it is not, after so many seconds, or another code came.
        """
        met: Counter[str] = Counter()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            outcome = self.one()
            if outcome.code == "ok":
                return met
            assert outcome.code in codes, told(outcome)
            met[outcome.code] += 1
            time.sleep(0.1)
        raise AssertionError(f"no right answer within {seconds:g} s: {met}, at last {told(outcome)}")


@contextmanager
def under_load(pipeline: Pipeline, questions: Sequence[Question]) -> Iterator[Load]:
    """A ``Load`` with the pipeline opened and an event loop that runs in a thread of its own."""
    with loop_in_thread("storm") as loop, pipeline:  # which ends what a failed assertion leaves open
        yield Load(pipeline, questions, loop)
        done_on(loop, pipeline.aclose())
        left = done_on(loop, other_tasks())
        assert not left, f"tasks that are left: {left}"


@contextmanager
def loop_in_thread(name: str) -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop that runs in a thread of its own until the block ends; its tasks are waited for then."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name=name)
    thread.start()
    try:
        yield loop
    finally:
        done_on(loop, other_tasks())  # what an assertion that failed left for the loop to close
        done_on(loop, loop.shutdown_default_executor())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def done_on(loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, T]) -> T:
    """What the coroutine returns, once it is done on a loop that runs in another thread."""
    return asyncio.run_coroutine_threadsafe(coroutine, loop).result(60)


def judged(outcomes: Sequence[Outcome], codes: set[str]) -> Counter[str]:
    """How many outcomes have which code.

    Raises:
        AssertionError: a code is neither "ok" nor one of these, or an answer came long after its deadline.
    """
    for outcome in outcomes:
        assert outcome.code in {"ok", *codes}, told(outcome)
        assert outcome.seconds < outcome.timeout + SLACK, f"after {outcome.seconds:.1f} s: {told(outcome)}"
    return Counter(outcome.code for outcome in outcomes)


def told(outcome: Outcome) -> str:
    """An outcome for a message."""
    said = outcome.error if outcome.error is not None else outcome.result and [hit.id for hit in outcome.result]
    return f"{outcome.code} in a {outcome.way} after {outcome.seconds:.2f} s: {said!r}, not {outcome.question.keys}"
