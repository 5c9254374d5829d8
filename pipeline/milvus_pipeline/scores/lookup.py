"""Scoring with a cache: known scores are looked up; the rest is scored and kept."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

from milvus_pipeline.context import Context
from milvus_pipeline.driver import adrive, drive
from milvus_pipeline.errors import DeadlineError, StageError
from milvus_pipeline.records import RerankJob
from milvus_pipeline.scores.checks import checked_batch
from milvus_pipeline.scores.keys import Keys
from milvus_pipeline.scores.store import ScoreCache
from milvus_pipeline.text import error_text

Jobs: TypeAlias = Sequence[RerankJob]
Scores: TypeAlias = Sequence[Iterable[float | None]]

_Step: TypeAlias = Callable[[], Any] | tuple[Jobs, Context]
"""What to do next: use the file, or have the reranker score these jobs."""


class CachedScores:
    """Scores batches through a cache: the reranker gets only the texts whose scores are not in the file.

    It scores all of them, without ``top_k``: a service would leave the worst texts unscored, and they would be sent
    again each time.

    Args:
        cache: the file.
        keys: make the keys of this reranker's scores.
    """

    def __init__(self, cache: ScoreCache, keys: Keys) -> None:
        self.cache = cache
        self._keys = keys

    def score(self, jobs: Jobs, context: Context, score_batch: Callable[[Jobs, Context], Scores]) -> Scores:
        """``score_batch`` of a reranker, through the cache."""
        return drive(self._steps(jobs, context), lambda step: step() if callable(step) else score_batch(*step))

    async def ascore(
        self, jobs: Jobs, context: Context, ascore_batch: Callable[[Jobs, Context], Awaitable[Scores]]
    ) -> Scores:
        """``ascore_batch`` of a reranker, through the cache; threads use the file."""

        async def do(step: _Step) -> Any:
            return await (asyncio.to_thread(step) if callable(step) else ascore_batch(*step))

        return await adrive(self._steps(jobs, context), do)

    def plan(self, jobs: Jobs, context: Context, dry_run_batch: Callable[[Jobs, Context], None]) -> None:
        """``dry_run_batch`` of a reranker, for what would be sent."""
        lookup = drive(self._look_up(jobs, context), lambda step: step())
        if lookup.jobs:
            dry_run_batch(lookup.jobs, lookup.context)
            lookup.settle()

    def _steps(self, jobs: Jobs, context: Context) -> Generator[_Step, Any, Scores]:
        lookup = yield from self._look_up(jobs, context)
        if lookup.jobs:
            try:
                new = lookup.keep((yield lookup.jobs, lookup.context))
            except Exception as error:
                lookup.fail(error)
            else:
                yield partial(self.cache.put, new)
        return lookup.scores

    def _look_up(self, jobs: Jobs, context: Context) -> Generator[Callable[[], Any], Any, Lookup]:
        digests: dict[str, bytes] = {}
        keys = [self._keys.of(job.query, job.texts, digests) for job in jobs]
        found: Mapping[bytes, float] = {}
        try:
            found = yield partial(self.cache.get, list(dict.fromkeys(key for own in keys for key in own)))
        except StageError as error:
            context.warn(str(error))
        return Lookup(jobs, context, keys, found, listwise=self._keys.listwise)


class _Rest(NamedTuple):
    """The texts of one job that are not known, each once; all of them if the reranker scores whole lists.

    Args:
        position: of the job.
        job: with these texts.
        places: for the key of each of these texts, the text's position in the whole job.
    """

    position: int
    job: RerankJob
    places: dict[bytes, list[int]]


class Lookup:
    """Some jobs, their known scores, and the jobs that are left.

    Args:
        jobs: all of them.
        context: of the batch.
        keys: of the texts of each job.
        found: what the cache has.
        listwise: whether the scores of a job are known together or not at all.

    Attributes:
        scores: of all texts of all jobs; None for a text without a score.
        jobs: what is left to score.
        context: for the jobs that are left.
    """

    def __init__(
        self, jobs: Jobs, context: Context, keys: list[list[bytes]], found: Mapping[bytes, float], *, listwise: bool
    ) -> None:
        self.scores: list[list[float | None]] = []
        self._listwise = listwise
        self._rest: list[_Rest] = []
        for position, (job, own) in enumerate(zip(jobs, keys, strict=True)):
            known = [found.get(key) for key in own]
            complete = listwise and _is_complete(job, known)
            if listwise and not complete:
                known = [None] * len(known)
            self.scores.append(known)
            context.note(position, cached=len(known) - known.count(None))
            places: dict[bytes, list[int]] = {}
            for place, key in enumerate(own):
                if known[place] is None:
                    places.setdefault(key, []).append(place)
            if places and not complete:
                texts = [job.texts[at[0]] for at in places.values()]
                self._rest.append(_Rest(position, job._replace(texts=texts, top_k=None), places))
        self.jobs = [rest.job for rest in self._rest]
        self._outer = context
        self._positions = [rest.position for rest in self._rest]
        self.context = context.part(self._positions)

    def keep(self, given: Scores) -> dict[bytes, float]:
        """Take the scores of what was left. Return those to write to the cache. StageError if lists are missing."""
        new: dict[bytes, float] = {}
        for number, scores in checked_batch(given, self.jobs, self.context).items():
            rest = self._rest[number]
            for places, score in zip(rest.places.values(), scores, strict=True):
                for place in places:
                    self.scores[rest.position][place] = score
            complete = self.context.partials[number] is None and _is_complete(rest.job, scores)
            if complete or not self._listwise:
                new |= {key: score for key, score in zip(rest.places, scores, strict=True) if score is not None}
        self.settle()
        return new

    def fail(self, error: Exception) -> None:
        """Report that what was left was not scored. Raise the error if no score is known or the call was cancelled."""
        known = any(score is not None for own in self.scores for score in own)
        if self._outer.cancelled or not known:
            raise error
        for number in range(len(self._rest)):
            self.context.fail(number, error)
        self.settle()

    def settle(self) -> None:
        """Report failures and partial results to the caller; a query that ran out of time keeps its known scores."""
        for number, error in list(self.context.failures.items()):
            own = self.scores[self._positions[number]]
            missing = own.count(None)
            if isinstance(error, DeadlineError) and missing < len(own):
                del self.context.failures[number]
                reason = f"{missing} of {len(own)} documents were not scored: {error_text(error)}"
                self.context.partial(number, reason)
        self._outer.merge(self.context, self._positions)


def _is_complete(job: RerankJob, scores: Sequence[float | None]) -> bool:
    """Whether a list was scored as a whole; services leave out blank texts, which need no score."""
    complete = all(score is not None or not text.strip() for text, score in zip(job.texts, scores, strict=True))
    return complete and any(score is not None for score in scores)
