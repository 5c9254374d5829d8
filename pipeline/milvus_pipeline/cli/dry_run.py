"""``milvus-pipeline run --dry-run``: what a run would send to hosted rerankers, without sending it."""

from __future__ import annotations

import time
from collections.abc import Mapping

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
        totals = Totals()
        opened_in = time.perf_counter() - started
        summary = RunSummary(f"{dry.name} (dry run)", opened_in=opened_in, detailed=True)
        try:
            with ProgressBar(dry.name, options.count) as bar:
                for batch in batches:
                    for result in answer_batch(dry, batch, options.timeout):
                        summary.add(result, debug=options.debug)
                        _count(totals, result)
                    bar.update(summary.count, summary.failed)
        except (KeyboardInterrupt, PipelineError):
            summary.print(None, unfinished=True)
            raise
        sums = totals.as_dict()
        nothing: Figures = dict.fromkeys(("queries", *_HEADERS), 0)
        services = {stage: sums.get(stage.name) or nothing for stage in dry.services}
        with open_output() as stream:
            if options.output_format == OutputFormat.JSONL:
                for stage, figures in services.items():
                    planned = {word: figures[word] for word in figures if word != "queries"}
                    data = {"stage": stage.name, "type": stage.type, "queries": figures["queries"], "planned": planned}
                    stream.write(json_line(data))
            else:
                console = console_on(stream)
                console.print(_table(services))
                queries = f"{count_text(summary.count, 'query')}{summary.others}"
                console.print(Text(f"\n{queries}; nothing was sent to these services"))
                console.print(Text("tokens are estimates: every service counts with its own tokenizer", style="dim"))
            stream.flush()
        summary.print(None)
    if options.output is not None:
        print_message(f"{options.output}: not written, because a dry run has no results")
    return FAILED if summary.failed else 0


def _count(totals: Totals, result: SearchResult) -> None:
    """Add what one query would send, and to ``queries`` of each service whether it would send something."""
    for report in result.reports:
        if report.planned:
            totals.add(report.stage, {"queries": any(report.planned.values()), **report.planned})


def _table(services: Mapping[Stage, Figures]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for header in ("stage", "type"):
        table.add_column(header, overflow="fold")
    for header in (*_HEADERS.values(), "tokens a query"):
        table.add_column(header, justify="right", no_wrap=True)
    for stage, figures in services.items():
        numbers = [figures.get(word) for word in _HEADERS]
        queries = figures["queries"]
        numbers.append(round(figures["tokens"] / queries) if queries and "tokens" in figures else None)
        cells = ["" if number is None else number_text(number) for number in numbers]
        table.add_row(Text(one_line(stage.name)), Text(stage.type), *cells)
    return table
