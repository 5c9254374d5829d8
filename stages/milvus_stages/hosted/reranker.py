"""The base of rerankers that call a service on HTTP, a provider's or your own."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar

from pydantic import Field, PrivateAttr

from milvus_pipeline import StageError
from milvus_pipeline.plugin import Context, Deadline, Reranker, RerankJob
from milvus_stages.hosted.conversation import Work, conversation
from milvus_stages.hosted.plan import Limits, Plan, plan
from milvus_stages.hosted.replies import Reply, get_member, read_figures, read_scores
from milvus_stages.hosted.send import KeyRefusal, Sender, Task
from milvus_stages.hosted.service import HostedService


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

    def score(self, query: str, texts: Sequence[str]) -> Iterable[float | None]:
        """Return the relevance of each text to the query, as the service gives it; None for a blank text."""
        return self.scored_alone(query, texts, Deadline.after(self.timeout))

    def score_batch(self, jobs: Sequence[RerankJob], context: Context) -> list[list[float | None]]:
        """Score several queries, whose requests overlap. If the call is given up, no further request is sent."""
        works = self._works(jobs, context)
        deadline = context.deadline.before()
        try:
            with context.on_cancel(lambda: _give_up(works.values())):
                self._open_sender.run(self._tasks(works, deadline), deadline)
        finally:
            scores = _report(works, jobs, context)
        return scores

    async def ascore_batch(self, jobs: Sequence[RerankJob], context: Context) -> list[list[float | None]]:
        """``score_batch`` for an event loop, without a thread."""
        works = self._works(jobs, context)
        deadline = context.deadline.before()
        try:
            await self._open_sender.arun(self._tasks(works, deadline), deadline)
        finally:
            scores = _report(works, jobs, context)
        return scores

    def dry_run_batch(self, jobs: Sequence[RerankJob], context: Context) -> None:
        """Note what would be sent: requests, documents and estimated tokens."""
        for position, planned in self._plans(jobs, context):
            planned.note(context, position)

    @property
    def _open_sender(self) -> Sender:
        if self._sender is None:
            raise StageError(f"{self.name} is not open", "call open() first")
        return self._sender

    def _works(self, jobs: Sequence[RerankJob], context: Context) -> dict[int, Work]:
        refusal = KeyRefusal()
        secrets = self._open_sender.secrets
        return {
            position: Work(jobs[position], planned, secrets, refusal)
            for position, planned in self._plans(jobs, context)
        }

    def _tasks(self, works: Mapping[int, Work], deadline: Deadline) -> list[Task]:
        """Return all requests, the first of each query before the second ones: time runs out on the worst hits."""
        ordered = [(turn, work, part) for work in works.values() for turn, part in enumerate(work.plan.parts)]
        ordered.sort(key=lambda each: each[0])
        return [(work, conversation(self, self._open_sender, work, part, deadline)) for _, work, part in ordered]

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
