"""An evaluation as tables for people, at any width: columns that do not fit beside the others go below them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from milvus_pipeline.cli.tables import INDENT, Column, print_indented, text_column
from milvus_pipeline.evaluation.pareto import best_system
from milvus_pipeline.evaluation.records import (
    Comparison,
    ComparisonIndex,
    Evaluation,
    Latency,
    StageFigures,
    SystemFigures,
)
from milvus_pipeline.evaluation.report.prose import significance_text
from milvus_pipeline.text import (
    count_text,
    difference_text,
    figures_text,
    measure_text,
    milliseconds_text,
    money_text,
    one_line,
)

Group = Sequence[Column]
"""Columns that stay together."""

_GAP = 2  # blanks between columns
_MOST_FOR_NAMES = 0.5  # of the width
_LEAST_NAMES = 12
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
        names = text_column("stage", (_stage_name(stage) for stage in system.stages))
        _print_groups(console, names, list(_stage_groups(evaluation, system, index)))
    if hidden := len(systems) - len(detailed):
        where = "are in --format json, --format csv and the --report."
        console.print(Text(f"Stages of the other {count_text(hidden, 'system')} {where}", style="dim"))
        console.print()
    if len(systems) > 1:
        console.print(Text(f"All {count_text(len(systems), 'system')}", style="bold"))
        names = Column("system", [_system_name(system, systems[0]) for system in systems], "left")
        _print_groups(console, names, list(_system_groups(evaluation, index)))
        for line in _front_lines(evaluation):
            console.print(line)
        console.print()
    for note in _legend(evaluation):
        console.print(Text(note, style="dim"))


def _print_groups(console: Console, names: Column, groups: Sequence[Group]) -> None:
    """Print the groups beside each other as far as they fit, each table led by the names of the rows."""
    room = console.width - INDENT
    lead = min(names.width, max(_LEAST_NAMES, int(room * _MOST_FOR_NAMES)))
    for columns in _pack(groups, room - lead - _GAP):
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
        table.add_column(names.header, justify=names.justify, width=lead, overflow="fold")
        for column in columns:
            fits = column.width <= room - lead - _GAP
            table.add_column(column.header, justify=column.justify, no_wrap=fits, overflow="fold")
        for row in zip(names.cells, *(column.cells for column in columns), strict=True):
            table.add_row(*row)
        print_indented(console, [table])
        console.print()


def _pack(groups: Sequence[Group], room: int) -> Iterator[list[Column]]:
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


def _stage_name(stage: StageFigures) -> str:
    return one_line(stage.stage if stage.type == stage.stage else f"{stage.stage} ({stage.type})")


def _system_name(system: SystemFigures, baseline: SystemFigures) -> Text:
    name = (one_line(system.name), "bold" if system.on_front else "")
    return Text.assemble(name, (" (baseline)" if system is baseline else "", "dim"))


def _stage_groups(evaluation: Evaluation, system: SystemFigures, index: ComparisonIndex) -> Iterator[Group]:
    """Yield the columns on the stages of one system."""
    stages = system.stages
    yield [_column("hits", [f"{stage.hits:.1f}".removesuffix(".0") for stage in stages])]
    for name in evaluation.measures:
        compared = [index.of_stage(system.name, stage.stage, name) for stage in stages]
        ceilings = [_measure_cell(stage.ceilings, name, None, "dim") for stage in stages]
        changes = [_change_column(compared)] if any(compared) else []
        yield [_measure_column(name, stages, compared), *changes, Column("ceiling", ceilings)]
    elapsed = _column("elapsed ms", [milliseconds_text(stage.elapsed.p50) for stage in stages])
    yield [*_latency_columns([stage.latency for stage in stages]), elapsed]
    if any(stage.cost is not None for stage in stages):
        yield [_cost_column(stages)]
    if any(stage.cached for stage in stages):
        yield [_column("cached", [f"{stage.cached:,}" if stage.cached else "" for stage in stages])]
    troubles = [
        ", ".join(f"{number:,} {status}" for status, number in stage.statuses.items() if status != "ok")
        for stage in stages
    ]
    if any(troubles):
        yield [text_column("not ok", troubles, "yellow")]
    if any(stage.usage for stage in stages):
        yield [text_column("usage", [one_line(figures_text(stage.usage)) for stage in stages])]


def _system_groups(evaluation: Evaluation, index: ComparisonIndex) -> Iterator[Group]:
    """Yield the columns on the systems side by side."""
    systems = evaluation.systems
    yield [Column("front", [Text("●" if system.on_front else "", style="green") for system in systems], "center")]
    for name in evaluation.measures:
        compared = [index.of_system(system.name, name) for system in systems]
        p_values = ["" if found is None else _p_text(found.p_corrected) for found in compared]
        yield [_measure_column(name, systems, compared), _change_column(compared), _column("p", p_values)]
    yield _latency_columns([system.latency for system in systems])
    if any(system.cost is not None for system in systems):
        yield [_cost_column(systems)]
    failed = [system.statuses.get("failed", 0) for system in systems]
    if any(failed):
        yield [_column("failed", [f"{number:,}" if number else "" for number in failed], "red")]


def _column(header: str, texts: Sequence[str], style: str = "") -> Column:
    return Column(header, [Text(text, style=style) for text in texts])


def _measure_column(
    name: str, rows: Sequence[StageFigures | SystemFigures], compared: Sequence[Comparison | None]
) -> Column:
    return Column(name, [_measure_cell(row.measures, name, one) for row, one in zip(rows, compared, strict=True)])


def _measure_cell(measures: Mapping[str, float], name: str, compared: Comparison | None, style: str = "") -> Text:
    """Return a measure, marked if it differs significantly; a blank keeps the decimal points aligned."""
    if name not in measures:
        return Text("")
    return Text(measure_text(measures[name]), style=style).append("*" if compared and compared.significant else " ")


def _change_column(compared: Sequence[Comparison | None]) -> Column:
    cells = []
    for found in compared:
        style = "dim"
        if found is not None and found.significant:
            style = "green" if found.difference > 0 else "red"
        cells.append(Text("" if found is None else difference_text(found.difference), style=style))
    return Column("change", cells)


def _latency_columns(latencies: Sequence[Latency]) -> Group:
    rows = [(latency.p50, latency.p95, latency.p99) for latency in latencies]
    columns = zip(("p50 ms", "p95", "p99"), zip(*rows, strict=True), strict=True)
    return [_column(header, [milliseconds_text(value) for value in values]) for header, values in columns]


def _cost_column(rows: Sequence[StageFigures | SystemFigures]) -> Column:
    return _column("cost", ["" if row.cost is None else money_text(row.cost) for row in rows])


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
