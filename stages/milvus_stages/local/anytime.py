"""Run a local model within a deadline: the best items first, and whatever is done by then counts."""

from __future__ import annotations

import asyncio
import os
import threading
from abc import abstractmethod
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from typing import Final, TypeAlias, TypeVar

from milvus_pipeline import DeadlineError, ReasonCode, StageError
from milvus_pipeline.plugin import Context, Deadline, Reranker, RerankJob, adrive, drive
from milvus_stages.local.tokens import TextTokenizer, Tokens, batches

Item = TypeVar("Item")

_WINDOW: Final = 4  # batches: enough to put texts of similar length together


class TooLittleMemoryError(StageError):
    """The device has too little memory for a forward pass."""

    reason_code: ReasonCode = "too_large"


class Clock:
    """The time that a call has for its work, which ends early if the call is cancelled.

    Args:
        context: the call's.
        deadline: when the work must be done; slightly before the context's deadline by default.
    """

    def __init__(self, context: Context, deadline: Deadline | None = None) -> None:
        self.context = context
        self.deadline = deadline or context.deadline.before()

    def check(self) -> None:
        """Raise DeadlineError if the time is up or the call was cancelled."""
        self.context.check()
        self.deadline.check()

    @contextmanager
    def holding(self, lock: threading.Lock) -> Iterator[None]:
        """Hold the lock of a model that runs one call at a time. Raises DeadlineError if it is not free in time."""
        left = self.deadline.remaining()
        if not lock.acquire(timeout=-1 if left is None else min(left, threading.TIMEOUT_MAX)):
            raise late_error("the model was not free", self.deadline)
        try:
            self.check()
            yield
        finally:
            lock.release()


Work: TypeAlias = Callable[[Clock], None]
"""Work within a deadline, which leaves its outcome where the caller finds it."""

Scores: TypeAlias = list[list[float | None]]
"""For each job the scores of its texts; None for a text that is not scored."""


def late_error(what: str, deadline: Deadline) -> DeadlineError:
    """Return the error that something was not done in time: ``the query was not encoded``."""
    what = f"{what} in the time given ({deadline.budget or 0.0:g} s)"
    return DeadlineError(what, "increase `timeout` or request fewer results")


def run_best_first(
    items: Sequence[Item],
    read: Callable[[Sequence[Item]], Sequence[int]],
    run: Callable[[Sequence[Item]], None],
    batch_size: int,
    clock: Clock,
) -> None:
    """Run items through a model in batches: all of them, or as many of the first ones as there is time for.

    Without a deadline, all items are sorted by length, which is fastest. With one, they are taken in their order and
    sorted within a window only. Windows double, from 1 item to 4 batches: a slow model has the best items done when the
    time is up, a fast one soon runs full batches. What comes out for an item does not depend on its window.

    Args:
        items: best first.
        read: prepares the items of a window; returns their lengths in tokens.
        run: puts a batch through the model and keeps the outcome. Raises TooLittleMemoryError if the batch is too
            large; it is then run in halves, and so are later batches.
        batch_size: largest number of items in a batch.
        clock: the call's; it is checked before each batch.

    Raises:
        DeadlineError: the time is up, or the call was cancelled. What was kept by then counts.
        TooLittleMemoryError: a single item is too large.
    """
    size = batch_size
    start, window = 0, len(items) if clock.deadline.at is None else 1
    while start < len(items):
        clock.check()
        chunk = items[start : start + window]
        for batch in batches(read(chunk), batch_size):
            while batch:
                part = batch[:size]
                clock.check()
                try:
                    run([chunk[position] for position in part])
                except TooLittleMemoryError:
                    if len(part) == 1:
                        raise
                    size = len(part) // 2
                    clock.context.note(batch_size=size)
                else:
                    batch = batch[size:]
        start, window = start + window, min(2 * window, _WINDOW * batch_size)


def run_texts_best_first(
    tokenizer: TextTokenizer,
    texts: Sequence[str],
    limit: int,
    run: Callable[[Mapping[int, Tokens]], None],
    batch_size: int,
    clock: Clock,
) -> None:
    """``run_best_first`` for texts; ``run`` gets the first ``limit`` tokens of each text of a batch by its number."""
    tokens: dict[int, Tokens] = {}

    def read(numbers: Sequence[int]) -> list[int]:
        found = tokenizer.tokens([texts[number] for number in numbers], limit, clock.check)
        tokens.update(zip(numbers, found, strict=True))
        return [len(own.ids) for own in found]

    def run_batch(numbers: Sequence[int]) -> None:
        run({number: tokens[number] for number in numbers})
        for number in numbers:
            del tokens[number]

    run_best_first(range(len(texts)), read, run_batch, batch_size, clock)


class Threads:
    """A thread pool, made when first used, and again in a forked process, which inherits no threads.

    Args:
        size: number of threads, at most.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._made: tuple[int, Executor] | None = None

    def executor(self) -> Executor:
        """The pool of this process; its threads end when it is freed."""
        if self._made is None or self._made[0] != os.getpid():
            self._made = os.getpid(), ThreadPoolExecutor(self._size, thread_name_prefix="local-model")
        return self._made[1]


def run_in_time(work: Work, context: Context) -> None:
    """Run ``work`` until it ends or the time is up.

    Raises:
        DeadlineError: the call was cancelled.
        Exception: any other error of the work.
    """
    try:
        work(Clock(context))
    except DeadlineError:
        if context.cancelled:
            raise


async def arun_in_time(work: Work, context: Context, executor: Executor) -> None:
    """``run_in_time`` in a thread of the executor, which is not waited for when the time is up.

    The thread then ends at its next check of the clock; work for which no thread was free in time is never started.
    """
    part = context.part(range(context.size))
    running = asyncio.wrap_future(executor.submit(copy_context().run, run_in_time, work, part))
    try:
        done, _ = await asyncio.wait({running}, timeout=context.deadline.before().remaining())
    finally:
        if not running.done():
            part.cancel()
            running.cancel()
        elif not running.cancelled():
            running.exception()  # read it: if the caller is cancelled at this moment, asyncio would log it as lost
    for position, error in dict(part.failures).items():  # copied, since the thread may add to it
        context.fail(position, error)
    for ended in done:
        ended.result()


class AnytimeReranker(Reranker):
    """A reranker that runs in this process and keeps what is scored when the time is up."""

    @property
    @abstractmethod
    def executor(self) -> Executor:
        """Threads for calls from event loops."""

    @abstractmethod
    def scoring(self, jobs: Sequence[RerankJob], context: Context) -> Generator[Work, None, Scores]:
        """Yield the work, which may go on in its thread when the time is up; return the scores that are there then."""

    def score_batch(self, jobs: Sequence[RerankJob], context: Context) -> Scores:
        """Score several queries. Those that are not reached in time fail; what was scored of the others is kept.

        Raises:
            DeadlineError: the call was cancelled.
        """
        return drive(self.scoring(jobs, context), lambda work: run_in_time(work, context))

    async def ascore_batch(self, jobs: Sequence[RerankJob], context: Context) -> Scores:
        """``score_batch`` in a thread, for an event loop."""
        return await adrive(self.scoring(jobs, context), lambda work: arun_in_time(work, context, self.executor))
