"""Tables for people: results, and what the other tables of the commands share."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TextIO

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from milvus_pipeline.explain import Ranking
from milvus_pipeline.records import Hit, SearchResult, StageReport
from milvus_pipeline.text import STATUS_WORDS, cut_text, figures_text, one_line, time_text

INDENT = 2
_ID_WIDTH = 24
LEAST_TEXT = 12
_LEAST_ID = 8
_LEAST_HEADER = 6


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave the end to the command: rich would end the process here, with 1."""
        raise BrokenPipeError


def console_on(stream: TextIO) -> Console:
    """Return a console that writes colours only to a terminal, even if FORCE_COLOR and the like are set."""
    if stream is sys.stdout and isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without a character must show the rest
    return _Console(file=stream, force_terminal=stream.isatty(), highlight=False, markup=False, emoji=False)


@dataclass(frozen=True)
class Column:
    """A column of a table, with one cell per row."""

    header: str
    cells: Sequence[Text]
    justify: Literal["left", "center", "right"] = "right"

    @property
    def width(self) -> int:
        """The width that it takes without wrapping."""
        return max(len(self.header), self.cells_width)

    @property
    def cells_width(self) -> int:
        """The width of the widest cell."""
        return max((cell.cell_len for cell in self.cells), default=0)

    def narrowed(self) -> Column:
        """Return the column with its header cut to the width of its cells."""
        return replace(self, header=cut_text(self.header, max(_LEAST_HEADER, self.cells_width)))


def id_column(ids: Iterable[str], width: int = _ID_WIDTH) -> Column:
    """Return the column ``id``, cut to a width."""
    return Column("id", [Text(cut_text(one, width)) for one in ids], "left")


def text_table(
    columns: Sequence[Column], texts: Sequence[str | None], width: int, *, gap: int = 2, section: int = 0
) -> Table:
    """Return a table whose last column has as much of the texts as fits; the others keep their cells.

    Args:
        columns: all but the texts. Headers and ids are cut if too little room is left for the texts.
        texts: one per row, None if a document has none.
        width: of the table.
        gap: blanks between columns, 2 or 3.
        section: rows above a dividing line.
    """
    columns = fitted_columns(columns, width, gap)
    room = max(1, room_for_texts(columns, width, gap))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, gap - 2))
    for column in columns:
        table.add_column(column.header, justify=column.justify, no_wrap=True)
    table.add_column("text", no_wrap=True)
    cells = [Text("(no text)", style="dim") if text is None else Text(cut_text(text, room)) for text in texts]
    for number, row in enumerate(zip(*(column.cells for column in columns), cells, strict=True), start=1):
        table.add_row(*row, end_section=number == section)
    return table


def fitted_columns(columns: Sequence[Column], width: int, gap: int = 2) -> Sequence[Column]:
    """Return the columns with room for the texts beside them: headers give way first, then ids."""
    if room_for_texts(columns, width, gap) < LEAST_TEXT:
        columns = [column.narrowed() for column in columns]
    missing = max(0, LEAST_TEXT - room_for_texts(columns, width, gap))
    return [
        id_column((cell.plain for cell in column.cells), max(_LEAST_ID, column.width - missing))
        if missing and column.header == "id"
        else column
        for column in columns
    ]


def room_for_texts(columns: Iterable[Column], width: int, gap: int = 2) -> int:
    """Return the width that is left beside these columns."""
    return width - sum(column.width + gap for column in columns)


def print_indented(console: Console, lines: Iterable[Text | Table]) -> None:
    """Print each with an indentation."""
    for line in lines:
        console.print(Padding(line, (0, 0, 0, INDENT), expand=False))


def print_result(console: Console, result: SearchResult) -> None:
    """Print a result: rank, score of every stage, how far rerankers moved the hit, text."""
    console.print(heading(result.query.id, result.query.text, result.status if result.degraded else ""))
    if result.hits:
        texts = [hit.text for hit in result.hits]
        print_indented(console, [text_table(_columns(result.hits), texts, console.width - INDENT, gap=3)])
    elif result.status != "failed":
        console.print(Text("  no hits", style="dim"))
    print_indented(console, _footer(result))
    console.print()


def heading(query_id: str | int | None, query: str, status: str = "") -> Text:
    """Return the line above a table: id and text of the query, and its status."""
    return Text.assemble(
        (f"{one_line(str(query_id))}  " if query_id else "", "dim"),
        (one_line(query) or "(no text)", "bold"),
        (f"  [{status}]" if status else "", "bold red"),
    )


def _columns(hits: list[Hit]) -> list[Column]:
    columns = [Column("#", [Text(str(place)) for place in range(1, len(hits) + 1)])]
    for scorer in dict.fromkeys(stage for hit in hits for stage in hit.scores):
        scores = [hit.scores.get(scorer) for hit in hits]
        columns.append(Column(scorer, [Text("" if score is None else f"{score:.4f}") for score in scores]))
    places = [list(hit.ranks.values()) for hit in hits]
    if any(len(ranks) > 1 for ranks in places):  # since retrieval
        columns.append(
            Column("moved", [step_cell(ranks[0] - ranks[-1]) if ranks[1:] else Text("") for ranks in places])
        )
    return [*columns, id_column(str(hit.id) for hit in hits)]


def step_cell(up: int) -> Text:
    """Return by how many places something rose, or fell if the number is negative."""
    if up == 0:
        return Text("=", style="dim")
    return Text(f"↑{up}", style="green") if up > 0 else Text(f"↓{-up}", style="red")


def _footer(result: SearchResult) -> list[Text]:
    lines = []
    if result.reports:
        shared = max(report.batch_size for report in result.reports)
        lines.append(times_line(result.reports, f"  (for {shared} queries together)" if shared > 1 else ""))
    if result.usage:
        costs = (f"{stage} {figures_text(figures)}" for stage, figures in result.usage.items())
        lines.append(Text(one_line(" · ".join(costs)), style="dim"))
    for report in result.reports:
        if report.fallback_for is not None and report.status in ("ok", "partial"):
            lines.append(fallback_line(report.stage, report.fallback_for))
        lines += trouble_lines(report)
    lines += [Text(f"warning: {one_line(warning)}", style="yellow") for warning in result.warnings]
    if result.error is not None:
        lines.append(Text(f"failed: {one_line(str(result.error))}", style="red"))
    return lines


def times_line(stages: Iterable[StageReport | Ranking], note: str = "") -> Text:
    """Return the time of each stage, on one line."""
    # Without the blank before the unit, so that four stages fit into 80 columns.
    times = (f"{one_line(stage.stage)} {time_text(stage.seconds).replace(' ', '')}" for stage in stages)
    return Text(" · ".join(times) + note, style="dim")


def trouble_lines(stage: StageReport | Ranking) -> list[Text]:
    """Return a line on a stage that did not do all of its work; none for others."""
    if stage.status not in STATUS_WORDS:
        return []
    text = f"{one_line(stage.stage)} {STATUS_WORDS[stage.status]}: {one_line(stage.reason or '')}"
    return [Text(text, style="red")]


def fallback_line(fallback: str, stage: str) -> Text:
    """Return the line on a fallback that did a stage's work."""
    return Text(f"{one_line(fallback)} stood in for {one_line(stage)}", style="yellow")
