"""How far a job is, on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from milvus_pipeline.cli.tables import console_on


class JobBar:
    """A bar on stderr with what is done of how much, the rate of this run, the time left and the failures so far.

    It appears with the first ``update``, and goes away when the context ends. There is none where stderr is no
    terminal: a log shall not be filled with it, and the manifest tells how far a job is.

    Args:
        name: the pipeline's.
        total: finds out the number of queries, where it can be known; not called where nothing is shown.
        hidden: show nothing.
    """

    def __init__(self, name: str, total: Callable[[], int | None], *, hidden: bool = False) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _RateColumn(),
            TimeRemainingColumn(compact=True),
            _FailedColumn(),
        )
        console = console_on(sys.stderr)
        self._progress = Progress(*columns, console=console, transient=True, disable=hidden or not console.is_terminal)
        self._name = name
        self._total = total
        self._task: TaskID | None = None

    def update(self, done: int, failed: int) -> None:
        """Show how many queries are done, and how many of them failed; the first call, where this run begins."""
        if self._progress.disable:
            return
        if self._task is None:
            total = self._total()
            self._progress.start()
            self._task = self._progress.add_task(self._name, total=total, completed=done, failed=failed)
        else:
            self._progress.update(self._task, completed=done, failed=failed)

    def stop(self) -> None:
        """Take the bar away."""
        self._progress.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()


class _RateColumn(ProgressColumn):
    """Queries a second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.1f}/s", style="progress.data.speed")


class _FailedColumn(ProgressColumn):
    """How many queries failed; nothing where none did."""

    def render(self, task: Task) -> Text:
        failed = task.fields["failed"]
        return Text(f"{failed:,} failed" if failed else "", style="red")
