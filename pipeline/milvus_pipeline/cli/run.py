"""``milvus-pipeline run``: answers queries, to stdout or as a job into a file."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Annotated, TextIO

import typer

from milvus_pipeline.cli.dry_run import run_dry
from milvus_pipeline.cli.exit_codes import (
    FAILED,
    UsageError,
    command,
    print_message,
    print_warning,
    raise_as_failure,
    sigterm_raises,
)
from milvus_pipeline.cli.options import (
    Config,
    Debug,
    Overwrite,
    QueryFormat,
    RunOptions,
    Timeout,
    answer_batches,
    choose_source,
)
from milvus_pipeline.cli.progress import ProgressBar
from milvus_pipeline.cli.summary import RunSummary
from milvus_pipeline.cli.tables import console_on, print_result
from milvus_pipeline.cli.writers import TABLE, Format, choose_format, open_output
from milvus_pipeline.errors import PipelineError
from milvus_pipeline.files.queries import BadLines
from milvus_pipeline.files.results import OutputError, OutputFormat, line_format
from milvus_pipeline.jobs.job import JobProgress, JobReport, StoppedError, run_job
from milvus_pipeline.jobs.manifest import manifest_path, read_manifest
from milvus_pipeline.pipeline import Pipeline
from milvus_pipeline.records import SearchResult
from milvus_pipeline.text import count_text


@command
def run(
    config: Config,
    query: Annotated[list[str] | None, typer.Option("--query", "-q", help="A query; repeat it for several.")] = None,
    queries: Annotated[Path | None, typer.Option(metavar="FILE", help="A file of queries; - is stdin.")] = None,
    input_format: QueryFormat = None,
    bad_lines: Annotated[BadLines, typer.Option(help="What to do with lines that are not queries.")] = BadLines.REPORT,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write here, as a job that can be resumed.")
    ] = None,
    output_format: Annotated[Format | None, typer.Option("--format", help="Format of the results; see above.")] = None,
    overwrite: Overwrite = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the job in --output, or start it.")] = False,
    accept_changes: Annotated[
        bool, typer.Option("--accept-changes", help="Resume although a model or collection has changed or grown.")
    ] = False,
    stop_on_failure: Annotated[
        bool, typer.Option("--stop-on-failure", help="End the job if a query fails in a stage; --resume continues it.")
    ] = False,
    figures: Annotated[
        bool, typer.Option("--figures", help="Include in a job's lines what differs from run to run: seconds, usage.")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Queries that go through the pipeline together.")] = 32,
    timeout: Timeout = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Count the requests to hosted rerankers instead of sending them.")
    ] = False,
    debug: Debug = False,
) -> int:
    """Answer queries: from --query, from a file (--queries), or from stdin.

    A file has one query per line, or is JSONL (.jsonl, .json), TSV (.tsv) or a BEIR folder; it is gunzipped if its name
    ends in .gz. By default --bad-lines reports a line that is not a query as a failed result; skip leaves it out, and
    fatal stops before anything is run. --timeout bounds a batch (of --batch-size queries), and the wait for the server
    when opening.

    Results go to stdout or to a file, everything else to stderr: a table on a terminal, a TREC run in a .trec or .run
    file, else JSONL, in which each line is one query with its status, hits and a report of every stage. The exit code
    is 1 if any query failed; the others are written all the same. The usage of hosted rerankers is printed at the end.

    With --output it is a job, with its state in FILE.manifest.json. However it ends, --resume continues it, and the
    output will be the same: byte for byte, unless --figures adds what differs from run to run.

    With --dry-run retrieval runs, but nothing is sent to hosted rerankers, and no key is needed: the requests,
    documents and (estimated) tokens for each are printed as a table, or with --format jsonl as one line per stage.
    """
    if dry_run and output_format not in (None, TABLE, OutputFormat.JSONL):
        what = f"a dry run has no results to write as {output_format}"
        raise UsageError(what, "use table or jsonl", place="--format")
    options = RunOptions(
        texts=query or (),
        source=choose_source(query, queries),
        input_format=input_format,
        bad_lines=bad_lines,
        batch_size=batch_size,
        timeout=timeout,
        output=output,
        output_format=output_format,
        overwrite=overwrite,
        resume=resume,
        accept_changes=accept_changes,
        stop_on_failure=stop_on_failure,
        figures=figures,
        debug=debug,
    )
    options.check(config)
    pipeline = Pipeline.from_yaml(config)
    if dry_run:
        return run_dry(pipeline.dry_run(timeout=timeout), options)
    with sigterm_raises():
        if output is not None and options.is_job:
            return _run_as_job(pipeline, options, output)
        return _run_to_stream(pipeline, options)


def _run_to_stream(pipeline: Pipeline, options: RunOptions) -> int:
    """Write the answers to stdout, a table or a device, which no job can resume; return the exit code."""
    chosen = choose_format(options.output_format, options.output)
    batches = options.batches()
    started = time.perf_counter()
    pipeline.open(options.timeout)
    summary = RunSummary(pipeline.name, opened_in=time.perf_counter() - started, detailed=chosen != TABLE)
    try:
        with pipeline, open_output(options.output, options.overwrite) as stream:
            on_screen = chosen == TABLE and stream.isatty()
            write = _writer(stream, chosen, pipeline.name)
            with (
                ProgressBar(pipeline.name, options.count, hidden=stream.isatty()) as bar,
                closing(answer_batches(pipeline, batches, options)) as answers,
            ):
                bar.update(0)
                for results in answers:
                    for result in results:
                        unwritten = None
                        try:
                            write(result)
                        except OutputError as error:  # it does not fit the format, and the others are written
                            unwritten = error
                        summary.add(result, unwritten, debug=options.debug)
                    stream.flush()
                    bar.update(summary.count, summary.failed)
    except (KeyboardInterrupt, PipelineError) as error:
        summary.print(None if isinstance(error, OutputError) else options.output, unfinished=True)
        if summary.count:
            raise_as_failure(error)
        raise
    # The table of a single query shows its usage already.
    summary.print(options.output, usage=not on_screen or summary.count > 1)
    return FAILED if summary.failed else 0


def _writer(stream: TextIO, chosen: str, name: str) -> Callable[[SearchResult], object]:
    if chosen == TABLE:
        return partial(print_result, console_on(stream))
    lines = line_format(OutputFormat(chosen), name, figures=True)
    return lambda result: stream.write(lines.text(result))


def _run_as_job(pipeline: Pipeline, options: RunOptions, output: Path) -> int:
    """Start or resume the job that writes the answers to a file; return the exit code, which is for the whole job."""
    summary: RunSummary | None = None

    def show_progress(progress: JobProgress) -> None:
        nonlocal summary
        summary = summary or RunSummary(pipeline.name, opened_in=progress.opened_in, detailed=True)
        bar.update(progress.queries, progress.failed)

    def add_result(result: SearchResult, unwritten: OutputError | None) -> None:
        if summary is not None:
            summary.add(result, unwritten, debug=options.debug)

    with closing(pipeline), ProgressBar(pipeline.name, options.count) as bar:
        try:
            report = run_job(
                pipeline,
                options.source if options.source is not None and not options.texts else options.queries(),
                output,
                input_format=options.input_format,
                output_format=options.output_format,
                batch_size=options.batch_size,
                timeout=options.timeout,
                bad_lines=options.bad_lines,
                figures=options.figures,
                resume=options.resume,
                overwrite=options.overwrite,
                accept_changes=options.accept_changes,
                stop_on_failure=options.stop_on_failure,
                on_progress=show_progress,
                on_result=add_result,
                warn=print_warning,
            )
        except (KeyboardInterrupt, PipelineError) as error:
            bar.stop()
            if summary is not None:
                _print_unfinished(summary, output, error)
                if summary.count:
                    raise_as_failure(error)
            raise
    _print_finished(summary, report)
    return FAILED if report.failed else 0


def _print_unfinished(summary: RunSummary, output: Path, error: BaseException) -> None:
    """Print how far the job is, and how to continue it."""
    summary.print(None, unfinished=True)
    if not isinstance(error, OutputError | StoppedError):  # their messages say it
        manifest = read_manifest(manifest_path(output))
        done = manifest.progress.queries if manifest is not None else 0
        print_message(f"{output}: {count_text(done, 'query')} done; --resume continues with the others")


def _print_finished(summary: RunSummary | None, report: JobReport) -> None:
    """Print the outcome of the queries of this run and of the whole job."""
    failed = f", {report.failed} failed" if report.failed else ""
    queries = count_text(report.queries, "query")
    if summary is None:
        print_message(f"{report.output}: the job is complete, {queries}{failed}; nothing is left to do")
        return
    summary.print(report.output)
    whole = f"; {queries} in total, {report.before} of them before{failed}" if report.before else ""
    print_message(f"manifest: {report.manifest}{whole}")
