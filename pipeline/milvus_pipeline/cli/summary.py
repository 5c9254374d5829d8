"""What became of the queries of a run, told on stderr when it is over."""

from __future__ import annotations

import time
import traceback
from collections import Counter
from pathlib import Path

from milvus_pipeline.cli.exit_codes import tell
from milvus_pipeline.files.results import OutputError
from milvus_pipeline.records import SearchResult
from milvus_pipeline.text import STATUS_WORDS, count_text, figures_text
from milvus_pipeline.usage import Totals

_SHOWN = 10
"""Failures and warnings told one by one on stderr; the rest is counted, and stands in the results."""


class Tally:
    """Counts what became of the queries and what they cost, and tells about it on stderr.

    Args:
        name: the pipeline's.
        opened_in: seconds it took to open.
        told: tell failures and warnings as well; without it only the counts.
        kept: the results are written somewhere, with their warnings. Where they are not, no one can look up a
            query's own, so equal warnings are told once, with the number of queries.
    """

    def __init__(self, name: str, *, opened_in: float, told: bool, kept: bool = True) -> None:
        self._name = name
        self._opened_in = opened_in
        self._told = told
        self._kept = kept
        self._started = time.perf_counter()
        self._states: Counter[str] = Counter()
        self._usage = Totals()
        self._lines: list[str] = []
        self._folded: Counter[str] = Counter()
        self._lacking: Counter[str] = Counter()
        self._reasons: dict[str, str] = {}
        self._untold = 0

    @property
    def count(self) -> int:
        """Number of queries."""
        return self._states.total()

    @property
    def failed(self) -> int:
        """Number of queries that failed."""
        return self._states["failed"]

    @property
    def others(self) -> str:
        """The counts of queries that did not end well: ``, 1 degraded, 2 failed``; empty where all did."""
        return "".join(f", {self._states[state]} {state}" for state in sorted(self._states) if state != "ok")

    def add(self, result: SearchResult, unwritten: OutputError | None = None, *, debug: bool) -> None:
        """Count a result; ``unwritten`` says why it could not be written, ``debug`` shows tracebacks at once."""
        if debug and result.error is not None:
            traceback.print_exception(result.error)
        error = unwritten or result.error
        self._states["failed" if error else result.status] += 1
        for stage, figures in result.usage.items():
            self._usage.add(stage, figures)
        self._count_lacking(result)
        lines = [f"error: query {result.query.id}: {error}"] if error else []
        if self._kept:
            lines += [f"warning: query {result.query.id}: {warning}" for warning in result.warnings]
        else:
            self._fold(result.warnings)
        # A table shows a failed query where it stands; one that could not be written shows nowhere.
        for line in lines if self._told or unwritten else ():
            if len(self._lines) < _SHOWN:
                self._lines.append(line)
            else:
                self._untold += 1

    def _count_lacking(self, result: SearchResult) -> None:
        """Count the stages whose work the result lacks, by kind of reason; the first one's words stand for all."""
        for report in result.reports:
            if report.status in STATUS_WORDS:
                kind = f"{report.stage} {STATUS_WORDS[report.status]} ({report.reason_code or 'error'})"
                self._lacking[kind] += 1
                self._reasons.setdefault(kind, report.reason or "no reason was given")

    def _fold(self, warnings: list[str]) -> None:
        for warning in warnings:
            if warning in self._folded or len(self._folded) < _SHOWN:
                self._folded[warning] += 1
            else:
                self._untold += 1

    def summarize(self, output: Path | None, *, cut_short: bool = False, usage: bool = True) -> None:
        """Write the failures, the warnings, the counts and the usage to stderr.

        Args:
            output: where the results stand.
            cut_short: the run ended before its queries did, so that some may have cost what is not known here.
            usage: tell it; False where the reader has seen it.
        """
        for line in self._lines:
            tell(line)
        for kind, count in self._lacking.items() if self._told else ():
            tell(f"warning: {count_text(count, 'query')}: {kind}: {self._reasons[kind]}")
        for warning, count in self._folded.items():
            tell(f"warning: {count_text(count, 'query')}: {warning}")
        if self._untold:
            tell(f"{self._untold} more errors and warnings{'; every result carries its own' if self._kept else ''}")
        if not self._states:
            return
        where = f"; written to {output}" if output else ""
        seconds = time.perf_counter() - self._started
        rate = f", {self.count / seconds:,.1f}/s" if self.count > 1 else ""
        opened_in = f"opened in {self._opened_in:.2f} s"
        tell(
            f"{self._name}: {opened_in}; {count_text(self.count, 'query')} in {seconds:.2f} s{rate}{self.others}{where}"
        )
        unknown = "; queries that were under way are not counted" if cut_short else ""
        for stage, figures in self._usage.as_dict().items() if usage else ():
            tell(f"{stage}: {figures_text(figures)}{unknown}")
