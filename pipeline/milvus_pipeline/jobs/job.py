"""Jobs: queries through a pipeline into a file, which go on where they were though they be killed at any moment."""

from __future__ import annotations

import hashlib
import logging
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple, TypeAlias, TypeVar

from milvus_pipeline.errors import InputError, PipelineError
from milvus_pipeline.files.queries import BadLines, InputFormat
from milvus_pipeline.files.results import FORMATS, OutputError, OutputFormat, format_of
from milvus_pipeline.jobs.batches import Item, Reading
from milvus_pipeline.jobs.claim import Claim, check_output, check_same_identity, check_same_job, claimed, differences
from milvus_pipeline.jobs.commits import CommitPoint, Commits
from milvus_pipeline.jobs.manifest import (
    Change,
    Figures,
    Input,
    Manifest,
    Options,
    Output,
    Times,
    config_of,
    identity_of,
    now,
    versions_of,
)
from milvus_pipeline.jobs.output import OutputFile
from milvus_pipeline.pipeline import Pipeline
from milvus_pipeline.records import Query, SearchResult
from milvus_pipeline.run.loop import resolve_timeout
from milvus_pipeline.text import short_repr


class JobProgress(NamedTuple):
    """How far a job is.

    Args:
        queries: number of queries done, in all runs of the job.
        before: how many of them were done before this run.
        failed: how many of them failed.
        opened_in: seconds that the pipeline took to open.
    """

    queries: int
    before: int
    failed: int
    opened_in: float


@dataclass(frozen=True, slots=True)
class JobReport:
    """What became of a job.

    Args:
        output: the file of results.
        manifest: the file that tells about the job, beside the output.
        queries: number of queries, each with one line in a JSONL output, and failed ones without a line in a TREC run.
        before: how many of them were done before this run; all of them where nothing was left to do.
        figures: counts by status and reason, usage and seconds by stage, of all runs together.
    """

    output: Path
    manifest: Path
    queries: int
    before: int
    figures: Figures

    @property
    def failed(self) -> int:
        """Number of queries that failed, or whose result could not be written."""
        return self.figures.failed


class StoppedError(PipelineError):
    """A job has stopped at a query that failed in a stage, as it was asked to."""


def answered(
    pipeline: Pipeline, batches: Iterable[Sequence[Item]], timeout: float | None
) -> Generator[list[SearchResult], None, None]:
    """The results of one batch after another, in constant memory, the stages at work on different ones.

    Args:
        pipeline: what answers; see ``Pipeline.run_batches``.
        batches: queries, and results that are there already, such as those of bad lines; read a little ahead.
        timeout: seconds that each batch may take; the pipeline's own by default.

    Yields:
        For each batch one result an item, in their order; failed queries have theirs, too.
    """
    under_way: deque[Sequence[Item]] = deque()

    def asked() -> Iterator[list[Query]]:
        for batch in batches:
            under_way.append(batch)
            yield [item for item in batch if isinstance(item, Query)]

    stream = pipeline.run_batches(asked(), timeout=timeout, return_errors=True)
    try:
        for found in stream:
            answers = iter(found)
            yield [next(answers) if isinstance(item, Query) else item for item in under_way.popleft()]
    finally:
        stream.close()


logger = logging.getLogger(__name__)


OnProgress: TypeAlias = Callable[[JobProgress], None]
OnResult: TypeAlias = Callable[[SearchResult, OutputError | None], None]


def run_job(
    pipeline: Pipeline,
    queries: str | Path | Iterable[str | Item],
    output: str | Path,
    *,
    input_format: InputFormat | str | None = None,
    output_format: OutputFormat | str | None = None,
    batch_size: int = 32,
    timeout: float | None = None,
    bad_lines: BadLines | str = BadLines.REPORT,
    figures: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    accept_changes: bool = False,
    stop_on_failure: bool = False,
    on_progress: OnProgress | None = None,
    on_result: OnResult | None = None,
    warn: Callable[[str], None] = logger.warning,
) -> JobReport:
    """Answer any number of queries into a file, in constant memory; ``docs/jobs.md`` tells what can be relied on.

    A manifest stands beside the output, ``OUTPUT.manifest.json``. A job that ended before its queries did, however it
    ended, goes on where it was if it is run again with ``resume``: its output is that of a job that was left alone.

    The pipeline is opened where it is closed, and left open, as by ``run_batch``.

    Args:
        pipeline: what answers.
        queries: a file (``-`` is stdin), or the queries themselves, which are gone through once; those without an id
            have their place, from 1, for one. To resume, the same ones again; there may be more of them at the end.
        output: the file of results; gzipped where its name ends in ``.gz``.
        input_format: how to read a file of queries; as its name says by default.
        output_format: JSONL or a TREC run; as the output's name says by default.
        batch_size: number of queries that go through the pipeline together.
        timeout: seconds that a batch may take; the pipeline's own by default.
        bad_lines: "report" makes a failed result of a line that is no query, "skip" leaves it out, "fatal" ends the
            job before it begins.
        figures: write what differs from run to run (seconds, batch sizes, usage, scores from a cache) into the lines.
        resume: go on with the job whose output and manifest these are; begin where there is none.
        overwrite: begin anew, also where the output exists.
        accept_changes: resume though stages work with something else than before (a collection that has grown, say).
        stop_on_failure: end the job where a query fails in a stage; its batch is not written, so that the job can be
            resumed once what failed is repaired.
        on_progress: told after each batch, and once when the pipeline is open.
        on_result: given each result when it is written, with the reason where it does not fit the format.
        warn: told what the user should know.

    Raises:
        InputError: queries, output or manifest are not what the job needs, nothing was run; ResumeError where it is
            no longer the same job.
        StageError: the pipeline cannot be opened; the output is as it was.
        OutputError: the output cannot be written any more, such as where the disk is full.
        StoppedError: a query failed, and the job was to stop there.
    """
    path = Path(output)
    form = format_of(path) if output_format is None else _word(OutputFormat, "output_format", output_format)
    chosen = None if input_format is None else _word(InputFormat, "input_format", input_format)
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise InputError(f"batch_size: must be a whole number of at least 1, is {short_repr(batch_size)}")
    options = Options(
        batch_size=batch_size,
        timeout=resolve_timeout(timeout, None),
        bad_lines=_word(BadLines, "bad_lines", bad_lines),
        figures=bool(figures),
    )
    told = Output(path=str(path), format=form, gzip=path.suffix == ".gz")
    source = Path(queries) if isinstance(queries, str | Path) else None
    claim = claimed(path, source, resume=resume, overwrite=overwrite)
    job = _Job(pipeline, options, told, claim, on_progress, on_result, warn)
    try:
        return job.run(queries, chosen, accept_changes, stop_on_failure)
    finally:
        job.close()


_Word = TypeVar("_Word", bound=StrEnum)


def _word(kind: type[_Word], name: str, given: str) -> _Word:
    """The member that is meant. InputError where there is none."""
    try:
        return kind(given)
    except ValueError:
        words = ", ".join(repr(member.value) for member in kind)
        raise InputError(f"must be one of {words}, is {short_repr(given)}", place=name) from None


class _Job:
    """One run of a job, from its claim to its report."""

    def __init__(
        self,
        pipeline: Pipeline,
        options: Options,
        told: Output,
        claim: Claim,
        on_progress: OnProgress | None,
        on_result: OnResult | None,
        warn: Callable[[str], None],
    ) -> None:
        self._pipeline = pipeline
        self._options = options
        self._told = told
        self._claim = claim
        self._output = claim.output
        self._on_progress = on_progress
        self._on_result = on_result
        self._warn = warn
        self._before = claim.manifest.progress.queries if claim.manifest else 0

    def close(self) -> None:
        """Let go of the output."""
        if self._output is not None:
            self._output.close()

    def run(
        self,
        queries: str | Path | Iterable[str | Item],
        input_format: InputFormat | None,
        accept_changes: bool,
        stop_on_failure: bool,
    ) -> JobReport:
        """Find out where the job stands, do what is left of it, and report."""
        reading = Reading(queries, input_format, self._options.bad_lines, self._warn)
        manifest = self._claim.manifest
        if manifest is None or self._output is None:
            if not reading.has_more():
                raise InputError(f"no queries given: {reading.name} holds none")
            nothing = hashlib.sha256()
            point = CommitPoint(0, 0, nothing, nothing, Figures(), 0.0)
        else:
            check_same_job(self._claim.path, manifest, config_of(self._pipeline), self._options, self._told)
            check_output(self._output, manifest)
            asked = reading.passed_over(self._claim.path, manifest)
            if asked is None:
                return self._report(manifest.progress.queries, manifest.figures)
            progress, figures = manifest.goes_on_from.progress, manifest.goes_on_from.figures
            written = self._output.digest(progress.bytes)
            point = CommitPoint(progress.queries, progress.bytes, asked, written, figures, figures.seconds)
            self._before = point.queries
        started = time.perf_counter()
        self._pipeline.open(self._options.timeout)
        opened_in = time.perf_counter() - started
        commits = self._begun(self._manifest(reading.told, point, accept_changes), point)
        self._work(reading, commits, opened_in, stop_on_failure)
        return self._report(commits.point.queries, commits.point.told().figures)

    def _manifest(self, source: Input, point: CommitPoint, accept_changes: bool) -> Manifest:
        """What the manifest of this run tells. ResumeError where it is no longer the same job."""
        told = point.told()
        manifest = Manifest(
            state="running",
            config=config_of(self._pipeline),
            identity=identity_of(self._pipeline),
            versions=versions_of(self._pipeline),
            input=source,
            output=self._told,
            options=self._options,
            times=Times(began=now(), written=now()),
            progress=told.progress,
            figures=told.figures,
        )
        was = self._claim.manifest
        if was is None:
            return manifest
        changed = check_same_identity(self._claim.path, was.identity, manifest.identity, accept_changes)
        other = list(differences(was.versions, manifest.versions, "versions"))
        for line in [*changed, *other]:
            self._warn(f"{self._claim.path}: resumed, though this differs: {line}")
        changes = [Change(queries=point.queries, differences=[*changed, *other])] if changed or other else []
        return manifest.model_copy(
            update={
                "times": was.times,
                "resumptions": was.resumptions + 1,
                "changes": [*was.changes, *changes],
            }
        )

    def _begun(self, manifest: Manifest, point: CommitPoint) -> Commits:
        """The output, made where it is not there, and the first manifest."""
        made = self._output is None
        output = self._output = self._output or OutputFile(self._claim.path, new=True)
        lines = FORMATS[OutputFormat(self._told.format)].writer(self._pipeline.name, self._options.figures)
        commits = Commits(output, self._claim.manifest_at, manifest, point, lines, self._options.batch_size)
        try:
            commits.begin()
        except BaseException:
            if made:
                output.path.unlink(missing_ok=True)
            raise
        lines.resume(output.lines(gzipped=self._told.gzip))
        return commits

    def _work(self, reading: Reading, commits: Commits, opened_in: float, stop_on_failure: bool) -> None:
        """Answer what is left, and write it."""
        batches = reading.batches(self._options.batch_size)
        with closing(answered(self._pipeline, batches, self._options.timeout)) as stream:
            try:
                self._tell(commits, opened_in)
                for results in stream:
                    if stop_on_failure:
                        _check_none_failed(results, commits.point.queries)
                    unwritten = commits.add(results, reading.digests.popleft())
                    if self._on_result is not None:
                        for result, error in zip(results, unwritten, strict=True):
                            self._on_result(result, error)
                    self._tell(commits, opened_in)
                commits.finish()
            except BaseException as error:
                commits.halt("interrupted" if isinstance(error, KeyboardInterrupt) else "failed")
                raise

    def _tell(self, commits: Commits, opened_in: float) -> None:
        if self._on_progress is not None:
            point = commits.point
            self._on_progress(JobProgress(point.queries, self._before, point.figures.failed, opened_in))

    def _report(self, queries: int, figures: Figures) -> JobReport:
        return JobReport(self._claim.path, self._claim.manifest_at, queries, self._before, figures)


def _check_none_failed(results: Sequence[SearchResult], done: int) -> None:
    """StoppedError where a query of the batch failed in a stage; ``done`` queries are written before it."""
    for result in results:
        if result.error is not None and any(report.status == "failed" for report in result.reports):
            raise StoppedError(
                (f"{result.error}\nthe job has stopped before the batch of this query, as it was asked to"),
                f"done so far: {done}. Once this is repaired, --resume goes on with the others",
                place=f"query {result.query.id}",
            ) from result.error
