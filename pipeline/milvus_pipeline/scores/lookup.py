"""Scoring with a cache: what is known is looked up, the rest is scored, and kept."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from milvus_pipeline.context import Context
from milvus_pipeline.errors import DeadlineError, PipelineError, StageError
from milvus_pipeline.ranking import checked_scores
from milvus_pipeline.scores import store as score_cache
from milvus_pipeline.scores.keys import Keys
from milvus_pipeline.scores.store import ScoreCache
from milvus_pipeline.text import error_text

if TYPE_CHECKING:
    from milvus_pipeline.reranker import Reranker, RerankJob

_LOOK_SECONDS: Final = 1.0  # that an event loop waits for the thread that looks into the file

Scores = Sequence[Iterable[float | None]]


class ScoredBefore:
    """The scores that an open reranker has given before, or another that is the same.

    Args:
        cache: where they are.
    """

    def __init__(self, cache: ScoreCache) -> None:
        self.cache = cache
        self._keys: Keys | None = None

    @classmethod
    @contextmanager
    def opening(cls, name: str, *, whole: bool = True) -> Iterator[Self]:
        """With the cache in a file, which is closed again where an error ends this.

        Args:
            name: of the file.
            whole: look for damage, which takes up to a second.

        Raises:
            StageError: the file is no score cache, or cannot be used.
        """
        before = cls(score_cache.acquire(name, whole=whole))
        try:
            yield before
        except BaseException:
            before.close()
            raise

    def identify(self, reranker: Reranker) -> None:
        """Find out what the reranker's scores are found by. StageError where it cannot tell."""
        self._keys = Keys(reranker)

    def lookup(self, jobs: Sequence[RerankJob], context: Context) -> Lookup:
        """What is to be looked up for these jobs, before anything is."""
        assert self._keys is not None  # noqa: S101 - opening the stage has told them
        return Lookup(self.cache, self._keys, jobs, context)

    def close(self) -> None:
        """Give the cache back."""
        score_cache.release(self.cache)


class Lookup:
    """Some jobs, and what of them is known.

    The rest is asked for without ``top_k``: a service would leave the worst texts unscored, and they would be asked for
    again each time.

    Attributes:
        scores: of all texts of all jobs; None for one that has none.
        jobs: what is left to score: the texts of a job that are not known, each once; of a listwise one all.
        context: for those jobs.
    """

    def __init__(self, cache: ScoreCache, keys: Keys, jobs: Sequence[RerankJob], context: Context) -> None:
        self.scores: list[list[float | None]] = [[None] * len(job.texts) for job in jobs]
        self.jobs: list[RerankJob] = []
        self.context = context
        self._cache = cache
        self._listwise = keys.listwise
        self._all = jobs
        self._outer = context
        digests: dict[str, bytes] = {}
        self._keys = [keys.of(job.query, job.texts, digests) for job in jobs]
        self._positions: list[int] = []
        self._places: list[list[list[int]]] = []  # of each text of a job that is left, those of the whole job

    def look(self) -> None:
        """Look into the file."""
        self._take(self._cache.get(self._asked))

    async def alook(self) -> None:
        """``look`` for an event loop, which does not wait long for a thread."""
        task = asyncio.ensure_future(asyncio.to_thread(self._cache.get, self._asked))
        try:
            done, _ = await asyncio.wait({task}, timeout=self._outer.deadline.remaining(at_most=_LOOK_SECONDS))
        finally:
            if not task.done():
                task.cancel()
        if not done:
            self._outer.warn(f"the score cache {self._cache.path} was not read in time, and was done without")
        self._take(task.result() if done else {})

    @property
    def _asked(self) -> list[bytes]:
        return list(dict.fromkeys(key for keys in self._keys for key in keys))

    def _take(self, found: Mapping[bytes, float]) -> None:
        """Put what was found in its places, and find what is left."""
        for position, (job, keys) in enumerate(zip(self._all, self._keys, strict=True)):
            own = [found.get(key) for key in keys]
            if self._listwise and not _is_whole(job, own):
                own = [None] * len(own)
            self.scores[position] = own
            self._outer.note(position, cached=len(own) - own.count(None))
            places = self._left(job, keys, own)
            if places:
                self._positions.append(position)
                self._places.append(places)
                self.jobs.append(job._replace(texts=[job.texts[at[0]] for at in places], top_k=None))
        self.context = self._outer.part(self._positions)
        if self._cache.fault:
            self._outer.warn(self._cache.fault)

    def _left(self, job: RerankJob, keys: Sequence[bytes], own: Sequence[float | None]) -> list[list[int]]:
        """The places of each text that is to be scored."""
        if self._listwise:
            return [] if _is_whole(job, own) else [[place] for place in range(len(keys))]
        places: dict[bytes, list[int]] = {}
        for place, (key, score) in enumerate(zip(keys, own, strict=True)):
            if score is None:
                places.setdefault(key, []).append(place)
        return list(places.values())

    def keep(self, given: Scores) -> None:
        """Put the scores of what was left in their places, and into the file."""
        if len(given) != len(self.jobs):
            self.fail(
                StageError(f"{len(self.jobs)} queries were to be scored, but {len(given)} lists of scores came back")
            )
            return
        new: dict[bytes, float] = {}
        for number, (job, own) in enumerate(zip(self.jobs, given, strict=True)):
            if number not in self.context.failures:
                try:
                    self._keep(number, checked_scores(own, len(job.texts)), new)
                except StageError as error:
                    self.context.fail(number, error)
        self._cache.put(new)
        self.settle()

    def _keep(self, number: int, scores: list[float | None], new: dict[bytes, float]) -> None:
        position = self._positions[number]
        for places, score in zip(self._places[number], scores, strict=True):
            for place in places:
                self.scores[position][place] = score
        whole = self.context.partials[number] is None and _is_whole(self.jobs[number], scores)
        if self._listwise and not whole:
            return
        for places, score in zip(self._places[number], scores, strict=True):
            if score is not None:
                new[self._keys[position][places[0]]] = score

    def fail(self, error: Exception) -> None:
        """Say that what was left was not scored. It is raised where nothing at all is known, or nobody waits."""
        known = any(score is not None for own in self.scores for score in own)
        if self._outer.cancelled or not known:
            raise error
        for number in range(len(self.jobs)):
            self.context.fail(number, error)
        self.settle()

    def settle(self) -> None:
        """Bring failures and partial results to the caller; a query that lacked time keeps what is known of it."""
        for number, error in list(self.context.failures.items()):
            own = self.scores[self._positions[number]]
            lack = len(own) - sum(score is not None for score in own)
            if isinstance(error, DeadlineError) and lack < len(own):
                del self.context.failures[number]
                self.context.partial(number, f"{lack} of {len(own)} documents were not scored: {error_text(error)}")
        self._outer.merge(self.context, self._positions)


def scored(reranker: Reranker, before: ScoredBefore | None, jobs: Sequence[RerankJob], context: Context) -> Scores:
    """``score_batch``, for what is not in the cache, if there is one."""
    if before is None:
        return reranker.score_batch(jobs, context)
    lookup = before.lookup(jobs, context)
    lookup.look()
    if lookup.jobs:
        try:
            given = reranker.score_batch(lookup.jobs, lookup.context)
        except Exception as error:
            lookup.fail(error)
        else:
            lookup.keep(given)
    return lookup.scores


async def ascored(
    reranker: Reranker, before: ScoredBefore | None, jobs: Sequence[RerankJob], context: Context
) -> Scores:
    """``scored`` for an event loop."""
    if before is None:
        return await reranker.ascore_batch(jobs, context)
    lookup = before.lookup(jobs, context)
    await lookup.alook()
    if lookup.jobs:
        try:
            given = await reranker.ascore_batch(lookup.jobs, lookup.context)
        except Exception as error:
            lookup.fail(error)
        else:
            lookup.keep(given)
    return lookup.scores


def plan_rest(reranker: Reranker, before: ScoredBefore | None, jobs: Sequence[RerankJob], context: Context) -> None:
    """``dry_run_batch``, for what is not in the cache, if there is one. The reranker may be closed."""
    if reranker.cache is None or not reranker.sends:
        reranker.dry_run_batch(jobs, context)
    elif before is not None:
        _plan(reranker, before, jobs, context)
    elif not Path(reranker.cache).expanduser().exists():  # a dry run makes no file, and there is nothing to find
        reranker.dry_run_batch([job._replace(top_k=None) for job in jobs], context)
    else:
        with ScoredBefore.opening(reranker.cache, whole=False) as found:
            try:
                found.identify(reranker)
            except Exception as error:
                why = error_text(error) if isinstance(error, PipelineError) else type(error).__name__
                context.warn(f"what the score cache holds was not looked up, so that everything counts: {why}")
                reranker.dry_run_batch([job._replace(top_k=None) for job in jobs], context)
            else:
                _plan(reranker, found, jobs, context)
        found.close()


def _plan(reranker: Reranker, before: ScoredBefore, jobs: Sequence[RerankJob], context: Context) -> None:
    lookup = before.lookup(jobs, context)
    lookup.look()
    if lookup.jobs:
        reranker.dry_run_batch(lookup.jobs, lookup.context)
        lookup.settle()


def _is_whole(job: RerankJob, scores: Sequence[float | None]) -> bool:
    """Whether a list was scored as a whole: blank texts are left out by services, and need no score."""
    complete = all(score is not None or not text.strip() for text, score in zip(job.texts, scores, strict=True))
    return complete and any(score is not None for score in scores)
