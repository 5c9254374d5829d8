"""The progress bar of the commands."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from milvus_pipeline.cli.tables import console_on


class ProgressBar:
    """A bar on stderr: what is done of how much, the rate of this run, the time left, and the failures so far.

    It appears with the first ``update`` and disappears when the context ends. If stderr is not a terminal nothing is
    shown, so that it does not fill a log.

    Args:
        name: what is worked on.
        total: returns how much there is, if that can be known; not called if nothing is shown.
        hidden: show nothing.
    """

    def __init__(self, name: str, total: Callable[[], int | None] = lambda: None, *, hidden: bool = False) -> None:
        note = TextColumn("{task.fields[note]}", style="red")
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _RateColumn())
        console, left = console_on(sys.stderr), TimeRemainingColumn(compact=True)
        self._progress = Progress(
            *columns, left, note, console=console, transient=True, disable=hidden or not console.is_terminal
        )
        self._name = name
        self._total = total

    def update(self, done: int, failed: int = 0, *, total: int | None = None) -> None:
        """Show how much is done and how much of it failed; the first call says where this run begins."""
        if self._progress.disable:
            return
        note = f"{failed:,} failed" if failed else ""
        if not self._progress.tasks:
            self._progress.add_task(self._name, total=total or self._total(), completed=done, note=note)
            self._progress.start()
        else:
            self._progress.update(self._progress.tasks[0].id, completed=done, note=note)

    def stop(self) -> None:
        """Remove the bar."""
        self._progress.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()


class _RateColumn(ProgressColumn):
    """The number done per second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.1f}/s", style="progress.data.speed")
