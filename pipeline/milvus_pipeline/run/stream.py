"""Any number of batches through the stages of a pipeline, each stage at work on another batch.

A stage takes the batches in their order, one at a time, so that what comes out does not depend on how they overlap:
each batch goes through the same loop as in ``run_batch``, a part of the stages at a time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextvars import copy_context
from dataclasses import dataclass
from queue import SimpleQueue
from types import TracebackType
from typing import Final, TypeAlias, cast

from milvus_pipeline.context import Context, Deadline
from milvus_pipeline.records import Query, SearchResult
from milvus_pipeline.run.loop import Call, driven, settled, started, steps
from milvus_pipeline.stage import Stage

Batches: TypeAlias = Iterator[Sequence[str | Query]]
Streamed: TypeAlias = Generator[list[SearchResult], None, None]

_NOTICE_SECONDS: Final = 2.0  # in which what asks whether anybody still waits has asked


def streamed(
    where: Mapping[str, str], stages: Sequence[Stage], batches: Batches, seconds: float | None, return_errors: bool
) -> Streamed:
    """The results of one batch after another; see ``Pipeline.run_batches``. The stages are open.

    Args:
        where: the place of every stage in its pipeline, to lead messages; see ``life.places``.
        stages: all of the pipeline's.
        batches: read in the caller's thread, while there is room on the line.
        seconds: that each batch may take, not counting its waits for the batches before it; None for no bound.
        return_errors: whether failed queries have results, too.
    """
    parts = _segments(stages)
    if len(parts) == 1:
        for batch in batches:
            yield settled(_worked_off(steps(where, stages, started(batch), Deadline.after(seconds))), return_errors)
        return
    with _Line(where, parts, seconds) as line:
        unread: Exception | None = None
        more = True
        while True:
            while more and line.has_room:
                try:
                    line.put(started(next(batches)))
                except StopIteration:
                    more = False
                except Exception as error:  # told after the batches that were read before it
                    more, unread = False, error
            if line.is_empty:
                break
            yield settled(line.take(), return_errors)
        if unread is not None:
            raise unread


def _segments(stages: Sequence[Stage]) -> list[list[Stage]]:
    """The stages, cut into parts that work at the same time. What takes no time goes with the stage before it."""
    parts: list[list[Stage]] = []
    for stage in stages:
        if parts and (stage.instant or all(other.instant for other in parts[-1])):
            parts[-1].append(stage)
        else:
            parts.append([stage])
    return parts


def _worked_off(loop: Generator[Call, Sequence[SearchResult], list[SearchResult]]) -> list[SearchResult]:
    return driven(loop, lambda call: call.stage.process(call.results, call.context))


@dataclass(slots=True)
class _Batch:
    """A batch on its way.

    Args:
        results: as the stages so far left them.
        left: seconds of its time that the stages have not used; None where it has no bound.
        error: what ended it, if anything did.
    """

    results: list[SearchResult]
    left: float | None
    error: BaseException | None = None


_Queue: TypeAlias = "SimpleQueue[_Batch | None]"  # None ends the thread that takes it


class _Line:
    """Segments in a row, each in a thread of its own; as a context manager it starts and ends them.

    Batches come out in the order in which they were put in. There are never more of them in it than ``has_room``
    allows, so the queues between the segments need no bounds of their own.
    """

    def __init__(self, where: Mapping[str, str], parts: Sequence[Sequence[Stage]], seconds: float | None) -> None:
        self._seconds = seconds
        self._first: _Queue = SimpleQueue()
        self._segments: list[_Segment] = []
        self._last = self._first
        for stages in parts:
            segment = _Segment(where, stages, seconds, self._last)
            self._segments.append(segment)
            self._last = segment.done
        self._count = 0

    @property
    def has_room(self) -> bool:
        """Whether one more batch may be put in: one in each segment, and one that waits for the first."""
        return self._count <= len(self._segments)

    @property
    def is_empty(self) -> bool:
        """Whether nothing is left to take."""
        return self._count == 0

    def put(self, results: list[SearchResult]) -> None:
        """Put in the results that a batch starts from."""
        self._first.put(_Batch(results, self._seconds))
        self._count += 1

    def take(self) -> list[SearchResult]:
        """The results of the next batch, which is waited for.

        Raises:
            BaseException: what a stage ended in that no result can tell, such as a plugin's SystemExit.
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
        self._end(at_once=kind is not None and issubclass(kind, KeyboardInterrupt))

    def _end(self, *, at_once: bool = False) -> None:
        """Give up what is under way, and wait until nothing is; not for long where somebody sits at the keyboard.

        A call that takes no notice is then left to its thread, whose next stage does not begin.
        """
        for segment in self._segments:
            segment.give_up()
        end = time.monotonic() + _NOTICE_SECONDS
        for segment in self._segments:
            segment.join(max(0.0, end - time.monotonic()) if at_once else None)


class _Segment:
    """Some of the stages, which take one batch after another, in a thread that has a copy of the caller's context.

    Attributes:
        done: batches that are through, in the order in which they came.

    Args:
        where: the place of every stage.
        stages: one that takes time, and those that go with it.
        seconds: that a batch may take in all segments.
        waiting: batches to come.
    """

    def __init__(
        self, where: Mapping[str, str], stages: Sequence[Stage], seconds: float | None, waiting: _Queue
    ) -> None:
        self.done: _Queue = SimpleQueue()
        self._where = where
        self._stages = stages
        self._seconds = seconds
        self._waiting = waiting
        self._lock = threading.Lock()
        self._context: Context | None = None
        self._given_up = False
        # A daemon: after Ctrl-C the process shall end without waiting for a reply.
        self._thread = threading.Thread(
            target=copy_context().run, args=(self._run,), name=f"{stages[0].name} of a stream", daemon=True
        )

    def start(self) -> None:
        """Begin to take batches."""
        self._thread.start()

    def give_up(self) -> None:
        """Tell the call that is under way that nobody waits for it, and let none begin."""
        with self._lock:
            self._given_up = True
            if self._context is not None:
                self._context.cancel()
        self._waiting.put(None)

    def join(self, seconds: float | None) -> None:
        """Wait for the thread's end, at most so long; None for as long as it takes."""
        if self._thread.ident is not None:
            self._thread.join(seconds)

    def _run(self) -> None:
        while (batch := self._waiting.get()) is not None:
            if batch.error is None:
                self._work(batch)
            self.done.put(batch)
            del batch  # its results are the caller's alone while the next one is waited for

    def _work(self, batch: _Batch) -> None:
        deadline = Deadline() if batch.left is None else Deadline(time.monotonic() + batch.left, self._seconds)
        try:
            batch.results = driven(steps(self._where, self._stages, batch.results, deadline), self._process)
        except BaseException as error:  # the caller's to see, in its turn
            batch.error = error
        batch.left = deadline.remaining()

    def _process(self, call: Call) -> Sequence[SearchResult]:
        with self._lock:
            if self._given_up:
                raise _GivenUp
            self._context = call.context
        try:
            return call.stage.process(call.results, call.context)
        finally:
            self._context = None


class _GivenUp(BaseException):
    """Nobody waits for the batch; no Exception, which would be a stage's failure, and have its fallback called."""
