"""Options that several commands have, and the options and queries of ``run``."""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Annotated, Literal

import typer

from milvus_pipeline.cli.exit_codes import UsageError, print_warning
from milvus_pipeline.cli.writers import TABLE, check_output
from milvus_pipeline.files.lines import STDIN
from milvus_pipeline.files.queries import BadLines, InputFormat, count_queries, read_queries
from milvus_pipeline.jobs.claim import check_place
from milvus_pipeline.jobs.job import answer
from milvus_pipeline.pipeline import Pipeline
from milvus_pipeline.records import Query, SearchResult
from milvus_pipeline.run.dry_run import DryRun

Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="The pipeline, a YAML file.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace output files that exist.")]
QueryFormat = Annotated[
    InputFormat | None, typer.Option("--input-format", help="Format of the queries; by default that of the file name.")
]
TableOrJson = Annotated[Literal["table", "json"], typer.Option("--format", help="A table, or one JSON document.")]
Timeout = Annotated[
    float | None, typer.Option(min=0.001, help="Seconds that a batch may take; by default those of the configuration.")
]

Batch = Sequence[Query | SearchResult]
Answers = Generator[list[SearchResult], None, None]


@dataclass(frozen=True, slots=True)
class RunOptions:
    """The options of ``run``; ``source`` is the file of the queries besides ``texts``, None if there is none."""

    texts: Sequence[str]
    source: Path | None
    input_format: InputFormat | None
    bad_lines: BadLines
    batch_size: int
    timeout: float | None
    output: Path | None
    output_format: str | None
    overwrite: bool
    resume: bool
    accept_changes: bool
    stop_on_failure: bool
    figures: bool
    debug: bool

    @property
    def is_job(self) -> bool:
        """Whether the results go to a file that a job can resume: not a table, a device or a pipe."""
        path = self.output
        return path is not None and self.output_format != TABLE and (path.is_file() or not path.exists())

    def check(self, config: Path) -> None:
        """Check before any work that the results can be written.

        Args:
            config: the file of the pipeline.

        Raises:
            UsageError: they cannot, or options of a job are given without one.
            InputError: a job can neither begin nor be resumed there.
        """
        if self.accept_changes and not self.resume:
            raise UsageError("applies only to a job that is resumed", "pass --resume too", place="--accept-changes")
        if self.output is not None and self.output.is_file() and config.is_file() and self.output.samefile(config):
            raise UsageError("is the configuration itself", "write to another file", place=str(self.output))
        if self.output is not None and self.is_job:
            check_place(self.output, self.source, resume=self.resume, overwrite=self.overwrite)
            return
        for option, given in (("--resume", self.resume), ("--stop-on-failure", self.stop_on_failure)):
            if given:
                step = "pass --output FILE too, for JSONL or a TREC run"
                raise UsageError("applies only to a job", step, place=option)
        check_output(self.output, self.overwrite, self.source)

    def queries(self) -> Iterator[Query | SearchResult]:
        """Yield the queries of the command line, then those of the source, numbered through."""
        for number, text in enumerate(self.texts, start=1):
            yield Query(text, id=str(number))
        if self.source is not None:
            first = len(self.texts) + 1
            yield from read_queries(
                self.source, self.input_format, bad_lines=self.bad_lines, warn=print_warning, first=first
            )

    def batches(self) -> Iterator[Batch]:
        """Return the queries in batches, and read the first one at once. UsageError if there is none."""
        queries = self.queries()
        batches = iter(lambda: list(islice(queries, self.batch_size)), [])
        first = next(batches, None)
        if first is None:
            raise UsageError("no queries given", f"{'stdin' if self.source == STDIN else self.source} is empty")
        return chain([first], batches)

    def count(self) -> int | None:
        """Return the number of queries, if it can be known beforehand."""
        if self.source is None:
            return len(self.texts)
        count = count_queries(self.source, self.input_format, bad_lines=self.bad_lines)
        return None if count is None else len(self.texts) + count


def choose_source(texts: Sequence[str] | None, queries: Path | None) -> Path | None:
    """Return the file to read queries from; stdin by default. UsageError if that is a terminal."""
    if queries is not None or texts:
        return queries
    if sys.stdin.isatty():
        step = "pass --query TEXT or --queries FILE, or pipe them in, one per line"
        raise UsageError("no queries given", step)
    return STDIN


def answer_batch(pipeline: Pipeline | DryRun, batch: Batch, timeout: float | None) -> list[SearchResult]:
    """Return the results of a batch in its order; a query that could not be read passes through as failed."""
    queries = [item for item in batch if isinstance(item, Query)]
    found = iter(pipeline.run_batch(queries, timeout=timeout, return_errors=True))
    return [next(found) if isinstance(item, Query) else item for item in batch]


def answer_batches(pipeline: Pipeline, batches: Iterator[Batch], options: RunOptions) -> Answers:
    """Return the results of one batch after another.

    If queries can be read ahead of the results, stages work on different batches at the same time. From a pipe they
    cannot: a user who types queries waits for one answer before the next query.
    """
    if options.source is None or options.source.is_file():
        return answer(pipeline, batches, options.timeout)
    return (answer_batch(pipeline, batch, options.timeout) for batch in batches)
