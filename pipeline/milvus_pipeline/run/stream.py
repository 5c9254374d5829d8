"""Any number of batches through the stages of a pipeline, with each stage working on another batch.

A stage takes the batches in their order, one at a time, so that the results do not depend on how they overlap: each
batch goes through the same loop as in ``run_batch``, some of the stages at a time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass
from itertools import pairwise
from queue import Empty, SimpleQueue
from typing import Final, TypeAlias, cast

from milvus_pipeline.context import Context, Deadline
from milvus_pipeline.driver import drive
from milvus_pipeline.records import Query, SearchResult
from milvus_pipeline.run.lifecycle import PlacedStage
from milvus_pipeline.run.loop import StageCall, initial_results, process, run_stages, unwrap

Batches: TypeAlias = Iterator[Sequence[str | Query]]
ResultStream: TypeAlias = Generator[list[SearchResult], None, None]

_INTERRUPT_SECONDS: Final = 2.0  # for calls to end after Ctrl-C
_NOTICE_SECONDS: Final = 0.2


def stream(
    stages: Sequence[PlacedStage], batches: Batches, seconds: float | None, *, return_errors: bool
) -> ResultStream:
    """Yield the results of one batch after another; see ``Pipeline.run_batches``.

    Args:
        stages: all of the pipeline's, open.
        batches: read in the caller's thread, a little ahead of the results.
        seconds: that each batch may take, without its waits for the batches before it; None for no limit.
        return_errors: whether failed queries have results, too.
    """
    segments = _split(stages)
    if len(segments) == 1:
        for batch in batches:
            loop = run_stages(stages, initial_results(batch), Deadline.after(seconds))
            yield unwrap(drive(loop, process), return_errors=return_errors)
        return
    queues: list[_Queue] = [SimpleQueue() for _ in range(len(segments) + 1)]
    workers = [_Worker(own, seconds, *ends) for own, ends in zip(segments, pairwise(queues), strict=True)]
    patience: float | None = None
    unread: Exception | None = None
    more, running = True, 0
    try:
        for worker in workers:
            worker.thread.start()
        while True:
            # One batch in each segment, and one that waits for the first: so the queues need no bounds.
            while more and running <= len(workers):
                try:
                    queues[0].put(_Batch(initial_results(next(batches)), seconds))
                    running += 1
                except StopIteration:
                    more = False
                except Exception as error:  # raised after the batches that were read before it
                    more, unread = False, error
            if not running:
                break
            done = _next(queues[-1])
            running -= 1
            if done.error is not None:
                raise done.error
            yield unwrap(done.results, return_errors=return_errors)
        if unread is not None:
            raise unread
    except KeyboardInterrupt:
        patience = _INTERRUPT_SECONDS
        raise
    finally:
        _end(workers, patience)


def _next(finished: _Queue) -> _Batch:
    """The next finished batch. A Ctrl-C in the instant before a wait is seen only after it, so no wait is long."""
    while True:
        with suppress(Empty):
            return cast("_Batch", finished.get(timeout=_NOTICE_SECONDS))  # only workers are sent None


def _end(workers: Sequence[_Worker], patience: float | None) -> None:
    """Cancel the calls that are running, and wait for their end, for at most ``patience`` seconds; None: no limit.

    A call that ignores the cancellation is then left to its thread, which begins no other stage.
    """
    for worker in workers:
        worker.cancel()
    deadline = Deadline.after(patience)
    for worker in workers:
        if worker.thread.ident is not None:
            worker.thread.join(deadline.remaining())


def _split(stages: Sequence[PlacedStage]) -> list[list[PlacedStage]]:
    """Split the stages into segments that work at the same time. An instant stage joins the stage before it."""
    segments: list[list[PlacedStage]] = []
    for placed in stages:
        if segments and (placed.stage.instant or all(other.stage.instant for other in segments[-1])):
            segments[-1].append(placed)
        else:
            segments.append([placed])
    return segments


@dataclass(slots=True)
class _Batch:
    """A batch on its way.

    Args:
        results: after the stages so far.
        left: seconds of its time that the stages have not used; None for no limit.
        error: what ended it, if anything did.
    """

    results: list[SearchResult]
    left: float | None
    error: BaseException | None = None


_Queue: TypeAlias = "SimpleQueue[_Batch | None]"  # None ends the thread that takes it


class _Worker:
    """A thread that takes one batch after another through some of the stages, with a copy of the caller's context.

    Args:
        stages: one that takes time, and the instant ones behind it.
        seconds: that a batch may take in all segments.
        waiting: batches to come.
        done: the finished batches, in the order in which they came.
    """

    def __init__(self, stages: Sequence[PlacedStage], seconds: float | None, waiting: _Queue, done: _Queue) -> None:
        self._stages = stages
        self._seconds = seconds
        self._waiting = waiting
        self._done = done
        self._lock = threading.Lock()
        self._context: Context | None = None
        self._cancelled = False
        # A daemon: after Ctrl-C the process must end without waiting for a reply.
        self.thread = threading.Thread(
            target=copy_context().run, args=(self._run,), name=f"{stages[0].stage.name} of a stream", daemon=True
        )

    def cancel(self) -> None:
        """Cancel the call that is running, and let no other begin."""
        with self._lock:
            self._cancelled = True
            if self._context is not None:
                self._context.cancel()
        self._waiting.put(None)

    def _run(self) -> None:
        while (batch := self._waiting.get()) is not None:
            if batch.error is None:
                self._work(batch)
            self._done.put(batch)
            del batch  # its results are the caller's alone while this waits for the next one

    def _work(self, batch: _Batch) -> None:
        deadline = Deadline() if batch.left is None else Deadline(time.monotonic() + batch.left, self._seconds)
        try:
            batch.results = drive(run_stages(self._stages, batch.results, deadline), self._process)
        except BaseException as error:  # raised in the caller's thread, in its turn
            batch.error = error
        batch.left = deadline.remaining()

    def _process(self, call: StageCall) -> Sequence[SearchResult]:
        with self._lock:
            if self._cancelled:
                raise _CancelledError
            self._context = call.context
        try:
            return process(call)
        finally:
            self._context = None


class _CancelledError(BaseException):
    """Nobody waits for the batch. Not an Exception, which would be a failure of the stage and call its fallback."""
