"""The limits of what a stage asks of its service: concurrent requests, and requests and tokens per minute.

They are shared by the threads of blocking callers and by the tasks of any number of event loops, for which neither
``threading`` nor ``asyncio`` has a semaphore.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Final, NamedTuple

from milvus_pipeline import DeadlineError
from milvus_pipeline.plugin import Deadline

_WINDOW: Final = 61.0
"""Seconds. Services count over a minute from when they receive a request, a little after it starts here."""


class Wait(NamedTuple):
    """The step that waits for a future, and raises TimeoutError after ``seconds``."""

    future: Future[None]
    seconds: float | None


class Slots:
    """At most ``count`` holders at a time; the one that has waited longest is next."""

    def __init__(self, count: int) -> None:
        self._lock = threading.Lock()
        self._free = count
        self._waiting: deque[Future[None]] = deque()

    def take(self, deadline: Deadline) -> Generator[Wait, Any, None]:
        """Take a slot; wait for one if none is free.

        Raises:
            DeadlineError: no slot came free in time.
        """
        ticket = self._ticket()
        if ticket.done():
            return
        try:
            yield Wait(ticket, deadline.remaining())
        except BaseException as error:
            if not ticket.cancel():
                self.give_back()  # the slot came at the last moment
            if isinstance(error, TimeoutError):
                raise DeadlineError(
                    f"no request could start within {deadline.budget:g} s, because `max_concurrency` others were in "
                    "flight or next",
                    "increase `max_concurrency` or `timeout`, or request fewer results",
                ) from None
            raise

    def _ticket(self) -> Future[None]:
        ticket: Future[None] = Future()
        with self._lock:
            if self._free:
                self._free -= 1
                ticket.set_result(None)
            else:
                self._waiting.append(ticket)
        return ticket

    def give_back(self) -> None:
        """Give a slot back."""
        with self._lock:
            while self._waiting:
                ticket = self._waiting.popleft()
                if ticket.set_running_or_notify_cancel():
                    ticket.set_result(None)
                    return
            self._free += 1


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
    """A maximum of requests, and of estimated tokens, in any 60 seconds.

    Requests are booked in the order they come, each for the first moment that the limits allow. A request of more
    tokens than the limit has the minute to itself.

    Args:
        requests: in 60 seconds; None for no limit.
        tokens: in 60 seconds; None for no limit.
    """

    def __init__(self, requests: int | None, tokens: int | None) -> None:
        self._requests = requests
        self._tokens = tokens
        self._lock = threading.Lock()
        self._booked: deque[Booking] = deque()
        self._booked_tokens = 0

    def book(self, tokens: int, deadline: Deadline) -> Booking:
        """Book a request, which must be sent after the booking's wait, or given back.

        Raises:
            DeadlineError: its turn comes after the deadline. Nothing is booked.
        """
        with self._lock:
            booking = self._turn(tokens, deadline)
            if self._requests is not None or self._tokens is not None:
                self._booked.append(booking)
                self._booked_tokens += tokens
        return booking

    def give_back(self, booking: Booking) -> None:
        """Cancel the booking of a request that was not sent."""
        with self._lock, suppress(ValueError):  # it is long past
            self._booked.remove(booking)
            self._booked_tokens -= booking.tokens

    def _turn(self, tokens: int, deadline: Deadline) -> Booking:
        """Return the first turn that is free."""
        now = time.monotonic()
        # Only past turns are dropped: a turn to come may be given back, and then no longer counts.
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
                f"the rate limit ({self}) allows the next request in {start - now:.1f} s, "
                f"after the time limit of {deadline.budget:g} s",
                "increase `timeout`, or the rate limit if your plan allows it",
            )
        return Booking(start, tokens, start - now)

    def _exceeded(self, requests: int, tokens: int) -> bool:
        return (self._requests is not None and requests > self._requests) or (
            self._tokens is not None and tokens > self._tokens
        )

    def __str__(self) -> str:
        limits = ((self._requests, "requests"), (self._tokens, "tokens"))
        return " and ".join(f"{limit:,} {noun} per minute" for limit, noun in limits if limit is not None)
