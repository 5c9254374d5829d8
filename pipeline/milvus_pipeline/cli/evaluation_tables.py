"""An evaluation as tables that people read, at any width: what does not fit beside a table stands below it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from milvus_pipeline.cli.tables import shown
from milvus_pipeline.evaluation.pareto import best_system
from milvus_pipeline.evaluation.records import Comparison, ComparisonIndex, Evaluation, StageFigures, SystemFigures
from milvus_pipeline.evaluation.report.prose import significance_text
from milvus_pipeline.text import (
    count_text,
    difference_text,
    figures_text,
    measure_text,
    milliseconds_text,
    money_text,
)

_BETWEEN = 2  # blanks between columns: one of padding, one of the box
_MOST_FOR_NAMES = 0.5  # of the width
_LEAST_NAMES = 12


@dataclass(frozen=True)
class Column:
    """A column with its cells, one a row."""

    header: str
    cells: Sequence[Text]
    justify: Literal["left", "center", "right"] = "right"

    @property
    def width(self) -> int:
        """Signs that it takes unbroken."""
        return max(len(self.header), *(cell.cell_len for cell in self.cells))


Group = Sequence[Column]
"""Columns that stay together."""


def print_groups(console: Console, rows: Column, groups: Sequence[Group], *, indent: int = 0) -> None:
    """Print the groups beside each other as far as they fit, each table led by the column that names the rows."""
    room = console.width - indent
    lead = min(rows.width, max(_LEAST_NAMES, int(room * _MOST_FOR_NAMES)))
    for packed in _packed(groups, room - lead - _BETWEEN):
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, _BETWEEN - 1, 0, 0))
        table.add_column(rows.header, justify=rows.justify, width=lead, overflow="fold")
        for column in packed:
            wide = column.width > room - lead - _BETWEEN
            table.add_column(column.header, justify=column.justify, no_wrap=not wide, overflow="fold")
        for row in zip(rows.cells, *(column.cells for column in packed), strict=True):
            table.add_row(*row)
        console.print(Padding(table, (0, 0, 0, indent), expand=False))
        console.print()


def _packed(groups: Sequence[Group], room: int) -> Iterator[list[Column]]:
    """The columns of each table: as many groups as there is room for, at least one."""
    columns: list[Column] = []
    taken = 0
    for group in groups:
        width = sum(column.width + _BETWEEN for column in group)
        if columns and taken + width > room:
            yield columns
            columns, taken = [], 0
        columns.extend(group)
        taken += width
    if columns:
        yield columns


_ALL_SHOWN = 4
"""Up to so many systems, the stages of each are shown; of more, those of the baseline and of the best."""
_INDENT = 2


def print_evaluation(evaluation: Evaluation, console: Console) -> None:
    """Print the stages of each system, then the systems side by side, the front, and what the signs mean."""
    lookup = ComparisonIndex(evaluation)
    console.print(_heading(evaluation))
    console.print()
    shown_ones = _shown_stages(evaluation)
    for system in shown_ones:
        if len(evaluation.systems) > 1:
            console.print(_system_heading(system, evaluation))
        rows = Column("stage", [_stage_name(stage) for stage in system.stages], justify="left")
        print_groups(console, rows, list(_stage_groups(evaluation, system, lookup)), indent=_INDENT)
    hidden = len(evaluation.systems) - len(shown_ones)
    if hidden:
        text = (
            f"Stages of the other {count_text(hidden, 'system')} are in --format json, --format csv and the --report."
        )
        console.print(Text(text, style="dim"))
        console.print()
    if len(evaluation.systems) > 1:
        console.print(Text(f"All {count_text(len(evaluation.systems), 'system')}", style="bold"))
        names = [_system_name(system, evaluation.systems[0]) for system in evaluation.systems]
        rows = Column("system", names, justify="left")
        print_groups(console, rows, list(_system_groups(evaluation, lookup)), indent=_INDENT)
        for line in _front(evaluation):
            console.print(line)
        console.print()
    for note in _notes(evaluation, lookup):
        console.print(Text(note, style="dim"))


def _heading(evaluation: Evaluation) -> Text:
    heading = Text(shown(evaluation.title), style="bold")
    asked = count_text(evaluation.judged, "judged query")
    together = "one at a time" if evaluation.batch_size == 1 else f"{evaluation.batch_size} at a time"
    heading.append(f"  {asked}, {together}", style="not bold")
    return heading


def _shown_stages(evaluation: Evaluation) -> list[SystemFigures]:
    systems = evaluation.systems
    if len(systems) <= _ALL_SHOWN:
        return list(systems)
    best = best_system(systems, evaluation.measures[0])
    return [system for system in systems if system in (systems[0], best)]


def _system_heading(system: SystemFigures, evaluation: Evaluation) -> Text:
    heading = Text(shown(system.name), style="bold")
    said = ["the baseline"] if system is evaluation.systems[0] else []
    measure = evaluation.measures[0]
    said += [f"the best in {measure}"] if system is best_system(evaluation.systems, measure) else []
    said += ["on the Pareto front"] if system.on_front else []
    heading.append(f"  {', '.join(said)}" if said else "", style="not bold")
    return heading


def _stage_name(stage: StageFigures) -> Text:
    kind = f" ({stage.type})" if stage.type != stage.stage else ""
    return Text(shown(f"{stage.stage}{kind}"))


def _system_name(system: SystemFigures, baseline: SystemFigures) -> Text:
    name = Text(shown(system.name), style="bold" if system.on_front else "")
    return name.append(" (baseline)" if system is baseline else "", style="not bold dim")


# -- stages of one system ------------------------------------------------------------------------------------------


def _stage_groups(evaluation: Evaluation, system: SystemFigures, lookup: ComparisonIndex) -> Iterator[Group]:
    stages = system.stages
    yield [Column("hits", [_text(_hits(stage)) for stage in stages])]
    for name in evaluation.measures:
        compared = [lookup.of_stage(system.name, stage.stage, name) for stage in stages]
        yield [
            Column(
                name, [_value(stage.measures.get(name), found) for stage, found in zip(stages, compared, strict=True)]
            ),
            *([Column("change", [_change(found) for found in compared])] if any(compared) else ()),
            Column("ceiling", [_value(stage.ceilings.get(name), style="dim") for stage in stages]),
        ]
    yield [
        Column("p50 ms", [_text(milliseconds_text(stage.latency.p50)) for stage in stages]),
        Column("p95", [_text(milliseconds_text(stage.latency.p95)) for stage in stages]),
        Column("p99", [_text(milliseconds_text(stage.latency.p99)) for stage in stages]),
        Column("elapsed ms", [_text(milliseconds_text(stage.elapsed.p50)) for stage in stages]),
    ]
    if any(stage.cost is not None for stage in stages):
        yield [Column("cost", [_text("" if stage.cost is None else money_text(stage.cost)) for stage in stages])]
    if any(stage.cached for stage in stages):
        yield [Column("cached", [_text(f"{stage.cached:,}" if stage.cached else "") for stage in stages])]
    if any(_lacking(stage) for stage in stages):
        yield [Column("not ok", [_text(_lacking(stage), "yellow") for stage in stages], justify="left")]
    if any(stage.usage for stage in stages):
        said = [_text(shown(figures_text(stage.usage)) if stage.usage else "") for stage in stages]
        yield [Column("usage", said, justify="left")]


def _hits(stage: StageFigures) -> str:
    return f"{stage.hits:.0f}" if abs(stage.hits - round(stage.hits)) < 0.05 else f"{stage.hits:.1f}"


def _lacking(stage: StageFigures) -> str:
    words = ("partial", "skipped", "failed")
    return ", ".join(f"{stage.statuses[word]:,} {word}" for word in words if stage.statuses.get(word))


# -- systems side by side ------------------------------------------------------------------------------------------


def _system_groups(evaluation: Evaluation, lookup: ComparisonIndex) -> Iterator[Group]:
    systems = evaluation.systems
    yield [Column("front", [_text("●" if system.on_front else "", "green") for system in systems], justify="center")]
    for name in evaluation.measures:
        compared = [lookup.of_system(system.name, name) for system in systems]
        yield [
            Column(
                name,
                [_value(system.measures.get(name), found) for system, found in zip(systems, compared, strict=True)],
            ),
            Column("change", [_change(found) for found in compared]),
            Column("p", [_text("" if found is None else _p(found.p_corrected)) for found in compared]),
        ]
    yield [
        Column("p50 ms", [_text(milliseconds_text(system.latency.p50)) for system in systems]),
        Column("p95", [_text(milliseconds_text(system.latency.p95)) for system in systems]),
        Column("p99", [_text(milliseconds_text(system.latency.p99)) for system in systems]),
    ]
    if any(system.cost is not None for system in systems):
        yield [Column("cost", [_text("" if system.cost is None else money_text(system.cost)) for system in systems])]
    failed = [system.statuses.get("failed", 0) for system in systems]
    if any(failed):
        yield [Column("failed", [_text(f"{number:,}" if number else "", "red") for number in failed])]


def _front(evaluation: Evaluation) -> Iterator[Text]:
    """The systems on the front in words, from the fastest to the best."""
    measure = evaluation.measures[0]
    front = sorted((system for system in evaluation.systems if system.on_front), key=lambda one: one.latency.p50)
    if not front:
        return
    if len(front) == 1:
        yield Text(f"{shown(front[0].name)} is the best in {measure} and the fastest.")
        return
    yield Text(f"Pareto front, from the fastest to the best in {measure}:", style="bold")
    times = [milliseconds_text(system.latency.p50) for system in front]
    before: SystemFigures | None = None
    for system, time in zip(front, times, strict=True):
        value = measure_text(system.measures[measure])
        line = Text(f"  {value} in {time:>{max(map(len, times))}} ms  {shown(system.name)}")
        if before is not None:
            gained = difference_text(system.measures[measure] - before.measures[measure])
            line.append(
                f"  ({gained} for {milliseconds_text(system.latency.p50 - before.latency.p50)} ms more)", style="dim"
            )
        yield line
        before = system


# -- cells ---------------------------------------------------------------------------------------------------------


def _text(text: str, style: str = "") -> Text:
    return Text(text, style=style)


def _value(value: float | None, compared: Comparison | None = None, style: str = "") -> Text:
    """A measure, marked where it differs significantly; a blank keeps the points of a column below each other."""
    if value is None:
        return Text("")
    cell = Text("n/a" if math.isnan(value) else measure_text(value), style=style)
    cell.append("*" if compared is not None and compared.significant else " ")
    return cell


def _change(compared: Comparison | None) -> Text:
    if compared is None:
        return Text("")
    style = ("green" if compared.difference > 0 else "red") if compared.significant else "dim"
    return Text(difference_text(compared.difference), style=style)


def _p(value: float) -> str:
    return "<.001" if value < 0.001 else f"{value:.3f}"


def _notes(evaluation: Evaluation, lookup: ComparisonIndex) -> Iterator[str]:
    """What the words and signs in the tables mean."""
    if evaluation.comparisons:
        against = "the ranking stage before it"
        against += f", or to the baseline, {shown(evaluation.systems[0].name)}" if len(evaluation.systems) > 1 else ""
        yield (
            f"change: difference to {against}; * where p < 0.05 ({significance_text(evaluation)}, "
            f"{count_text(evaluation.judged, 'query')})."
        )
    yield "ceiling: the same hits in the best order. elapsed: median from the query's beginning to the stage's end."
    if evaluation.batch_size > 1:
        text = f"Times are a query's share of a batch of {evaluation.batch_size}"
        yield f"{text}: they tell of throughput, not of waiting."
