"""One query at a service: its requests, their attempts, and what comes of them.

What is said to a service and what follows from its answer is written once, as a generator; a blocking driver sends, an
event loop's driver awaits.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, NamedTuple, cast

from milvus_pipeline import CircuitOpenError, DeadlineError, RetrySettings, ServiceError
from milvus_pipeline.plugin import Breaker, Context, Deadline, RerankJob
from milvus_stages.hosted.limits import Bell
from milvus_stages.hosted.plan import Part, Plan, sendable
from milvus_stages.hosted.replies import Reply, counted
from milvus_stages.privacy.redaction import Private

if TYPE_CHECKING:
    from milvus_stages.hosted.reranker import HostedReranker, HostedRetry


_OUR_WORDS: Final = ("requests", "retries")


class KeyRefusal:
    """That the service refuses the key of a batch, so that what has not begun need not be sent."""

    def __init__(self) -> None:
        self._error: ServiceError | None = None

    def note(self, error: ServiceError) -> None:
        """Take notice where the error says so. A 403 does not: firewalls answer so to a single text."""
        if error.status == 401 and self._error is None:
            self._error = error

    def check(self) -> None:
        """Raise the error that another request ended in, for one that is not sent."""
        if (error := self._error) is not None:
            raise ServiceError(
                f"{error} (so was another request of the batch answered",
                "this one was not sent)",
                status=error.status,
                code=error.code,
                detail=error.detail,
                request_id=error.request_id,
            )


class Work:
    """One query's requests, and what came of them.

    Args:
        job: the query with its texts.
        plan: its requests.
        key_refusal: what all queries of the batch share.
    """

    def __init__(self, job: RerankJob, plan: Plan, key_refusal: KeyRefusal) -> None:
        self.job = job
        self.plan = plan
        self.key_refusal = key_refusal
        self.query = sendable(job.query)
        self.scores: list[float | None] = [None] * len(job.texts)
        self.error: Exception | None = None
        self._usage: Counter[str] = Counter()
        self._warnings: list[str] = []
        self._too_large: list[ServiceError] = []
        self._late: DeadlineError | None = None
        self._answered = 0
        self._lock = threading.Lock()
        self.bell = Bell()
        self._private: Private | None = None

    def private(self, secrets: tuple[str, ...]) -> Private:
        """What no message may repeat: these secrets, and the texts of the query."""
        if self._private is None:
            self._private = Private(secrets, self.texts)
        return self._private

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
        usage = counted(reply.usage, *reply.usage) if isinstance(reply.usage, Mapping) else {}
        self.count(**{word: figure for word, figure in usage.items() if word not in _OUR_WORDS})
        with self._lock:
            self._answered += len(part.places)
            for index, score in scores.items():
                self.scores[part.places[index]] = score
            self._warnings += warnings

    @property
    def has_scores(self) -> bool:
        """Whether any document has been scored."""
        return any(score is not None for score in self.scores)

    def leave_out(self, error: ServiceError) -> None:
        """Note a document that the service does not take, though it is alone in its request."""
        with self._lock:
            self._too_large.append(error)

    def fail(self, error: Exception) -> None:
        """Mark the query as failed, and end its waits; the first error counts."""
        with self._lock:
            self.error = self.error or error
        self.bell.ring()

    def late(self, error: DeadlineError) -> None:
        """Note that a request has no time left. The others go on: what they bring is kept, see ``report``."""
        with self._lock:
            self._late = self._late or error

    def report(self, context: Context, position: int) -> None:
        """Leave failure, warnings and usage where the result carries them."""
        if not self.has_scores:
            if self._late is not None:
                self.fail(self._late)
            elif self._too_large:
                self.fail(self._too_large[-1])  # it is not the documents: the query, say, is too long
        self.plan.report(context, position, ranked=self.error is None)
        for warning in self._warnings:
            context.warn(warning, position)
        if self.error is not None:
            context.fail(position, self.error)
        else:
            self._report_unscored(context, position)
        if self._usage:
            context.note(position, usage=dict(self._usage))

    def _report_unscored(self, context: Context, position: int) -> None:
        """Tell of the documents that were sent, or were to be, and have no score for it."""
        total = len(self.job.texts)
        if count := len(self._too_large):
            context.warn(
                f"{count} of {total} documents are larger than the service takes; ranked last, without a score",
                position,
            )
            context.note(position, documents_too_large=count)
        if self._late is not None:
            count = self.plan.figures["documents"] - self._answered - count
            context.partial(
                position,
                f"{count} of {total} documents were not scored in the time given ({context.deadline.budget:g} s); "
                "ranked last, without a score; raise `timeout`, or ask for less",
            )
            context.note(position, documents_late=count)


class Request(NamedTuple):
    """What a driver is asked to send, and the attempts at it that it makes."""

    part: Part
    tries: Tries


Conversation = Generator[Request, None, None]


def conversation(
    service: HostedReranker, work: Work, part: Part, deadline: Deadline, breaker: Breaker | None
) -> Conversation:
    """Yields requests; is resumed when one has been answered, or thrown the error that it ended in.

    A request that the service finds too large is halved. A single document that is too large is left out. If it is the
    first to be refused and nothing has been scored, the smallest is tried: where that is too large as well, so are the
    others, which need not be tried one by one. Most likely it is the query that is too long. Any other error ends the
    conversation, and is kept with the query.
    """
    pending = [part]
    probe: Part | None = None
    with _kept(work, deadline):
        while pending:
            current = pending.pop()
            tries = Tries(work, cast("HostedRetry", service.retry), deadline, breaker)
            try:
                yield Request(current, tries)
            except DeadlineError as late:
                raise tries.instead_of(late) from None
            except CircuitOpenError as error:
                raise error from tries.last
            except ServiceError as error:
                work.key_refusal.note(error)
                tries.told(error)
                if service.limits().listwise or not service.too_large(error):
                    raise
                if len(current.places) > 1:
                    pending.extend(reversed(current.halves()))
                    continue
                work.leave_out(error)
                if current is probe:
                    for _ in range(sum(len(rest.places) for rest in pending)):
                        work.leave_out(error)
                    return
                if probe is None and pending and not work.has_scores:
                    probe = _smallest_first(pending)


def _smallest_first(pending: list[Part]) -> Part:
    """Take the smallest document out of the pending requests, and put it before them in one of its own."""
    position = min(range(len(pending)), key=lambda at: min(pending[at].sizes))
    part = pending[position]
    alone, rest = part.without(part.places[part.sizes.index(min(part.sizes))])
    pending[position : position + 1] = [rest] if rest else []
    pending.append(alone)
    return alone


class Stopped(Exception):  # noqa: N818 - no fault of its own
    """A request is not sent, since its query has failed already."""


@contextmanager
def _kept(work: Work, deadline: Deadline) -> Iterator[None]:
    """Keep the error of a conversation with its query, so that the others go on; time that is up says so."""
    try:
        yield
    except Stopped:
        pass
    except Exception as error:
        if isinstance(error, ServiceError) and deadline.expired:
            up = "" if error.given_up else f"; the time given ({deadline.budget:g} s) is used up"
            late = DeadlineError(f"{error}{up}")
            late.__cause__ = error
            error = late
        if isinstance(error, DeadlineError):
            work.late(error)
        else:
            work.fail(error)


class Tries:
    """The attempts at one request.

    Attributes:
        attempts: how many were made.
        last: what the last but one ended in, if there was one.

    Args:
        work: the query that it is of.
        settings: the policy.
        deadline: of the query.
        breaker: of the endpoint, if there is one.
    """

    def __init__(self, work: Work, settings: RetrySettings, deadline: Deadline, breaker: Breaker | None) -> None:
        self._work = work
        self._settings = settings
        self._deadline = deadline
        self._breaker = breaker
        self.attempts = 0
        self.last: ServiceError | None = None
        self._waits = [0.0]

    def begin(self, wait: float) -> None:
        """Count an attempt, now that it is made.

        Args:
            wait: seconds that it waited for its turn.
        """
        self._waits[self.attempts] += wait
        self.attempts += 1

    def sent(self) -> None:
        """Count what the service has seen of it."""
        self._work.count(requests=1, **({"retries": 1} if self.attempts > 1 else {}))

    def passing(self, error: BaseException) -> bool:
        """Whether another attempt makes sense: not for a query of which another request has failed for good.

        A service that is left alone is waited for only where nobody waits for the query.
        """
        if self._work.error is not None or self._shut_out:
            return False
        return isinstance(error, CircuitOpenError) or (isinstance(error, ServiceError) and error.retryable)

    @property
    def _shut_out(self) -> bool:
        return self._breaker is not None and self._breaker.is_open and self._deadline.at is not None

    def waits(self, error: BaseException, seconds: float) -> None:
        """Keep the wait that follows an attempt, and what the attempt ended in."""
        if isinstance(error, ServiceError):
            self._waits.append(seconds)
            self.last = error
        else:  # an attempt that was not made
            self._waits[-1] += seconds

    def told(self, error: ServiceError) -> ServiceError:
        """The last attempt's error, with what went before it, and why there is no other."""
        error.attempts, error.waited = self.attempts, self._waits[self.attempts - 1]
        wanted = error.retryable and self._work.error is None and not error.given_up
        if wanted and self.attempts < self._settings.attempts:
            if self._shut_out:
                error.given_up = "the service fails again and again, and is left alone for a while"
            elif (error.retry_after or 0.0) > self._settings.max_wait:
                error.given_up = f"that is longer than retry.max_wait ({self._settings.max_wait:g} s)"
            elif self._deadline.budget is not None and not self._deadline.expired:
                error.given_up = f"the wait would outlast the time given ({self._deadline.budget:g} s)"
        return error

    def instead_of(self, late: DeadlineError) -> Exception:
        """What ended the attempt before, if there was one: more to the point than that there is no time for another."""
        if self.last is None:
            return late
        self.last.given_up = str(late)
        return self.told(self.last)
