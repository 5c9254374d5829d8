"""The contents of the report, prepared for its template in the order of the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from milvus_pipeline.evaluation.pareto import best_system, quality_of
from milvus_pipeline.evaluation.records import Comparison, ComparisonIndex, Evaluation, StageFigures, SystemFigures
from milvus_pipeline.evaluation.report.prose import Answer, significance_text, stage_answers
from milvus_pipeline.evaluation.report.scatter import is_drawn, scatter

_SIZES: Final = {"wide-only": (860, 390), "narrow-only": (326, 360)}  # of the chart of systems, in CSS pixels


class QualityChart(NamedTuple):
    """One measure after each ranking stage, with the comparison of the stage; ``top`` is the end of the scale."""

    measure: str
    stages: Sequence[tuple[StageFigures, Comparison | None]]
    top: float


class SystemView(NamedTuple):
    """One system: its number in the tables, its figures, sentences about its stages, and charts."""

    number: int
    figures: SystemFigures
    answers: Sequence[Answer]
    qualities: Sequence[QualityChart]


def page(evaluation: Evaluation) -> dict[str, Any]:
    """Return the variables of the template, except for the movements."""
    systems, measure = evaluation.systems, evaluation.measures[0]
    index = ComparisonIndex(evaluation)
    views = [_view(evaluation, index, system, number) for number, system in enumerate(systems, 1)]
    undrawn = [view.number for view in views if not is_drawn(view.figures, measure)]
    best = best_system(systems, measure)
    answering = [system for system in systems if system.answers] or systems
    drawn = len(systems) > 1 and len(undrawn) < len(systems)
    return {
        "evaluation": evaluation,
        "fastest": min(answering, key=lambda system: (system.latency.p50, -quality_of(system, measure))),
        "significance": significance_text(evaluation),
        "systems": views,
        "best": next(view for view in views if view.figures is best),
        "scatters": {name: scatter(systems, measure, *size) for name, size in _SIZES.items()} if drawn else {},
        "undrawn": undrawn,
        "varied": _varied_paths(systems),
        "index": index,
        "compared": {found.measure for found in evaluation.comparisons if found.system != found.baseline_system},
        "priced": any(system.cost is not None for system in systems),
    }


def _view(evaluation: Evaluation, index: ComparisonIndex, system: SystemFigures, number: int) -> SystemView:
    stages = system.ranking_stages
    measures = [measure for measure in evaluation.measures if stages and measure in stages[-1].measures]
    qualities = [_quality_chart(system, measure, index) for measure in measures]
    return SystemView(number, system, stage_answers(evaluation, system, index), qualities)


def _quality_chart(system: SystemFigures, measure: str, index: ComparisonIndex) -> QualityChart:
    stages = [(stage, index.of_stage(system.name, stage.stage, measure)) for stage in system.ranking_stages]
    reached = [value for stage, _ in stages for value in (stage.measures[measure], stage.ceilings.get(measure, 0.0))]
    return QualityChart(measure, stages, max(filter(math.isfinite, reached), default=0.0))


def change_class(change: Comparison) -> str:
    """Return the CSS class of a difference: better or worse if it is significant, otherwise unsure."""
    if not change.significant:
        return "change unsure"
    return "change better" if change.difference > 0 else "change worse"


def percent(value: float, top: float) -> str:
    """Return a coordinate within a chart whose scale goes from 0 to ``top``: ``45.0%``."""
    return f"{100 * min(max(value / top, 0), 1) if top else 0:.2f}%"


def _varied_paths(systems: Sequence[SystemFigures]) -> list[str]:
    """Return the paths that a sweep varied, if each system has a number or a string at all of them.

    Otherwise none, and the table shows the names of the systems, in which whole stages are abbreviated.
    """
    paths = list(dict.fromkeys(path for system in systems for path in system.variant))
    values = [system.variant.get(path) for system in systems for path in paths]
    short = all(isinstance(value, int | float | str) and not isinstance(value, bool) for value in values)
    return paths if short else []
