"""The contract of a reranker: a stage that implements ``score`` and inherits the rest."""

from __future__ import annotations

import asyncio
import logging
import os
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import AliasChoices, Field, PrivateAttr, field_validator

from milvus_pipeline.config.registry import registry
from milvus_pipeline.context import Context, Deadline, time_limit
from milvus_pipeline.errors import DeadlineError, PipelineError, QueryError, StageError
from milvus_pipeline.ranking import checked_call, checked_scores, falling, warn_of_missing_texts
from milvus_pipeline.records import Hit, RerankJob, RerankResult, SearchResult
from milvus_pipeline.scores import store
from milvus_pipeline.scores.keys import Keys, source_digest
from milvus_pipeline.scores.lookup import CachedScores, Jobs, Scores
from milvus_pipeline.stage import Stage
from milvus_pipeline.text import error_text

logger = logging.getLogger(__name__)


class Reranker(Stage):
    """A stage that scores every hit against the query and orders the hits by that score.

    Write ``score``, or ``score_batch`` if scoring several queries together is cheaper::

        @register("overlap")
        class Overlap(Reranker):
            def score(self, query, texts):
                words = set(query.lower().split())
                return [len(words & set(text.lower().split())) for text in texts]

    This class checks the scores, sorts (ties keep their earlier order), keeps every hit's earlier scores, cuts to
    ``top_k``, and makes the stage callable without a pipeline::

        with Cohere() as rerank:
            rerank("what is HNSW?", ["a graph index", "a fruit"], top_k=1)   # [RerankResult(...)]

        async with Cohere() as rerank:
            await rerank.acall("what is HNSW?", ["a graph index", "a fruit"], top_k=1)

    Such a call returns the ranking and logs its warnings; what it cost is only in the reports of a pipeline.

    With ``cache`` a text is scored once for a query: a score in the file is neither computed nor paid for again. The
    key of a score is made of the class, the files that define it and its bases, its package's version, ``identity()``,
    the fields, and the texts of query and document. So ``identity()`` must name whatever else a score depends on (such
    as a module of helper functions), and ``scores_lists`` must be true if the other texts count.

    Class attributes:
        score_neutral: fields that do not affect scores (batch size, timeouts). Inherited: list only your own. A field
            that is missing here costs time, not correctness.
        written_in: a digest of the files that define the class, made with it.
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

    _cached: CachedScores | None = PrivateAttr(default=None)

    @classmethod
    def __pydantic_init_subclass__(cls, **words: Any) -> None:
        super().__pydantic_init_subclass__(**words)
        cls.written_in = source_digest(cls)

    @field_validator("cache", mode="before")
    @classmethod
    def _cache_from_path(cls, value: Any) -> Any:
        return os.fspath(value) if isinstance(value, os.PathLike) else value

    def open(self, timeout: float | None = None) -> None:
        """Open the stage; its first ``open`` opens the score cache, too.

        Raises:
            StageError: the stage cannot be opened, or ``cache`` is not a file that scores can be kept in.
        """
        with self._lock, ExitStack() as undo:
            if self.cache is not None and not self.is_open:
                cache = store.acquire(self.cache)  # first: a wrong file is found before a model is loaded
                undo.callback(store.release, cache)
                super().open(timeout)
                undo.callback(super().close)
                self._cached = CachedScores(cache, self._keys())
                undo.pop_all()
            else:
                super().open(timeout)

    def close(self) -> None:
        """Close the stage; its last ``close`` closes the score cache, too."""
        with self._lock:
            try:
                super().close()
            finally:
                if not self.is_open and self._cached is not None:
                    store.release(self._cached.cache)
                    self._cached = None

    def _keys(self) -> Keys:
        """Makes the keys of this reranker's scores. StageError if it cannot say what they depend on."""
        cls = type(self)
        neutral = frozenset().union(*(vars(base).get("score_neutral", ()) for base in cls.__mro__))
        source = {
            "class": f"{cls.__module__}.{cls.__qualname__}",
            "package": registry.package_of(cls),
            "source": self.written_in,
            "fields": self.model_dump(exclude=set(neutral)),
            "identity": self.identity(),
        }
        return Keys(source, cls.__name__, listwise=self.scores_lists)

    @property
    def scores_lists(self) -> bool:
        """Whether the score of a text depends on the other texts of its list, or on their order."""
        return False

    @abstractmethod
    def score(self, query: str, texts: Sequence[str]) -> Iterable[float | None]:
        """Return the relevance of each text to the query; higher is better.

        Args:
            query: not blank.
            texts: at least one; any of them may be empty or very long.

        Returns:
            One finite number for each text, in their order; None for a text that was left unscored, which ranks last.
        """

    def scored_alone(self, query: str, texts: Sequence[str], deadline: Deadline) -> Iterable[float | None]:
        """``score`` for a reranker that implements ``score_batch``: a batch of one. Its failure is raised."""
        context = Context(deadline, 1)
        scores = self.score_batch([RerankJob(query, texts)], context)
        for error in context.failures.values():
            raise error
        return scores[0]

    def score_batch(self, jobs: Sequence[RerankJob], context: Context) -> Sequence[Iterable[float | None]]:
        """``score`` for several queries. Positions in ``context`` are those of ``jobs``; see ``Context.fail``."""
        return [self.score(job.query, job.texts) for job in jobs]

    async def ascore_batch(self, jobs: Sequence[RerankJob], context: Context) -> Sequence[Iterable[float | None]]:
        """``score_batch`` for an event loop; by default it runs in a thread."""
        return await asyncio.to_thread(self.score_batch, jobs, context)

    def _scored(self, jobs: Jobs, context: Context) -> Scores:
        if self._cached is None:
            return self.score_batch(jobs, context)
        return self._cached.score(jobs, context, self.score_batch)

    async def _ascored(self, jobs: Jobs, context: Context) -> Scores:
        if self._cached is None:
            return await self.ascore_batch(jobs, context)
        return await self._cached.ascore(jobs, context, self.ascore_batch)

    # -- as a stage ---------------------------------------------------------------------------------------------

    def process(self, results: Sequence[SearchResult], context: Context) -> Sequence[SearchResult]:
        """Score and order the hits of every result."""
        positions, jobs = self._jobs(results, context)
        part = context.part(positions)
        scores = self._scored(jobs, part) if jobs else []
        return self._merged(results, positions, jobs, scores, part, context)

    async def aprocess(self, results: Sequence[SearchResult], context: Context) -> Sequence[SearchResult]:
        """``process`` for an event loop."""
        positions, jobs = self._jobs(results, context)
        part = context.part(positions)
        scores = await self._ascored(jobs, part) if jobs else []
        return self._merged(results, positions, jobs, scores, part, context)

    def dry_run(self, results: Sequence[SearchResult], context: Context) -> Sequence[SearchResult]:
        """Find what ``process`` would send, without sending it; the hits keep their order and are cut to ``top_k``.

        It loads no model, needs no key and gives no scores. Which hits this reranker would put first is unknown, so
        the next stage gets those that were first before. Scores in the cache would not be sent for; if the closed
        stage cannot tell the keys of its scores, everything counts.
        """
        positions, jobs = self._jobs(results, context)
        part = context.part(positions)
        if jobs:
            self._plan(jobs, part)
        context.merge(part, positions)
        cut = []
        for position, result in enumerate(results):
            if position not in context.failures:
                warn_of_missing_texts(result.hits, position, context)
                result = result.with_hits(result.hits[: self.top_k])
            cut.append(result)
        return cut

    def _plan(self, jobs: Jobs, context: Context) -> None:
        """``dry_run_batch`` for the texts that are not in the cache; the stage may be closed."""
        if self.cache is None or not self.sends:
            self.dry_run_batch(jobs, context)
            return
        cached, opened = self._cached, None
        try:
            # A dry run creates no file.
            if cached is None and Path(self.cache).expanduser().exists():
                opened = store.acquire(self.cache, whole=False)
                try:
                    cached = CachedScores(opened, self._keys())
                except Exception as error:
                    why = error_text(error) if isinstance(error, PipelineError) else type(error).__name__
                    context.warn(f"the score cache was not searched, so every text counts: {why}")
            if cached is None:
                self.dry_run_batch([job._replace(top_k=None) for job in jobs], context)
            else:
                cached.plan(jobs, context, self.dry_run_batch)
        finally:
            if opened is not None:
                store.release(opened)

    @property
    def sends(self) -> bool:
        """Whether texts are sent to a service: by default, whether ``dry_run_batch`` is overridden."""
        return type(self).dry_run_batch is not Reranker.dry_run_batch

    def dry_run_batch(self, jobs: Sequence[RerankJob], context: Context) -> None:
        """Note what ``score_batch`` would send: ``context.note(position, planned={...})``, see ``Context.note``.

        A reranker that sends texts to a service overrides this. The usual words are ``requests``, ``documents`` and
        ``tokens``. Tokens are an estimate, as the service's own tokenizer is not available. The stage may be closed.
        """

    def _jobs(self, results: Sequence[SearchResult], context: Context) -> tuple[list[int], list[RerankJob]]:
        """The jobs of the batch, and the position of each."""
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
        scores: Scores,
        part: Context,
        context: Context,
    ) -> list[SearchResult]:
        """Return the results with their hits in the order of the scores."""
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

    # -- without a pipeline -------------------------------------------------------------------------------------

    def __call__(self, query: str, documents: Iterable[str], top_k: int | None = None) -> list[RerankResult]:
        """Rerank plain texts, without a pipeline. The first call opens the stage and leaves it open.

        Warnings are logged by ``milvus_pipeline.reranker``. Usage is only in the reports of a pipeline.

        Args:
            query: the question, not blank.
            documents: the texts; none is changed or dropped for being empty.
            top_k: how many to return; by default the stage's own ``top_k``, and without that all.

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
            scores = self._scored([job], context)
        return self._ranking(job, scores)

    async def acall(self, query: str, documents: Iterable[str], top_k: int | None = None) -> list[RerankResult]:
        """``__call__`` for an event loop, which it does not block; cancelling it ends its waits at once.

        Raises:
            QueryError: the query is blank, or a document is not a string.
            StageError: the reranker failed; DeadlineError if it took longer than ``timeout``.
        """
        job = self._job(query, documents, top_k)
        if not job.texts:
            return []
        if not self.is_open:
            await asyncio.to_thread(self._open_once)
        with self._alone() as context:
            async with time_limit(context.deadline):
                scores = await self._ascored([job], context)
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
        """The context of a call. Logs its warnings, and raises its failure."""
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

    def _ranking(self, job: RerankJob, scores: Scores) -> list[RerankResult]:
        """The texts of the one job, best first."""
        if len(scores) != 1:
            raise StageError(
                f"one query was to be scored, but {len(scores)} lists of scores came back", place=self.name
            )
        pairs = list(enumerate(checked_scores(scores[0], len(job.texts))))
        pairs.sort(key=falling)
        return [RerankResult(job.texts[index], score, index) for index, score in pairs[: job.top_k]]
