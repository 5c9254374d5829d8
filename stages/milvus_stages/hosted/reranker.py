"""The base of rerankers that call a service on HTTP, a provider's or your own."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Final

from pydantic import Field, PrivateAttr

from milvus_pipeline import PipelineError, ServiceError, StageError
from milvus_pipeline.plugin import Context, Deadline, Reranker, RerankJob
from milvus_stages.hosted.plan import Limits, Part, Plan, plan, sendable
from milvus_stages.hosted.replies import (
    BadReply,
    Received,
    Reply,
    check_scores,
    get_member,
    read_figures,
    read_json,
    read_scores,
)
from milvus_stages.hosted.send import Call, Request, Sender, Steps, Task
from milvus_stages.hosted.service import HostedService
from milvus_stages.privacy.redaction import Private, chain_is_clean

_MOST_WARNINGS: Final = 10
"""Warnings of one reply that are passed on."""

_LEFT_OUT: Final = "(left out: the text repeats a text or a key of the request)"
_OUR_FIGURES: Final = ("requests", "retries")


class Work(Call):
    """One query, its requests, and the scores so far.

    Args:
        job: the query with its texts.
        plan: its requests.
        secrets: what no message may repeat, besides the texts.
        key_refusals: shared by all queries of the batch.

    Attributes:
        too_large: the refusals of documents that are too large for the service even alone in a request.
    """

    def __init__(self, job: RerankJob, plan: Plan, secrets: Iterable[str], key_refusals: list[ServiceError]) -> None:
        super().__init__(Private(secrets, lambda: (job.query, *job.texts)), key_refusals)
        self.job = job
        self.plan = plan
        self.query = sendable(job.query)
        self.scores: list[float | None] = [None] * len(job.texts)
        self._warnings: list[str] = []
        self.too_large: list[ServiceError] = []
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

    def report(self, context: Context, position: int) -> None:
        """Put failure, warnings and usage into the report of the query."""
        if not self.has_scores:
            if self.late is not None:
                self.fail(self.late)
            elif self.too_large:
                self.fail(self.too_large[-1])  # it is not the documents: the query may be too long
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
        if count := len(self.too_large):
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


class HostedReranker(HostedService, Reranker):
    """A reranker that calls a service. Write ``payload``, and ``parse`` if the reply has an unusual shape.

    This class reads the key, plans the requests, sends them from blocking callers and event loops, retries what may
    pass, keeps to the limits of concurrency and rate, checks the replies and adds up the usage. It never trusts a text
    in a reply: scores are assigned by index.

    Class attributes, besides those of ``HostedService``:
        takes_top_n: the service can be asked for fewer scores than it is given documents.
        may_return_more: the service may return more scores than it was asked for.
    """

    path: ClassVar[str] = "/rerank"
    takes_top_n: ClassVar[bool] = True
    may_return_more: ClassVar[bool] = False
    score_neutral: ClassVar[frozenset[str]] = frozenset(
        {
            "api_key_env",
            "request_timeout",
            "max_concurrency",
            "requests_per_minute",
            "tokens_per_minute",
            "max_documents",
            "retry",
            "breaker",
        }
    )

    max_documents: Annotated[
        int | None, Field(ge=1, description="Maximum number of documents in one request; the service's by default.")
    ] = None

    _sender: Sender | None = PrivateAttr(default=None)

    # -- what a provider defines --------------------------------------------------------------------------------

    @abstractmethod
    def payload(self, query: str, texts: list[str], top_n: int) -> Mapping[str, Any]:
        """Return the body of a request as plain data.

        Args:
            query: not blank.
            texts: at least one, none of them blank.
            top_n: how many of the best are wanted; from 1 to the number of texts.
        """

    def parse(self, data: Any, headers: Mapping[str, str]) -> Reply:
        """Read the scores, usage and warnings in the JSON of a reply.

        The default reads the shapes that most services share: a list under ``results`` or ``data``, or the list itself,
        of objects with ``index`` and with ``relevance_score`` or ``score``; and the token counts under ``usage``.

        Args:
            data: the body.
            headers: of the reply; looked up by lower-case names.

        Raises:
            BadReply: the reply has another shape.
        """
        return Reply(
            read_scores(data),
            read_figures(get_member(data, "usage"), "prompt_tokens", "completion_tokens", "total_tokens"),
        )

    def limits(self) -> Limits:
        """Return what the service accepts in one request."""
        return Limits()

    @property
    def scores_lists(self) -> bool:
        """True for a listwise model, see ``limits``."""
        return self._limits().listwise

    # -- life ---------------------------------------------------------------------------------------------------

    def setup(self) -> None:
        """Read the key, and prepare to connect. Nothing is sent."""
        self._sender = Sender(self)

    def teardown(self) -> None:
        """Close connections and threads."""
        if self._sender is not None:
            self._sender.close()
            self._sender = None

    async def aclose(self) -> None:
        """``close`` without blocking the event loop; closes the connections of this event loop first."""
        if self._sender is not None and self._users == 1:
            await self._sender.aclose_here()
        await super().aclose()

    # -- work ---------------------------------------------------------------------------------------------------

    def score_batch(self, jobs: Sequence[RerankJob], context: Context) -> list[list[float | None]]:
        """Score several queries, whose requests overlap. If the call is given up, no further request is sent."""
        works = self._works(jobs, context)
        deadline = context.deadline.before()
        try:
            with context.on_cancel(lambda: _give_up(works.values())):
                self._open_sender.run(self._tasks(works, deadline))
        finally:
            scores = _report(works, jobs, context)
        return scores

    async def ascore_batch(self, jobs: Sequence[RerankJob], context: Context) -> list[list[float | None]]:
        """``score_batch`` for an event loop, without a thread."""
        works = self._works(jobs, context)
        deadline = context.deadline.before()
        try:
            await self._open_sender.arun(self._tasks(works, deadline))
        finally:
            scores = _report(works, jobs, context)
        return scores

    def dry_run_batch(self, jobs: Sequence[RerankJob], context: Context) -> None:
        """Note what would be sent: requests, documents and estimated tokens."""
        for position, planned in self._plans(jobs, context):
            planned.report(context, position)
            context.note(position, planned=planned.figures)

    @property
    def _open_sender(self) -> Sender:
        if self._sender is None:
            raise StageError(f"{self.name} is not open", "call open() first")
        return self._sender

    def _works(self, jobs: Sequence[RerankJob], context: Context) -> dict[int, Work]:
        refusals: list[ServiceError] = []
        secrets = self._open_sender.secrets
        return {
            position: Work(jobs[position], planned, secrets, refusals)
            for position, planned in self._plans(jobs, context)
        }

    def _tasks(self, works: Mapping[int, Work], deadline: Deadline) -> list[Task]:
        """Return all requests, the first of each query before the second ones: time runs out on the worst hits."""
        ordered = [(turn, work, part) for work in works.values() for turn, part in enumerate(work.plan.parts)]
        ordered.sort(key=lambda each: each[0])
        sender = self._open_sender
        return [(work, _conversation(self, sender, work, part, deadline)) for _, work, part in ordered]

    def _plans(self, jobs: Sequence[RerankJob], context: Context) -> Iterator[tuple[int, Plan]]:
        limits = self._limits()
        for position, job in enumerate(jobs):
            try:
                yield position, plan(job, limits, f"{self.type} ({self.model})" if self.model else self.type)
            except StageError as error:
                context.fail(position, error)

    def _limits(self) -> Limits:
        """Return the service's limits, or lower ones from the configuration."""
        try:
            limits = self.limits()
        except ValueError as error:
            raise StageError(f"{type(self).__name__}.limits: {error}", place=self.type) from error
        tokens = [each for each in (limits.tokens, None if limits.listwise else self.tokens_per_minute) if each]
        return replace(limits, documents=self.max_documents or limits.documents, tokens=min(tokens, default=None))


def _conversation(reranker: HostedReranker, sender: Sender, work: Work, part: Part, deadline: Deadline) -> Steps:
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
                yield from sender.deliver(work, _request(reranker, sender, work, current), deadline)
            except ServiceError as error:
                if reranker.limits().listwise or not reranker.too_large(error):
                    raise
                if len(current.places) > 1:
                    pending.extend(reversed(current.halves()))
                    continue
                work.too_large.append(error)
                if current is probe:
                    work.too_large += [error] * sum(len(rest.places) for rest in pending)
                    return
                if probe is None and pending and not work.has_scores:
                    probe = _smallest_first(pending)


def _smallest_first(pending: list[Part]) -> Part:
    """Move the smallest of the pending documents into a request that comes first, and return that request."""
    position = min(range(len(pending)), key=lambda at: min(pending[at].sizes))
    sizes = pending[position].sizes
    alone, rest = pending[position].without(sizes.index(min(sizes)))
    pending[position : position + 1] = [rest] if rest else []
    pending.append(alone)
    return alone


def _request(reranker: HostedReranker, sender: Sender, work: Work, part: Part) -> Request:
    return Request(
        part.tokens,
        lambda: _body(reranker, work, part),
        lambda received: work.add(part, *_read(reranker, sender.endpoint, work.private, part, received)),
    )


def _body(reranker: HostedReranker, work: Work, part: Part) -> bytes:
    """Return the provider's body. If that fails, the error is kept as the cause unless it repeats a text or a key."""
    try:
        payload = reranker.payload(work.query, part.texts(work.job), part.top_k)
    except PipelineError:
        raise
    except Exception as error:
        failure = StageError(f"{type(reranker).__name__}.payload failed ({type(error).__name__})", place=reranker.type)
        if chain_is_clean(error, work.private):
            failure.__cause__ = error
    else:
        try:
            # Not escaped: limits are counted in the bytes of the text.
            text = json.dumps(payload, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
            return text.encode("utf-8", "replace")
        except (TypeError, ValueError, RecursionError) as error:
            failure = StageError(
                f"the request cannot be written as JSON ({type(error).__name__})",
                "check the options, which may hold strings, finite numbers, lists and mappings",
                place=reranker.type,
            )
    raise failure  # here, without a context, which may hold a text


def _read(
    reranker: HostedReranker, endpoint: str, private: Private, part: Part, received: Received
) -> tuple[dict[int, float], Reply]:
    """Return the checked scores of a reply, by position in the request, and the reply."""
    try:
        reply = reranker.parse(read_json(received), received.headers)
        wanted = part.top_k if reranker.takes_top_n else len(part.places)
        return check_scores(reply.scores, len(part.places), wanted, more=reranker.may_return_more), reply
    except PipelineError:
        raise
    except BadReply as error:
        bad = BadReply(private.clean(str(error)) or _LEFT_OUT, cut_short=error.cut_short)
    except Exception as error:  # a plugin's parse that trusted the reply
        bad = BadReply(f"the reply is not what was expected ({type(error).__name__})")
    # Raised here, without a cause and a context, which may hold the reply itself.
    raise ServiceError(
        f"{endpoint} answered wrongly: {bad}",
        place=reranker.type,
        status=received.status,
        retryable=bad.cut_short,
        reason_code="bad_reply",
    )


def _give_up(works: Iterable[Work]) -> None:
    """End the waits of these queries, and send nothing more for them."""
    for work in works:
        work.fail(StageError("the call was given up"))


def _report(works: Mapping[int, Work], jobs: Sequence[RerankJob], context: Context) -> list[list[float | None]]:
    """Return the scores of each query, and put its failure, warnings and usage into the report."""
    for position, work in works.items():
        work.report(context, position)
    return [
        works[position].scores if position in works else [None] * len(job.texts) for position, job in enumerate(jobs)
    ]
