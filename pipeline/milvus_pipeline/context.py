"""What a stage gets with a batch: its deadline, and the place for what it reports."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from milvus_pipeline.errors import DeadlineError, QueryError, ReasonCode
from milvus_pipeline.text import short_repr

_MARGIN: Final = 0.05  # seconds, at most, by which work ends before its deadline


@dataclass(frozen=True, slots=True)
class Deadline:
    """A point in time by which work must end.

    Args:
        at: the time in seconds of ``time.monotonic``; None for never.
        budget: the seconds from the start, for messages; by default those until ``at``.
    """

    at: float | None = None
    budget: float | None = None

    def __post_init__(self) -> None:
        if self.at is not None and self.budget is None:
            object.__setattr__(self, "budget", max(0.0, self.at - time.monotonic()))

    @classmethod
    def after(cls, seconds: float | None) -> Deadline:
        """Return the deadline in ``seconds``; None for one that never comes."""
        return cls() if seconds is None else cls(time.monotonic() + seconds, seconds)

    def sooner(self, seconds: float | None) -> Deadline:
        """Return the earlier of this deadline and one in ``seconds``."""
        other = Deadline.after(seconds)
        if self.at is None:
            return other
        return self if other.at is None or self.at <= other.at else other

    def before(self) -> Deadline:
        """Return a deadline a little earlier, for work that must leave time to keep its results."""
        left = self.remaining()
        if self.at is None or left is None:
            return self
        return Deadline(self.at - min(_MARGIN, left / 10), self.budget)

    def remaining(self, at_most: float | None = None) -> float | None:
        """Return the seconds left, from 0 to ``at_most``; None if neither limits them."""
        if self.at is None:
            return at_most
        left = max(0.0, self.at - time.monotonic())
        return left if at_most is None else min(left, at_most)

    @property
    def expired(self) -> bool:
        """Whether the time is over."""
        return self.at is not None and time.monotonic() >= self.at

    def check(self) -> None:
        """Raise DeadlineError if the time is over."""
        if self.expired:
            raise self.error()

    def error(self) -> DeadlineError:
        """Return the error that the time is over."""
        return DeadlineError(
            f"timed out after {max(0.0, self.budget or 0.0):g} s", "increase `timeout` or request fewer results"
        )


def time_limit(deadline: Deadline) -> AbstractAsyncContextManager[Any]:
    """Return a context that ends what is awaited in it at the deadline, with TimeoutError."""
    left = deadline.remaining()
    return nullcontext() if left is None else asyncio.timeout(left)


def resolve_timeout(timeout: float | None, default: float | None) -> float | None:
    """Return the seconds that a call may take: its own timeout, else the default. QueryError if it is not a number."""
    if timeout is not None and not is_number(timeout):
        raise QueryError(f"must be a number of seconds, got {short_repr(timeout)}", place="timeout")
    return default if timeout is None else timeout


def is_number(value: object) -> bool:
    """Whether this is a finite number; True and False are not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


class Shortfall(NamedTuple):
    """Why a stage did only part of its work, in words and as a code."""

    reason: str
    code: ReasonCode


class Context:
    """What a stage gets with a batch: the deadline, and the place for its warnings, figures and failures.

    A stage that calls a server for each query::

        def process(self, results, context):
            for position, result in enumerate(results):
                try:
                    reply = self._client.ask(result.query.text, timeout=context.deadline.remaining())
                except ClientError as error:
                    context.fail(position, StageError("the server refused the query", str(error)))
                    continue
                if reply.truncated:
                    context.warn("the server cut the query to 512 tokens", position)
                context.note(position, usage={"requests": 1})
            return results

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
        """Whether nobody waits for the stage any more: the call was cancelled, or abandoned at its deadline."""
        return self._cancelled or (self._parent is not None and self._parent.cancelled)

    def cancel(self) -> None:
        """Mark that nobody waits for the stage any more, and call the callbacks of ``on_cancel``."""
        self._cancelled = True
        for callback in list(self._on_cancel):
            callback()

    @contextmanager
    def on_cancel(self, callback: Callable[[], None]) -> Iterator[None]:
        """Call ``callback`` if the stage is cancelled while the block runs, for example to end a wait.

        The thread that cancels calls it, perhaps twice; it must not block or raise.
        """
        chain = [self]
        while (parent := chain[-1]._parent) is not None:
            chain.append(parent)
        for context in chain:
            context._on_cancel.append(callback)
        try:
            if self.cancelled:
                callback()
            yield
        finally:
            for context in chain:
                context._on_cancel.remove(callback)

    def check(self) -> None:
        """Raise DeadlineError if the result is not needed any more. Long work in a thread calls this now and then."""
        if self.cancelled:
            raise DeadlineError("the call was cancelled, so the rest of its work was not done")
        self.deadline.check()

    def warn(self, message: str, position: int | None = None) -> None:
        """Add a warning to the report of the query at ``position`` of the batch, or of every query."""
        for warnings in self.warnings if position is None else (self.warnings[position],):
            if message not in warnings:
                warnings.append(message)

    def note(self, position: int | None = None, /, **details: Any) -> None:
        """Add plain-data figures to the report of the query at ``position``, or of every query.

        Two of them have a meaning everywhere, and each maps words to numbers. ``usage`` is what the query cost at a
        service, in the provider's own words, whether it was answered or not:
        ``note(position, usage={"requests": 3, "search_units": 3})``. ``planned`` is what a dry run expects it to cost:
        ``note(position, planned={"requests": 3, "documents": 250, "tokens": 61_000})``. A figure replaces the one
        noted before, so note totals.
        """
        for own in self.details if position is None else (self.details[position],):
            own.update(details)

    def fail(self, position: int, error: Exception) -> None:
        """Mark one query of the batch as failed in this stage; the others go on. The first error of a query counts."""
        self.failures.setdefault(position, error)

    def partial(self, position: int, reason: str, code: ReasonCode = "deadline") -> None:
        """Report that the stage did only part of its work for one query, whose result is kept; the first reason counts.

        Args:
            position: of the query in the batch.
            reason: what was not done, and why: "12 of 40 documents were not scored in the time given".
            code: the same, for programs.
        """
        if self.partials[position] is None:
            self.partials[position] = Shortfall(reason, code)

    def part(self, positions: Sequence[int]) -> Context:
        """Return a context for some queries of the batch; ``merge`` brings back failures and partial results.

        Warnings and details go to this context directly: what a request cost must be reported even if an exception or
        a cancellation prevents the merge.
        """
        part = Context(self.deadline, len(positions))
        part.warnings = [self.warnings[position] for position in positions]
        part.details = [self.details[position] for position in positions]
        part._parent = self
        return part

    def merge(self, part: Context, positions: Sequence[int]) -> None:
        """Take over failures and partial results of the ``part`` for these positions."""
        for inner, error in part.failures.items():
            self.fail(positions[inner], error)
        for inner, shortfall in enumerate(part.partials):
            if shortfall is not None:
                self.partial(positions[inner], *shortfall)
