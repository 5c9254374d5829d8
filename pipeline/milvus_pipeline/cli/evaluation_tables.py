"""An evaluation as tables for people, at any width: columns that do not fit beside the others go below them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from milvus_pipeline.cli.tables import INDENT, Column, print_indented
from milvus_pipeline.evaluation.pareto import best_system
from milvus_pipeline.evaluation.records import (
    Comparison,
    ComparisonIndex,
    Evaluation,
    Latency,
    StageFigures,
    SystemFigures,
)
from milvus_pipeline.evaluation.report.prose import significance_text, statuses_text
from milvus_pipeline.text import (
    count_text,
    difference_text,
    figures_text,
    measure_text,
    milliseconds_text,
    money_text,
    one_line,
)

Row = dict[tuple[str, str], Text]
"""The cells of a row by the group and the header of their columns; columns of a group stay together."""

_GAP = 2  # blanks between columns
_MOST_FOR_NAMES = 0.5  # of the width
_LEAST_NAMES = 12
_JUSTIFY: Mapping[str, Literal["left", "center"]] = {"front": "center", "not ok": "left", "usage": "left"}
_MOST_SYSTEMS = 4  # of more, only the stages of the baseline and of the best one are printed


def print_evaluation(evaluation: Evaluation, console: Console) -> None:
    """Print the stages of each system, then the systems side by side, the Pareto front, and a legend."""
    index, systems = ComparisonIndex(evaluation), evaluation.systems
    console.print(_heading(evaluation))
    console.print()
    best = best_system(systems, evaluation.measures[0])
    detailed = [one for one in systems if len(systems) <= _MOST_SYSTEMS or one is systems[0] or one is best]
    for system in detailed:
        if len(systems) > 1:
            console.print(_system_heading(system, evaluation, best))
        names = Column("stage", [_stage_name(stage) for stage in system.stages], "left")
        _print_rows(console, names, [_stage_row(evaluation, system, stage, index) for stage in system.stages])
    if hidden := len(systems) - len(detailed):
        where = "are in --format json, --format csv and the --report."
        console.print(Text(f"Stages of the other {count_text(hidden, 'system')} {where}", style="dim"))
        console.print()
    if len(systems) > 1:
        console.print(Text(f"All {count_text(len(systems), 'system')}", style="bold"))
        names = Column("system", [_system_name(system, systems[0]) for system in systems], "left")
        _print_rows(console, names, [_system_row(evaluation, system, index) for system in systems])
        for line in _front_lines(evaluation):
            console.print(line)
        console.print()
    for note in _legend(evaluation):
        console.print(Text(note, style="dim"))


def _print_rows(console: Console, names: Column, rows: Sequence[Row]) -> None:
    """Print the columns that are not empty beside each other as far as they fit, each table led by ``names``."""
    groups: dict[str, list[Column]] = {}
    for group, header in rows[0]:
        cells = [row[group, header] for row in rows]
        if any(cells):
            groups.setdefault(group, []).append(Column(header, cells, _JUSTIFY.get(header, "right")))
    room = console.width - INDENT
    lead = min(names.width, max(_LEAST_NAMES, int(room * _MOST_FOR_NAMES)))
    for columns in _pack(groups.values(), room - lead - _GAP):
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
        table.add_column(names.header, justify=names.justify, width=lead, overflow="fold")
        for column in columns:
            fits = column.width <= room - lead - _GAP
            table.add_column(column.header, justify=column.justify, no_wrap=fits, overflow="fold")
        for row in zip(names.cells, *(column.cells for column in columns), strict=True):
            table.add_row(*row)
        print_indented(console, [table])
        console.print()


def _pack(groups: Iterable[Sequence[Column]], room: int) -> Iterator[list[Column]]:
    """Yield the columns of each table: as many groups as there is room for, at least one."""
    columns: list[Column] = []
    for group in groups:
        if columns and sum(column.width + _GAP for column in (*columns, *group)) > room:
            yield columns
            columns = []
        columns += group
    if columns:
        yield columns


def _heading(evaluation: Evaluation) -> Text:
    together = "one at a time" if evaluation.batch_size == 1 else f"{evaluation.batch_size} at a time"
    counts = f"  {count_text(evaluation.judged, 'judged query')}, {together}"
    return Text.assemble((one_line(evaluation.title), "bold"), counts)


def _system_heading(system: SystemFigures, evaluation: Evaluation, best: SystemFigures) -> Text:
    roles = {
        "the baseline": system is evaluation.systems[0],
        f"the best in {evaluation.measures[0]}": system is best,
        "on the Pareto front": system.on_front,
    }
    held = ", ".join(role for role, holds in roles.items() if holds)
    return Text.assemble((one_line(system.name), "bold"), f"  {held}" if held else "")


def _stage_name(stage: StageFigures) -> Text:
    return Text(one_line(stage.stage if stage.type == stage.stage else f"{stage.stage} ({stage.type})"))


def _system_name(system: SystemFigures, baseline: SystemFigures) -> Text:
    name = (one_line(system.name), "bold" if system.on_front else "")
    return Text.assemble(name, (" (baseline)" if system is baseline else "", "dim"))


def _stage_row(evaluation: Evaluation, system: SystemFigures, stage: StageFigures, index: ComparisonIndex) -> Row:
    row = {("hits", "hits"): Text(f"{stage.hits:.1f}".removesuffix(".0"))}
    for name in evaluation.measures:
        compared = index.of_stage(system.name, stage.stage, name)
        row[name, name] = _measure_cell(stage.measures, name, compared)
        row[name, "change"] = _change_cell(compared)
        row[name, "ceiling"] = _measure_cell(stage.ceilings, name, None, "dim")
    return {
        **row,
        **_latency_cells(stage.latency),
        ("time", "elapsed ms"): Text(milliseconds_text(stage.elapsed.p50)),
        ("cost", "cost"): Text("" if stage.cost is None else money_text(stage.cost)),
        ("cached", "cached"): Text(f"{stage.cached:,}" if stage.cached else ""),
        ("not ok", "not ok"): Text(statuses_text(stage.statuses), style="yellow"),
        ("usage", "usage"): Text(one_line(figures_text(stage.usage))),
    }


def _system_row(evaluation: Evaluation, system: SystemFigures, index: ComparisonIndex) -> Row:
    row = {("front", "front"): Text("●" if system.on_front else "", style="green")}
    for name in evaluation.measures:
        compared = index.of_system(system.name, name)
        row[name, name] = _measure_cell(system.measures, name, compared)
        row[name, "change"] = _change_cell(compared)
        row[name, "p"] = Text("" if compared is None else _p_text(compared.p_corrected))
    failed = system.statuses.get("failed", 0)
    return {
        **row,
        **_latency_cells(system.latency),
        ("cost", "cost"): Text("" if system.cost is None else money_text(system.cost)),
        ("failed", "failed"): Text(f"{failed:,}" if failed else "", style="red"),
    }


def _measure_cell(measures: Mapping[str, float], name: str, compared: Comparison | None, style: str = "") -> Text:
    """Return a measure, marked if it differs significantly; a blank keeps the decimal points aligned."""
    if name not in measures:
        return Text("")
    return Text(measure_text(measures[name]), style=style).append("*" if compared and compared.significant else " ")


def _change_cell(compared: Comparison | None) -> Text:
    if compared is None:
        return Text("")
    style = "dim" if not compared.significant else "green" if compared.difference > 0 else "red"
    return Text(difference_text(compared.difference), style=style)


def _latency_cells(latency: Latency) -> Row:
    values = {"p50 ms": latency.p50, "p95": latency.p95, "p99": latency.p99}
    return {("time", header): Text(milliseconds_text(value)) for header, value in values.items()}


def _p_text(value: float) -> str:
    return "<.001" if value < 0.001 else f"{value:.3f}"


def _front_lines(evaluation: Evaluation) -> Iterator[Text]:
    """Yield the systems on the front, from the fastest to the best."""
    measure = evaluation.measures[0]
    front = sorted((system for system in evaluation.systems if system.on_front), key=lambda one: one.latency.p50)
    if len(front) == 1:
        yield Text(f"{one_line(front[0].name)} is the best in {measure} and the fastest.")
        return
    if front:
        yield Text(f"Pareto front, from the fastest to the best in {measure}:", style="bold")
    times = [milliseconds_text(system.latency.p50) for system in front]
    for place, (system, time) in enumerate(zip(front, times, strict=True)):
        value = measure_text(system.measures[measure])
        line = Text(f"  {value} in {time:>{max(map(len, times))}} ms  {one_line(system.name)}")
        if place:
            before = front[place - 1]
            gained = difference_text(system.measures[measure] - before.measures[measure])
            more = milliseconds_text(system.latency.p50 - before.latency.p50)
            line.append(f"  ({gained} for {more} ms more)", style="dim")
        yield line


def _legend(evaluation: Evaluation) -> Iterator[str]:
    """Yield the meaning of the words and marks in the tables."""
    if evaluation.comparisons:
        against = "the ranking stage before it"
        if len(evaluation.systems) > 1:
            against += f", or to the baseline, {one_line(evaluation.systems[0].name)}"
        queries = count_text(evaluation.judged, "query")
        yield f"change: difference to {against}; * where p < 0.05 ({significance_text(evaluation)}, {queries})."
    yield "ceiling: the same hits in the best order. elapsed: median from the query's beginning to the stage's end."
    if evaluation.batch_size > 1:
        yield f"Times are a query's share of a batch of {evaluation.batch_size}: throughput, not waiting time."
