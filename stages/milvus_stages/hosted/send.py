"""Requests to a service: sent within its limits, and repeated if that may help. Nothing here knows of reranking.

What happens to a request is written once, as a generator of steps: a blocking driver does them, and the driver of an
event loop awaits them.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import closing, contextmanager, nullcontext, suppress
from copy import copy
from typing import Any, Final, NamedTuple, TypeAlias, cast
from weakref import WeakSet

from milvus_pipeline import BreakerSettings, CircuitOpenError, DeadlineError, ServiceError, StageError
from milvus_pipeline.plugin import Breaker, Deadline, adrive, breaker_for, drive, in_threads, retrying
from milvus_stages.hosted.failures import refusal_error
from milvus_stages.hosted.http.clients import closed_error
from milvus_stages.hosted.http.transport import Transport, Unanswered, Unsent
from milvus_stages.hosted.limits import Booking, Rate, Slots, Wait
from milvus_stages.hosted.replies import Received
from milvus_stages.hosted.service import HostedRetry, HostedService
from milvus_stages.privacy.redaction import Private

_IN_TROUBLE: Final = frozenset({500, 502, 503, 504, 529})
"""HTTP statuses that mean that a service fails; any other is an answer."""


class Stopped(Exception):  # noqa: N818 - not an error
    """A request is not sent, because its query has already failed."""


class Call:
    """The requests for one query: what ended them, what they cost, and their waits.

    Args:
        private: what no message may repeat.
        key_refusals: the errors of refused keys; shared by all queries of a batch.

    Attributes:
        error: the first error that ended a request for good.
        late: the first error of a request that had no time left. The other requests go on.
    """

    def __init__(self, private: Private, key_refusals: list[ServiceError]) -> None:
        self.private = private
        self.key_refusals = key_refusals
        self.error: Exception | None = None
        self.late: DeadlineError | None = None
        self._end: Future[None] = Future()
        self._end.set_running_or_notify_cancel()  # a task that stops to wait for it must not cancel it
        self.usage: Counter[str] = Counter()
        self.lock = threading.Lock()

    def count(self, **figures: float) -> None:
        """Add to the usage."""
        with self.lock:
            self.usage.update(figures)

    def fail(self, error: Exception) -> None:
        """Mark the query as failed, and end its waits; the first error counts."""
        with self.lock:
            self.error = self.error or error
        self.end_waits()

    def end_waits(self) -> None:
        """End all waits, now and from now on."""
        with suppress(InvalidStateError):  # they have ended
            self._end.set_result(None)

    def sleep(self, seconds: float) -> Steps:
        """Wait for these seconds, or until the waits are ended."""
        with suppress(TimeoutError):
            yield Wait(self._end, seconds)

    @contextmanager
    def kept_error(self, deadline: Deadline) -> Iterator[None]:
        """Keep an error of the block with the query, so that other queries go on; note if the time is up."""
        try:
            yield
        except Stopped:
            pass
        except Exception as error:
            if isinstance(error, ServiceError) and deadline.expired:
                what = f"timed out after {deadline.budget:g} s; last attempt: {error.what}"
                late = DeadlineError(what, error.next_step, place=error.place)
                late.__cause__ = error
                error = late
            if isinstance(error, DeadlineError):
                with self.lock:
                    self.late = self.late or error
            else:
                self.fail(error)


class Request(NamedTuple):
    """A request to send.

    Args:
        tokens: estimated size.
        write: returns the body. Called for each attempt.
        read: reads a reply with a status of success; raises ServiceError if it is wrong.
    """

    tokens: int
    write: Callable[[], bytes]
    read: Callable[[Received], None]


class Post(NamedTuple):
    """The step that sends a body and waits for the reply; see ``Transport.send``."""

    body: bytes
    seconds: float
    advice: str


Steps: TypeAlias = Generator[Post | Wait, Any, None]
Task: TypeAlias = tuple[Call, Steps]


class Sender:
    """An open connection to a service, for blocking callers and for event loops.

    Args:
        service: the stage whose settings apply.
    """

    def __init__(self, service: HostedService) -> None:
        url, headers, self.secrets = service.read_connection()
        self._service = service
        self._transport = Transport(url, headers, service.type)
        self._retry = cast("HostedRetry", service.retry)
        # Not by key: a key that is refused or has used up its quota gets an answer, and an answer is not a failure.
        endpoint = self._transport.request
        name = f"{endpoint} ({service.model})" if service.model else endpoint
        settings = cast("BreakerSettings | None", service.breaker)
        self._breaker = breaker_for((endpoint, service.model or ""), name, settings) if settings else None
        self._closed = False
        self.reset()
        _senders.add(self)

    @property
    def endpoint(self) -> str:
        """The method and URL, for messages."""
        return self._transport.request

    def reset(self) -> None:
        """Begin without connections and calls; after a fork, they are the parent's, whose threads may hold locks."""
        self._slots = Slots(self._service.max_concurrency)
        self._rate = Rate(self._service.requests_per_minute, self._service.tokens_per_minute)
        self._lock = threading.Lock()
        self._calls: set[Call] = set()
        self._transport.reset()

    def close(self) -> None:
        """End all waits, and close the connections."""
        with self._lock:
            self._closed = True
            calls = list(self._calls)
        for call in calls:
            call.end_waits()
        self._transport.close()

    async def aclose_here(self) -> None:
        """Close the connections of this event loop."""
        await self._transport.aclose_here()

    # -- drivers ------------------------------------------------------------------------------------------------

    def run(self, tasks: Sequence[Task]) -> None:
        """Do the steps of all tasks, ``max_concurrency`` tasks at a time; each call keeps its own errors."""
        with self._register(call for call, _ in tasks):
            if len(tasks) == 1:
                self._drive(tasks[0][1])
                return
            waiting = deque(steps for _, steps in tasks)

            def work_off() -> None:
                while (steps := _pop(waiting)) is not None:
                    self._drive(steps)

            count = min(len(tasks), self._service.max_concurrency)
            in_threads(work_off, count, self._service.name, waiting.clear)  # what has not begun is not sent

    async def arun(self, tasks: Sequence[Task]) -> None:
        """``run`` for an event loop; cancelling it ends the requests."""
        with self._register(call for call, _ in tasks):
            if len(tasks) == 1:
                await self._adrive(tasks[0][1])
                return
            async with asyncio.TaskGroup() as group:
                for _, steps in tasks:
                    group.create_task(self._adrive(steps))

    def _drive(self, steps: Steps) -> None:
        def do(step: Post | Wait) -> Any:
            if isinstance(step, Wait):
                return step.future.result(step.seconds)
            return self._transport.send(*step)

        with closing(steps):
            drive(steps, do)

    async def _adrive(self, steps: Steps) -> None:
        async def do(step: Post | Wait) -> Any:
            if isinstance(step, Wait):
                async with asyncio.timeout(step.seconds):
                    return await asyncio.wrap_future(step.future)
            return await self._transport.asend(*step)

        with closing(steps):
            await adrive(steps, do)

    @contextmanager
    def _register(self, calls: Iterable[Call]) -> Iterator[None]:
        """Let ``close`` end the waits of these calls; they fail if the block is interrupted."""
        calls = set(calls)
        with self._lock:
            self._calls |= calls
        try:
            yield
        except BaseException:
            for call in calls:
                call.fail(StageError("the call was given up"))
            raise
        finally:
            with self._lock:
                self._calls -= calls

    # -- steps --------------------------------------------------------------------------------------------------

    def deliver(self, call: Call, request: Request, deadline: Deadline) -> Steps:
        """Yield the steps of one request, its repetitions included.

        Raises:
            ServiceError: what the last attempt ended in.
            DeadlineError: no attempt could be made in time.
            CircuitOpenError: no attempt was made.
        """
        attempts = Attempts(call, self._retry, deadline, self._breaker)
        policy = retrying(self._retry, deadline, attempts.worth_another, self._requested_wait, attempts.note_wait)
        pauses: list[float] = []
        try:
            for attempt in policy.copy(sleep=pauses.append):
                if pauses:
                    yield from call.sleep(pauses.pop())
                with attempt:
                    received = yield from self._attempt(call, request, attempts, deadline)
                    request.read(received)
        except DeadlineError as late:
            raise attempts.instead_of(late) from None
        except CircuitOpenError as error:
            raise error from attempts.last
        except ServiceError as error:
            if error.status == 401:  # not 403, which firewalls send because of a single text
                call.key_refusals.append(error)
            attempts.complete(error)
            raise

    def _attempt(
        self, call: Call, request: Request, attempts: Attempts, deadline: Deadline
    ) -> Generator[Post | Wait, Any, Received]:
        self._check(call, deadline)
        yield from self._slots.take(deadline)
        try:
            body = request.write()
            with self._hold_turn(request.tokens, deadline, attempts) as booking:
                if booking.wait:
                    yield from call.sleep(booking.wait)
                self._check(call, deadline)
                with self._breaker.guarding(_is_blamed) if self._breaker else nullcontext():
                    attempts.begin(booking.wait)
                    received: Received = yield Post(body, *self._time_limit(deadline))
                    if not 200 <= received.status < 300:
                        raise refusal_error(received, self._service, self.endpoint, call.private)
        finally:
            self._slots.give_back()
        return received

    def _check(self, call: Call, deadline: Deadline) -> None:
        """Raise if there is no point in sending any more."""
        if call.error is not None:
            raise Stopped
        if self._closed:
            raise closed_error()
        if call.key_refusals:
            unsent = copy(call.key_refusals[0])
            unsent.what += " (to another request of the batch; this one was not sent)"
            raise unsent
        deadline.check()
        if self._breaker is not None:
            self._breaker.check()

    @contextmanager
    def _hold_turn(self, tokens: int, deadline: Deadline, attempts: Attempts) -> Iterator[Booking]:
        """Hold a turn of the rate limit, given back if nothing is sent; otherwise the request is counted."""
        booking, before = self._rate.book(tokens, deadline), attempts.count
        sent = True
        try:
            yield booking
        except BaseException as error:
            sent = attempts.count > before and not isinstance(error, Unsent)
            raise
        finally:
            if sent:
                attempts.count_usage()
            else:
                self._rate.give_back(booking)

    def _requested_wait(self, error: BaseException) -> float | None:
        if isinstance(error, CircuitOpenError):
            return min(error.retry_after, self._retry.max_wait)
        return error.retry_after if isinstance(error, ServiceError) else None

    def _time_limit(self, deadline: Deadline) -> tuple[float, str]:
        """Return the seconds that an attempt has, and what to do if they are too few."""
        seconds, setting = self._service.request_timeout, "request_timeout"
        left = deadline.remaining()
        if left is not None and left < seconds:
            seconds, setting = max(left, 0.001), "`timeout`"
        return seconds, f"increase {setting} or request fewer results"


class Attempts:
    """The attempts at one request.

    Attributes:
        count: how many were made.
        last: the error of the last attempt that was followed by another one.

    Args:
        call: that the request belongs to.
        settings: the retry policy.
        deadline: of the query.
        breaker: of the endpoint, if there is one.
    """

    def __init__(self, call: Call, settings: HostedRetry, deadline: Deadline, breaker: Breaker | None) -> None:
        self._call = call
        self._settings = settings
        self._deadline = deadline
        self._breaker = breaker
        self.count = 0
        self.last: ServiceError | None = None
        self._waited = 0.0
        self._next_wait = 0.0

    def begin(self, wait: float) -> None:
        """Count an attempt that is about to be made, after ``wait`` seconds for its turn."""
        self._waited, self._next_wait = self._next_wait + wait, 0.0
        self.count += 1

    def count_usage(self) -> None:
        """Count the request that the service has received."""
        self._call.count(requests=1, **({"retries": 1} if self.count > 1 else {}))

    def worth_another(self, error: BaseException) -> bool:
        """Return whether another attempt makes sense: not for a query of which another request failed for good.

        An open circuit is waited for only if the query has no deadline.
        """
        if self._call.error is not None or self._shut_out:
            return False
        return isinstance(error, CircuitOpenError) or (isinstance(error, ServiceError) and error.retryable)

    @property
    def _shut_out(self) -> bool:
        return self._breaker is not None and self._breaker.is_open and self._deadline.at is not None

    def note_wait(self, error: BaseException, seconds: float) -> None:
        """Record the wait after an attempt, and the error that the attempt ended in."""
        self._next_wait += seconds
        if isinstance(error, ServiceError):
            self.last = error

    def complete(self, error: ServiceError) -> ServiceError:
        """Add to the last attempt's error how many there were, and why there was no other."""
        error.attempts, error.waited = self.count, self._waited
        wanted = error.retryable and self._call.error is None and not error.given_up
        if wanted and self.count < self._settings.attempts:
            if self._shut_out:
                error.given_up = "the service keeps failing, so that calls to it have stopped for a while"
            elif (error.retry_after or 0.0) > self._settings.max_wait:
                error.given_up = f"that is longer than retry.max_wait ({self._settings.max_wait:g} s)"
            elif self._deadline.budget is not None and not self._deadline.expired:
                error.given_up = f"the wait would exceed the time limit of {self._deadline.budget:g} s"
        return error

    def instead_of(self, late: DeadlineError) -> Exception:
        """Return the error of the attempt before, if there was one, since it says more than ``late``."""
        if self.last is None:
            return late
        self.last.given_up = str(late)
        return self.complete(self.last)


_senders: WeakSet[Sender] = WeakSet()


def _reset_all() -> None:
    for sender in list(_senders):
        sender.reset()


if hasattr(os, "register_at_fork"):
    # Workers of a server that forks with the pipeline open would read each other's replies.
    os.register_at_fork(after_in_child=_reset_all)


def _pop(waiting: deque[Steps]) -> Steps | None:
    """Return the next steps, or None if there is none left; several threads may ask at once."""
    try:
        return waiting.popleft()
    except IndexError:
        return None


def _is_blamed(error: Exception) -> bool | None:
    """Return what a failed request says about the service, see ``Breaker.guarding``."""
    if isinstance(error, Unanswered):
        return error.blamed
    if not isinstance(error, ServiceError):
        return None  # a fault of ours, or of a plugin's
    return error.status in _IN_TROUBLE and error.retryable
