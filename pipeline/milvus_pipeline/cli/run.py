"""``milvus-pipeline run``: queries in, results out."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, TextIO

import typer

from milvus_pipeline.cli.batches import Batch, Job, answers, count_of, read_batches, source_of
from milvus_pipeline.cli.dry_run import planned
from milvus_pipeline.cli.faults import FAILED, Debug, UsageError, reported
from milvus_pipeline.cli.outputs import (
    Format,
    Lines,
    Writer,
    check_output,
    chosen_format,
    opened,
)
from milvus_pipeline.cli.tables import ResultTables, progress_bar
from milvus_pipeline.cli.tally import Tally
from milvus_pipeline.errors import PipelineError
from milvus_pipeline.jobs.formats import JsonLines, OutputError, TrecRun
from milvus_pipeline.jobs.queries import InputFormat
from milvus_pipeline.pipeline import Pipeline
from milvus_pipeline.records import SearchResult


@reported
def run(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="The pipeline, a YAML file.")],
    query: Annotated[list[str] | None, typer.Option("--query", "-q", help="A query; may be given many times.")] = None,
    queries: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Queries, one a line, or JSONL (.jsonl, .json); - is stdin.")
    ] = None,
    input_format: Annotated[
        InputFormat | None, typer.Option(help="How to read the queries; by default as the file's name says.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write here instead of stdout.")
    ] = None,
    output_format: Annotated[
        Format | None,
        typer.Option("--format", help="By default a table on a terminal, trec for a .trec or .run file, else jsonl."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output file if it exists.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Queries that go through the pipeline together.")] = 32,
    timeout: Annotated[
        float | None,
        typer.Option(
            min=0.001,
            help="Seconds that a batch (of --batch-size queries) may take; reaching the server when opening is bounded "
            "by it too. The config's own by default.",
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Send nothing to hosted rerankers, but say how many requests, documents and (estimated) tokens each "
            "would be sent: a table, or with --format jsonl a line a stage. Retrieval runs; no key is needed, no "
            "--output written.",
        ),
    ] = False,
    debug: Debug = False,
) -> int:
    """Answer queries: from --query, from a file (--queries), or from stdin.

    Results go to stdout or to a file, everything else to stderr. A line of JSONL is one query with its status, hits
    and a report of every stage. Ends with 1 if any query failed; the others are written all the same. What hosted
    rerankers were asked, and what they count, is told at the end.
    """
    source = source_of(query, queries)
    check_output(output, overwrite, source)
    if dry_run and output_format is Format.TREC:
        raise UsageError("--format trec: a dry run has figures, which are no TREC run; leave it out, or take jsonl")
    pipeline = Pipeline.from_yaml(config)
    job = Job(query or (), source, input_format, batch_size, timeout, output, output_format, overwrite, debug)
    batches = read_batches(job)
    return planned(pipeline.dry_run(timeout=timeout), batches, job) if dry_run else _answered(pipeline, batches, job)


def _answered(pipeline: Pipeline, batches: Iterable[Batch], job: Job) -> int:
    """Write an answer to every query; the exit code."""
    chosen = chosen_format(job.output_format, job.output)
    started = time.perf_counter()
    pipeline.open(job.timeout)
    tally = Tally(pipeline.name, opened_in=time.perf_counter() - started, told=chosen is not Format.TABLE)
    try:
        with pipeline, opened(job.output, job.overwrite) as stream, progress_bar(hidden=stream.isatty()) as progress:
            task = progress.add_task(pipeline.name, total=None if progress.disable else count_of(job))
            writer = _writer(chosen, stream, pipeline.name)
            on_screen = chosen is Format.TABLE and stream.isatty()
            for batch in batches:
                for result in answers(pipeline, batch, job.timeout):
                    tally.add(result, _written(writer, result), debug=job.debug)
                stream.flush()
                progress.advance(task, len(batch))
    except (KeyboardInterrupt, PipelineError) as error:
        tally.summarize(None if isinstance(error, OutputError) else job.output, cut_short=True)
        raise
    # Below the table of a single query its usage stands already.
    tally.summarize(job.output, usage=not on_screen or tally.count > 1)
    return FAILED if tally.failed else 0


def _written(writer: Writer, result: SearchResult) -> OutputError | None:
    """Write a result; return the reason where it does not fit the format, so that the others are written."""
    try:
        writer.write(result)
    except OutputError as error:
        return error
    return None


def _writer(chosen: Format, stream: TextIO, name: str) -> Writer:
    if chosen is Format.TABLE:
        return ResultTables(stream)
    return Lines(stream, TrecRun(name) if chosen is Format.TREC else JsonLines())
