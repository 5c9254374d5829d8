"""The requests of a batch: sent within the limits, repeated where that may help, and their replies put together.

What is said and what follows from an answer is written once, as a generator; a blocking driver sends, an event loop's
driver awaits.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections import Counter, deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import copy_context
from typing import TYPE_CHECKING

from milvus_pipeline import (
    Context,
    Deadline,
    DeadlineError,
    PipelineError,
    RerankJob,
    RetrySettings,
    ServiceError,
    StageError,
    async_retrying,
    retrying,
)
from milvus_stages.hosted.failures import Private, refused
from milvus_stages.hosted.plan import Part, Plan, sendable
from milvus_stages.hosted.replies import BadReply, Received, Reply, bad_reply_error, checked, read_json
from milvus_stages.hosted.throttle import Bell, Rate, Slots
from milvus_stages.hosted.transport import Transport, closed_error

if TYPE_CHECKING:
    from milvus_stages.hosted.reranker import HostedReranker


class Work:
    """One query's requests, and what came of them.

    Args:
        job: the query with its texts.
        plan: its requests.
    """

    def __init__(self, job: RerankJob, plan: Plan) -> None:
        self.job = job
        self.plan = plan
        self.query = sendable(job.query)
        self.scores: list[float | None] = [None] * len(job.texts)
        self.error: Exception | None = None
        self._usage: Counter[str] = Counter()
        self._warnings: list[str] = list(plan.warnings)
        self._too_large: list[ServiceError] = []
        self._lock = threading.Lock()
        self.bell = Bell()

    def texts(self) -> Iterator[str]:
        """Everything that no message may repeat."""
        yield self.job.query
        yield from self.job.texts

    def count(self, **figures: float) -> None:
        """Add to the usage."""
        with self._lock:
            self._usage.update(figures)

    def take(self, part: Part, scores: Mapping[int, float], reply: Reply, warnings: Iterable[str]) -> None:
        """Keep what a reply said."""
        self.count(**reply.usage)
        with self._lock:
            for index, score in scores.items():
                self.scores[part.places[index]] = score
            self._warnings += warnings

    def leave_out(self, error: ServiceError) -> None:
        """Note a document that the service does not take, though it is alone in its request."""
        with self._lock:
            self._too_large.append(error)

    def fail(self, error: Exception) -> None:
        """Mark the query as failed, and end its waits; the first error counts."""
        with self._lock:
            self.error = self.error or error
        self.bell.ring()

    def report(self, context: Context, position: int) -> None:
        """Leave failure, warnings and usage where the result carries them."""
        if self._too_large and all(score is None for score in self.scores):
            self.fail(self._too_large[-1])  # it is not the documents: the query, say, is too long
        if self.error is not None:
            context.fail(position, self.error)
        for warning in self._warnings:
            context.warn(warning, position)
        if self.plan.blank:
            context.note(position, documents_blank=self.plan.blank)
        if self._too_large:
            context.warn(
                f"{len(self._too_large)} of {len(self.job.texts)} documents are larger than the service takes; "
                "ranked last, without a score",
                position,
            )
            context.note(position, documents_too_large=len(self._too_large))
        if self._usage:
            context.note(position, usage=dict(self._usage))


Conversation = Generator[Part, None, None]


def conversation(service: HostedReranker, work: Work, part: Part) -> Conversation:
    """Yields requests; is resumed when one has been answered, or thrown the error that it ended in.

    A request that the service finds too large is halved. A single document that is too large is left out.
    """
    pending = [part]
    while pending:
        current = pending.pop()
        try:
            yield current
        except ServiceError as error:
            if service.limits().listwise or not service.too_large(error):
                raise
            if len(current.places) == 1:
                work.leave_out(error)
            else:
                pending.extend(reversed(current.halves()))


class Exchange:
    """An open connection to a service, for blocking callers and for event loops.

    Args:
        service: the provider's stage.
        transport: to its URL; closed with this object.
        secrets: what no message may repeat.
        key_names: environment variables that the key was looked for in.
        retry: the policy.
        max_concurrency: requests under way at a time.
        rate: bound of rate.
        request_timeout: seconds that one attempt may take.
    """

    def __init__(
        self,
        service: HostedReranker,
        transport: Transport,
        *,
        secrets: tuple[str, ...],
        key_names: tuple[str, ...],
        retry: RetrySettings,
        max_concurrency: int,
        rate: Rate,
        request_timeout: float,
    ) -> None:
        self._service = service
        self._transport = transport
        self._secrets = secrets
        self._key_names = key_names
        self._retry = retry
        self._max_concurrency = max_concurrency
        self._slots = Slots(max_concurrency)
        self._rate = rate
        self._request_timeout = request_timeout
        self._lock = threading.Lock()
        self._works: set[Work] = set()
        self._ended = False

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
            waiting = deque((work, part) for work in works for part in work.plan.parts)
            if len(waiting) == 1:
                self._converse(*waiting[0], deadline)
            else:
                self._run_threads(works, waiting, deadline)

    def _run_threads(self, works: Sequence[Work], waiting: deque[tuple[Work, Part]], deadline: Deadline) -> None:
        def work_off() -> None:
            with suppress(IndexError):  # nothing is left
                while True:
                    self._converse(*waiting.popleft(), deadline)

        # Daemons: after Ctrl-C the process shall end without waiting for replies.
        threads = [
            threading.Thread(target=copy_context().run, args=(work_off,), name=self._service.name, daemon=True)
            for _ in range(min(len(waiting), self._max_concurrency))
        ]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        except BaseException:  # what has not begun is not sent
            waiting.clear()
            for work in works:
                work.fail(StageError("the call was given up"))
            raise

    def _converse(self, work: Work, part: Part, deadline: Deadline) -> None:
        def attempt(current: Part, tries: _Tries) -> None:
            self._check(work, deadline)
            with self._slots.held(deadline):
                self._check(work, deadline)
                body = self._body(work, current)
                work.bell.wait(self._rate.book(current.tokens, deadline))
                self._check(work, deadline)
                tries.begin()
                received = self._transport.send(body, self._seconds(deadline))
            self._take(work, current, received)

        with _kept(work, deadline):
            talk = conversation(self._service, work, part)
            current = next(talk, None)
            while current is not None:
                tries = _Tries(work)
                policy = retrying(self._retry, deadline, tries.passing, _asked_wait, tries.waits)
                try:
                    policy.copy(sleep=work.bell.wait)(attempt, current, tries)
                except ServiceError as error:
                    current = _thrown(talk, tries.told(error))
                else:
                    current = next(talk, None)

    # -- event loops --------------------------------------------------------------------------------------------

    async def arun(self, works: Sequence[Work], deadline: Deadline) -> None:
        """``run`` for an event loop; cancelling it ends the requests."""
        tasks = [(work, part) for work in works for part in work.plan.parts]
        with self._known(works):
            if len(tasks) == 1:
                await self._aconverse(*tasks[0], deadline)
                return
            async with asyncio.TaskGroup() as group:
                for task in tasks:
                    group.create_task(self._aconverse(*task, deadline))

    async def _aconverse(self, work: Work, part: Part, deadline: Deadline) -> None:
        async def attempt(current: Part, tries: _Tries) -> None:
            self._check(work, deadline)
            async with self._slots.aheld(deadline):
                self._check(work, deadline)
                body = self._body(work, current)
                await work.bell.asleep(self._rate.book(current.tokens, deadline))
                self._check(work, deadline)
                tries.begin()
                received = await self._transport.asend(body, self._seconds(deadline))
            self._take(work, current, received)

        with _kept(work, deadline):
            talk = conversation(self._service, work, part)
            current = next(talk, None)
            while current is not None:
                tries = _Tries(work)
                policy = async_retrying(self._retry, deadline, tries.passing, _asked_wait, tries.waits)
                try:
                    await policy.copy(sleep=work.bell.asleep)(attempt, current, tries)
                except ServiceError as error:
                    current = _thrown(talk, tries.told(error))
                else:
                    current = next(talk, None)

    # -- what both share ----------------------------------------------------------------------------------------

    @contextmanager
    def _known(self, works: Sequence[Work]) -> Iterator[None]:
        """``close`` knows the queries that are under way."""
        with self._lock:
            self._works.update(works)
        try:
            yield
        finally:
            with self._lock:
                self._works.difference_update(works)

    def _check(self, work: Work, deadline: Deadline) -> None:
        """Raise where there is no sense in sending any more."""
        if work.error is not None:
            raise _Stopped
        if self._ended:
            raise closed_error()
        deadline.check()

    def _seconds(self, deadline: Deadline) -> float:
        seconds = deadline.remaining(at_most=self._request_timeout)
        return self._request_timeout if seconds is None else max(seconds, 0.001)

    def _body(self, work: Work, part: Part) -> bytes:
        payload = self._service.payload(work.query, part.texts(work.job), part.top_k)
        # Not escaped: the bytes that limits are counted in are those of the text.
        try:
            text = json.dumps(payload, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
            return text.encode("utf-8", "replace")
        except (TypeError, ValueError, RecursionError) as error:
            kind = type(error).__name__
        raise StageError(
            f"{self._service.type}: the request cannot be written as JSON ({kind}); check the options, which may hold "
            "texts, finite numbers, lists and mappings"
        )

    def _take(self, work: Work, part: Part, received: Received) -> None:
        """Read a reply, check it, and keep what it says."""
        service, request = self._service, self._transport.request
        private = Private(self._secrets, work.texts)
        if not 200 <= received.status < 300:
            error = refused(received, service.type, request, private, self._key_names)
            error.retryable = service.passing(received)
            raise error
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
            raise bad_reply_error(bad, service.type, request)
        work.take(part, scores, reply, map(private.clean, filter(str.strip, reply.warnings)))


class _Stopped(Exception):  # noqa: N818 - no fault of its own
    """A request is not sent, since its query has failed already."""


class _kept:  # noqa: N801 - reads as a function
    """Keeps the error of a conversation with its query, so that the others go on; time that is up says so."""

    def __init__(self, work: Work, deadline: Deadline) -> None:
        self._work = work
        self._deadline = deadline

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> bool:
        if not isinstance(error, Exception):
            return False
        if isinstance(error, _Stopped):
            return True
        if isinstance(error, ServiceError) and self._deadline.expired:
            late = DeadlineError(f"{error}; the time given ({self._deadline.budget:g} s) is used up")
            late.__cause__ = error
            error = late
        self._work.fail(error)
        return True


def _thrown(talk: Conversation, error: ServiceError) -> Part | None:
    """The next request after one that failed; the error again where the conversation does not know better."""
    try:
        return talk.throw(error)
    except StopIteration:
        return None


def _asked_wait(error: BaseException) -> float | None:
    return error.retry_after if isinstance(error, ServiceError) else None


class _Tries:
    """The attempts at one request."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._attempts = 0
        self._waits = [0.0]

    def begin(self) -> None:
        """Count an attempt, now that it is sent."""
        self._attempts += 1
        self._work.count(requests=1, **({"retries": 1} if self._attempts > 1 else {}))

    def passing(self, error: BaseException) -> bool:
        """Whether another attempt makes sense: not for a query of which another request has failed for good."""
        return isinstance(error, ServiceError) and error.retryable and self._work.error is None

    def waits(self, error: BaseException, seconds: float) -> None:
        """Keep the wait that follows an attempt."""
        self._waits.append(seconds)

    def told(self, error: ServiceError) -> ServiceError:
        """The last attempt's error, with what went before it."""
        error.attempts, error.waited = self._attempts, self._waits[self._attempts - 1]
        return error
