"""Many concurrent queries from threads and from an event loop, like the requests of a backend, while something breaks.

    with under_load(pipeline, questions) as ask:
        outcomes = ask(timeout=3, meanwhile=server.kill)     # each question from a thread and from a task
        codes = count_codes(outcomes, {"unavailable", "deadline"})     # Counter(ok=40, unavailable=160)

A question is a query with the keys of its correct hits. ``meanwhile`` is called when a tenth of the questions is
answered. At the end of the block the pipeline is closed on the event loop, whose tasks must have ended by then.
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
"""Seconds by which an answer may be late on a busy machine. A call without a bound is later still."""


@dataclass(frozen=True)
class Question:
    """A query with the keys of its correct hits, and of the correct hits of a degraded result if they differ."""

    query: Query
    keys: Sequence[int]
    degraded: Sequence[int] | None = None


@dataclass(frozen=True)
class Outcome:
    """A question's result or error, the seconds that it took, and the ``timeout`` that it had."""

    question: Question
    way: str
    timeout: float
    seconds: float
    result: SearchResult | None
    error: BaseException | None

    @property
    def right(self) -> bool:
        """Whether the hits are the expected ones."""
        if self.result is None:
            return False
        asked = self.question
        whole = asked.degraded is None or self.result.status == "ok"
        return [hit.id for hit in self.result] == list(asked.keys if whole else asked.degraded or ())

    @property
    def code(self) -> str:
        """The reason code of an incomplete result or an error; "ok"; or "wrong" if the hits are not as expected."""
        if isinstance(self.error, PipelineError):
            return self.error.reason_code
        if self.error is not None:
            return type(self.error).__name__
        assert self.result is not None
        if not self.right:
            return "wrong"
        return self.result.reasons[0].code if self.result.reasons else "ok"


def ask(pipeline: Pipeline, question: Question, timeout: float) -> Outcome:
    """Run a question in this thread."""
    begun, result, error = time.monotonic(), None, None
    try:
        result = pipeline.run(question.query, timeout=timeout)
    except BaseException as raised:
        error = raised
    return Outcome(question, "thread", timeout, time.monotonic() - begun, result, error)


async def ask_async(pipeline: Pipeline, question: Question, timeout: float) -> Outcome:
    """Run a question in this task."""
    begun, result, error = time.monotonic(), None, None
    try:
        result = await pipeline.arun(question.query, timeout=timeout)
    except BaseException as raised:
        error = raised
    return Outcome(question, "task", timeout, time.monotonic() - begun, result, error)


class Load:
    """Asks all questions at once, each from its own thread and from its own task; see the module.

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
        """Ask all questions, each ``times`` times in a row in both ways, and return the outcomes.

        Raises:
            AssertionError: an answer is still missing long after its deadline.
        """
        outcomes: list[Outcome] = []
        started = threading.Event()

        def put(outcome: Outcome) -> None:
            outcomes.append(outcome)
            if len(outcomes) * 10 >= total:
                started.set()

        def ask_in_thread(question: Question) -> None:
            for _ in range(times):
                put(ask(self.pipeline, question, timeout))

        async def ask_in_task(question: Question) -> None:
            for _ in range(times):
                put(await ask_async(self.pipeline, question, timeout))

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
        assert len(outcomes) == total, f"{total - len(outcomes)} of {total} are not answered: {ways}"
        tasks.result(SLACK)
        for thread in threads:
            thread.join()
        return outcomes

    def one(self, timeout: float = 3.0) -> Outcome:
        """Ask the first question from this thread."""
        return ask(self.pipeline, self.questions[0], timeout)

    def until_right(self, seconds: float, codes: set[str]) -> Counter[str]:
        """Ask until an answer is correct, and count the codes of those before, which must be in ``codes``.

        Raises:
            AssertionError: no answer was correct within ``seconds``, or one had another code.
        """
        met: Counter[str] = Counter()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            outcome = self.one()
            if outcome.code == "ok":
                return met
            assert outcome.code in codes, outcome_text(outcome)
            met[outcome.code] += 1
            time.sleep(0.1)
        raise AssertionError(f"no correct answer within {seconds:g} s: {met}, at last {outcome_text(outcome)}")


@contextmanager
def under_load(pipeline: Pipeline, questions: Sequence[Question]) -> Iterator[Load]:
    """Yield a ``Load`` on the pipeline, which is opened, with an event loop in another thread."""
    with loop_in_thread("load") as loop, pipeline:  # closed here too, in case an assertion fails
        yield Load(pipeline, questions, loop)
        run_on(loop, pipeline.aclose())
        left = run_on(loop, other_tasks())
        assert not left, f"tasks left: {left}"


@contextmanager
def loop_in_thread(name: str) -> Iterator[asyncio.AbstractEventLoop]:
    """Run an event loop in another thread until the block ends; its tasks may finish then."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name=name)
    thread.start()
    try:
        yield loop
    finally:
        run_on(loop, other_tasks())  # tasks that a failed assertion left behind
        run_on(loop, loop.shutdown_default_executor())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def run_on(loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on a loop in another thread, and return its result."""
    return asyncio.run_coroutine_threadsafe(coroutine, loop).result(60)


def count_codes(outcomes: Sequence[Outcome], codes: set[str]) -> Counter[str]:
    """Count the outcomes by code.

    Raises:
        AssertionError: a code is neither "ok" nor in ``codes``, or an answer was long after its deadline.
    """
    for outcome in outcomes:
        assert outcome.code in {"ok", *codes}, outcome_text(outcome)
        assert outcome.seconds < outcome.timeout + SLACK, f"after {outcome.seconds:.1f} s: {outcome_text(outcome)}"
    return Counter(outcome.code for outcome in outcomes)


def outcome_text(outcome: Outcome) -> str:
    """Return an outcome as text for a message."""
    found = outcome.error if outcome.error is not None else outcome.result and [hit.id for hit in outcome.result]
    return f"{outcome.code} in a {outcome.way} after {outcome.seconds:.2f} s: {found!r}, not {outcome.question.keys}"
