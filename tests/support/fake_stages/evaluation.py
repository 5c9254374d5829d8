"""Stages for tests of evaluations: they count their openings and queries, and report a given usage."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import ClassVar

from milvus_pipeline import Hit, QueryError, SearchResult, StageError
from milvus_pipeline.plugin import Context, Reranker, RerankJob, Stage, register

calls: Counter[str] = Counter()
"""The number of queries that reached a stage, by its name."""

setups: Counter[str] = Counter()
"""The number of times that a stage was opened, by its name."""


@register("table_search")
class TableSearch(Stage):
    """Finds the documents that the table has for the query's text; fails for other queries."""

    gives: ClassVar[frozenset[str]] = frozenset({"hits", "text"})

    table: dict[str, list[str]]

    def setup(self) -> None:
        setups[self.name] += 1

    def process(self, results: Sequence[SearchResult], context: Context) -> Sequence[SearchResult]:
        calls[self.name] += len(results)
        for position, result in enumerate(results):
            if result.query.text not in self.table:
                context.fail(position, QueryError("is not in the table"))
        return [
            result.with_hits(
                [
                    Hit(document, f"the text of {document}", 0.0).ranked(self.name, 1.0, rank)  # all tied
                    for rank, document in enumerate(self.table.get(result.query.text, []), 1)
                ]
            )
            for result in results
        ]


@register("table_rerank")
class TableRerank(Reranker):
    """Puts the named documents first, in order; reports usage, and may claim to send texts away."""

    first: tuple[str, ...] = ()
    usage: dict[str, int] = {}
    cached: int = 0
    paid: bool = False
    fails: bool = False
    broken: bool = False

    def setup(self) -> None:
        setups[self.name] += 1
        if self.broken:
            raise OSError("no such model")

    @property
    def sends(self) -> bool:
        return self.paid

    def identity(self) -> dict[str, object]:
        if self.fails:
            raise StageError("nobody knows")
        return {"first": list(self.first)}

    def score(self, query: str, texts: Sequence[str]) -> list[float]:
        order = {f"the text of {document}": place for place, document in enumerate(self.first)}
        return [-float(order.get(text, len(order))) for text in texts]

    def score_batch(self, jobs: Sequence[RerankJob], context: Context) -> Sequence[list[float]]:
        calls[self.name] += len(jobs)
        context.note(usage=self.usage, cached=self.cached)
        if self.fails:
            raise StageError("the service is gone", reason_code="unavailable")
        return [self.score(job.query, job.texts) for job in jobs]


@register("preparing")
class Preparing(Stage):
    """Changes nothing, and needs no hits."""

    def process(self, results: Sequence[SearchResult], context: Context) -> Sequence[SearchResult]:
        return results


@register("hurried")
class Hurried(Stage):
    """Records the time that it was given."""

    needs: ClassVar[frozenset[str]] = frozenset({"hits"})
    budgets: ClassVar[list[float | None]] = []

    def process(self, results: Sequence[SearchResult], context: Context) -> Sequence[SearchResult]:
        self.budgets.append(context.deadline.budget)
        return results
