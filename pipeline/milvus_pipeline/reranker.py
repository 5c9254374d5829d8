"""The contract of a reranker: a stage that writes ``score`` and gets the rest from here."""

from __future__ import annotations

import asyncio
import logging
import math
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, ClassVar, NamedTuple

from pydantic import AliasChoices, Field

from milvus_pipeline.context import Context
from milvus_pipeline.deadline import Deadline, time_limit
from milvus_pipeline.errors import DeadlineError, QueryError, StageError, shown
from milvus_pipeline.records import Hit, RerankResult, SearchResult
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
    """

    needs: ClassVar[frozenset[str]] = frozenset({"query_text", "hits", "text"})
    dry_run_opens: ClassVar[bool] = False

    top_k: Annotated[
        int | None,
        Field(
            ge=1,
            validation_alias=AliasChoices("top_k", "top_n"),
            description="Hits to keep after reranking; all by default. Alias: top_n.",
        ),
    ] = None

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
        scores = self.score_batch(jobs, part) if jobs else []
        return self._merged(results, positions, jobs, scores, part, context)

    async def aprocess(self, results: Sequence[SearchResult], context: Context) -> Sequence[SearchResult]:
        """``process`` for an event loop."""
        positions, jobs = self._jobs(results, context)
        part = context.part(positions)
        scores = await self.ascore_batch(jobs, part) if jobs else []
        return self._merged(results, positions, jobs, scores, part, context)

    def dry_run(self, results: Sequence[SearchResult], context: Context) -> Sequence[SearchResult]:
        """Find what ``process`` would send, without sending it; the hits keep their order and are cut to ``top_k``.

        No model is loaded and no key is needed, and no hit is given a score. Which hits this reranker would have put
        first is not known, so a stage behind it is shown those that were first before.
        """
        positions, jobs = self._jobs(results, context)
        part = context.part(positions)
        if jobs:
            self.dry_run_batch(jobs, part)
        context.merge(part, positions)
        return [
            result if position in context.failures else self._cut(result, position, context)
            for position, result in enumerate(results)
        ]

    def _cut(self, result: SearchResult, position: int, context: Context) -> SearchResult:
        """The result of a dry run: its hits in the order they have."""
        _warn_of_missing_texts(result.hits, position, context)
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
                _warn_of_missing_texts(result.hits, position, context)
                result = result.with_hits(self._ranked(result.hits, checked.get(position)))
            ranked.append(result)
        return ranked

    def _ranked(self, hits: Sequence[Hit], scores: Sequence[float | None] | None) -> list[Hit]:
        given = iter(scores or ())
        pairs = [(hit, next(given, None) if hit.text is not None else None) for hit in hits]
        pairs.sort(key=_falling)
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
            scores = self.score_batch([job], context)
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
                scores = await self.ascore_batch([job], context)
        return self._ranking(job, scores)

    def _job(self, query: str, documents: Iterable[str], top_k: int | None) -> RerankJob:
        documents = _checked_call(query, documents, top_k)
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
            raise StageError(f"{self.name}: one query was to be scored, but {len(scores)} lists of scores came back")
        pairs = list(enumerate(checked_scores(scores[0], len(job.texts))))
        pairs.sort(key=_falling)
        return [RerankResult(job.texts[index], score, index) for index, score in pairs[: job.top_k]]


def _warn_of_missing_texts(hits: Sequence[Hit], position: int, context: Context) -> None:
    if missing := sum(hit.text is None for hit in hits):
        context.warn(f"{missing} of {len(hits)} hits have no text; ranked last, without a score", position)


def _falling(pair: tuple[object, float | None]) -> tuple[bool, float]:
    """Sort key: by falling score, unscored last. The sort is stable, so ties keep their order."""
    score = pair[1]
    return (True, 0.0) if score is None else (False, -score)


def checked_scores(scores: Iterable[float | None], count: int) -> list[float | None]:
    """The scores as Python floats.

    Raises:
        StageError: not ``count`` of them, or one is not a finite number.
    """
    try:
        values = [None if score is None else float(score) for score in scores]
    except (TypeError, ValueError) as error:
        raise StageError(f"a score is not a number ({type(error).__name__})") from error
    if len(values) != count:
        raise StageError(f"{count} texts were to be scored, but {len(values)} scores came back")
    for index, value in enumerate(values):
        if value is not None and not math.isfinite(value):
            raise StageError(f"the score of text {index} is {value}, not a finite number")
    return values


def _checked_call(query: str, documents: Iterable[str], top_k: int | None) -> list[str]:
    if not isinstance(query, str):
        raise QueryError(f"the query must be a string, is {type(query).__name__}")
    if not query.strip():
        raise QueryError("the query is empty; pass the question to rank the documents for")
    if isinstance(documents, str):
        raise QueryError("documents must be a list of strings, is one string; put it in a list")
    if not isinstance(documents, Iterable):
        raise QueryError(f"documents must be a list of strings, is {type(documents).__name__}")
    documents = list(documents)
    for index, document in enumerate(documents):
        if not isinstance(document, str):
            raise QueryError(f"documents[{index}] must be a string, is {type(document).__name__}")
    if top_k is not None and (type(top_k) is not int or top_k < 1):
        raise QueryError(f"top_k must be a whole number of at least 1, is {shown(top_k)}")
    return documents
