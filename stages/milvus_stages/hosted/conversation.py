"""The requests for one query of a reranker, what their replies say, and which requests follow from them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final, Protocol

from milvus_pipeline import PipelineError, ServiceError, StageError
from milvus_pipeline.plugin import Context, Deadline, RerankJob
from milvus_stages.hosted.plan import Limits, Part, Plan, sendable
from milvus_stages.hosted.replies import (
    BadReply,
    Received,
    Reply,
    bad_reply_error,
    check_scores,
    read_figures,
    read_json,
)
from milvus_stages.hosted.send import Call, KeyRefusal, Request, Sender, Steps
from milvus_stages.privacy.redaction import Private, chain_is_clean

_MOST_WARNINGS: Final = 10
"""Warnings of one reply that are passed on."""

_LEFT_OUT: Final = "(left out: the text repeats a text or a key of the request)"
_OUR_FIGURES: Final = ("requests", "retries")


class Scorer(Protocol):
    """What a conversation needs of a reranker; see ``HostedReranker``."""

    @property
    def type(self) -> str:
        """Name of the stage's type."""

    @property
    def takes_top_n(self) -> bool:
        """Whether fewer scores than documents can be asked for."""

    @property
    def may_return_more(self) -> bool:
        """Whether more scores than were asked for may come."""

    def payload(self, query: str, texts: list[str], top_n: int) -> Mapping[str, Any]:
        """Return the body of a request."""

    def parse(self, data: Any, headers: Mapping[str, str]) -> Reply:
        """Read a reply."""

    def limits(self) -> Limits:
        """Return what fits in one request."""

    def too_large(self, error: ServiceError) -> bool:
        """Return whether a request was refused for its size."""


class Work(Call):
    """One query, its requests, and the scores so far.

    Args:
        job: the query with its texts.
        plan: its requests.
        secrets: what no message may repeat, besides the texts.
        key_refusal: shared by all queries of the batch.
    """

    def __init__(self, job: RerankJob, plan: Plan, secrets: Iterable[str], key_refusal: KeyRefusal) -> None:
        super().__init__(Private(secrets, lambda: (job.query, *job.texts)), key_refusal)
        self.job = job
        self.plan = plan
        self.query = sendable(job.query)
        self.scores: list[float | None] = [None] * len(job.texts)
        self._warnings: list[str] = []
        self._too_large: list[ServiceError] = []
        self._answered = 0

    def add(self, part: Part, scores: Mapping[int, float], reply: Reply) -> None:
        """Take over the scores, usage and warnings of a reply."""
        usage = read_figures(reply.usage, *reply.usage) if isinstance(reply.usage, Mapping) else {}
        self.count(**{word: figure for word, figure in usage.items() if word not in _OUR_FIGURES})
        warnings = [text for text in reply.warnings if isinstance(text, str) and text.strip()][:_MOST_WARNINGS]
        with self.lock:
            self._answered += len(part.places)
            for index, score in scores.items():
                self.scores[part.places[index]] = score
            self._warnings += [self.private.clean(text) or _LEFT_OUT for text in warnings]

    @property
    def has_scores(self) -> bool:
        """Whether any document has been scored."""
        return any(score is not None for score in self.scores)

    def leave_out(self, error: ServiceError) -> None:
        """Record a document that is too large for the service even alone in its request."""
        with self.lock:
            self._too_large.append(error)

    def report(self, context: Context, position: int) -> None:
        """Put failure, warnings and usage into the report of the query."""
        if not self.has_scores:
            if self.late is not None:
                self.fail(self.late)
            elif self._too_large:
                self.fail(self._too_large[-1])  # it is not the documents: the query may be too long
        self.plan.report(context, position, ranked=self.error is None)
        for warning in self._warnings:
            context.warn(warning, position)
        if self.error is not None:
            context.fail(position, self.error)
        else:
            self._report_unscored(context, position)
        if self.usage:
            context.note(position, usage=dict(self.usage))

    def _report_unscored(self, context: Context, position: int) -> None:
        """Report the documents that were planned to be sent, and have no score."""
        total = len(self.job.texts)
        if count := len(self._too_large):
            context.warn(
                f"{count} of {total} documents are larger than the service accepts; ranked last, without a score",
                position,
            )
            context.note(position, documents_too_large=count)
        if self.late is not None:
            count = self.plan.figures["documents"] - self._answered - count
            context.partial(
                position,
                f"{count} of {total} documents were not scored within {context.deadline.budget:g} s; "
                "ranked last, without a score; increase `timeout` or request fewer results",
            )
            context.note(position, documents_late=count)


def conversation(scorer: Scorer, sender: Sender, work: Work, part: Part, deadline: Deadline) -> Steps:
    """Yield the steps that score a part of a query's documents; an error is kept with the query.

    A request that the service finds too large is halved. A single document that is too large is left out. If it is the
    first to be refused and nothing has been scored, the smallest is tried next: if that is too large as well, so are
    the others, which need not be tried one by one. Most likely the query is too long. Any other error ends the
    conversation.
    """
    pending = [part]
    probe: Part | None = None
    with work.kept_error(deadline):
        while pending:
            current = pending.pop()
            try:
                yield from sender.deliver(work, _request(scorer, sender, work, current), deadline)
            except ServiceError as error:
                if scorer.limits().listwise or not scorer.too_large(error):
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
    """Move the smallest of the pending documents into a request that comes first, and return that request."""
    position = min(range(len(pending)), key=lambda at: min(pending[at].sizes))
    part = pending[position]
    alone, rest = part.without(part.places[part.sizes.index(min(part.sizes))])
    pending[position : position + 1] = [rest] if rest else []
    pending.append(alone)
    return alone


def _request(scorer: Scorer, sender: Sender, work: Work, part: Part) -> Request:
    return Request(
        part.tokens,
        lambda: _body(scorer, work, part),
        lambda received: work.add(part, *_read(scorer, sender.endpoint, work.private, part, received)),
    )


def _body(scorer: Scorer, work: Work, part: Part) -> bytes:
    payload = _payload(scorer, work, part)
    # Not escaped: limits are counted in the bytes of the text.
    try:
        text = json.dumps(payload, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return text.encode("utf-8", "replace")
    except (TypeError, ValueError, RecursionError) as error:
        kind = type(error).__name__
    # Raised here, without a context, which may hold a text.
    raise StageError(
        f"the request cannot be written as JSON ({kind})",
        "check the options, which may hold strings, finite numbers, lists and mappings",
        place=scorer.type,
    )


def _payload(scorer: Scorer, work: Work, part: Part) -> Mapping[str, Any]:
    """Return the provider's body. Its failure is kept as the cause, unless that repeats a text or a key."""
    try:
        return scorer.payload(work.query, part.texts(work.job), part.top_k)
    except PipelineError:
        raise
    except Exception as error:
        kind = type(scorer).__name__
        failure = StageError(f"{kind}.payload failed ({type(error).__name__})", place=scorer.type)
        if chain_is_clean(error, work.private):
            failure.__cause__ = error
    raise failure


def _read(
    scorer: Scorer, endpoint: str, private: Private, part: Part, received: Received
) -> tuple[dict[int, float], Reply]:
    """Return the checked scores of a reply, by position in the request, and the reply."""
    try:
        reply = scorer.parse(read_json(received), received.headers)
        wanted = part.top_k if scorer.takes_top_n else len(part.places)
        return check_scores(reply.scores, len(part.places), wanted, more=scorer.may_return_more), reply
    except PipelineError:
        raise
    except BadReply as error:
        bad = BadReply(private.clean(str(error)) or _LEFT_OUT, cut_short=error.cut_short)
    except Exception as error:  # a plugin's parse that trusted the reply
        bad = BadReply(f"the reply is not what was expected ({type(error).__name__})")
    # Raised here, without a cause and a context, which may hold the reply itself.
    raise bad_reply_error(bad, scorer.type, endpoint, received.status)
