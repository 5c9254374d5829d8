"""One query at a service: its requests, their attempts, and what comes of them.

What is said to a service and what follows from its answer is written once, as a generator; a blocking driver sends, an
event loop's driver awaits.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from milvus_pipeline import Context, Deadline, DeadlineError, RerankJob, ServiceError
from milvus_stages.hosted.plan import Part, Plan, sendable
from milvus_stages.hosted.replies import Reply
from milvus_stages.hosted.throttle import Bell

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


def resumed(talk: Conversation, error: ServiceError) -> Part | None:
    """The next request after one that failed; the error again where the conversation does not know better."""
    try:
        return talk.throw(error)
    except StopIteration:
        return None


class Stopped(Exception):  # noqa: N818 - no fault of its own
    """A request is not sent, since its query has failed already."""


@contextmanager
def kept(work: Work, deadline: Deadline) -> Iterator[None]:
    """Keep the error of a conversation with its query, so that the others go on; time that is up says so."""
    try:
        yield
    except Stopped:
        pass
    except Exception as error:
        if isinstance(error, ServiceError) and deadline.expired:
            late = DeadlineError(f"{error}; the time given ({deadline.budget:g} s) is used up")
            late.__cause__ = error
            error = late
        work.fail(error)


class Tries:
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
