"""Tables whose columns are laid out by the width there is: groups of columns that do not fit stand in a table below."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

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
