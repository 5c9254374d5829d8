"""Results as a table that people read."""

from __future__ import annotations

import io
import sys
from typing import TextIO

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from milvus_pipeline.records import Hit, SearchResult, StageReport


def console_on(stream: TextIO) -> Console:
    """A console that writes colours only to a terminal, whatever FORCE_COLOR and its like say."""
    return Console(file=stream, force_terminal=stream.isatty(), highlight=False, markup=False, emoji=False)


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
            self._console.print(Padding(_table(result.hits), (0, 0, 0, 2), expand=False))
        elif result.status != "failed":
            self._console.print(Text("  no hits", style="dim"))
        for line in _footer(result):
            self._console.print(Padding(line, (0, 0, 0, 2), expand=False))
        self._console.print()


def _heading(result: SearchResult) -> Text:
    heading = Text(f"{result.query.id}  " if result.query.id else "", style="dim")
    heading.append(shown(result.query.text) or "(no text)", style="bold not dim")
    if result.degraded:
        heading.append(f"  [{result.status}]", style="bold red")
    return heading


def _table(hits: list[Hit]) -> Table:
    scorers = list(dict.fromkeys(stage for hit in hits for stage in hit.scores))
    reranked = any(len(hit.ranks) > 1 for hit in hits)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, expand=False)
    table.add_column("#", justify="right")
    for scorer in scorers:
        table.add_column(scorer, justify="right", no_wrap=True)
    if reranked:
        table.add_column("moved", justify="right", no_wrap=True)
    table.add_column("id", no_wrap=True, max_width=24, overflow="ellipsis")
    table.add_column("text", no_wrap=True, overflow="ellipsis", ratio=1)
    for place, hit in enumerate(hits, start=1):
        scores = [Text(f"{hit.scores[name]:.4f}" if name in hit.scores else "") for name in scorers]
        moved = [_moved(hit)] if reranked else []
        text = Text("(no text)", style="dim") if hit.text is None else Text(shown(hit.text))
        table.add_row(Text(str(place)), *scores, *moved, Text(shown(str(hit.id))), text)
    return table


def _moved(hit: Hit) -> Text:
    """How many places the rerankers moved the hit, from where retrieval had put it."""
    places = list(hit.ranks.values())
    if len(places) < 2:
        return Text("")
    up = places[0] - places[-1]
    if up == 0:
        return Text("=", style="dim")
    return Text(f"↑{up}", style="green") if up > 0 else Text(f"↓{-up}", style="red")


def _footer(result: SearchResult) -> list[Text]:
    lines = []
    if result.reports:
        shared = max(report.batch_size for report in result.reports)
        times = " · ".join(_time(report) for report in result.reports)
        lines.append(Text(times + (f"  (for {shared} queries together)" if shared > 1 else ""), style="dim"))
    lines += [
        Text(f"{report.stage} was skipped: {shown(report.reason or '')}", style="red")
        for report in result.reports
        if report.status == "skipped"
    ]
    lines += [Text(f"warning: {shown(warning)}", style="yellow") for warning in result.warnings]
    if result.error is not None:
        lines.append(Text(f"failed: {shown(str(result.error))}", style="red"))
    return lines


def _time(report: StageReport) -> str:
    if report.seconds >= 1:
        return f"{report.stage} {report.seconds:.2f} s"
    milliseconds = 1000 * report.seconds
    return f"{report.stage} {milliseconds:.{0 if milliseconds >= 10 else 1}f} ms"


def shown(text: str) -> str:
    """Text on one line; control characters, which could steer the terminal, are shown as a replacement sign."""
    return "".join(sign if sign.isprintable() else "\ufffd" for sign in " ".join(text.split()))
