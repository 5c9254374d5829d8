"""Any number of batches through the stages of a pipeline, with each stage working on another batch.

A stage takes the batches in their order, one at a time, so that the results do not depend on how they overlap: each
batch goes through the same loop as in ``run_batch``, some of the stages at a time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator, Sequence
from contextvars import copy_context
from dataclasses import dataclass
from queue import SimpleQueue
from types import TracebackType
from typing import Final, TypeAlias, cast

from milvus_pipeline.context import Context, Deadline
from milvus_pipeline.driver import drive
from milvus_pipeline.records import Query, SearchResult
from milvus_pipeline.run.lifecycle import PlacedStage
from milvus_pipeline.run.loop import StageCall, initial_results, process, run_stages, unwrap

Batches: TypeAlias = Iterator[Sequence[str | Query]]
ResultStream: TypeAlias = Generator[list[SearchResult], None, None]

_INTERRUPT_SECONDS: Final = 2.0  # for calls to end after Ctrl-C


def stream(
    stages: Sequence[PlacedStage], batches: Batches, seconds: float | None, *, return_errors: bool
) -> ResultStream:
    """Yield the results of one batch after another; see ``Pipeline.run_batches``.

    Args:
        stages: all of the pipeline's, open.
        batches: read in the caller's thread, while the line has room.
        seconds: that each batch may take, without its waits for the batches before it; None for no limit.
        return_errors: whether failed queries have results, too.
    """
    segments = _split(stages)
    if len(segments) == 1:
        for batch in batches:
            loop = run_stages(stages, initial_results(batch), Deadline.after(seconds))
            yield unwrap(drive(loop, process), return_errors=return_errors)
        return
    with _Line(segments, seconds) as line:
        unread: Exception | None = None
        more = True
        while True:
            while more and line.has_room:
                try:
                    line.put(initial_results(next(batches)))
                except StopIteration:
                    more = False
                except Exception as error:  # raised after the batches that were read before it
                    more, unread = False, error
            if line.is_empty:
                break
            yield unwrap(line.take(), return_errors=return_errors)
        if unread is not None:
            raise unread


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


class _Line:
    """Segments in a row, each with its own thread; a context manager that starts and ends them.

    Batches leave in the order in which they entered. ``has_room`` bounds their number, so the queues between the
    segments need no bounds.
    """

    def __init__(self, segments: Sequence[Sequence[PlacedStage]], seconds: float | None) -> None:
        self._seconds = seconds
        self._first: _Queue = SimpleQueue()
        self._segments: list[_Segment] = []
        self._last = self._first
        for stages in segments:
            segment = _Segment(stages, seconds, self._last)
            self._segments.append(segment)
            self._last = segment.done
        self._count = 0

    @property
    def has_room(self) -> bool:
        """Whether one more batch may enter: one in each segment, and one that waits for the first."""
        return self._count <= len(self._segments)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing left to take."""
        return self._count == 0

    def put(self, results: list[SearchResult]) -> None:
        """Let a batch with these initial results enter."""
        self._first.put(_Batch(results, self._seconds))
        self._count += 1

    def take(self) -> list[SearchResult]:
        """Wait for the next batch, and return its results.

        Raises:
            BaseException: what ended a stage and is not a failure of it, such as a plugin's SystemExit.
        """
        batch = cast("_Batch", self._last.get())  # only segments are sent None
        self._count -= 1
        if batch.error is not None:
            raise batch.error
        return batch.results

    def __enter__(self) -> _Line:
        try:
            for segment in self._segments:
                segment.start()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end(interrupted=kind is not None and issubclass(kind, KeyboardInterrupt))

    def _end(self, *, interrupted: bool = False) -> None:
        """Cancel the calls that are running, and wait for their end; not for long after Ctrl-C.

        A call that ignores the cancellation is then left to its thread, which begins no other stage.
        """
        for segment in self._segments:
            segment.cancel()
        end = time.monotonic() + _INTERRUPT_SECONDS
        for segment in self._segments:
            segment.join(max(0.0, end - time.monotonic()) if interrupted else None)


class _Segment:
    """Some of the stages, which work on one batch after another, in a thread with a copy of the caller's context.

    Attributes:
        done: the finished batches, in the order in which they came.

    Args:
        stages: one that takes time, and the instant ones behind it.
        seconds: that a batch may take in all segments.
        waiting: batches to come.
    """

    def __init__(self, stages: Sequence[PlacedStage], seconds: float | None, waiting: _Queue) -> None:
        self.done: _Queue = SimpleQueue()
        self._stages = stages
        self._seconds = seconds
        self._waiting = waiting
        self._lock = threading.Lock()
        self._context: Context | None = None
        self._cancelled = False
        # A daemon: after Ctrl-C the process must end without waiting for a reply.
        self._thread = threading.Thread(
            target=copy_context().run, args=(self._run,), name=f"{stages[0].stage.name} of a stream", daemon=True
        )

    def start(self) -> None:
        """Start to take batches."""
        self._thread.start()

    def cancel(self) -> None:
        """Cancel the call that is running, and let no other begin."""
        with self._lock:
            self._cancelled = True
            if self._context is not None:
                self._context.cancel()
        self._waiting.put(None)

    def join(self, seconds: float | None) -> None:
        """Wait for the end of the thread, for at most ``seconds``; None waits without a limit."""
        if self._thread.ident is not None:
            self._thread.join(seconds)

    def _run(self) -> None:
        while (batch := self._waiting.get()) is not None:
            if batch.error is None:
                self._work(batch)
            self.done.put(batch)
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
