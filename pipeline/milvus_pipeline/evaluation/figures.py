"""The figures of one stage, collected query by query."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import get_args

from milvus_pipeline.evaluation.measures import Judgements, Measures, best_order
from milvus_pipeline.evaluation.records import Latency, StageFigures
from milvus_pipeline.evaluation.tree import Node
from milvus_pipeline.records import SearchResult, StageReport, StageStatus
from milvus_pipeline.usage import Totals

_STATUSES = get_args(StageStatus)


class Tally:
    """Sums, counts, and a few numbers per query, at one stage.

    Args:
        node: the stage in its tree.
        measures: to compute for the rankings after it.
        judged: grade by document id, by query id.

    Attributes:
        values: for each measure one number per query in the order of the queries; NaN if a query has no value. Empty
            if no stage up to here gives hits.
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
        self._ceilings = measures.aggregators()
        self._latency = array("d")
        self._elapsed = array("d")
        self._hits = 0
        self._queries = 0
        self._usage = Totals()
        self._statuses: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()

    def add(self, before: Sequence[SearchResult], after: Sequence[SearchResult]) -> list[dict[str, float]]:
        """Add the results of some queries, as they were before the stage and as they are after it.

        Returns:
            The measures of each query's ranking, by name.
        """
        for old, new in zip(before, after, strict=True):
            self._queries += 1
            self._hits += len(new.hits)
            self.changed = self.changed or [hit.id for hit in old.hits] != [hit.id for hit in new.hits]
            if reports := new.reports[len(old.reports) :]:  # there are none if the query had failed before
                self._latency.append(sum(report.query_seconds for report in reports))
                self._elapsed.append(sum(report.query_seconds for report in new.reports))
                self._count(reports)
        return self._measure(after) if self._node.ranks else [{} for _ in after]

    def _count(self, reports: Sequence[StageReport]) -> None:
        """Count what the stage and its fallbacks reported for one query."""
        # The worst status counts: work done by a fallback does not make the stage's own work done.
        self._statuses[max((report.status for report in reports), key=_STATUSES.index)] += 1
        self._reasons.update({report.reason_code for report in reports if report.reason_code is not None})
        for report in reports:
            self._usage.add(report.stage, report.usage)
            cached = report.details.get("cached")
            self.cached += cached if isinstance(cached, int) else 0

    def _measure(self, after: Sequence[SearchResult]) -> list[dict[str, float]]:
        rankings = {str(result.query.id): [str(hit.id) for hit in result.hits] for result in after if result.hits}
        judged = {str(result.query.id): self._judged[str(result.query.id)] for result in after}
        best = {query: best_order(documents, judged[query]) for query, documents in rankings.items()}
        found = self._measures.values(judged, rankings)
        for name, ceilings in self._measures.values(judged, best).items():
            for value in ceilings.values():
                self._ceilings[name].add(value)
        for name, values in self.values.items():
            values.extend(found[name].get(query, math.nan) for query in judged)
        return [{name: values[query] for name, values in found.items() if query in values} for query in judged]

    def figures(self, prices: Mapping[str, float]) -> StageFigures:
        """Return the figures.

        Args:
            prices: money per unit of usage, by stage and the provider's word: ``{"cohere.search_units": 0.002}``.
        """
        stage = self._node.stage
        return StageFigures(
            stage=stage.name,
            type=stage.type,
            hits=self._hits / max(1, self._queries),
            measures={name: self._measures.aggregate(name, values) for name, values in self.values.items()},
            ceilings={name: float(self._ceilings[name].result()) for name in self.values},
            latency=_percentiles(self._latency),
            elapsed=_percentiles(self._elapsed),
            usage={unit.removeprefix(f"{stage.name}."): number for unit, number in self.usage.items()},
            cost=self._cost(prices),
            cached=self.cached,
            statuses={status: self._statuses[status] for status in _STATUSES if self._statuses[status]},
            reasons=dict(self._reasons.most_common()),
            shared=len(self._node.systems) > 1,
        )

    @property
    def usage(self) -> dict[str, int | float]:
        """The usage by unit, as prices name it: ``cohere.search_units``."""
        return {
            f"{name}.{word}": number for name, words in self._usage.as_dict().items() for word, number in words.items()
        }

    def _cost(self, prices: Mapping[str, float]) -> float | None:
        """Return the cost of the usage; None without prices, or if nothing of what a service counted has one."""
        services = self._usage.as_dict()
        if not prices or any(all(f"{name}.{word}" not in prices for word in services[name]) for name in services):
            return None
        return sum(number * prices.get(unit, 0.0) for unit, number in self.usage.items())


def _percentiles(seconds: array[float]) -> Latency:
    import numpy as np

    if not seconds:
        return Latency(0.0, 0.0, 0.0, 0.0)
    p50, p95, p99 = np.percentile(seconds, (50, 95, 99))
    return Latency(float(np.mean(seconds)), float(p50), float(p95), float(p99))
