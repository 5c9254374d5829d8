"""The summary of a run on stderr."""

from __future__ import annotations

import time
import traceback
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from milvus_pipeline.cli.exit_codes import print_message, print_warning
from milvus_pipeline.files.results import OutputError
from milvus_pipeline.records import SearchResult
from milvus_pipeline.text import STATUS_WORDS, count_text, figures_text
from milvus_pipeline.usage import Totals

_LISTED = 10
"""Failures and warnings that are printed; the others are only counted."""


@dataclass
class _Listed:
    detail: str
    queries: int = 0


class RunSummary:
    """Counts the outcomes of the queries and their cost, and prints them at the end.

    Args:
        name: of the pipeline.
        opened_in: seconds that opening it took.
        detailed: print failures and warnings too, not only counts.
    """

    def __init__(self, name: str, *, opened_in: float, detailed: bool) -> None:
        self._name = name
        self._opened_in = opened_in
        self._detailed = detailed
        self._started = time.perf_counter()
        self._statuses: Counter[str] = Counter()
        self._usage = Totals()
        self._errors: dict[str, _Listed] = {}
        self._warnings: dict[str, _Listed] = {}
        self._unlisted = 0

    @property
    def count(self) -> int:
        """Number of queries."""
        return self._statuses.total()

    @property
    def failed(self) -> int:
        """Number of queries that failed."""
        return self._statuses["failed"]

    @property
    def others(self) -> str:
        """The counts of queries whose status is not "ok": ``, 1 degraded, 2 failed``; empty if there are none."""
        return "".join(f", {self._statuses[status]} {status}" for status in sorted(self._statuses) if status != "ok")

    def add(self, result: SearchResult, unwritten: OutputError | None = None, *, debug: bool) -> None:
        """Count a result; ``unwritten`` says why it could not be written, ``debug`` prints tracebacks at once."""
        if debug and result.error is not None:
            traceback.print_exception(result.error)
        error = unwritten or result.error
        self._statuses["failed" if error else result.status] += 1
        for stage, figures in result.usage.items():
            self._usage.add(stage, figures)
        # A table shows the failure of a query and its warnings, but not that a result could not be written.
        if error and (self._detailed or unwritten):
            self._list(self._errors, f"error: query {result.query.id}: {error}", "")
        if self._detailed:
            for report in result.reports:
                if report.status in STATUS_WORDS:
                    trouble = f"{report.stage} {STATUS_WORDS[report.status]} ({report.reason_code or 'error'})"
                    self._list(self._warnings, trouble, f": {report.reason or 'no reason was given'}")
            for warning in result.warnings:
                self._list(self._warnings, warning, "")

    def _list(self, listed: dict[str, _Listed], text: str, detail: str) -> None:
        """List a text if there is room, with the detail of the query that has it first, and count the queries."""
        if text in listed or len(listed) < _LISTED:
            listed.setdefault(text, _Listed(detail)).queries += 1
        else:
            self._unlisted += 1

    def print(self, output: Path | None, *, unfinished: bool = False, usage: bool = True) -> None:
        """Print the failures, the warnings, the counts and the usage to stderr.

        Args:
            output: the file of the results.
            unfinished: the run ended early, so there may be costs that are not known here.
            usage: print it.
        """
        for text in self._errors:
            print_message(text)
        for text, listed in self._warnings.items():
            print_warning(f"{count_text(listed.queries, 'query')}: {text}{listed.detail}")
        if self._unlisted:
            print_message(f"{self._unlisted} more errors and warnings")
        if not self._statuses:
            return
        seconds = time.perf_counter() - self._started
        rate = f", {self.count / seconds:,.1f}/s" if self.count > 1 else ""
        counts = f"{count_text(self.count, 'query')} in {seconds:.2f} s{rate}{self.others}"
        where = f"; written to {output}" if output else ""
        print_message(f"{self._name}: opened in {self._opened_in:.2f} s; {counts}{where}")
        unknown = "; queries in progress are not counted" if unfinished else ""
        for stage, figures in self._usage.as_dict().items() if usage else ():
            print_message(f"{stage}: {figures_text(figures)}{unknown}")
