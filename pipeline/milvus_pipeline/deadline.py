"""One deadline per query, shared by all of its stages, instead of timeouts that add up."""

from __future__ import annotations

import asyncio
import time
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Final

from milvus_pipeline.errors import DeadlineError

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
        """That the time given is used up."""
        return DeadlineError(f"the time given ({self.budget:g} s) is used up; raise `timeout` or ask for less")


def time_limit(deadline: Deadline) -> AbstractAsyncContextManager[Any]:
    """Ends what is awaited within it at the deadline, with TimeoutError."""
    left = deadline.remaining()
    return nullcontext() if left is None else asyncio.timeout(left)
