"""Results as a table that people read."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable, Sequence
from typing import TextIO

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from milvus_pipeline.records import Hit, SearchResult
from milvus_pipeline.text import STATUS_WORDS, figures_text, printable

_ID_WIDTH = 24
_LEAST_TEXT = 16
_LEAST_HEADER = 8
_BETWEEN_COLUMNS = 3  # a blank on either side, and the box's own
_INDENT = 2


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave the end to the command: rich would end the process here, with 1."""
        raise BrokenPipeError


def console_on(stream: TextIO) -> Console:
    """A console that writes colours only to a terminal, whatever FORCE_COLOR and its like say."""
    return _Console(file=stream, force_terminal=stream.isatty(), highlight=False, markup=False, emoji=False)


def progress_bar(*, hidden: bool = False) -> Progress:
    """A bar on stderr that goes away when done; none where stderr is no terminal, or where ``hidden``."""
    return progress_on(console_on(sys.stderr), transient=True, disable=hidden or not sys.stderr.isatty())


def progress_on(console: Console, *, transient: bool = False, disable: bool = False) -> Progress:
    """A bar with what is done, how much of it, and the time; it stays when done unless ``transient``."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=transient, disable=disable)


class ResultTables:
    """Writes each result as a table: rank, score of every stage, where the hit stood before reranking, text."""

    def __init__(self, stream: TextIO) -> None:
        if stream is sys.stdout and isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")  # a terminal that lacks a sign shall show the rest
        self._console = console_on(stream)

    def write(self, result: SearchResult) -> None:
        """Write one result."""
        self._console.print(_heading(result))
        if result.hits:
            table = _table(result.hits, self._console.width - _INDENT)
            self._console.print(Padding(table, (0, 0, 0, _INDENT), expand=False))
        elif result.status != "failed":
            self._console.print(Text("  no hits", style="dim"))
        for line in _footer(result):
            self._console.print(Padding(line, (0, 0, 0, _INDENT), expand=False))
        self._console.print()


def _heading(result: SearchResult) -> Text:
    heading = Text(f"{shown(result.query.id)}  " if result.query.id else "", style="dim")
    heading.append(shown(result.query.text) or "(no text)", style="bold not dim")
    if result.degraded:
        heading.append(f"  [{result.status}]", style="bold red")
    return heading


def _table(hits: list[Hit], width: int) -> Table:
    columns = {"#": [Text(str(place)) for place in range(1, len(hits) + 1)]}
    for scorer in dict.fromkeys(stage for hit in hits for stage in hit.scores):
        scores = [hit.scores.get(scorer) for hit in hits]
        columns[scorer] = [Text("" if score is None else f"{score:.4f}") for score in scores]
    if any(len(hit.ranks) > 1 for hit in hits):
        columns["moved"] = [moved(hit) for hit in hits]
    columns["id"] = [cut(shown(str(hit.id)), _ID_WIDTH) for hit in hits]
    # The texts give way first, then the headers: left to itself the table would cut the scores as well.
    headers = [Text(header) for header in columns]
    room = width - _width(headers, columns.values())
    if room < _LEAST_TEXT:
        headers = [cut(header, _LEAST_HEADER) for header in columns]
        room = max(_LEAST_TEXT, width - _width(headers, columns.values()))
    texts = [Text("(no text)", style="dim") if hit.text is None else cut(shown(hit.text), room) for hit in hits]

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for header in headers:
        table.add_column(header, justify="left" if header.plain == "id" else "right", no_wrap=True)
    table.add_column("text", no_wrap=True)
    for row in zip(*columns.values(), texts, strict=True):
        table.add_row(*row)
    return table


def _width(headers: Iterable[Text], columns: Iterable[Sequence[Text]]) -> int:
    """What the columns take of a line, with what is between them."""
    own = [max(cell.cell_len for cell in (header, *cells)) for header, cells in zip(headers, columns, strict=True)]
    return sum(own) + _BETWEEN_COLUMNS * len(own)


def cut(text: str, width: int) -> Text:
    """The text, at most so many columns wide; an ellipsis where it was longer."""
    cut = Text(text)
    cut.truncate(width, overflow="ellipsis")
    return cut


def moved(hit: Hit) -> Text:
    """How many places the rerankers moved the hit, from where retrieval had put it; empty where none did."""
    places = list(hit.ranks.values())
    if len(places) < 2:
        return Text("")
    return step(places[0] - places[-1])


def step(up: int) -> Text:
    """By how many places something rose, or fell where the number is negative."""
    if up == 0:
        return Text("=", style="dim")
    return Text(f"↑{up}", style="green") if up > 0 else Text(f"↓{-up}", style="red")


def _footer(result: SearchResult) -> list[Text]:
    lines = []
    if result.reports:
        shared = max(report.batch_size for report in result.reports)
        times = " · ".join(time_said(report.stage, report.seconds) for report in result.reports)
        lines.append(Text(times + (f"  (for {shared} queries together)" if shared > 1 else ""), style="dim"))
    if result.usage:
        costs = (f"{stage} {figures_text(figures)}" for stage, figures in result.usage.items())
        lines.append(Text(shown(" · ".join(costs)), style="dim"))
    for report in result.reports:
        if report.fallback_for is not None and report.status in ("ok", "partial"):
            lines.append(Text(f"{report.stage} stood in for {report.fallback_for}", style="yellow"))
        if report.status in STATUS_WORDS:
            said = f"{report.stage} {STATUS_WORDS[report.status]}: {shown(report.reason or '')}"
            lines.append(Text(said, style="red"))
    lines += [Text(f"warning: {shown(warning)}", style="yellow") for warning in result.warnings]
    if result.error is not None:
        lines.append(Text(f"failed: {shown(str(result.error))}", style="red"))
    return lines


def time_said(stage: str, seconds: float) -> str:
    """What a stage took: ``bge 1.25s``, ``bge 120ms``, ``truncate 0.1ms``."""
    if seconds >= 1:
        return f"{stage} {seconds:.2f}s"
    milliseconds = 1000 * seconds
    return f"{stage} {milliseconds:.{0 if milliseconds >= 10 else 1}f}ms"


def shown(text: str) -> str:
    """Text on one line, without control characters."""
    return printable(" ".join(text.split()))
