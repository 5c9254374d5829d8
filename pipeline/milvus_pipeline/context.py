"""What a stage is told about the run it is part of, and where it leaves what it has to say."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from milvus_pipeline.errors import DeadlineError, ReasonCode

_MARGIN: Final = 0.05  # seconds, at most, by which work is ended before its deadline


@dataclass(frozen=True, slots=True)
class Deadline:
    """A point in time after which no work may go on.

    Args:
        at: the time in seconds of ``time.monotonic``; None for never.
        budget: the seconds that were given, for messages; those until ``at`` by default.
    """

    at: float | None = None
    budget: float | None = None

    def __post_init__(self) -> None:
        if self.at is not None and self.budget is None:
            object.__setattr__(self, "budget", max(0.0, self.at - time.monotonic()))

    @classmethod
    def after(cls, seconds: float | None) -> Deadline:
        """The deadline that lies ``seconds`` ahead; None for one that never comes."""
        return cls() if seconds is None else cls(time.monotonic() + seconds, seconds)

    def sooner(self, seconds: float | None) -> Deadline:
        """The earlier of this deadline and one ``seconds`` ahead."""
        other = Deadline.after(seconds)
        if self.at is None:
            return other
        return self if other.at is None or self.at <= other.at else other

    def before(self) -> Deadline:
        """A little before this deadline: by then work is ended that shall leave time to keep what is done of it."""
        left = self.remaining()
        if self.at is None or left is None:
            return self
        return Deadline(self.at - min(_MARGIN, left / 10), self.budget)

    def remaining(self, at_most: float | None = None) -> float | None:
        """Seconds left, never below 0, at most ``at_most``; None where neither bounds it."""
        if self.at is None:
            return at_most
        left = max(0.0, self.at - time.monotonic())
        return left if at_most is None else min(left, at_most)

    @property
    def expired(self) -> bool:
        """True once the time has come."""
        return self.at is not None and time.monotonic() >= self.at

    def check(self) -> None:
        """Raise DeadlineError if the time has come."""
        if self.expired:
            raise self.error()

    def error(self) -> DeadlineError:
        """Return the error that the time is over."""
        return DeadlineError(
            f"timed out after {max(0.0, self.budget or 0.0):g} s", "increase `timeout` or request fewer results"
        )


def time_limit(deadline: Deadline) -> AbstractAsyncContextManager[Any]:
    """Ends what is awaited within it at the deadline, with TimeoutError."""
    left = deadline.remaining()
    return nullcontext() if left is None else asyncio.timeout(left)


class Shortfall(NamedTuple):
    """Why a stage did only part of its work, in words and in code."""

    reason: str
    code: ReasonCode


class Context:
    """What a stage is told about the run it is part of, and where it leaves what it wants to report.

    Args:
        deadline: when the stage has to be done; pass ``deadline.remaining()`` to every network call.
        size: number of results in the batch.
    """

    def __init__(self, deadline: Deadline, size: int) -> None:
        self.deadline = deadline
        self.size = size
        self.warnings: list[list[str]] = [[] for _ in range(size)]
        self.details: list[dict[str, Any]] = [{} for _ in range(size)]
        self.failures: dict[int, Exception] = {}
        self.partials: list[Shortfall | None] = [None] * size
        self._parent: Context | None = None
        self._cancelled = False
        self._on_cancel: list[Callable[[], None]] = []

    @property
    def cancelled(self) -> bool:
        """True once nobody waits for the stage any more: the call was cancelled, or given up at its deadline."""
        return self._cancelled or (self._parent is not None and self._parent.cancelled)

    def cancel(self) -> None:
        """Say that nobody waits for the stage any more. What has no thread of its own is ended by the event loop."""
        self._cancelled = True
        for told in list(self._on_cancel):
            told()

    @contextmanager
    def on_cancel(self, told: Callable[[], None]) -> Iterator[None]:
        """Have ``told`` called if nobody waits for the stage any more while the block runs: to end waits, say.

        It is called by the thread that cancels, and perhaps twice; it must not block, nor raise.
        """
        chain = [self]
        while (parent := chain[-1]._parent) is not None:
            chain.append(parent)
        for context in chain:
            context._on_cancel.append(told)
        try:
            if self.cancelled:
                told()
            yield
        finally:
            for context in chain:
                context._on_cancel.remove(told)

    def check(self) -> None:
        """Raise DeadlineError where there is no sense in going on. Long work in a thread asks between its steps."""
        if self.cancelled:
            raise DeadlineError("the call was given up, so the rest of its work was not done")
        self.deadline.check()

    def warn(self, message: str, position: int | None = None) -> None:
        """Add a warning to the report of the query at ``position`` of the batch, or of every query."""
        for warnings in self.warnings if position is None else (self.warnings[position],):
            if message not in warnings:
                warnings.append(message)

    def note(self, position: int | None = None, /, **details: Any) -> None:
        """Add plain-data figures to the report of the query at ``position``, or of every query.

        Two of them are known to everyone, and each maps words to numbers. ``usage`` is what the query cost at a
        service, in the provider's own words, whether it was answered or not:
        ``note(position, usage={"requests": 3, "search_units": 3})``. ``planned`` is what a dry run finds that it
        would cost: ``note(position, planned={"requests": 3, "documents": 250, "tokens": 61_000})``. The last word on
        a figure replaces those before it, so say the whole of it.
        """
        for own in self.details if position is None else (self.details[position],):
            own.update(details)

    def fail(self, position: int, error: Exception) -> None:
        """Mark one query of the batch as failed in this stage; the others go on. The first error counts."""
        self.failures.setdefault(position, error)

    def partial(self, position: int, reason: str, code: ReasonCode = "deadline") -> None:
        """Say that the stage did only part of its work for one query, whose result is kept. The first reason counts.

        Args:
            position: of the query in the batch.
            reason: what was not done, and why, in words: "12 of 40 documents were not scored in the time given".
            code: the same for programs.
        """
        if self.partials[position] is None:
            self.partials[position] = Shortfall(reason, code)

    def part(self, positions: Sequence[int]) -> Context:
        """A context for some queries of the batch; failures and partial results are brought back by ``merge``.

        Warnings and details are those of this context itself: what a request cost must be told, too, where an
        exception or a cancellation keeps the rest from being merged.
        """
        part = Context(self.deadline, len(positions))
        part.warnings = [self.warnings[position] for position in positions]
        part.details = [self.details[position] for position in positions]
        part._parent = self
        return part

    def merge(self, part: Context, positions: Sequence[int]) -> None:
        """Take over the failures and the partial results of the ``part`` that was made for these positions."""
        for inner, error in part.failures.items():
            self.fail(positions[inner], error)
        for inner, shortfall in enumerate(part.partials):
            if shortfall is not None:
                self.partial(positions[inner], *shortfall)
