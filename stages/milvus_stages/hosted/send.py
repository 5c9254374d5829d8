"""The requests of a batch: sent within the limits, and repeated where that may help.

The drivers of the conversation that each part of a query is (see ``work``): one blocks, one awaits.
"""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Final, cast
from weakref import WeakSet

from milvus_pipeline import BreakerSettings, CircuitOpenError, PipelineError, ServiceError, StageError
from milvus_pipeline.plugin import Deadline, adrive, async_retrying, breaker_for, drive, in_threads, retrying
from milvus_stages.hosted.conversation import Request, Stopped, Tries, Work, conversation
from milvus_stages.hosted.failures import refused
from milvus_stages.hosted.http.clients import closed_error
from milvus_stages.hosted.http.transport import Transport, Unanswered, Unsent
from milvus_stages.hosted.limits import Booking, Rate, Slots
from milvus_stages.hosted.plan import Part
from milvus_stages.hosted.replies import BadReply, Received, bad_reply_error, checked, read_json
from milvus_stages.privacy.redaction import chain_is_clean

_MOST_WARNINGS: Final = 10
"""Warnings of one reply that are told."""

_IN_TROUBLE: Final = frozenset({500, 502, 503, 504, 529})
"""HTTP statuses by which a service says that it fails; any other is an answer."""

_LEFT_OUT: Final = "(left out: the text repeats a text or a key of the request)"

if TYPE_CHECKING:
    from milvus_stages.hosted.reranker import HostedReranker, HostedRetry


class Exchange:
    """An open connection to a service, for blocking callers and for event loops.

    Args:
        service: the provider's stage, whose settings hold.
        transport: to its URL; closed with this object.
        secrets: what no message may repeat.
        key_names: environment variables that the key was looked for in.
    """

    def __init__(
        self, service: HostedReranker, transport: Transport, *, secrets: tuple[str, ...], key_names: tuple[str, ...]
    ) -> None:
        self._service = service
        self._transport = transport
        self._secrets = secrets
        self._key_names = key_names
        self._retry = cast("HostedRetry", service.retry)
        self._slots = Slots(service.max_concurrency)
        self._rate = Rate(service.requests_per_minute, service.tokens_per_minute)
        # Without the key: one that is refused, or has had too much, is answered, and an answer is no failure.
        named = f"{transport.request} ({service.model})" if service.model else transport.request
        settings = cast("BreakerSettings | None", service.breaker)
        self._breaker = breaker_for((transport.request, service.model or ""), named, settings) if settings else None
        self._lock = threading.Lock()
        self._works: set[Work] = set()
        self._ended = False
        _exchanges.add(self)

    def forget(self) -> None:
        """Begin anew, after a fork: connections and calls are the parent's, locks may be held by threads of its own."""
        self._slots = Slots(self._service.max_concurrency)
        self._rate.forget()
        self._lock = threading.Lock()
        self._works = set()
        self._transport.forget()

    def close(self) -> None:
        """End all waits, and let go of the connections."""
        with self._lock:
            self._ended = True
            works = list(self._works)
        for work in works:
            work.bell.ring()
        self._transport.close()

    async def aclose_here(self) -> None:
        """Let go of what was opened for this event loop alone."""
        await self._transport.aclose_here()

    # -- blocking -----------------------------------------------------------------------------------------------

    def run(self, works: Sequence[Work], deadline: Deadline) -> None:
        """Send the requests of all queries; what becomes of each stands in it."""
        with self._known(works):
            waiting = deque(_in_turn(works))
            if len(waiting) == 1:
                self._converse(*waiting[0], deadline)
                return

            def work_off() -> None:
                while task := _next(waiting):
                    self._converse(*task, deadline)

            count = min(len(waiting), self._service.max_concurrency)
            in_threads(work_off, count, self._service.name, waiting.clear)  # what has not begun is not sent

    def _converse(self, work: Work, part: Part, deadline: Deadline) -> None:
        def attempt(current: Part, tries: Tries) -> None:
            self._check(work, deadline)
            self._rate.check(current.tokens, deadline)
            with self._slots.held(deadline):
                self._check(work, deadline)
                body = self._body(work, current)
                with self._booked(current, deadline, tries) as booking:
                    work.bell.wait(booking.wait)
                    self._check(work, deadline)
                    with self._guarded():
                        tries.begin(booking.wait)
                        received = self._accepted(work, self._transport.send(body, *self._seconds(deadline)))
            self._take(work, current, received)

        def send(request: Request) -> None:
            tries = request.tries
            policy = retrying(self._retry, deadline, tries.passing, self._asked_wait, tries.waits)
            policy.copy(sleep=work.bell.wait)(attempt, *request)

        drive(conversation(self._service, work, part, deadline, self._breaker), send)

    # -- event loops --------------------------------------------------------------------------------------------

    async def arun(self, works: Sequence[Work], deadline: Deadline) -> None:
        """``run`` for an event loop; cancelling it ends the requests."""
        tasks = _in_turn(works)
        with self._known(works):
            if len(tasks) == 1:
                await self._aconverse(*tasks[0], deadline)
                return
            async with asyncio.TaskGroup() as group:
                for task in tasks:
                    group.create_task(self._aconverse(*task, deadline))

    async def _aconverse(self, work: Work, part: Part, deadline: Deadline) -> None:
        async def attempt(current: Part, tries: Tries) -> None:
            self._check(work, deadline)
            self._rate.check(current.tokens, deadline)
            async with self._slots.aheld(deadline):
                self._check(work, deadline)
                body = self._body(work, current)
                with self._booked(current, deadline, tries) as booking:
                    await work.bell.asleep(booking.wait)
                    self._check(work, deadline)
                    with self._guarded():
                        tries.begin(booking.wait)
                        received = self._accepted(work, await self._transport.asend(body, *self._seconds(deadline)))
            self._take(work, current, received)

        async def send(request: Request) -> None:
            tries = request.tries
            policy = async_retrying(self._retry, deadline, tries.passing, self._asked_wait, tries.waits)
            await policy.copy(sleep=work.bell.asleep)(attempt, *request)

        await adrive(conversation(self._service, work, part, deadline, self._breaker), send)

    # -- what both share ----------------------------------------------------------------------------------------

    @contextmanager
    def _known(self, works: Sequence[Work]) -> Iterator[None]:
        """``close`` knows the queries that are under way; they have failed where the call is given up."""
        with self._lock:
            self._works.update(works)
        try:
            yield
        except BaseException:
            for work in works:
                work.fail(StageError("the call was given up"))
            raise
        finally:
            with self._lock:
                self._works.difference_update(works)

    def _check(self, work: Work, deadline: Deadline) -> None:
        """Raise where there is no sense in sending any more."""
        if work.error is not None:
            raise Stopped
        if self._ended:
            raise closed_error()
        work.key_refusal.check()
        deadline.check()
        if self._breaker is not None:
            self._breaker.check()

    def _guarded(self) -> AbstractContextManager[None]:
        """Round the sending of a request: what it ends in is counted for the endpoint."""
        return nullcontext() if self._breaker is None else self._breaker.guarding(_blamed)

    @contextmanager
    def _booked(self, part: Part, deadline: Deadline, tries: Tries) -> Iterator[Booking]:
        """A turn for a request, given back if it is not sent after all; else the request is counted."""
        booking, sent = self._rate.book(part.tokens, deadline), tries.attempts
        try:
            yield booking
        except Unsent:
            self._rate.give_back(booking)
            raise
        except BaseException:
            if tries.attempts == sent:
                self._rate.give_back(booking)
            else:
                tries.sent()
            raise
        tries.sent()

    def _asked_wait(self, error: BaseException) -> float | None:
        if isinstance(error, CircuitOpenError):
            return min(error.retry_after, self._retry.max_wait)
        return error.retry_after if isinstance(error, ServiceError) else None

    def _seconds(self, deadline: Deadline) -> tuple[float, str]:
        """The time that an attempt has, and the setting that bounds it."""
        left = deadline.remaining()
        if left is None or left >= self._service.request_timeout:
            return self._service.request_timeout, "request_timeout"
        return max(left, 0.001), "`timeout`"

    def _body(self, work: Work, part: Part) -> bytes:
        payload = self._payload(work, part)
        # Not escaped: the bytes that limits are counted in are those of the text.
        try:
            text = json.dumps(payload, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
            return text.encode("utf-8", "replace")
        except (TypeError, ValueError, RecursionError) as error:
            kind = type(error).__name__
        raise StageError(
            f"the request cannot be written as JSON ({kind})",
            "check the options, which may hold texts, finite numbers, lists and mappings",
            place=str(self._service.type),
        )

    def _accepted(self, work: Work, received: Received) -> Received:
        """A reply with a status of success; else the error that it stands for is raised."""
        if not 200 <= received.status < 300:
            private = work.private(self._secrets)
            raise refused(received, self._service, self._transport.request, private, self._key_names)
        return received

    def _take(self, work: Work, part: Part, received: Received) -> None:
        """Read a reply, check it, and keep what it says."""
        service, request = self._service, self._transport.request
        private = work.private(self._secrets)
        bad: BadReply | None = None
        try:
            reply = service.parse(read_json(received), received.headers)
            wanted = part.top_k if service.takes_top_n else len(part.places)
            scores = checked(reply.scores, len(part.places), wanted, more=service.may_return_more)
        except PipelineError:
            raise
        except BadReply as error:
            bad = error
        except Exception as error:  # a plugin's parse that trusted the reply
            bad = BadReply(f"the reply is not what was expected ({type(error).__name__})")
        if bad is not None:
            # Raised here, without a cause and a context, which may carry the reply itself.
            told = BadReply(private.clean(str(bad)) or _LEFT_OUT, cut_short=bad.cut_short)
            raise bad_reply_error(told, service.type, request, received.status)
        warnings = [text for text in reply.warnings if isinstance(text, str) and text.strip()][:_MOST_WARNINGS]
        work.take(part, scores, reply, [private.clean(text) or _LEFT_OUT for text in warnings])

    def _payload(self, work: Work, part: Part) -> Mapping[str, Any]:
        """What the provider wants sent.

        Raises:
            StageError: it failed to say so. The failure is the cause, unless that repeats a text or a key.
        """
        try:
            return self._service.payload(work.query, part.texts(work.job), part.top_k)
        except PipelineError:
            raise
        except Exception as error:
            kind = type(self._service).__name__
            failure = StageError(f"{kind}.payload failed ({type(error).__name__})", place=str(self._service.type))
            if chain_is_clean(error, work.private(self._secrets)):
                failure.__cause__ = error
        raise failure


_exchanges: WeakSet[Exchange] = WeakSet()


def _forget_all() -> None:
    for exchange in list(_exchanges):
        exchange.forget()


if hasattr(os, "register_at_fork"):
    # A server that forks its workers with the pipeline open would have them read each other's replies.
    os.register_at_fork(after_in_child=_forget_all)


def _next(waiting: deque[tuple[Work, Part]]) -> tuple[Work, Part] | None:
    """The next task; None where none is left, which only taking it can tell among several threads."""
    try:
        return waiting.popleft()
    except IndexError:
        return None


def _in_turn(works: Sequence[Work]) -> list[tuple[Work, Part]]:
    """All requests: the first of each query, then the second ones. What time leaves out are the worst candidates."""
    tasks = [(turn, work, part) for work in works for turn, part in enumerate(work.plan.parts)]
    return [(work, part) for _, work, part in sorted(tasks, key=lambda task: task[0])]


def _blamed(error: Exception) -> bool | None:
    """What a failed request says of the service, see ``Breaker.guarding``."""
    if isinstance(error, Unanswered):
        return error.blamed
    if not isinstance(error, ServiceError):
        return None  # a fault of ours, or of a plugin's
    return error.status in _IN_TROUBLE and error.retryable
