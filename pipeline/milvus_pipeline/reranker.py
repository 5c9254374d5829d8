"""The contract of a reranker: a stage that implements ``score`` and inherits the rest."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import AliasChoices, Field, PrivateAttr, field_validator

from milvus_pipeline.config.registry import registry
from milvus_pipeline.context import Context, Deadline, time_limit
from milvus_pipeline.driver import adrive, drive
from milvus_pipeline.errors import DeadlineError, PipelineError, QueryError
from milvus_pipeline.records import Hit, Query, RerankJob, RerankResult, SearchResult
from milvus_pipeline.scores import store
from milvus_pipeline.scores.checks import checked_batch, checked_call, falling, warn_of_missing_texts
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

    def score(self, query: str, texts: Sequence[str]) -> Iterable[float | None]:
        """Return the relevance of each text to the query; higher is better. By default a ``score_batch`` of one query.

        Args:
            query: not blank.
            texts: at least one; any of them may be empty or very long.

        Returns:
            One finite number for each text, in their order; None for a text that was left unscored, which ranks last.
        """
        if type(self).score_batch is Reranker.score_batch:
            raise NotImplementedError(f"{type(self).__name__} must define score() or score_batch()")
        context = Context(Deadline.after(self.timeout), 1)
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

    def _score(self, step: tuple[Jobs, Context]) -> Scores:
        return self.score_batch(*step) if self._cached is None else self._cached.score(*step, self.score_batch)

    async def _ascore(self, step: tuple[Jobs, Context]) -> Scores:
        if self._cached is None:
            return await self.ascore_batch(*step)
        return await self._cached.ascore(*step, self.ascore_batch)

    # -- as a stage ---------------------------------------------------------------------------------------------

    def process(self, results: Sequence[SearchResult], context: Context) -> Sequence[SearchResult]:
        """Score and order the hits of every result."""
        return drive(self._rerank(results, context, self.top_k), self._score)

    async def aprocess(self, results: Sequence[SearchResult], context: Context) -> Sequence[SearchResult]:
        """``process`` for an event loop."""
        return await adrive(self._rerank(results, context, self.top_k), self._ascore)

    def dry_run(self, results: Sequence[SearchResult], context: Context) -> Sequence[SearchResult]:
        """Find what ``process`` would send, without sending it; the hits keep their order and are cut to ``top_k``.

        It loads no model, needs no key and gives no scores. Which hits this reranker would put first is unknown, so
        the next stage gets those that were first before. Scores in the cache would not be sent for; if the closed
        stage cannot tell the keys of its scores, everything counts.
        """
        positions, jobs = self._jobs(results, context, self.top_k)
        part = context.part(positions)
        if jobs:
            self._plan(jobs, part)
        context.merge(part, positions)
        cut = list(results)
        for position, result in enumerate(results):
            if position not in context.failures:
                warn_of_missing_texts(result.hits, position, context)
                cut[position] = result.with_hits(result.hits[: self.top_k])
        return cut

    def _plan(self, jobs: Jobs, context: Context) -> None:
        """``dry_run_batch`` for the texts that are not in the cache; the stage may be closed."""
        if self.cache is None or not self.sends:
            self.dry_run_batch(jobs, context)
            return
        with ExitStack() as stack:
            cached = self._cached
            if cached is None and Path(self.cache).expanduser().exists():  # a dry run creates no file
                opened = store.acquire(self.cache)
                stack.callback(store.release, opened)
                try:
                    cached = CachedScores(opened, self._keys())
                except Exception as error:
                    why = error_text(error) if isinstance(error, PipelineError) else type(error).__name__
                    context.warn(f"the score cache was not searched, so every text counts: {why}")
            if cached is None:
                self.dry_run_batch([job._replace(top_k=None) for job in jobs], context)
            else:
                cached.plan(jobs, context, self.dry_run_batch)

    @property
    def sends(self) -> bool:
        """Whether texts are sent to a service: by default, whether ``dry_run_batch`` is overridden."""
        return type(self).dry_run_batch is not Reranker.dry_run_batch

    def dry_run_batch(self, jobs: Sequence[RerankJob], context: Context) -> None:
        """Note what ``score_batch`` would send: ``context.note(position, planned={...})``, see ``Context.note``.

        A reranker that sends texts to a service overrides this. The usual words are ``requests``, ``documents`` and
        ``tokens``. Tokens are an estimate, as the service's own tokenizer is not available. The stage may be closed.
        """

    def _jobs(
        self, results: Sequence[SearchResult], context: Context, top_k: int | None
    ) -> tuple[list[int], list[RerankJob]]:
        """The jobs of the batch, and the position of each."""
        positions, jobs = [], []
        for position, result in enumerate(results):
            if not result.query.text.strip():
                context.fail(position, QueryError("the query has no text, and a reranker needs one"))
                continue
            texts = [hit.text for hit in result.hits if hit.text is not None]
            if texts:
                positions.append(position)
                jobs.append(RerankJob(result.query.text, texts, top_k))
        return positions, jobs

    def _rerank(
        self, results: Sequence[SearchResult], context: Context, top_k: int | None
    ) -> Generator[tuple[Jobs, Context], Scores, list[SearchResult]]:
        """Yield what is to be scored; return the results with their hits in the order of the scores."""
        positions, jobs = self._jobs(results, context, top_k)
        part = context.part(positions)
        given: Scores = (yield jobs, part) if jobs else []
        checked = checked_batch(given, jobs, part)
        context.merge(part, positions)
        scores = {positions[number]: own for number, own in checked.items()}
        ranked = list(results)
        for position, result in enumerate(results):
            if position not in context.failures:
                warn_of_missing_texts(result.hits, position, context)
                own = iter(scores.get(position, ()))
                pairs = [(hit, next(own, None) if hit.text is not None else None) for hit in result.hits]
                pairs.sort(key=falling)
                hits = [hit.ranked(self.name, score, rank) for rank, (hit, score) in enumerate(pairs, start=1)]
                ranked[position] = result.with_hits(hits[:top_k])
        return ranked

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
        texts = checked_call(query, documents, top_k)
        if not texts:
            return []
        self._open_once()
        with self._alone() as context:
            return drive(self._rank(query, texts, top_k, context), self._score)

    async def acall(self, query: str, documents: Iterable[str], top_k: int | None = None) -> list[RerankResult]:
        """``__call__`` for an event loop, which it does not block; cancelling it ends its waits at once.

        Raises:
            QueryError: the query is blank, or a document is not a string.
            StageError: the reranker failed; DeadlineError if it took longer than ``timeout``.
        """
        texts = checked_call(query, documents, top_k)
        if not texts:
            return []
        if not self.is_open:
            await asyncio.to_thread(self._open_once)
        with self._alone() as context:
            async with time_limit(context.deadline):
                return await adrive(self._rank(query, texts, top_k, context), self._ascore)

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

    def _rank(
        self, query: str, texts: Sequence[str], top_k: int | None, context: Context
    ) -> Generator[tuple[Jobs, Context], Scores, list[RerankResult]]:
        hits = [Hit(index, text, 0.0) for index, text in enumerate(texts)]
        (result,) = yield from self._rerank([SearchResult(Query(query), hits)], context, top_k or self.top_k)
        return [RerankResult(texts[int(hit.id)], hit.scores.get(self.name), int(hit.id)) for hit in result]
