"""``milvus-pipeline run``: queries in, results out."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path
from typing import Annotated, TextIO

import typer

from milvus_pipeline.cli.dry_run import planned
from milvus_pipeline.cli.exit_codes import FAILED, Debug, UsageError, check_nothing_run, ended_by_sigterm, reported
from milvus_pipeline.cli.options import Asked, answered_batches, check_asked, count_of, is_job, read_batches, source_of
from milvus_pipeline.cli.progress import JobBar
from milvus_pipeline.cli.run_job import run_as_job
from milvus_pipeline.cli.summary import Tally
from milvus_pipeline.cli.tables import ResultTables
from milvus_pipeline.cli.writers import TABLE, Format, Lines, Writer, choose_format, opened
from milvus_pipeline.errors import PipelineError
from milvus_pipeline.files.queries import BadLines, InputFormat
from milvus_pipeline.files.results import FORMATS, OutputError, OutputFormat
from milvus_pipeline.pipeline import Pipeline
from milvus_pipeline.records import SearchResult


@reported
def run(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="The pipeline, a YAML file.")],
    query: Annotated[list[str] | None, typer.Option("--query", "-q", help="A query; may be given many times.")] = None,
    queries: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Queries: one a line, JSONL (.jsonl, .json), TSV (.tsv), or a folder in BEIR's shape; gunzipped where "
            "the name ends in .gz; - is stdin.",
        ),
    ] = None,
    input_format: Annotated[
        InputFormat | None, typer.Option(help="How to read the queries; by default as the file's name says.")
    ] = None,
    bad_lines: Annotated[
        BadLines,
        typer.Option(
            help="What is done about a line that is no query: report makes a failed result of it, skip leaves it out, "
            "fatal runs nothing."
        ),
    ] = BadLines.REPORT,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Write here instead of stdout, as a job that can be resumed; FILE.manifest.json tells about it. "
            "Gzipped where the name ends in .gz.",
        ),
    ] = None,
    output_format: Annotated[
        Format | None,
        typer.Option("--format", help="By default a table on a terminal, trec for a .trec or .run file, else jsonl."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output file if it exists.")] = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on with the job whose output exists, where it was; the whole will be as if it had never stopped. "
            "Begins where nothing exists.",
        ),
    ] = False,
    accept_changes: Annotated[
        bool,
        typer.Option(
            "--accept-changes",
            help="With --resume: go on though a model or collection is no longer the same (it has grown, say).",
        ),
    ] = False,
    stop_on_failure: Annotated[
        bool,
        typer.Option(
            "--stop-on-failure",
            help="With --output: end where a query fails in a stage, before its batch is written, so that --resume "
            "can go on once that is repaired.",
        ),
    ] = False,
    figures: Annotated[
        bool,
        typer.Option(
            "--figures",
            help="With --output: write into each line what differs from run to run, too: seconds, batch sizes, usage. "
            "Without it the same job gives the same bytes. On stdout they are always in it.",
        ),
    ] = False,
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

    With --output it is a job: whatever ends it, --resume goes on with it, and the output will be the same.
    """
    source = source_of(query, queries)
    if dry_run and output_format not in (None, TABLE, OutputFormat.JSONL):
        raise UsageError(
            f"a dry run has no results to write as {output_format}", "use table or jsonl", place="--format"
        )
    asked = Asked(
        query or (),
        source,
        input_format,
        bad_lines,
        batch_size,
        timeout,
        output,
        output_format,
        overwrite,
        resume,
        accept_changes,
        stop_on_failure,
        figures,
        debug,
    )
    check_asked(asked, config)
    pipeline = Pipeline.from_yaml(config)
    if dry_run:
        return planned(pipeline.dry_run(timeout=timeout), read_batches(asked), asked)
    with ended_by_sigterm():
        if output is not None and is_job(asked):
            return run_as_job(pipeline, asked, output)
        return _written_out(pipeline, asked)


def _written_out(pipeline: Pipeline, asked: Asked) -> int:
    """Write an answer to every query to stdout, or to what is no file to go back in; the exit code."""
    chosen = choose_format(asked.output_format, asked.output)
    batches = read_batches(asked)
    started = time.perf_counter()
    pipeline.open(asked.timeout)
    tally = Tally(pipeline.name, opened_in=time.perf_counter() - started, told=chosen != TABLE)
    try:
        with pipeline, opened(asked.output, asked.overwrite) as stream:
            writer = _writer(chosen, stream, pipeline.name)
            on_screen = chosen == TABLE and stream.isatty()
            with (
                JobBar(pipeline.name, lambda: count_of(asked), hidden=stream.isatty()) as bar,
                closing(answered_batches(pipeline, batches, asked)) as answers,
            ):
                bar.update(0, 0)
                for results in answers:
                    for result in results:
                        tally.add(result, _unwritten(writer, result), debug=asked.debug)
                    stream.flush()
                    bar.update(tally.count, tally.failed)
    except (KeyboardInterrupt, PipelineError) as error:
        tally.summarize(None if isinstance(error, OutputError) else asked.output, cut_short=True)
        check_nothing_run(error, tally.count)
        raise
    # Below the table of a single query its usage stands already.
    tally.summarize(asked.output, usage=not on_screen or tally.count > 1)
    return FAILED if tally.failed else 0


def _unwritten(writer: Writer, result: SearchResult) -> OutputError | None:
    """Write a result; return the reason where it does not fit the format, so that the others are written."""
    try:
        writer.write(result)
    except OutputError as error:
        return error
    return None


def _writer(chosen: str, stream: TextIO, name: str) -> Writer:
    if chosen == TABLE:
        return ResultTables(stream)
    return Lines(stream, FORMATS[OutputFormat(chosen)].writer(name, True))
