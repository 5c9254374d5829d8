"""The queries that a picture is worth: those for which a reranker changed most."""

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
    """What one stage made of one query: its result, and the measures of its ranking."""

    node: Node
    result: SearchResult
    measures: Mapping[str, float]


class Gallery:
    """The movements of one system that are worth keeping: gains and losses in one measure, the largest of each.

    A query's change is that of the rerank stage which changed it most. At most twice ``limit`` movements are in
    memory, however many queries there are.

    Args:
        system: its name.
        measure: by which changes are told.
        limit: movements to keep, at most.
    """

    def __init__(self, system: str, measure: str, limit: int) -> None:
        self._system = system
        self._measure = measure
        self._limit = limit
        self._gains: list[tuple[float, int, Movement]] = []
        self._losses: list[tuple[float, int, Movement]] = []
        self._seen = 0

    def offer(self, steps: Sequence[Step], judged: Mapping[str, int]) -> None:
        """Keep the query's movement where its change is among the largest; of equal ones the first query's."""
        self._seen += 1
        change = max(self._changes(steps), key=abs, default=0.0)
        kept = self._gains if change > 0 else self._losses
        size = (abs(change), -self._seen)
        if not change or not self._limit or (len(kept) == self._limit and size < kept[0][:2]):
            return
        shown = movement(
            self._system,
            [step.result for step in steps],
            judged=judged,
            measures=[step.measures for step in steps],
        )
        (heapq.heappush if len(kept) < self._limit else heapq.heapreplace)(kept, (*size, shown))

    def _changes(self, steps: Sequence[Step]) -> list[float]:
        """What each reranker changed in the measure."""
        return [
            after.measures[self._measure] - before.measures[self._measure]
            for before, after in pairwise(steps)
            if isinstance(after.node.stage, Reranker)
            and self._measure in before.measures
            and self._measure in after.measures
        ]

    def best(self, count: int) -> list[Movement]:
        """Half gains, half losses, the largest of each, in this order; where one has too few, more of the other."""
        gains, losses = (sorted(kept, reverse=True) for kept in (self._gains, self._losses))
        half = min(len(gains), max((count + 1) // 2, count - len(losses)))
        return [shown for _, _, shown in [*gains[:half], *losses[: count - half]]]


def chosen_movements(galleries: Mapping[str, Gallery], best: str, count: int) -> tuple[Movement, ...]:
    """The movements of the first system that has a reranker, and of the ``best`` one, half of ``count`` each."""
    first = next((name for name, gallery in galleries.items() if gallery.best(1)), best)
    chosen = [name for name in dict.fromkeys((first, best)) if galleries[name].best(1)]
    shown: list[Movement] = []
    for place, name in enumerate(chosen):
        shown += galleries[name].best((count - len(shown)) // (len(chosen) - place))
    return tuple(shown)
