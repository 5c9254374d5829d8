"""``milvus-pipeline run --output FILE``: a job, with its progress and summary on stderr."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from milvus_pipeline.cli.exit_codes import FAILED, print_message, print_warning, raise_as_failure
from milvus_pipeline.cli.options import RunOptions
from milvus_pipeline.cli.progress import ProgressBar
from milvus_pipeline.cli.summary import RunSummary
from milvus_pipeline.errors import PipelineError
from milvus_pipeline.files.results import OutputError
from milvus_pipeline.jobs.job import JobProgress, JobReport, StoppedError, run_job
from milvus_pipeline.jobs.manifest import manifest_path, read_manifest
from milvus_pipeline.pipeline import Pipeline
from milvus_pipeline.records import SearchResult
from milvus_pipeline.text import count_text


def run_as_job(pipeline: Pipeline, options: RunOptions, output: Path) -> int:
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
