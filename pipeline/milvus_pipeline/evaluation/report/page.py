"""The contents of the report, prepared for its template in the order of the page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, Final, NamedTuple

from milvus_pipeline.evaluation.pareto import best_system
from milvus_pipeline.evaluation.records import Comparison, ComparisonIndex, Evaluation, StageFigures, SystemFigures
from milvus_pipeline.evaluation.report.prose import (
    Answer,
    comparison_tiles,
    significance_text,
    stage_answers,
    system_tiles,
)
from milvus_pipeline.evaluation.report.scatter import is_drawn, scatter
from milvus_pipeline.evaluation.report.stage_charts import latency_chart, quality_chart
from milvus_pipeline.text import count_text

_THIRD: Final = 340  # width of a picture of which three are side by side, in CSS pixels
_HALF: Final = 500
_WIDE: Final = (860, 390)
_NARROW: Final = (326, 360)


class Picture(NamedTuple):
    """The same picture for wide and for narrow pages; one for both if they do not differ."""

    wide: str
    narrow: str | None
    caption: str = ""


@dataclass(frozen=True, slots=True)
class SystemView:
    """One system: its figures, sentences about its stages, pictures, and the comparisons of its stages."""

    number: int
    figures: SystemFigures
    answers: Sequence[Answer]
    qualities: Sequence[Picture]
    latency: Picture
    changes: Sequence[Comparison]


def page(evaluation: Evaluation) -> dict[str, Any]:
    """Return the variables of the template, except for the movements."""
    systems, measure = evaluation.systems, evaluation.measures[0]
    index = ComparisonIndex(evaluation)
    views = [_view(evaluation, index, system, number) for number, system in enumerate(systems, 1)]
    undrawn = [view.number for view in views if not is_drawn(view.figures, measure)]
    best = best_system(systems, measure)
    drawn = len(systems) > 1 and len(undrawn) < len(systems)
    return {
        "evaluation": evaluation,
        "facts": _facts(evaluation),
        "tiles": comparison_tiles(evaluation) if len(systems) > 1 else system_tiles(evaluation, systems[0], index),
        "systems": views,
        "best": next(view for view in views if view.figures is best),
        "scatter": Picture(scatter(systems, measure, *_WIDE), scatter(systems, measure, *_NARROW)) if drawn else None,
        "undrawn": undrawn,
        "varied": _varied_paths(systems),
        "index": index,
        "compared": {found.measure for found in evaluation.comparisons if found.system != found.baseline_system},
        "priced": any(system.cost is not None for system in systems),
    }


def _facts(evaluation: Evaluation) -> list[tuple[str, str]]:
    systems = len(evaluation.systems)
    together = "one at a time" if evaluation.batch_size == 1 else f"{evaluation.batch_size:,} at a time"
    facts = [
        ("Evaluated", _date(evaluation.created)),
        ("Systems", f"{systems}; the first is the baseline of the others" if systems > 1 else ""),
        ("Queries", f"{evaluation.queries:,}, {evaluation.judged:,} of them with judgements; {together}"),
        ("Measures", ", ".join(evaluation.measures)),
        ("Significance", significance_text(evaluation)),
    ]
    return [fact for fact in facts if fact[1]]


def _date(created: str) -> str:
    try:
        at = datetime.fromisoformat(created)
    except ValueError:
        return created
    return f"{at.day} {at:%B %Y, %H:%M} UTC"


def _view(evaluation: Evaluation, index: ComparisonIndex, system: SystemFigures, number: int) -> SystemView:
    stages = system.ranking_stages
    found = [index.of_stage(system.name, stage.stage, name) for name in evaluation.measures for stage in stages]
    changes = [change for change in found if change is not None]
    measures = [measure for measure in evaluation.measures if stages and measure in stages[-1].measures]
    several = len(measures) > 1
    return SystemView(
        number=number,
        figures=system,
        answers=stage_answers(evaluation, system, index),
        qualities=[_picture(partial(quality_chart, system, name, changes), several, name) for name in measures],
        latency=_picture(partial(latency_chart, system), several),
        changes=changes,
    )


def _picture(draw: Callable[[float], str], several: bool, caption: str = "") -> Picture:
    """Draw one of several pictures in a row, or one that is alone and so has room on a wide page."""
    return Picture(draw(_THIRD), None, caption) if several else Picture(draw(_HALF), draw(_THIRD), caption)


def outcomes_text(stage: StageFigures) -> str:
    """Return the queries that a stage did not complete: ``skipped for 3 queries (deadline 2, error 1)``."""
    parts = [
        f"{status} for {count_text(number, 'query')}" for status, number in stage.statuses.items() if status != "ok"
    ]
    reasons = ", ".join(f"{code} {number:,}" for code, number in stage.reasons.items())
    return ", ".join(parts) + (f" ({reasons})" if parts and reasons else "")


def statuses_text(statuses: Mapping[str, int]) -> str:
    """Return the number of results that are not "ok", by status: ``3 degraded, 1 failed``."""
    return ", ".join(f"{number:,} {status}" for status, number in statuses.items() if status != "ok" and number)


def _varied_paths(systems: Sequence[SystemFigures]) -> list[str]:
    """Return the paths that a sweep varied, if each system has a number or a string at all of them.

    Otherwise none, and the table shows the names of the systems, in which whole stages are abbreviated.
    """
    paths = list(dict.fromkeys(path for system in systems for path in system.variant))
    values = [system.variant.get(path) for system in systems for path in paths]
    short = all(isinstance(value, int | float | str) and not isinstance(value, bool) for value in values)
    return paths if short else []
