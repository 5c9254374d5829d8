"""A reranker that records what it scores, and fails on request."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import PrivateAttr

from milvus_pipeline import DeadlineError, StageError
from milvus_pipeline.plugin import Context, Reranker, RerankJob, register


@register("counted")
class Counted(Reranker):
    """Scores a text by the number of the query's words in it, times a weight.

    Each word in ``how`` has an effect on queries that contain it: "crash" raises for the whole batch, "late" raises a
    deadline error for it, "fail" fails the query, "slow" fails it with a deadline error, "short" reports its last text
    as not scored, "nan" and "many" give invalid scores. The text "hollow" never has a score.
    """

    score_neutral: ClassVar[frozenset[str]] = frozenset({"how", "commit", "speed"})

    weight: float = 1.0
    speed: int = 1
    commit: str = "a"
    lists: bool = False
    how: tuple[str, ...] = ()

    _received: list[tuple[str, tuple[str, ...], int | None]] = PrivateAttr(default_factory=list)

    @property
    def asked(self) -> list[tuple[str, ...]]:
        """The texts of each job since this was last read."""
        asked = [texts for _, texts, _ in self._received]
        self._received.clear()
        return asked

    @property
    def scores_lists(self) -> bool:
        return self.lists

    def identity(self) -> Mapping[str, Any]:
        return {"commit": self.commit}

    def score(self, query: str, texts: Sequence[str]) -> list[float | None]:
        words = set(query.split())
        scores = [self.weight * len(words & set(text.split())) + len(text) / 1000 for text in texts]
        if self.lists:
            scores = [score - sum(scores) / 100 for score in scores]
        return [None if text == "hollow" else score for text, score in zip(texts, scores, strict=True)]

    def score_batch(self, jobs: Sequence[RerankJob], context: Context) -> list[list[float | None]]:
        self._received += [(job.query, tuple(job.texts), job.top_k) for job in jobs]
        given = [self.score(job.query, job.texts) for job in jobs]
        for position, job in enumerate(jobs):
            effects = [word for word in self.how if word in job.query]
            context.note(position, usage={"documents": len(job.texts)})
            if "crash" in effects:
                raise ConnectionError("the service is gone")
            if "late" in effects:
                raise DeadlineError("timed out")
            if "fail" in effects:
                context.fail(position, StageError("the service refuses this"))
            if "slow" in effects:
                context.fail(position, DeadlineError("not one was scored in time"))
            if "short" in effects:
                given[position][-1] = None
                context.partial(position, "1 was not scored")
            if "nan" in effects:
                given[position][0] = float("nan")
            if "many" in effects:
                given[position].append(1.0)
        return given

    async def ascore_batch(self, jobs: Sequence[RerankJob], context: Context) -> list[list[float | None]]:
        await asyncio.sleep(0)
        return self.score_batch(jobs, context)

    def dry_run_batch(self, jobs: Sequence[RerankJob], context: Context) -> None:
        for position, job in enumerate(jobs):
            context.note(position, planned={"requests": 1, "documents": len(job.texts), "tokens": 1})
