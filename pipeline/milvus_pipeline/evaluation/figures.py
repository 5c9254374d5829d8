"""What is kept of the queries at one stage: sums, counts, and a few numbers a query."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import get_args

from milvus_pipeline.evaluation.measures import Judgements, Measures, best_first
from milvus_pipeline.evaluation.records import Latency, StageFigures
from milvus_pipeline.evaluation.tree import Node
from milvus_pipeline.records import SearchResult, StageReport, StageStatus
from milvus_pipeline.usage import Totals

_STATUSES = get_args(StageStatus)


class Tally:
    """The figures of one stage, as they come in.

    Args:
        node: the stage in its tree.
        measures: to take of the rankings behind it.
        judged: grade by document id, by query id.

    Attributes:
        values: of each measure, a number a query in the order of the queries; NaN where a measure has none. Empty
            where no stage up to here gives hits.
        changed: the stage changed the ranking of at least one query.
        cached: number of texts whose score came from the score cache.
    """

    def __init__(self, node: Node, measures: Measures, judged: Judgements) -> None:
        self.values = {name: array("d") for name in measures.names} if node.ranks else {}
        self.changed = False
        self.cached = 0
        self._node = node
        self._measures = measures
        self._judged = judged
        self._ceilings = measures.sums()
        self._latency = array("d")
        self._elapsed = array("d")
        self._hits = 0
        self._queries = 0
        self._usage = Totals()
        self._statuses: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()

    def add(self, before: Sequence[SearchResult], after: Sequence[SearchResult]) -> list[dict[str, float]]:
        """Take in the results of some queries, as they were before the stage and as they are after it.

        Returns:
            The measures of each query's ranking, by name.
        """
        for old, new in zip(before, after, strict=True):
            self._queries += 1
            self._hits += len(new.hits)
            self.changed = self.changed or [hit.id for hit in old.hits] != [hit.id for hit in new.hits]
            if reports := new.reports[len(old.reports) :]:  # none where the query had failed before
                self._latency.append(_seconds(reports))
                self._elapsed.append(_seconds(new.reports))
                self._count(reports)
        return self._measured(after) if self._node.ranks else [{} for _ in after]

    def _count(self, reports: Sequence[StageReport]) -> None:
        """Count what the stage, and what stood in for it, reported of one query."""
        self._statuses[_status(reports)] += 1
        self._reasons.update({report.reason_code for report in reports if report.reason_code is not None})
        for report in reports:
            self._usage.add(report.stage, report.usage)
            cached = report.details.get("cached")
            self.cached += cached if isinstance(cached, int) else 0

    def _measured(self, after: Sequence[SearchResult]) -> list[dict[str, float]]:
        rankings = {str(result.query.id): [str(hit.id) for hit in result.hits] for result in after if result.hits}
        judged = {str(result.query.id): self._judged[str(result.query.id)] for result in after}
        best = {query: best_first(documents, judged[query]) for query, documents in rankings.items()}
        found = self._measures.values(judged, rankings)
        for name, ceilings in self._measures.values(judged, best).items():
            for value in ceilings.values():
                self._ceilings[name].add(value)
        for name, values in self.values.items():
            values.extend(found[name].get(query, math.nan) for query in judged)
        return [{name: values[query] for name, values in found.items() if query in values} for query in judged]

    def figures(self, prices: Mapping[str, float]) -> StageFigures:
        """All of it.

        Args:
            prices: money a unit of usage, by stage and the provider's word: ``{"cohere.search_units": 0.002}``.
        """
        stage = self._node.stage
        usage = self._usage.as_dict()
        words = {
            word if name == stage.name else f"{name}.{word}": number
            for name, numbers in usage.items()
            for word, number in numbers.items()
        }
        return StageFigures(
            stage=stage.name,
            type=stage.type,
            hits=self._hits / max(1, self._queries),
            measures={name: self._measures.over_queries(name, values) for name, values in self.values.items()},
            ceilings={name: float(self._ceilings[name].result()) for name in self.values},
            latency=_latency(self._latency),
            elapsed=_latency(self._elapsed),
            usage=words,
            cost=_cost(usage, prices),
            cached=self.cached,
            statuses={status: self._statuses[status] for status in _STATUSES if self._statuses[status]},
            reasons=dict(self._reasons.most_common()),
            shared=len(self._node.systems) > 1,
        )

    @property
    def units(self) -> set[str]:
        """What usage there was, as prices name it: ``cohere.search_units``."""
        return {f"{name}.{word}" for name, numbers in self._usage.as_dict().items() for word in numbers}


def _seconds(reports: Sequence[StageReport]) -> float:
    """One query's share of the time that the reports tell of."""
    return sum(report.query_seconds for report in reports)


def _status(reports: Sequence[StageReport]) -> StageStatus:
    """What became of the stage's work; that a fallback did it does not make it done."""
    return max((report.status for report in reports), key=_STATUSES.index)


def _latency(seconds: array[float]) -> Latency:
    import numpy as np

    if not seconds:
        return Latency(0.0, 0.0, 0.0, 0.0)
    p50, p95, p99 = np.percentile(seconds, (50, 95, 99))
    return Latency(float(np.mean(seconds)), float(p50), float(p95), float(p99))


def _cost(usage: Mapping[str, Mapping[str, int | float]], prices: Mapping[str, float]) -> float | None:
    """What the usage cost; None where there are no prices, or none for what a service did."""
    if not prices:
        return None
    total = 0.0
    for name, numbers in usage.items():
        priced = [number * prices[f"{name}.{word}"] for word, number in numbers.items() if f"{name}.{word}" in prices]
        if not priced:
            return None
        total += sum(priced)
    return total
