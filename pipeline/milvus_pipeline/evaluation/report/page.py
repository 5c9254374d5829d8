"""What the report shows, prepared for its template: figures in words, pictures, tables, in the order of the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import yaml

from milvus_pipeline.config.file import to_yaml
from milvus_pipeline.evaluation.pareto import best_system
from milvus_pipeline.evaluation.records import Comparison, Evaluation, Lookup, StageFigures, SystemFigures
from milvus_pipeline.evaluation.report.prose import (
    Answer,
    Tile,
    answers,
    ranking_stages,
    systems_tiles,
    test_said,
    tiles,
)
from milvus_pipeline.evaluation.report.scatter import is_drawn, scatter
from milvus_pipeline.evaluation.report.stage_charts import latency_chart, quality_chart
from milvus_pipeline.files.plain import plain
from milvus_pipeline.text import count_text, figures_text

_THIRD: Final = 340  # width of a picture of which three stand side by side, in CSS pixels
_HALF: Final = 500
_WIDE: Final = (860, 390)
_NARROW: Final = (326, 360)


@dataclass(frozen=True, slots=True)
class Picture:
    """The same picture for wide and for narrow pages; one for both where they do not differ."""

    wide: str
    narrow: str | None = None
    caption: str = ""


@dataclass(frozen=True, slots=True)
class StageRow:
    """A stage in the table of figures."""

    figures: StageFigures
    usage: str
    trouble: str


@dataclass(frozen=True, slots=True)
class SystemView:
    """One system: its pictures, what they say in words, its figures and its configuration."""

    number: int
    figures: SystemFigures
    answers: Sequence[Answer]
    qualities: Sequence[Picture]
    latency: Picture
    rows: Sequence[StageRow]
    changes: Sequence[Comparison]
    trouble: str
    config: str
    identity: str


@dataclass(frozen=True, slots=True)
class SystemRow:
    """One of several systems in their table; ``compared`` by measure."""

    number: int
    figures: SystemFigures
    compared: Mapping[str, Comparison]
    usage: str


@dataclass(frozen=True, slots=True)
class Page:
    """All that the template needs, but for the movements. ``undrawn`` are numbers of systems that have no point."""

    evaluation: Evaluation
    facts: Sequence[tuple[str, str]]
    tiles: Sequence[Tile]
    systems: Sequence[SystemView]
    first: SystemView
    scatter: Picture | None
    undrawn: Sequence[int]
    table: Sequence[SystemRow]
    varied: Sequence[str]
    compared: Sequence[str]
    priced: bool


def page(evaluation: Evaluation) -> Page:
    """The evaluation as the page shows it."""
    several = len(evaluation.systems) > 1
    lookup = Lookup(evaluation)
    systems = [_system(evaluation, lookup, system, number) for number, system in enumerate(evaluation.systems, 1)]
    table = [_row(evaluation, lookup, system, number) for number, system in enumerate(evaluation.systems, 1)]
    undrawn = [row.number for row in table if not is_drawn(row.figures, evaluation.measures[0])]
    return Page(
        evaluation=evaluation,
        facts=_facts(evaluation),
        tiles=systems_tiles(evaluation) if several else tiles(evaluation, evaluation.systems[0], lookup),
        systems=systems,
        first=_shown_first(evaluation, systems),
        scatter=_scatter(evaluation) if several and len(undrawn) < len(systems) else None,
        undrawn=undrawn,
        table=table,
        varied=_varied(evaluation.systems),
        compared=[measure for measure in evaluation.measures if any(measure in row.compared for row in table)],
        priced=any(system.cost is not None for system in evaluation.systems),
    )


def _shown_first(evaluation: Evaluation, systems: Sequence[SystemView]) -> SystemView:
    """The system whose stages stand open: the best one."""
    best = best_system(evaluation.systems, evaluation.measures[0])
    return next(view for view in systems if view.figures is best)


def _facts(evaluation: Evaluation) -> list[tuple[str, str]]:
    together = "one at a time" if evaluation.batch_size == 1 else f"{evaluation.batch_size:,} at a time"
    facts = [
        ("Evaluated", _date(evaluation.created)),
        ("Queries", f"{evaluation.queries:,}, {evaluation.judged:,} of them with judgements; {together}"),
        ("Measures", ", ".join(evaluation.measures)),
        ("Significance", test_said(evaluation.test, evaluation.correction)),
    ]
    if len(evaluation.systems) > 1:
        facts.insert(1, ("Systems", f"{len(evaluation.systems)}; the first is the baseline of the others"))
    return [fact for fact in facts if fact[1]]


def _date(created: str) -> str:
    try:
        at = datetime.fromisoformat(created)
    except ValueError:
        return created
    return f"{at.day} {at:%B %Y, %H:%M} UTC"


def _system(evaluation: Evaluation, lookup: Lookup, system: SystemFigures, number: int) -> SystemView:
    stages, changes = ranking_stages(system), lookup.within(system.name)
    measures = [measure for measure in evaluation.measures if stages and measure in stages[-1].measures]
    wide = _THIRD if len(measures) > 1 else _HALF
    return SystemView(
        number=number,
        figures=system,
        answers=answers(evaluation, system, lookup),
        qualities=[_quality(system, measure, changes, wide) for measure in measures],
        latency=Picture(latency_chart(system, wide), latency_chart(system, _THIRD) if wide != _THIRD else None),
        rows=[StageRow(stage, figures_text(stage.usage), _trouble(stage)) for stage in system.stages],
        changes=changes,
        trouble=_statuses(system.statuses),
        config=to_yaml(dict(system.config)),
        identity=_plain_yaml(system.identity),
    )


def _quality(system: SystemFigures, measure: str, changes: Sequence[Comparison], wide: float) -> Picture:
    narrow = quality_chart(system, measure, changes, _THIRD) if wide != _THIRD else None
    return Picture(quality_chart(system, measure, changes, wide), narrow, measure)


def _trouble(stage: StageFigures) -> str:
    """``skipped for 3 queries, partial for 1 query (deadline 3, error 1)``."""
    parts = [
        f"{status} for {count_text(number, 'query')}" for status, number in stage.statuses.items() if status != "ok"
    ]
    reasons = ", ".join(f"{code} {number:,}" for code, number in stage.reasons.items())
    return ", ".join(parts) + (f" ({reasons})" if parts and reasons else "")


def _statuses(statuses: Mapping[Any, int]) -> str:
    """What became of queries whose result is not "ok"."""
    return ", ".join(f"{number:,} {status}" for status, number in statuses.items() if status != "ok" and number)


def _row(evaluation: Evaluation, lookup: Lookup, system: SystemFigures, number: int) -> SystemRow:
    found = {measure: lookup.of_system(system.name, measure) for measure in evaluation.measures}
    usage = [f"{stage.stage}: {figures_text(stage.usage)}" for stage in system.stages if stage.usage]
    compared = {measure: comparison for measure, comparison in found.items() if comparison is not None}
    return SystemRow(number, system, compared, "; ".join(usage))


def _varied(systems: Sequence[SystemFigures]) -> list[str]:
    """The places that a sweep varied, where each system has a number or a word at all of them.

    Else none, and the systems go by their names: what tells two whole stages apart stands there, in short.
    """
    places = list(dict.fromkeys(place for system in systems for place in system.variant))
    return places if all(_is_short(system.variant.get(place)) for system in systems for place in places) else []


def _is_short(value: Any) -> bool:
    return isinstance(value, int | float | str) and not isinstance(value, bool)


def _scatter(evaluation: Evaluation) -> Picture:
    measure = evaluation.measures[0]
    return Picture(
        scatter(evaluation.systems, measure, *_WIDE), scatter(evaluation.systems, measure, *_NARROW), measure
    )


def _plain_yaml(data: Mapping[str, Mapping[str, Any]]) -> str:
    return yaml.safe_dump(plain(data), sort_keys=False, allow_unicode=True, width=100) if data else ""
