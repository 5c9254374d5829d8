"""``milvus-pipeline run --dry-run``: what a run would send to hosted rerankers, without sending it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from typing import TextIO

from rich import box
from rich.table import Table
from rich.text import Text

from milvus_pipeline.cli.exit_codes import FAILED, print_message
from milvus_pipeline.cli.options import RunOptions, answer_batch
from milvus_pipeline.cli.progress import ProgressBar
from milvus_pipeline.cli.summary import RunSummary
from milvus_pipeline.cli.tables import console_on
from milvus_pipeline.cli.writers import open_output
from milvus_pipeline.errors import PipelineError
from milvus_pipeline.files.plain import json_line
from milvus_pipeline.files.results import OutputFormat
from milvus_pipeline.records import SearchResult
from milvus_pipeline.run.dry_run import DryRun
from milvus_pipeline.stage import Stage
from milvus_pipeline.text import count_text, number_text, one_line
from milvus_pipeline.usage import Figures, Totals

_HEADERS = {"requests": "requests", "documents": "documents", "tokens": "est. tokens"}


def run_dry(dry: DryRun, options: RunOptions) -> int:
    """Run the queries without sending anything and print what would be sent; return the exit code of a run.

    The file of the results is not written, because the job that it belongs to will want to create it.
    """
    batches = options.batches()
    if not dry.services:
        print_message(f"{dry.name}: has no hosted reranker whose requests can be counted; nothing was run")
        return 0
    started = time.perf_counter()
    with dry:
        plan = Plan(dry.services)
        opened_in = time.perf_counter() - started
        summary = RunSummary(f"{dry.name} (dry run)", opened_in=opened_in, detailed=True)
        try:
            with ProgressBar(dry.name, options.count) as bar:
                for batch in batches:
                    for result in answer_batch(dry, batch, options.timeout):
                        summary.add(result, debug=options.debug)
                        plan.add(result)
                    bar.update(summary.count, summary.failed)
        except (KeyboardInterrupt, PipelineError):
            summary.print(None, unfinished=True)
            raise
        with open_output() as stream:
            if options.output_format == OutputFormat.JSONL:
                plan.write_lines(stream)
            else:
                plan.write_table(stream, f"{count_text(summary.count, 'query')}{summary.others}")
            stream.flush()
        summary.print(None)
    if options.output is not None:
        print_message(f"{options.output}: not written, because a dry run has no results")
    return FAILED if summary.failed else 0


class Plan:
    """The sums of what would be sent to each service; its size does not grow with the queries."""

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

    def write_lines(self, stream: TextIO) -> None:
        """Write one JSON object per service; its ``queries`` counts those that would send something."""
        for stage, figures in self._rows():
            data = {"stage": stage.name, "type": stage.type, "queries": self._queries[stage.name], "planned": figures}
            stream.write(json_line(data))

    def write_table(self, stream: TextIO, queries: str) -> None:
        """Write one row per service, and below them the text ``queries`` says how many queries there were."""
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
        for header in ("stage", "type"):
            table.add_column(header, overflow="fold")
        for header in (*_HEADERS.values(), "tokens a query"):
            table.add_column(header, justify="right", no_wrap=True)
        for stage, figures in self._rows():
            numbers = [figures.get(word) for word in _HEADERS]
            count = self._queries[stage.name]
            numbers.append(round(figures["tokens"] / count) if count and "tokens" in figures else None)
            cells = ["" if number is None else number_text(number) for number in numbers]
            table.add_row(Text(one_line(stage.name)), Text(stage.type), *cells)
        console = console_on(stream)
        console.print(table)
        console.print()
        console.print(Text(f"{queries}; nothing was sent to these services"))
        console.print(Text("tokens are estimates: every service counts with its own tokenizer", style="dim"))

    def _rows(self) -> list[tuple[Stage, Figures]]:
        totals, nothing = self._totals.as_dict(), dict.fromkeys(_HEADERS, 0)
        return [(stage, totals.get(stage.name) or {**nothing}) for stage in self._services]
