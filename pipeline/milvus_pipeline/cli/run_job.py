"""``milvus-pipeline run --output FILE``: a job, followed on the terminal."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from milvus_pipeline.cli.exit_codes import FAILED, check_nothing_run, tell
from milvus_pipeline.cli.options import Asked, count_of, read_items, tell_warning
from milvus_pipeline.cli.progress import JobBar
from milvus_pipeline.cli.summary import Tally
from milvus_pipeline.errors import PipelineError
from milvus_pipeline.files.results import OutputError
from milvus_pipeline.jobs.job import JobProgress, JobReport, StoppedError, run_job
from milvus_pipeline.jobs.manifest import manifest_path, read_manifest
from milvus_pipeline.pipeline import Pipeline
from milvus_pipeline.records import SearchResult
from milvus_pipeline.text import count_text


def run_as_job(pipeline: Pipeline, asked: Asked, output: Path) -> int:
    """Answer the queries into a file, or go on with it; the exit code, which stands for the whole job."""
    queries = asked.source if asked.source is not None and not asked.texts else read_items(asked)
    with closing(pipeline), JobBar(pipeline.name, lambda: count_of(asked)) as bar:
        seen = _Seen(pipeline.name, bar, asked.debug)
        try:
            report = run_job(
                pipeline,
                queries,
                output,
                input_format=asked.input_format,
                output_format=asked.output_format,
                batch_size=asked.batch_size,
                timeout=asked.timeout,
                bad_lines=asked.bad_lines,
                figures=asked.figures,
                resume=asked.resume,
                overwrite=asked.overwrite,
                accept_changes=asked.accept_changes,
                stop_on_failure=asked.stop_on_failure,
                on_progress=seen.progress,
                on_result=seen.result,
                warn=tell_warning,
            )
        except (KeyboardInterrupt, PipelineError) as error:
            bar.stop()
            seen.tell_unfinished(output, error)
            check_nothing_run(error, seen.count)
            raise
        bar.stop()
    seen.tell_finished(report)
    return FAILED if report.failed else 0


class _Seen:
    """What was seen of a job, to be told when it is over."""

    def __init__(self, name: str, bar: JobBar, debug: bool) -> None:
        self._name = name
        self._bar = bar
        self._debug = debug
        self._tally: Tally | None = None

    @property
    def count(self) -> int:
        """Number of queries that were answered in this run."""
        return 0 if self._tally is None else self._tally.count

    def progress(self, done: JobProgress) -> None:
        """The job is so far."""
        if self._tally is None:
            self._tally = Tally(self._name, opened_in=done.opened_in, told=True)
        self._bar.update(done.queries, done.failed)

    def result(self, result: SearchResult, unwritten: OutputError | None) -> None:
        """A result was written, or does not fit the format."""
        if self._tally is not None:
            self._tally.add(result, unwritten, debug=self._debug)

    def tell_unfinished(self, output: Path, error: BaseException) -> None:
        """Say how far the job is, and how it goes on; nothing where it has not begun."""
        if self._tally is None:
            return
        self._tally.summarize(None, cut_short=True)
        if not isinstance(error, OutputError | StoppedError):  # which say so themselves
            manifest = read_manifest(manifest_path(output))
            done = manifest.progress.queries if manifest is not None else 0
            tell(f"{output}: {count_text(done, 'query')} done; --resume goes on with the others")

    def tell_finished(self, report: JobReport) -> None:
        """Say what became of the queries, of this run and of the job."""
        others = f", {report.failed} failed" if report.failed else ""
        if self._tally is None:
            done = f"{count_text(report.queries, 'query')}{others}"
            tell(f"{report.output}: the job is complete, {done}; nothing is left to do")
            return
        self._tally.summarize(report.output)
        whole = (
            f": {count_text(report.queries, 'query')} in all, {report.before} of them before{others}"
            if report.before
            else ""
        )
        tell(f"{report.manifest} tells about the job{whole}")
