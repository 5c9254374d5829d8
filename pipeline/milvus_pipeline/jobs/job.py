"""Jobs: queries through a pipeline into a file. A job that was killed at any moment goes on where it was."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain, islice, tee
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeVar

from pydantic import ValidationError

from milvus_pipeline.context import resolve_timeout
from milvus_pipeline.errors import InputError, PipelineError
from milvus_pipeline.files.lines import read_lines
from milvus_pipeline.files.plain import plain
from milvus_pipeline.files.queries import BadLines, InputFormat, input_format_of, read_queries, source_file
from milvus_pipeline.files.results import OutputError, OutputFormat, format_of, line_format
from milvus_pipeline.jobs.claim import ResumeError, check_output, check_place, check_same_job, differences, manifest_of
from milvus_pipeline.jobs.commits import Commits, Item, add_to_digest
from milvus_pipeline.jobs.manifest import (
    Change,
    Figures,
    Input,
    Manifest,
    Options,
    Output,
    Point,
    Progress,
    Times,
    identity_of,
    manifest_path,
    now,
    versions_of,
)
from milvus_pipeline.jobs.output import OutputFile
from milvus_pipeline.pipeline import Pipeline
from milvus_pipeline.problems import problems_of
from milvus_pipeline.records import Query, SearchResult
from milvus_pipeline.text import count_text

if TYPE_CHECKING:
    from hashlib import _Hash as Hash

logger = logging.getLogger(__name__)


class JobProgress(NamedTuple):
    """How far a job is.

    Args:
        queries: number of queries done, in all runs of the job.
        before: how many of them were done before this run.
        failed: how many of them failed.
        opened_in: seconds that opening the pipeline took.
    """

    queries: int
    before: int
    failed: int
    opened_in: float


@dataclass(frozen=True, slots=True)
class JobReport:
    """The outcome of a job.

    Args:
        output: the file of results.
        manifest: the file that describes the job, next to the output.
        queries: number of queries, each with one line in a JSONL output; in a TREC run failed ones have no line.
        before: how many of them were done before this run; all if nothing was left to do.
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
    """A job has stopped at a query that failed in a stage, as requested."""


OnProgress: TypeAlias = Callable[[JobProgress], None]
OnResult: TypeAlias = Callable[[SearchResult, OutputError | None], None]


def answer(
    pipeline: Pipeline, batches: Iterable[Sequence[Item]], timeout: float | None
) -> Generator[list[SearchResult], None, None]:
    """Yield the results of one batch after another, in constant memory, with stages at work on different batches.

    Args:
        pipeline: answers the queries; see ``Pipeline.run_batches``.
        batches: queries, and finished results such as those of bad lines; read a little ahead.
        timeout: seconds that each batch may take; the pipeline's own by default.

    Yields:
        For each batch one result an item, in their order, failed ones included.
    """
    answered, asked = tee(batches)
    queries = ([item for item in batch if isinstance(item, Query)] for batch in answered)
    with closing(pipeline.run_batches(queries, timeout=timeout, return_errors=True)) as stream:
        for found, batch in zip(stream, asked, strict=False):
            results = iter(found)
            yield [next(results) if isinstance(item, Query) else item for item in batch]


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
    """Answer any number of queries into a file, in constant memory. ``docs/jobs.md`` has the guarantees.

    A manifest is next to the output, ``OUTPUT.manifest.json``. A job that ended early, for whatever reason, goes on
    where it was if it is run again with ``resume``: its output is that of a job that was never interrupted.

    The pipeline is opened if it is closed, and left open, as by ``run_batch``.

    Args:
        pipeline: answers the queries.
        queries: a file (``-`` is stdin), or the queries themselves, which are iterated once; those without an id get
            their place, from 1. To resume, the same ones again; there may be more of them at the end.
        output: the file of results; gzipped if its name ends in ``.gz``.
        input_format: how to read a file of queries; by default as its name says.
        output_format: JSONL or a TREC run; by default as the output's name says.
        batch_size: number of queries that go through the pipeline together.
        timeout: seconds that a batch may take; the pipeline's own by default.
        bad_lines: "report" makes a failed result of a line that is not a query, "skip" leaves it out, "fatal" ends the
            job before it starts.
        figures: include in the lines what differs from run to run (seconds, batch sizes, usage, scores from a cache).
        resume: go on with the job whose output and manifest these are; start one if there is none.
        overwrite: start again, also if the output exists.
        accept_changes: resume although stages work with something else than before (a collection that has grown).
        stop_on_failure: end the job if a query fails in a stage; its batch is not written, so that the job can be
            resumed once the cause is fixed.
        on_progress: called after each batch, and once when the pipeline is open.
        on_result: called with each result when it is written, and the reason if it does not fit the format.
        warn: called with what the user should know.

    Raises:
        InputError: queries, output or manifest are not what the job needs, and nothing was run; ResumeError if it is
            no longer the same job.
        StageError: the pipeline cannot be opened; the output is unchanged.
        OutputError: the output can no longer be written, for example because the disk is full.
        StoppedError: a query failed, and the job was to stop there.
    """
    path = Path(output)
    seconds = resolve_timeout(timeout, None)
    options = _checked(Options, batch_size=batch_size, timeout=seconds, bad_lines=bad_lines, figures=bool(figures))
    described = _checked(Output, path=str(path), format=output_format or format_of(path), gzip=path.suffix == ".gz")
    file = source_file(Path(queries)) if isinstance(queries, str | Path) else None
    source = _checked(Input, path=file and str(file), format=input_format or (file and input_format_of(file)))
    check_place(path, file, resume=resume, overwrite=overwrite)
    existing = OutputFile(path, new=False) if path.exists() else None
    with closing(_Job(pipeline, source, options, described, path, existing, on_progress, on_result, warn)) as job:
        items = _Queries(queries, source.format, options.bad_lines, warn)
        return job.run(items, manifest_of(path, existing) if resume else None, accept_changes, stop_on_failure)


_Part = TypeVar("_Part", Input, Options, Output)


def _checked(part: type[_Part], **fields: Any) -> _Part:
    """Return this part of a manifest. Raise InputError if a parameter of the job does not fit it."""
    try:
        return part(**fields)
    except ValidationError as error:
        problems = (str(problem.under([part.__name__.lower()])) for problem in problems_of(error, part))
        raise InputError("; ".join(problems)) from error


class _Queries:
    """The queries of a job, each read once, and none before it is needed.

    Args:
        queries: a file, ``-`` for stdin, or the queries themselves.
        input_format: how to read a file.
        bad_lines: what is done about a line that is not a query; see ``BadLines``.
        warn: called with what the user should know, except about queries that were done before a resumption.
    """

    def __init__(
        self,
        queries: str | Path | Iterable[str | Item],
        input_format: InputFormat | None,
        bad_lines: BadLines,
        warn: Callable[[str], None],
    ) -> None:
        def warn_of_new(message: str) -> None:
            if not self._muted:
                warn(message)

        self._muted = False
        if isinstance(queries, str | Path):
            queries = read_queries(queries, input_format, bad_lines=bad_lines, warn=warn_of_new)
        self._items = _with_ids(queries)

    def has_more(self) -> bool:
        """Whether there is a query left. Reads it."""
        for item in self._items:
            self._items = chain([item], self._items)
            return True
        return False

    def batches(self, size: int) -> Iterator[list[Item]]:
        """Yield the remaining queries in batches of ``size``; the last may be smaller."""
        while batch := list(islice(self._items, size)):
            yield batch

    def skip_done(self, path: Path, manifest: Manifest) -> Hash | None:
        """Skip the whole batches that are done. Return the digest of their queries.

        Returns:
            None if the job is complete and nothing is left.

        Raises:
            ResumeError: these are not the queries that were done.
        """
        done, start = manifest.progress, manifest.goes_on_from.progress
        digest = hashlib.sha256()
        self._muted = True
        count = add_to_digest(digest, islice(self._items, start.queries))
        digest_of_start = digest.copy()
        rest = list(islice(self._items, done.queries - start.queries))  # of the last batch, if it was not full
        self._muted = False
        count += add_to_digest(digest, rest)
        changed = ""
        if count < done.queries:
            changed = f"there are only {count} of the {done.queries} that are done"
        elif digest.hexdigest() != done.input_sha256:
            changed = f"the first {done.queries} are no longer the same"
        if changed:
            step = "give the same queries, with new ones only at the end"
            raise ResumeError([f"the queries have changed: {changed}"], step, place=str(path))
        if manifest.state == "complete" and not self.has_more():
            return None
        self._items = chain(rest, self._items)
        return digest_of_start


def _with_ids(items: Iterable[str | Item]) -> Iterator[Item]:
    """Yield the queries, each with an id: its own, else its place, from 1."""
    for place, item in enumerate(items, start=1):
        query = Query(item) if isinstance(item, str) else item
        yield replace(query, id=str(place)) if isinstance(query, Query) and query.id is None else query


@dataclass
class _Job:
    """One run of a job, from its start or resumption to its report."""

    _pipeline: Pipeline
    _source: Input
    _options: Options
    _described: Output
    _path: Path
    _output: OutputFile | None
    _on_progress: OnProgress | None
    _on_result: OnResult | None
    _warn: Callable[[str], None]
    _before: int = 0
    _opened_in: float = 0.0

    def close(self) -> None:
        """Close the output."""
        if self._output is not None:
            self._output.close()

    def run(
        self, queries: _Queries, resumed: Manifest | None, accept_changes: bool, stop_on_failure: bool
    ) -> JobReport:
        """Find out how far the job is, do the rest, and report."""
        config: dict[str, Any] = plain(self._pipeline.to_config())
        input_digest = hashlib.sha256()
        if resumed is None or self._output is None:
            if not queries.has_more():
                path = self._source.path
                raise InputError("no queries given", place="stdin" if path == "-" else path or "the iterable")
            nothing = hashlib.sha256().hexdigest()
            progress = Progress(queries=0, bytes=0, input_sha256=nothing, output_sha256=nothing)
            start = Point(progress=progress, figures=Figures())
        else:
            check_same_job(self._path, resumed, config, self._options, self._described)
            check_output(self._output, resumed)
            digest = queries.skip_done(self._path, resumed)
            if digest is None:
                self._before = resumed.progress.queries
                return self._report(resumed.figures)
            input_digest, start = digest, resumed.goes_on_from
        self._before = start.progress.queries
        started = time.perf_counter()
        self._pipeline.open(self._options.timeout)
        self._opened_in = time.perf_counter() - started
        manifest = Manifest(
            state="running",
            config=config,
            identity=identity_of(self._pipeline),
            versions=versions_of(self._pipeline),
            input=self._source,
            output=self._described,
            options=self._options,
            times=Times(began=now(), written=now()),
            progress=start.progress,
            figures=start.figures,
        )
        if resumed is not None:
            manifest = self._resume(manifest, resumed, accept_changes)
        commits = self._begin(manifest, input_digest)
        self._work(queries, commits, stop_on_failure)
        return self._report(commits.point.figures)

    def _resume(self, manifest: Manifest, was: Manifest, accept_changes: bool) -> Manifest:
        """Return the manifest with the history of the job. Raise ResumeError if stages work with something else."""
        changed = list(differences(was.identity, manifest.identity))
        if changed and not accept_changes:
            raise ResumeError(changed, "pass --accept-changes to go on anyway", place=str(self._path))
        changed += differences(was.versions, manifest.versions, "versions")
        for line in changed:
            self._warn(f"{self._path}: resumed, although this differs: {line}")
        changes = [*was.changes, Change(queries=self._before, differences=changed)] if changed else was.changes
        times = manifest.times.model_copy(update={"began": was.times.began})
        return manifest.model_copy(update={"times": times, "resumptions": was.resumptions + 1, "changes": changes})

    def _begin(self, manifest: Manifest, input_digest: Hash) -> Commits:
        """Create the output if it does not exist, and write the first manifest."""
        new = self._output is None
        output = self._output = self._output or OutputFile(self._path, new=True)
        lines = line_format(self._described.format, self._pipeline.name, figures=self._options.figures)
        commits = Commits(output, manifest_path(self._path), manifest, input_digest, lines)
        try:
            commits.begin()
        except BaseException:
            if new:
                output.path.unlink(missing_ok=True)
            raise
        lines.resume(line.raw for line in read_lines(self._path))
        return commits

    def _work(self, queries: _Queries, commits: Commits, stop_on_failure: bool) -> None:
        """Answer the remaining queries, and write the results."""
        answered, asked = tee(queries.batches(self._options.batch_size))
        with closing(answer(self._pipeline, answered, self._options.timeout)) as stream:
            try:
                self._report_progress(commits)
                for results, batch in zip(stream, asked, strict=False):
                    if stop_on_failure:
                        _check_none_failed(results, commits.point.progress.queries)
                    unwritten = commits.add(batch, results)
                    if self._on_result is not None:
                        for result, error in zip(results, unwritten, strict=True):
                            self._on_result(result, error)
                    self._report_progress(commits)
                commits.finish()
            except BaseException as error:
                commits.halt("interrupted" if isinstance(error, KeyboardInterrupt) else "failed")
                raise

    def _report_progress(self, commits: Commits) -> None:
        if self._on_progress is not None:
            point = commits.point
            self._on_progress(JobProgress(point.progress.queries, self._before, point.figures.failed, self._opened_in))

    def _report(self, figures: Figures) -> JobReport:
        return JobReport(self._path, manifest_path(self._path), figures.queries, self._before, figures)


def _check_none_failed(results: Sequence[SearchResult], done: int) -> None:
    """Raise StoppedError if a query of the batch failed in a stage; ``done`` queries are written before it."""
    for result in results:
        if result.error is not None and any(report.status == "failed" for report in result.reports):
            raise StoppedError(
                f"{result.error}\nthe job has stopped before the batch of this query, as requested",
                f"{count_text(done, 'query')} done. Once the cause is fixed, --resume goes on with the others",
                place=f"query {result.query.id}",
            ) from result.error
