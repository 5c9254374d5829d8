"""``milvus-pipeline run --dry-run``: what a run would send to hosted rerankers, without sending it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from typing import TextIO

from rich import box
from rich.table import Table
from rich.text import Text

from milvus_pipeline.cli.exit_codes import FAILED, tell
from milvus_pipeline.cli.options import Asked, Batch, answers, count_of
from milvus_pipeline.cli.summary import Tally
from milvus_pipeline.cli.tables import console_on, progress_bar, shown
from milvus_pipeline.cli.writers import opened
from milvus_pipeline.errors import PipelineError
from milvus_pipeline.files.plain import json_line
from milvus_pipeline.files.results import OutputFormat
from milvus_pipeline.records import SearchResult
from milvus_pipeline.run.dry_run import DryRun
from milvus_pipeline.stage import Stage
from milvus_pipeline.text import count_text, number_text
from milvus_pipeline.usage import Figures, Totals

_WORDS = {"requests": "requests", "documents": "documents", "tokens": "est. tokens"}


def planned(dry: DryRun, batches: Iterable[Batch], asked: Asked) -> int:
    """Go through the queries and say what would be sent; the exit code is that of a run.

    The results' file is not written: whoever adds --dry-run to the command of a job wants the job to find it as it is.
    """
    if not dry.services:
        tell(f"{dry.name}: has no hosted reranker whose requests can be counted beforehand; nothing was run")
        return 0
    started = time.perf_counter()
    with dry:
        plan = Plan(dry.services)
        opened_in = time.perf_counter() - started
        tally = Tally(f"{dry.name} (dry run)", opened_in=opened_in, told=True, kept=False)
        try:
            with progress_bar() as progress:
                task = progress.add_task(dry.name, total=None if progress.disable else count_of(asked))
                for batch in batches:
                    for result in answers(dry, batch, asked.timeout):
                        tally.add(result, debug=asked.debug)
                        plan.add(result)
                    progress.advance(task, len(batch))
        except (KeyboardInterrupt, PipelineError):
            tally.summarize(None, cut_short=True)
            raise
        with opened(None, overwrite=False) as stream:
            plan.write(stream, f"{count_text(tally.count, 'query')}{tally.others}", asked.output_format)
            stream.flush()
        tally.summarize(None)
    if asked.output is not None:
        tell(f"{asked.output}: not written, as a dry run has no results")
    return FAILED if tally.failed else 0


class Plan:
    """What would be sent to each service, summed up; its size does not grow with the queries."""

    def __init__(self, services: Iterable[Stage]) -> None:
        self._services = tuple(services)
        self._totals = Totals()
        self._queries: Counter[str] = Counter()

    def add(self, result: SearchResult) -> None:
        """Add what one query would send."""
        for report in result.reports:
            if report.planned:
                self._totals.add(report.stage, report.planned)
                self._queries[report.stage] += any(report.planned.values())

    def write(self, stream: TextIO, queries: str, output_format: str | None) -> None:
        """As JSON lines where they are asked for, else as a table; ``queries`` says below it how many there were."""
        if output_format == OutputFormat.JSONL:
            self._write_lines(stream)
        else:
            self._write_table(stream, queries)

    def _write_lines(self, stream: TextIO) -> None:
        """One JSON object a service, in which ``queries`` is the number of those that would send something."""
        for stage, figures in self._rows():
            queries = self._queries[stage.name]
            data = {"stage": stage.name, "type": stage.type, "queries": queries, "planned": figures}
            stream.write(json_line(data))

    def _write_table(self, stream: TextIO, queries: str) -> None:
        """One row a service."""
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
        for header in ("stage", "type"):
            table.add_column(header, overflow="fold")
        for header in (*_WORDS.values(), "tokens a query"):
            table.add_column(header, justify="right", no_wrap=True)
        for stage, figures in self._rows():
            numbers = [_said(figures.get(word)) for word in _WORDS]
            mean = _said(_mean(figures.get("tokens"), self._queries[stage.name]))
            table.add_row(Text(shown(stage.name)), Text(stage.type), *numbers, mean)
        console = console_on(stream)
        console.print(table)
        console.print()
        console.print(Text(f"{queries}; nothing was sent to these services"))
        console.print(Text("tokens are estimates: every service counts with its own tokenizer", style="dim"))

    def _rows(self) -> Iterable[tuple[Stage, Figures]]:
        totals = self._totals.as_dict()
        for stage in self._services:
            yield stage, totals.get(stage.name) or dict.fromkeys(_WORDS, 0)


def _mean(number: float | None, count: int) -> int | None:
    return None if number is None or not count else round(number / count)


def _said(number: float | None) -> str:
    return "" if number is None else number_text(number)
