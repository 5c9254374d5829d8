"""The contract of a reranker: a stage that writes ``score`` and gets the rest from here."""

from __future__ import annotations

import asyncio
import logging
import os
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, ClassVar, NamedTuple

from pydantic import AliasChoices, Field, PrivateAttr, field_validator

from milvus_pipeline.context import Context, Deadline, time_limit
from milvus_pipeline.errors import DeadlineError, QueryError, StageError
from milvus_pipeline.ranking import checked_call, checked_scores, falling, warn_of_missing_texts
from milvus_pipeline.records import Hit, RerankResult, SearchResult
from milvus_pipeline.scores.keys import source_of
from milvus_pipeline.scores.lookup import ScoredBefore, ascored, plan_rest, scored
from milvus_pipeline.stage import Stage

logger = logging.getLogger(__name__)


class RerankJob(NamedTuple):
    """One query with the texts to score for it, of which the best ``top_k`` are wanted; all of them where it is None.

    A reranker may leave a text unscored that is not among the best ``top_k``.
    """

    query: str
    texts: Sequence[str]
    top_k: int | None = None


class Reranker(Stage):
    """A stage that scores every hit against the query and orders the hits by that score.

    Write ``score``; override ``score_batch`` where scoring several queries at once is cheaper. This class checks the
    scores, sorts stably (ties keep their earlier order), keeps every hit's earlier scores, cuts to ``top_k``, and
    makes the stage callable on its own::

        with Cohere() as rerank:
            rerank("what is HNSW?", ["a graph index", "a fruit"], top_k=1)   # [RerankResult(...)]

        async with Cohere() as rerank:
            await rerank.acall("what is HNSW?", ["a graph index", "a fruit"], top_k=1)

    What a call cost, and all else that a report tells, is in the results of a pipeline; alone, the stage returns the
    ranking, and logs its warnings.

    With ``cache`` a text is scored once: what is in the file is neither computed nor paid for again. A score is found
    by the class, the files that it and its bases stand in, its package's version, ``identity()``, the fields, and the
    texts of query and document. So ``identity()`` has to name whatever else a score hangs on (a module of helpers,
    say), and ``scores_lists`` has to be true where the other texts count.

    Class attributes:
        score_neutral: the fields that no score hangs on (a batch size, a timeout), those of the base classes not
            repeated. Any other field that is changed makes other scores, so that a forgotten one does no harm.
        written_in: a digest of the files, made with the class.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"query_text", "hits", "text"})
    dry_run_opens: ClassVar[bool] = False
    score_neutral: ClassVar[frozenset[str]] = frozenset({"name", "timeout", "on_error", "top_k", "cache"})
    written_in: ClassVar[str] = ""

    top_k: Annotated[
        int | None,
        Field(
            ge=1,
            validation_alias=AliasChoices("top_k", "top_n"),
            description="Hits to keep after reranking; all by default. Alias: top_n.",
        ),
    ] = None
    cache: Annotated[
        str | None,
        Field(
            min_length=1,
            description="File that keeps the scores, so that no text is scored twice for a query; any number of stages "
            "and processes may share one.",
        ),
    ] = None

    _before: ScoredBefore | None = PrivateAttr(default=None)

    @classmethod
    def __pydantic_init_subclass__(cls, **words: Any) -> None:
        super().__pydantic_init_subclass__(**words)
        cls.written_in = source_of(cls)

    @field_validator("cache", mode="before")
    @classmethod
    def _cache_from_path(cls, value: Any) -> Any:
        return os.fspath(value) if isinstance(value, os.PathLike) else value

    def open(self, timeout: float | None = None) -> None:
        """As every stage; the first ``open`` opens the score cache, too.

        Raises:
            StageError: the stage cannot be opened, or its ``cache`` is no file that scores can be kept in.
        """
        with self._lock:
            if self.cache is None or self.is_open:
                super().open(timeout)
                return
            with ScoredBefore.opening(self.cache) as before:
                super().open(timeout)
                try:
                    before.identify(self)
                except BaseException:
                    super().close()
                    raise
            self._before = before

    def close(self) -> None:
        """As every stage; the last ``close`` closes the score cache, too."""
        with self._lock:
            try:
                super().close()
            finally:
                if not self.is_open and self._before is not None:
                    self._before.close()
                    self._before = None

    @property
    def scores_lists(self) -> bool:
        """Whether the score of a text hangs on the other texts of its list, or on their order."""
        return False

    @abstractmethod
    def score(self, query: str, texts: Sequence[str]) -> Iterable[float | None]:
        """The relevance of each text to the query, in the order of the texts; higher is better.

        Args:
            query: not blank.
            texts: at least one; any of them may be empty or very long.

        Returns:
            As many finite numbers; None for a text that was left unscored, which ranks below the scored ones.
        """

    def scored_alone(self, query: str, texts: Sequence[str], deadline: Deadline) -> Iterable[float | None]:
        """``score`` for a reranker whose work is ``score_batch``: a batch of one. Its failure is raised."""
        context = Context(deadline, 1)
        scores = self.score_batch([RerankJob(query, texts)], context)
        for error in context.failures.values():
            raise error
        return scores[0]

    def score_batch(self, jobs: Sequence[RerankJob], context: Context) -> Sequence[Iterable[float | None]]:
        """``score`` for several queries. ``context`` positions are those of ``jobs``; see ``Context.fail``."""
        return [self.score(job.query, job.texts) for job in jobs]

    async def ascore_batch(self, jobs: Sequence[RerankJob], context: Context) -> Sequence[Iterable[float | None]]:
        """``score_batch`` for an event loop; runs it in a thread unless a reranker knows better."""
        return await asyncio.to_thread(self.score_batch, jobs, context)

    # -- as a stage ---------------------------------------------------------------------------------------------

    def process(self, results: Sequence[SearchResult], context: Context) -> Sequence[SearchResult]:
        """Score and order the hits of every result."""
        positions, jobs = self._jobs(results, context)
        part = context.part(positions)
        scores = scored(self, self._before, jobs, part) if jobs else []
        return self._merged(results, positions, jobs, scores, part, context)

    async def aprocess(self, results: Sequence[SearchResult], context: Context) -> Sequence[SearchResult]:
        """``process`` for an event loop."""
        positions, jobs = self._jobs(results, context)
        part = context.part(positions)
        scores = await ascored(self, self._before, jobs, part) if jobs else []
        return self._merged(results, positions, jobs, scores, part, context)

    def dry_run(self, results: Sequence[SearchResult], context: Context) -> Sequence[SearchResult]:
        """Find what ``process`` would send, without sending it; the hits keep their order and are cut to ``top_k``.

        No model is loaded and no key is needed, and no hit is given a score. Which hits this reranker would have put
        first is not known, so a stage behind it is shown those that were first before. What the score cache holds
        would not be sent; where the closed stage cannot tell what its scores are found by, everything counts.
        """
        positions, jobs = self._jobs(results, context)
        part = context.part(positions)
        if jobs:
            plan_rest(self, self._before, jobs, part)
        context.merge(part, positions)
        return [
            result if position in context.failures else self._cut(result, position, context)
            for position, result in enumerate(results)
        ]

    def _cut(self, result: SearchResult, position: int, context: Context) -> SearchResult:
        """The result of a dry run: its hits in the order they have."""
        warn_of_missing_texts(result.hits, position, context)
        return result.with_hits(result.hits[: self.top_k])

    @property
    def sends(self) -> bool:
        """Whether texts go to a service: where ``dry_run_batch`` is overridden, unless a class says otherwise."""
        return type(self).dry_run_batch is not Reranker.dry_run_batch

    def dry_run_batch(self, jobs: Sequence[RerankJob], context: Context) -> None:
        """Note what ``score_batch`` would send: ``context.note(position, planned={...})``, see ``Context.note``.

        A reranker that sends texts to a service overrides this, and is known by it. The usual words are
        ``requests``, ``documents`` and ``tokens``. Tokens are an estimate: what counts is the service's own
        tokenizer, which is not at hand. The stage may be closed.
        """

    def _jobs(self, results: Sequence[SearchResult], context: Context) -> tuple[list[int], list[RerankJob]]:
        """The work that there is, and the position of each piece in the batch."""
        positions, jobs = [], []
        for position, result in enumerate(results):
            if not result.query.text.strip():
                context.fail(position, QueryError("the query has no text, and a reranker needs one"))
                continue
            texts = [hit.text for hit in result.hits if hit.text is not None]
            if texts:
                positions.append(position)
                jobs.append(RerankJob(result.query.text, texts, self.top_k))
        return positions, jobs

    def _merged(
        self,
        results: Sequence[SearchResult],
        positions: Sequence[int],
        jobs: Sequence[RerankJob],
        scores: Sequence[Iterable[float | None]],
        part: Context,
        context: Context,
    ) -> list[SearchResult]:
        """The results with their hits in the order of the scores."""
        context.merge(part, positions)
        if len(scores) != len(jobs):
            raise StageError(f"{len(jobs)} queries were to be scored, but {len(scores)} lists of scores came back")
        checked: dict[int, list[float | None]] = {}
        for position, job, given in zip(positions, jobs, scores, strict=True):
            if position not in context.failures:
                try:
                    checked[position] = checked_scores(given, len(job.texts))
                except StageError as error:
                    context.fail(position, error)
        ranked = []
        for position, result in enumerate(results):
            if position not in context.failures:
                warn_of_missing_texts(result.hits, position, context)
                result = result.with_hits(self._ranked(result.hits, checked.get(position)))
            ranked.append(result)
        return ranked

    def _ranked(self, hits: Sequence[Hit], scores: Sequence[float | None] | None) -> list[Hit]:
        given = iter(scores or ())
        pairs = [(hit, next(given, None) if hit.text is not None else None) for hit in hits]
        pairs.sort(key=falling)
        ranked = [hit.ranked(self.name, score, rank) for rank, (hit, score) in enumerate(pairs, start=1)]
        return ranked[: self.top_k]

    # -- alone --------------------------------------------------------------------------------------------------

    def __call__(self, query: str, documents: Iterable[str], top_k: int | None = None) -> list[RerankResult]:
        """Rerank plain texts, without a pipeline. Opens the stage at the first call and leaves it open.

        Warnings go to the log ``milvus_pipeline.reranker``. Usage is not told: it is in the reports of a pipeline.

        Args:
            query: the question, not blank.
            documents: the texts; none of them is changed or dropped for being empty.
            top_k: how many to return; the stage's own ``top_k`` by default, which by default is all.

        Returns:
            The documents, best first.

        Raises:
            QueryError: the query is blank, or a document is not a string.
            StageError: the reranker failed.
        """
        job = self._job(query, documents, top_k)
        if not job.texts:
            return []
        self._open_once()
        with self._alone() as context:
            scores = scored(self, self._before, [job], context)
        return self._ranking(job, scores)

    async def acall(self, query: str, documents: Iterable[str], top_k: int | None = None) -> list[RerankResult]:
        """The same for an event loop, which it does not block; cancelling it ends its waits at once.

        Raises:
            QueryError: the query is blank, or a document is not a string.
            StageError: the reranker failed; DeadlineError where it took longer than ``timeout``.
        """
        job = self._job(query, documents, top_k)
        if not job.texts:
            return []
        if not self.is_open:
            await asyncio.to_thread(self._open_once)
        with self._alone() as context:
            async with time_limit(context.deadline):
                scores = await ascored(self, self._before, [job], context)
        return self._ranking(job, scores)

    def _job(self, query: str, documents: Iterable[str], top_k: int | None) -> RerankJob:
        documents = checked_call(query, documents, top_k)
        return RerankJob(query, documents, self.top_k if top_k is None else top_k)

    def _open_once(self) -> None:
        with self._lock:  # of several threads one opens
            if not self.is_open:
                self.open()

    @contextmanager
    def _alone(self) -> Iterator[Context]:
        """The context of a call; its warnings are logged, and its failure is raised."""
        context = Context(Deadline.after(self.timeout), 1)
        try:
            yield context
        except TimeoutError as error:
            context.cancel()
            if not isinstance(error, DeadlineError):
                context.deadline.check()
            raise
        except BaseException:
            context.cancel()
            raise
        finally:
            shortfall = context.partials[0]
            for warning in [*context.warnings[0], *([shortfall.reason] if shortfall else [])]:
                logger.warning("%s: %s", self.name, warning)
        for failure in context.failures.values():
            raise failure

    def _ranking(self, job: RerankJob, scores: Sequence[Iterable[float | None]]) -> list[RerankResult]:
        """The texts of the one job, best first."""
        if len(scores) != 1:
            raise StageError(
                f"one query was to be scored, but {len(scores)} lists of scores came back", place=self.name
            )
        pairs = list(enumerate(checked_scores(scores[0], len(job.texts))))
        pairs.sort(key=falling)
        return [RerankResult(job.texts[index], score, index) for index, score in pairs[: job.top_k]]
