"""Passes through a model in the time that there is: best first, in chunks that are planned by the speed so far."""

from __future__ import annotations

import asyncio
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from time import perf_counter
from typing import Final, Generic, TypeVar

from milvus_pipeline import DeadlineError, ReasonCode, StageError
from milvus_pipeline.plugin import Context, Deadline
from milvus_stages.local.tokens import TextTokenizer, Tokens, batches

Item = TypeVar("Item")

_SHARE: Final = 0.25  # of the time left that a chunk may take: the plan may be wrong by a factor of four
_BATCHES: Final = 4  # in a chunk, at most: enough to put texts of similar length together
_READ_SPEED: Final = 200_000  # characters of a chunk for a second left; reading them takes about a twentieth of it
_KNOWN_PASSES: Final = 2  # one may have been held up by chance; more would not know a machine that has become busy


class TooLittleMemoryError(StageError):
    """The device has too little memory for a pass."""

    reason_code: ReasonCode = "too_large"


class Clock:
    """The time that a call has for its steps: a little less than its deadline says, and none once it is given up.

    Args:
        context: of the call.
        deadline: when the work has to be done; a little before the context's by default.
    """

    def __init__(self, context: Context, deadline: Deadline | None = None) -> None:
        self.context = context
        self.deadline = deadline or context.deadline.before()

    @property
    def left(self) -> float | None:
        """Seconds left; None where they are not bounded."""
        return self.deadline.remaining()

    def check(self) -> None:
        """Raise DeadlineError where there is no sense in going on."""
        self.context.check()
        self.deadline.check()

    def half(self) -> Clock:
        """The first half of what is left."""
        left = self.left
        if self.deadline.at is None or left is None:
            return self
        return Clock(self.context, Deadline(self.deadline.at - left / 2, self.deadline.budget))

    @contextmanager
    def holding(self, lock: threading.Lock) -> Iterator[None]:
        """Hold the lock, which is not waited for any longer than there is time. Raises DeadlineError."""
        left = self.left
        if not lock.acquire(timeout=-1 if left is None else min(left, threading.TIMEOUT_MAX)):
            raise DeadlineError(
                f"the time given ({self.deadline.budget:g} s) passed while other queries had the model",
                "raise `timeout` or ask for less",
            )
        try:
            self.check()
            yield
        finally:
            lock.release()


def in_words(deadline: Deadline) -> str:
    """The time that a query was given, for a message."""
    return f"in the time given ({deadline.budget:g} s)"


@contextmanager
def ending_in_time(context: Context) -> Iterator[None]:
    """The end of the time is no error: what was done by then counts. It is one where the call was given up."""
    try:
        yield
    except DeadlineError:
        if context.cancelled:
            raise


class Pace:
    """How long the last passes of a call took, waiting for the model included.

    Nothing is known of it before the first: how fast a model was for others may be of another hour.
    """

    def __init__(self) -> None:
        self._passes: deque[tuple[int, float]] = deque(maxlen=_KNOWN_PASSES)

    def note(self, tokens: int, seconds: float) -> None:
        """Take a pass with that many tokens for known."""
        if tokens:
            self._passes.append((tokens, seconds))

    def seconds(self, tokens: int) -> float:
        """How long that many tokens take at the speed of the last passes.

        More tokens take longer by as much; of fewer, a quarter of the pass is taken for what any pass takes.
        """
        shares = ((seconds, tokens / own) for own, seconds in self._passes)
        return min(seconds * max(share, (1 + 3 * share) / 4) for seconds, share in shares)

    def fitting(self, lengths: Sequence[int], left: float) -> int:
        """How many of the first texts with these numbers of tokens make a chunk; 0 where not one can be done.

        One is tried as long as little is known.
        """
        if not self._passes:
            return 1
        count = 0
        for tokens in accumulate(lengths):
            if self.seconds(tokens) > left * _SHARE:
                break
            count += 1
        known = len(self._passes) == _KNOWN_PASSES
        return count or int(not known or self.seconds(lengths[0]) <= left)


class Work(ABC, Generic[Item]):
    """Items, best first, to be put through a model in passes."""

    def __init__(self, items: Sequence[Item]) -> None:
        self.items = items

    @abstractmethod
    def characters(self, item: Item) -> int:
        """How many characters there are to read."""

    @abstractmethod
    def lengths(self, items: Sequence[Item]) -> list[int]:
        """Read the items, and tell the number of tokens of each. An item may be read again before its pass."""

    @abstractmethod
    def run(self, items: Sequence[Item]) -> None:
        """Put these through the model together, and keep what comes out.

        Raises:
            TooLittleMemoryError: there are too many of them; nothing was kept.
        """


class TextWork(Work[int]):
    """Texts, best first, each known by its number; ``tokens`` holds those that were read.

    Args:
        tokenizer: reads them.
        texts: any number of them.
        most: tokens that are kept of each, special tokens not counted.
        clock: of the call.
        run: puts the texts of these numbers through the model; see ``Work.run``.
    """

    def __init__(
        self,
        tokenizer: TextTokenizer,
        texts: Sequence[str],
        most: int,
        clock: Clock,
        run: Callable[[Sequence[int]], None],
    ) -> None:
        super().__init__(range(len(texts)))
        self.tokens: dict[int, Tokens] = {}
        self._tokenizer = tokenizer
        self._texts = texts
        self._most = most
        self._clock = clock
        self._run = run

    def characters(self, item: int) -> int:
        """Those of the text, as long as it is not read."""
        return 0 if item in self.tokens else len(self._texts[item])

    def lengths(self, items: Sequence[int]) -> list[int]:
        """Read what is not read yet."""
        new = [item for item in items if item not in self.tokens]
        found = self._tokenizer.tokens([self._texts[item] for item in new], self._most, self._clock.check)
        self.tokens.update(zip(new, found, strict=True))
        return [len(self.tokens[item].ids) for item in items]

    def run(self, items: Sequence[int]) -> None:
        """Put them through the model."""
        self._run(items)


def work_off(work: Work[Item], batch_size: int, clock: Clock) -> None:
    """Do the work, all of it or as much as there is time for.

    With a deadline, items are done in chunks, in their order, and sorted by length within a chunk alone: first a single
    one, then as many as can be done in a part of the time left. Without one, all of them are sorted, which is the
    fastest. The outcome for an item does not depend on it.

    A batch that is too large for the device's memory is done in halves, and so are those after it.

    Raises:
        DeadlineError: the time is up, or what is left of it does not suffice for a single item more.
    """
    passes = _Passes(work, batch_size, clock)
    todo = work.items
    while todo:
        clock.check()
        left = clock.left
        chunk = todo if left is None else _readable(work, todo[: _BATCHES * batch_size], left * _READ_SPEED)
        lengths = work.lengths(chunk)
        if left is not None:
            fitting = passes.pace.fitting(lengths, clock.left or 0.0)
            if not fitting:
                raise DeadlineError(f"the time given ({clock.deadline.budget:g} s) does not suffice for more")
            chunk, lengths = chunk[:fitting], lengths[:fitting]
        missing = set(range(len(chunk)))
        began = perf_counter()
        for batch in batches(lengths, batch_size):
            passes.run([(chunk[position], lengths[position]) for position in batch])
            missing.difference_update(batch)
            if left is not None and perf_counter() - began > left * _SHARE:
                break  # it is slower than it was: what is missing of the chunk is planned anew
        todo = [*(chunk[position] for position in sorted(missing)), *todo[len(chunk) :]]


def _readable(work: Work[Item], items: Sequence[Item], characters: float) -> Sequence[Item]:
    """The first of these items, at least one, and no more than that many characters."""
    sums = accumulate(work.characters(item) for item in items)
    return items[: max(1, sum(total <= characters for total in sums))]


class _Passes(Generic[Item]):
    """Runs batches, in smaller ones where the memory wants it."""

    def __init__(self, work: Work[Item], size: int, clock: Clock) -> None:
        self.pace = Pace()
        self._work = work
        self._size = size
        self._clock = clock

    def run(self, batch: Sequence[tuple[Item, int]]) -> None:
        """Run these items, each of which comes with its length."""
        done = 0
        while done < len(batch):
            part = batch[done : done + self._size]
            self._clock.check()
            began = perf_counter()
            try:
                self._work.run([item for item, _ in part])
            except TooLittleMemoryError:
                if len(part) == 1:
                    raise
                self._size = len(part) // 2
                self._clock.context.note(batch_size=self._size)
            else:
                self.pace.note(sum(length for _, length in part), perf_counter() - began)
                done += len(part)


async def until_time_is_up(work: Callable[[Clock], None], context: Context) -> None:
    """Do the work in a thread. What is not done in time is left to the thread, which ends at its next step.

    The work puts what comes out where the caller finds it, whatever is there by then. Where no thread is free in time,
    it is not begun.

    Raises:
        Exception: the work's own.
    """
    part = context.part(range(context.size))
    clock = Clock(part)
    task = asyncio.ensure_future(asyncio.to_thread(work, clock))
    try:
        done, _ = await asyncio.wait({task}, timeout=clock.left)
    finally:
        if not task.done():
            part.cancel()
            task.cancel()
        elif not task.cancelled():
            task.exception()  # where the caller was cancelled in the same moment: else it is logged as never retrieved
    for position, error in dict(part.failures).items():  # a copy, which takes no other thread's turn
        context.fail(position, error)
    for ended in done:
        ended.result()
