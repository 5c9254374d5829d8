"""What keeps a reranker from asking too much of its service: slots, a limit of rate, and what ends waits for it.

All are shared by the threads of blocking callers and by the tasks of any number of event loops, which neither
``threading`` nor ``asyncio`` has a semaphore or an event for. Slots and rate end waits by a deadline.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Final, NamedTuple

from milvus_pipeline import DeadlineError
from milvus_pipeline.plugin import Deadline

_WINDOW: Final = 61.0
"""Seconds. Services count over a minute, from when they see a request, which is a little after it was begun here."""


class Slots:
    """At most ``count`` holders at a time; who waits is served in order."""

    def __init__(self, count: int) -> None:
        self._lock = threading.Lock()
        self._free = count
        self._waiting: deque[Future[None]] = deque()

    @contextmanager
    def held(self, deadline: Deadline) -> Iterator[None]:
        """Hold a slot.

        Raises:
            DeadlineError: none came free in time.
        """
        ticket = self._ticket()
        with self._awaited(ticket, deadline):
            if not ticket.done():
                ticket.result(deadline.remaining())
        try:
            yield
        finally:
            self._release()

    @asynccontextmanager
    async def aheld(self, deadline: Deadline) -> AsyncIterator[None]:
        """``held`` for a task."""
        ticket = self._ticket()
        with self._awaited(ticket, deadline):
            if not ticket.done():
                async with asyncio.timeout(deadline.remaining()):
                    await asyncio.wrap_future(ticket)
        try:
            yield
        finally:
            self._release()

    def _ticket(self) -> Future[None]:
        ticket: Future[None] = Future()
        with self._lock:
            if self._free:
                self._free -= 1
                ticket.set_result(None)
            else:
                self._waiting.append(ticket)
        return ticket

    @contextmanager
    def _awaited(self, ticket: Future[None], deadline: Deadline) -> Iterator[None]:
        """Give the place up where the wait for it ends otherwise, and say so where that is by the time."""
        try:
            yield
        except BaseException as error:
            if not ticket.cancel():
                self._release()  # the slot came at the last moment
            if isinstance(error, TimeoutError):
                raise _no_slot(deadline) from None
            raise

    def _release(self) -> None:
        with self._lock:
            while self._waiting:
                ticket = self._waiting.popleft()
                if ticket.set_running_or_notify_cancel():
                    ticket.set_result(None)
                    return
            self._free += 1


def _no_slot(deadline: Deadline) -> DeadlineError:
    return DeadlineError(
        (
            f"no request could be begun in the time given ({deadline.budget:g} s), since "
            "`max_concurrency` others were under way or had the next turns"
        ),
        "raise it, raise `timeout`, or ask for less",
    )


class Bell:
    """Ends waits, of threads and of tasks of any event loop; who waits after it was rung does not wait."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rung = threading.Event()
        self._tasks: set[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = set()

    def ring(self) -> None:
        """End all waits, those to come too."""
        with self._lock:
            self._rung.set()
            tasks = list(self._tasks)
        for loop, rung in tasks:
            with suppress(RuntimeError):  # the event loop has ended
                loop.call_soon_threadsafe(rung.set)

    def wait(self, seconds: float) -> None:
        """Wait so long, or until it rings."""
        self._rung.wait(seconds)

    async def asleep(self, seconds: float) -> None:
        """``wait`` for a task."""
        waiting = (asyncio.get_running_loop(), asyncio.Event())
        with self._lock:
            if seconds <= 0 or self._rung.is_set():
                return
            self._tasks.add(waiting)
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await waiting[1].wait()
        finally:
            with self._lock:
                self._tasks.discard(waiting)


class Booking(NamedTuple):
    """The turn of a request.

    Args:
        at: ``time.monotonic`` seconds.
        tokens: estimated tokens of the request.
        wait: seconds from the booking.
    """

    at: float
    tokens: int
    wait: float


class Rate:
    """At most so many requests, and so many estimated tokens, in any 60 seconds.

    Requests are booked in the order they come, each for the first moment at which the limits allow it. A request of
    more tokens than the limit has the minute to itself.

    Args:
        requests: in 60 seconds; None for any number.
        tokens: in 60 seconds; None for any number.
    """

    def __init__(self, requests: int | None, tokens: int | None) -> None:
        self._requests = requests
        self._tokens = tokens
        self._lock = threading.Lock()
        self._booked: deque[Booking] = deque()
        self._booked_tokens = 0

    def forget(self) -> None:
        """Begin anew, after a fork: the lock may be held by a thread of the parent's."""
        self._lock = threading.Lock()
        self._booked.clear()
        self._booked_tokens = 0

    def check(self, tokens: int, deadline: Deadline) -> None:
        """Raise as ``book`` would, and book nothing: what cannot be in time need not wait for a slot first."""
        with self._lock:
            self._turn(tokens, deadline)

    def book(self, tokens: int, deadline: Deadline) -> Booking:
        """Book a request, which is to be sent after the booking's wait, or given back.

        Raises:
            DeadlineError: its turn comes only after the deadline. Nothing is booked.
        """
        with self._lock:
            booking = self._turn(tokens, deadline)
            if self._requests is not None or self._tokens is not None:
                self._booked.append(booking)
                self._booked_tokens += tokens
        return booking

    def give_back(self, booking: Booking) -> None:
        """Take back the booking of a request that was not sent."""
        with self._lock, suppress(ValueError):  # it is past
            self._booked.remove(booking)
            self._booked_tokens -= booking.tokens

    def _turn(self, tokens: int, deadline: Deadline) -> Booking:
        """The first turn that is free."""
        now = time.monotonic()
        # Only what is past by now is forgotten: a turn to come may be given back, and then counts no more.
        while self._booked and self._booked[0].at <= now - _WINDOW:
            self._booked_tokens -= self._booked.popleft().tokens
        start = max(now, self._booked[-1].at) if self._booked else now
        count, total = len(self._booked), self._booked_tokens
        for booking in self._booked:
            if not self._exceeded(count + 1, total + tokens) and booking.at > start - _WINDOW:
                break
            start = max(start, booking.at + _WINDOW)
            count, total = count - 1, total - booking.tokens
        left = deadline.remaining()
        if start > now and left is not None and start - now >= left:
            raise DeadlineError(
                (
                    f"the limit of rate ({self}) lets the next request begin in {start - now:.1f} s, "
                    f"after the time given ({deadline.budget:g} s) is used up"
                ),
                "raise `timeout`, or the limit if your plan allows it",
            )
        return Booking(start, tokens, start - now)

    def _exceeded(self, requests: int, tokens: int) -> bool:
        return (self._requests is not None and requests > self._requests) or (
            self._tokens is not None and tokens > self._tokens
        )

    def __str__(self) -> str:
        limits = ((self._requests, "requests"), (self._tokens, "tokens"))
        return " and ".join(f"{limit:,} {noun} a minute" for limit, noun in limits if limit is not None)
