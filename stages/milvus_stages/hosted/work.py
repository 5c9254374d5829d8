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

from milvus_pipeline import Context, Deadline, DeadlineError, RerankJob, RetrySettings, ServiceError
from milvus_stages.hosted.failures import Private
from milvus_stages.hosted.plan import Part, Plan, sendable
from milvus_stages.hosted.replies import Reply, counted
from milvus_stages.hosted.throttle import Bell

if TYPE_CHECKING:
    from milvus_stages.hosted.reranker import HostedReranker, HostedRetry


_OUR_WORDS: Final = ("requests", "retries")


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
        self._warnings: list[str] = []
        self._too_large: list[ServiceError] = []
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

    def report(self, context: Context, position: int) -> None:
        """Leave failure, warnings and usage where the result carries them."""
        if self._too_large and not self.has_scores:
            self.fail(self._too_large[-1])  # it is not the documents: the query, say, is too long
        if self.error is not None:
            context.fail(position, self.error)
        self.plan.report(context, position)
        for warning in self._warnings:
            context.warn(warning, position)
        if self._too_large and self.error is None:
            context.warn(
                f"{len(self._too_large)} of {len(self.job.texts)} documents are larger than the service takes; "
                "ranked last, without a score",
                position,
            )
            context.note(position, documents_too_large=len(self._too_large))
        if self._usage:
            context.note(position, usage=dict(self._usage))


class Request(NamedTuple):
    """What a driver is asked to send, and the attempts at it that it makes."""

    part: Part
    tries: Tries


Conversation = Generator[Request, None, None]


def conversation(service: HostedReranker, work: Work, part: Part, deadline: Deadline) -> Conversation:
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
            tries = Tries(work, cast("HostedRetry", service.retry), deadline)
            try:
                yield Request(current, tries)
            except DeadlineError as late:
                raise tries.instead_of(late) from None
            except ServiceError as error:
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


def resumed(talk: Conversation, error: Exception) -> Request | None:
    """The next request after one that failed; None where that was the last."""
    try:
        return talk.throw(error)
    except StopIteration:
        return None


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
        work.fail(error)


class Tries:
    """The attempts at one request.

    Attributes:
        attempts: how many were made.

    Args:
        work: the query that it is of.
        settings: the policy.
        deadline: of the query.
    """

    def __init__(self, work: Work, settings: RetrySettings, deadline: Deadline) -> None:
        self._work = work
        self._settings = settings
        self._deadline = deadline
        self.attempts = 0
        self._waits = [0.0]
        self._last: ServiceError | None = None

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
        """Whether another attempt makes sense: not for a query of which another request has failed for good."""
        return isinstance(error, ServiceError) and error.retryable and self._work.error is None

    def waits(self, error: BaseException, seconds: float) -> None:
        """Keep the wait that follows an attempt, and what the attempt ended in."""
        self._waits.append(seconds)
        self._last = error if isinstance(error, ServiceError) else None

    def told(self, error: ServiceError) -> ServiceError:
        """The last attempt's error, with what went before it, and why there is no other."""
        error.attempts, error.waited = self.attempts, self._waits[self.attempts - 1]
        if self.passing(error) and self.attempts < self._settings.attempts and not error.given_up:
            if (error.retry_after or 0.0) > self._settings.max_wait:
                error.given_up = f"that is longer than retry.max_wait ({self._settings.max_wait:g} s)"
            elif self._deadline.budget is not None and not self._deadline.expired:
                error.given_up = f"the wait would outlast the time given ({self._deadline.budget:g} s)"
        return error

    def instead_of(self, late: DeadlineError) -> Exception:
        """What ended the attempt before, if there was one: more to the point than that there is no time for another."""
        if self._last is None:
            return late
        self._last.given_up = str(late)
        return self.told(self._last)
