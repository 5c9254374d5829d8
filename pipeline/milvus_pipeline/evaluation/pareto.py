"""The Pareto front of quality against latency, and the best system."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

from milvus_pipeline.evaluation.records import SystemFigures


def mark_front(systems: Iterable[SystemFigures]) -> tuple[SystemFigures, ...]:
    """Return the systems in their order, with ``on_front`` set.

    Quality is the first measure of the final ranking, latency the median (p50) of the whole pipeline. A system is on
    the front if no other is at least as good in both and better in one of them; systems that are equal in both are
    on it together. A system that failed for all queries, has no measures, or has a NaN is not on it.
    """
    given = tuple(systems)
    points = [_point(system) for system in given]
    known = set(filter(None, points))
    front = {one for one in known if not any(q >= one[0] and s <= one[1] and (q, s) != one for q, s in known)}
    return tuple(replace(system, on_front=point in front) for system, point in zip(given, points, strict=True))


def best_system(systems: Sequence[SystemFigures], measure: str) -> SystemFigures:
    """Return the system that is best in the measure, the fastest of several; one that always failed comes last."""
    return max(systems, key=lambda system: (system.answers, quality_of(system, measure), -system.latency.p50))


def quality_of(system: SystemFigures, measure: str) -> float:
    """Return the measure of the final ranking; NaN is below all values."""
    value = system.measures.get(measure, math.nan)
    return -math.inf if math.isnan(value) else value


def _point(system: SystemFigures) -> tuple[float, float] | None:
    """Return quality and latency of a system; None unless it has both."""
    if not system.measures or not system.answers:
        return None
    point = next(iter(system.measures.values())), system.latency.p50
    return point if all(map(math.isfinite, point)) else None
