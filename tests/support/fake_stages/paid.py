"""A reranker that bills like a hosted one: it needs a key, reports usage, and plans requests."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence

from milvus_pipeline import QueryError, StageError
from milvus_pipeline.plugin import Context, Reranker, RerankJob, register


@register("paid")
class Paid(Reranker):
    """Scores a text by the number of the query's words in it; two texts per request, two units per query."""

    refused: str = ""
    crash: bool = False
    hang: float = 0.0

    def setup(self) -> None:
        if not os.environ.get("PAID_API_KEY"):
            raise StageError("the environment variable PAID_API_KEY is not set")

    def score(self, query: str, texts: Sequence[str]) -> list[float]:
        words = set(query.split())
        return [float(len(words & set(text.split()))) for text in texts]

    def score_batch(self, jobs: Sequence[RerankJob], context: Context) -> list[list[float]]:
        if not self.is_open:
            raise StageError("is not open")
        for position, job in enumerate(jobs):
            context.note(position, usage={"requests": requests_of(job), "documents": len(job.texts), "units": 2.0})
            if self.refused and self.refused in job.query:
                context.fail(position, QueryError("the service refuses this word"))
        if self.crash:
            raise ConnectionError("the service is gone")
        return [self.score(job.query, job.texts) for job in jobs]

    async def ascore_batch(self, jobs: Sequence[RerankJob], context: Context) -> list[list[float]]:
        scores = self.score_batch(jobs, context)
        await asyncio.sleep(self.hang)
        return scores

    def dry_run_batch(self, jobs: Sequence[RerankJob], context: Context) -> None:
        for position, job in enumerate(jobs):
            tokens = sum(len(text) // 4 + 1 for text in job.texts)
            context.note(
                position, planned={"requests": requests_of(job), "documents": len(job.texts), "tokens": tokens}
            )


def requests_of(job: RerankJob) -> int:
    """Return the number of requests for a job, two texts in each."""
    return (len(job.texts) + 1) // 2
