"""A movement as a table that people read: a row a document, a column a stage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple, TextIO

from rich import box
from rich.cells import cell_len
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from milvus_pipeline.cli.tables import console_on, cut, shown, step, time_said
from milvus_pipeline.explain import Movement, Ranking
from milvus_pipeline.text import STATUS_WORDS

_INDENT: Final = 2
_BETWEEN: Final = 2  # a blank, and the box's own
_ID_WIDTH: Final = 24
_LEAST_ID: Final = 8
_LEAST_TEXT: Final = 12
_LEAST_HEADER: Final = 6
_FIRST_HEADERS: Final = ("#", "judged", "id")


class _Row(NamedTuple):
    """A document with its cells, one for each stage."""

    document: str
    cells: Sequence[Text]


class MovementTable:
    """Writes movements: what each stage took, and the way of each document, those kept first."""

    def __init__(self, stream: TextIO) -> None:
        self._console = console_on(stream)

    def write(self, movement: Movement, show: int) -> None:
        """Write one movement.

        Args:
            movement: of one query.
            show: documents that are listed at most, of those kept and of those cut; relevant ones always are.
        """
        heading = Text(f"{shown(movement.query_id)}  " if movement.query_id else "", style="dim")
        heading.append(shown(movement.query) or "(no text)", style="bold not dim")
        self._console.print(heading)
        if movement.rankings:
            self._write_documents(movement, show)
        else:
            self._line(Text("no stage found a document", style="dim"))
        for line in _footer(movement):
            self._line(line)

    def _write_documents(self, movement: Movement, show: int) -> None:
        judged = movement.judged or {}
        final = set(movement.rankings[-1].documents)
        kept = [document for document in movement.documents if document in final]
        gone = [document for document in movement.documents if document not in final]
        listed = [
            [document for place, document in enumerate(part) if place < show or judged.get(document, 0) > 0]
            for part in (kept, gone)
        ]
        table = _table(movement, listed, self._console.width, scored=True)
        if table is None:
            table = _table(movement, listed, self._console.width, scored=False)
            self._line(Text("(for scores a wider terminal is needed, or --format json)", style="dim"))
        if table is not None:
            self._console.print(Padding(table, (0, 0, 0, _INDENT), expand=False))
        hidden = [len(part) - len(rows) for part, rows in zip((kept, gone), listed, strict=True)]
        said = [f"{count:,} {what}" for count, what in zip(hidden, ("kept", "cut"), strict=True) if count]
        if said:
            self._line(Text(f"not listed: {' and '.join(said)}; --show {max(len(kept), len(gone))} lists all"))

    def _line(self, line: Text) -> None:
        self._console.print(Padding(line, (0, 0, 0, _INDENT), expand=False))


def _table(movement: Movement, listed: Sequence[Sequence[str]], width: int, *, scored: bool) -> Table | None:
    """A row for each document listed, those cut below a line. Texts give way first, then headers, then ids.

    None where that is not enough for a table with scores.
    """
    rows = _rows(movement, [document for part in listed for document in part], scored)
    last = movement.rankings[-1].places
    judged = movement.judged
    columns: dict[str, list[Text]] = {"#": [Text(str(last.get(row.document, ""))) for row in rows]}
    if judged is not None:
        columns["judged"] = [_grade(judged.get(row.document)) for row in rows]
    columns["id"] = [cut(shown(row.document), _ID_WIDTH) for row in rows]
    own = [max(cell.cell_len for cell in column) for column in columns.values()]
    stages = [max(row.cells[number].cell_len for row in rows) for number in range(len(movement.rankings))]
    names = [shown(ranking.stage) for ranking in movement.rankings]
    headers = [Text(header) for header in columns] + [Text(name) for name in names]
    room = _room(width, headers, own + stages)
    if room < _LEAST_TEXT:
        limits = [max(_LEAST_HEADER, widest) for widest in own + stages]
        headers = [cut(header.plain, limit) for header, limit in zip(headers, limits, strict=True)]
        room = _room(width, headers, own + stages)
    if room < _LEAST_TEXT:
        narrow = max(_LEAST_ID, own[-1] - (_LEAST_TEXT - room))
        columns["id"] = [cut(shown(row.document), narrow) for row in rows]
        own[-1] = max(cell.cell_len for cell in columns["id"])
        room = _room(width, headers, own + stages)
        if room < _LEAST_TEXT and scored:
            return None
        room = max(1, room)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    for header in headers:
        table.add_column(header, justify="right" if header.plain in _FIRST_HEADERS[:2] else "left", no_wrap=True)
    table.add_column("text", no_wrap=True)
    for number, row in enumerate(rows):
        text = cut(shown(movement.beginnings.get(row.document, "")), room)
        first = [column[number] for column in columns.values()]
        table.add_row(*first, *row.cells, text, end_section=number == len(listed[0]) - 1)
    return table


def _room(width: int, headers: Sequence[Text], widths: Sequence[int]) -> int:
    """Columns that are left of a line for the text."""
    taken = [max(header.cell_len, widest) + _BETWEEN for header, widest in zip(headers, widths, strict=True)]
    return width - _INDENT - sum(taken)


def _rows(movement: Movement, documents: Sequence[str], scored: bool) -> list[_Row]:
    """Place, step and score of each document after each stage, one below the other."""
    places = [ranking.places for ranking in movement.rankings]
    columns = [
        _column(documents, ranking, at, places[number - 1] if number else None, scored)
        for number, (ranking, at) in enumerate(zip(movement.rankings, places, strict=True))
    ]
    return [_Row(document, [column[number] for column in columns]) for number, document in enumerate(documents)]


def _column(
    documents: Sequence[str], ranking: Ranking, at: dict[str, int], before: dict[str, int] | None, scored: bool
) -> list[Text]:
    """The cells of one stage: ``12 ↑3  0.8123``."""
    steps = [_step(document, at, before) for document in documents]
    scores = [ranking.scores[at[document] - 1] if scored and document in at else None for document in documents]
    figures = ["" if score is None else f"{score:.4f}" for score in scores]
    places = [str(at.get(document, "")) for document in documents]
    widths = [max(map(cell_len, column), default=0) for column in (places, [moved.plain for moved in steps], figures)]
    cells = []
    for place, moved, figure in zip(places, steps, figures, strict=True):
        cell = Text(place.rjust(widths[0]))
        if widths[1]:
            cell.append(" ").append_text(moved).append(" " * (widths[1] - moved.cell_len))
        if widths[2]:
            cell.append(f"  {figure.rjust(widths[2])}", style="dim")
        cells.append(cell)
    return cells


def _step(document: str, at: dict[str, int], before: dict[str, int] | None) -> Text:
    """What became of a document in a stage: how far it moved, that it is new, or that it was cut."""
    if before is None:
        return Text("")
    if document in at:
        return step(before[document] - at[document]) if document in before else Text("new", style="cyan")
    return Text("cut", style="red") if document in before else Text("")


def _grade(grade: int | None) -> Text:
    if grade is None:
        return Text("")
    return Text(f"* {grade}", style="bold green") if grade > 0 else Text(str(grade), style="dim")


def _footer(movement: Movement) -> list[Text]:
    lines = []
    if movement.missed:
        missed = ", ".join(f"{shown(document)} ({(movement.judged or {})[document]})" for document in movement.missed)
        lines.append(Text(f"judged relevant, and found by no stage: {missed}", style="yellow"))
    stages = [*movement.before, *movement.rankings]
    lines.append(Text(" · ".join(time_said(shown(one.stage), one.seconds) for one in stages), style="dim"))
    for one in stages:
        if one.status in STATUS_WORDS:
            lines.append(Text(f"{shown(one.stage)} {STATUS_WORDS[one.status]}: {shown(one.reason or '')}", style="red"))
        if one.stood_in is not None:
            lines.append(Text(f"{shown(one.stood_in)} stood in for {shown(one.stage)}", style="yellow"))
    return lines
