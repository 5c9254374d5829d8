"""The queries worth a picture: those for which a reranker changed most."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from milvus_pipeline.evaluation.tree import Node
from milvus_pipeline.explain import Movement, movement
from milvus_pipeline.records import SearchResult
from milvus_pipeline.reranker import Reranker


class Step(NamedTuple):
    """One query after one stage: its result, and the measures of its ranking."""

    node: Node
    result: SearchResult
    measures: Mapping[str, float]


class LargestChanges:
    """The movements of one system with the largest gains and the largest losses in one measure.

    A query's change is that of the reranker that changed it most. At most twice ``limit`` movements are in memory,
    however many queries there are.

    Args:
        system: its name.
        measure: in which changes are measured.
        limit: movements to keep, at most.
    """

    def __init__(self, system: str, measure: str, limit: int) -> None:
        self._system = system
        self._measure = measure
        self._limit = limit
        self._gains: list[tuple[float, int, Movement]] = []
        self._losses: list[tuple[float, int, Movement]] = []
        self._seen = 0

    def add(self, steps: Sequence[Step], judged: Mapping[str, int]) -> None:
        """Keep the query's movement if its change is among the largest; of equal ones the first query's."""
        self._seen += 1
        changes = (
            after.measures[self._measure] - before.measures[self._measure]
            for before, after in pairwise(steps)
            if isinstance(after.node.stage, Reranker)
            and self._measure in before.measures
            and self._measure in after.measures
        )
        change = max(changes, key=abs, default=0.0)
        kept = self._gains if change > 0 else self._losses
        size = (abs(change), -self._seen)
        if not change or not self._limit or (len(kept) == self._limit and size < kept[0][:2]):
            return
        results, measures = [step.result for step in steps], [step.measures for step in steps]
        found = movement(self._system, results, judged=judged, measures=measures)
        (heapq.heappush if len(kept) < self._limit else heapq.heapreplace)(kept, (*size, found))

    def best(self, count: int) -> list[Movement]:
        """Return half gains, half losses, the largest of each first; if one has too few, more of the other."""
        gains, losses = (sorted(kept, reverse=True) for kept in (self._gains, self._losses))
        half = min(len(gains), max((count + 1) // 2, count - len(losses)))
        return [found for _, _, found in [*gains[:half], *losses[: count - half]]]


def choose_movements(changes: Mapping[str, LargestChanges], best: str, count: int) -> tuple[Movement, ...]:
    """Return movements of the first system that has a reranker and of the ``best`` one, half of ``count`` each."""
    first = next((name for name, kept in changes.items() if kept.best(1)), best)
    names = [name for name in dict.fromkeys((first, best)) if changes[name].best(1)]
    chosen: list[Movement] = []
    for place, name in enumerate(names):
        chosen += changes[name].best((count - len(chosen)) // (len(names) - place))
    return tuple(chosen)
