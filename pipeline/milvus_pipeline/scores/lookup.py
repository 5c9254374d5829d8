"""Scoring with a cache: known scores are looked up; the rest is scored and kept."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Final, NamedTuple, TypeAlias

from milvus_pipeline.context import Context
from milvus_pipeline.errors import DeadlineError, StageError
from milvus_pipeline.ranking import checked_scores
from milvus_pipeline.records import RerankJob
from milvus_pipeline.scores.keys import Keys
from milvus_pipeline.scores.store import ScoreCache
from milvus_pipeline.text import error_text

_THREAD_SECONDS: Final = 1.0  # that an event loop waits for a thread that uses the file

Jobs: TypeAlias = Sequence[RerankJob]
Scores: TypeAlias = Sequence[Iterable[float | None]]


class CachedScores:
    """Does what a reranker does for a batch, for the texts whose scores are not in the cache.

    The reranker is asked for all scores of those, without ``top_k``: a service would leave the worst texts unscored,
    and they would be sent again each time.

    Args:
        cache: the file.
        keys: make the keys of this reranker's scores.
    """

    def __init__(self, cache: ScoreCache, keys: Keys) -> None:
        self.cache = cache
        self._keys = keys

    def score(self, jobs: Jobs, context: Context, score_batch: Callable[[Jobs, Context], Scores]) -> Scores:
        """``score_batch`` of a reranker, through the cache."""
        lookup = self._look_up(jobs, context)
        if lookup.jobs:
            try:
                given = score_batch(lookup.jobs, lookup.context)
            except Exception as error:
                lookup.fail(error)
            else:
                self.cache.put(lookup.keep(given))
        return lookup.scores

    async def ascore(
        self, jobs: Jobs, context: Context, ascore_batch: Callable[[Jobs, Context], Awaitable[Scores]]
    ) -> Scores:
        """``ascore_batch`` of a reranker, through the cache; threads use the file."""
        lookup = Lookup(self._keys, jobs, context)
        reading = asyncio.ensure_future(asyncio.to_thread(self.cache.get, lookup.keys))
        try:
            await asyncio.wait({reading}, timeout=context.deadline.remaining(at_most=_THREAD_SECONDS))
        finally:
            if not reading.done():
                reading.cancel()
                context.warn(f"the score cache {self.cache.path} was not read in time, and was not used")
        lookup.fill(reading.result() if reading.done() else {}, self.cache.fault)
        if lookup.jobs:
            try:
                given = await ascore_batch(lookup.jobs, lookup.context)
            except Exception as error:
                lookup.fail(error)
            else:
                writing = asyncio.ensure_future(asyncio.to_thread(self.cache.put, lookup.keep(given)))
                await asyncio.wait({writing}, timeout=_THREAD_SECONDS)  # it goes on if this is cancelled
        return lookup.scores

    def plan(self, jobs: Jobs, context: Context, dry_run_batch: Callable[[Jobs, Context], None]) -> None:
        """``dry_run_batch`` of a reranker, for what would be sent."""
        lookup = self._look_up(jobs, context)
        if lookup.jobs:
            dry_run_batch(lookup.jobs, lookup.context)
            lookup.settle()

    def _look_up(self, jobs: Jobs, context: Context) -> Lookup:
        lookup = Lookup(self._keys, jobs, context)
        lookup.fill(self.cache.get(lookup.keys), self.cache.fault)
        return lookup


class _Rest(NamedTuple):
    """The texts of one job that are not known, each once; all of them if the reranker scores whole lists.

    Args:
        position: of the job.
        job: with these texts.
        keys: of these texts.
        places: of each of these texts in the whole job.
    """

    position: int
    job: RerankJob
    keys: list[bytes]
    places: list[list[int]]


class Lookup:
    """Some jobs, their known scores, and the jobs that are left.

    Attributes:
        scores: of all texts of all jobs; None for a text without a score.
        context: for the jobs that are left.
    """

    def __init__(self, keys: Keys, jobs: Jobs, context: Context) -> None:
        self.scores: list[list[float | None]] = []
        self.context = context
        self._outer = context
        self._all = jobs
        self._listwise = keys.listwise
        digests: dict[str, bytes] = {}
        self._keys = [keys.of(job.query, job.texts, digests) for job in jobs]
        self._rest: list[_Rest] = []

    @property
    def keys(self) -> list[bytes]:
        """The key of each text, each once."""
        return list(dict.fromkeys(key for keys in self._keys for key in keys))

    @property
    def jobs(self) -> list[RerankJob]:
        """What is left to score."""
        return [rest.job for rest in self._rest]

    def fill(self, found: Mapping[bytes, float], fault: str | None) -> None:
        """Take the scores that the cache has, and what is wrong with it."""
        for position, (job, keys) in enumerate(zip(self._all, self._keys, strict=True)):
            known = [found.get(key) for key in keys]
            places: dict[bytes, list[int]] = {}
            if not self._listwise:
                for place, key in enumerate(keys):
                    if known[place] is None:
                        places.setdefault(key, []).append(place)
            elif not _is_complete(job, known):
                known = [None] * len(known)
                places = {key: [place] for place, key in enumerate(keys)}  # keys of a list differ by place
            self.scores.append(known)
            self._outer.note(position, cached=len(known) - known.count(None))
            if places:
                texts = [job.texts[at[0]] for at in places.values()]
                rest = job._replace(texts=texts, top_k=None)
                self._rest.append(_Rest(position, rest, list(places), list(places.values())))
        self.context = self._outer.part([rest.position for rest in self._rest])
        if fault:
            self._outer.warn(fault)

    def keep(self, given: Scores) -> dict[bytes, float]:
        """Take the scores of what was left. Return those to write to the cache."""
        new: dict[bytes, float] = {}
        if len(given) != len(self._rest):
            self.fail(StageError(f"expected {len(self._rest)} lists of scores, got {len(given)}"))
            return new
        for number, (rest, own) in enumerate(zip(self._rest, given, strict=True)):
            if number in self.context.failures:
                continue
            try:
                scores = checked_scores(own, len(rest.job.texts))
            except StageError as error:
                self.context.fail(number, error)
                continue
            for places, score in zip(rest.places, scores, strict=True):
                for place in places:
                    self.scores[rest.position][place] = score
            complete = self.context.partials[number] is None and _is_complete(rest.job, scores)
            if complete or not self._listwise:
                new |= {key: score for key, score in zip(rest.keys, scores, strict=True) if score is not None}
        self.settle()
        return new

    def fail(self, error: Exception) -> None:
        """Report that what was left was not scored. Raise the error if no score is known, or the call was given up."""
        known = any(score is not None for own in self.scores for score in own)
        if self._outer.cancelled or not known:
            raise error
        for number in range(len(self._rest)):
            self.context.fail(number, error)
        self.settle()

    def settle(self) -> None:
        """Report failures and partial results to the caller; a query that ran out of time keeps its known scores."""
        for number, error in list(self.context.failures.items()):
            own = self.scores[self._rest[number].position]
            lacking = own.count(None)
            if isinstance(error, DeadlineError) and lacking < len(own):
                del self.context.failures[number]
                reason = f"{lacking} of {len(own)} documents were not scored: {error_text(error)}"
                self.context.partial(number, reason)
        self._outer.merge(self.context, [rest.position for rest in self._rest])


def _is_complete(job: RerankJob, scores: Sequence[float | None]) -> bool:
    """Whether a list was scored as a whole; services leave out blank texts, which need no score."""
    complete = all(score is not None or not text.strip() for text, score in zip(job.texts, scores, strict=True))
    return complete and any(score is not None for score in scores)
