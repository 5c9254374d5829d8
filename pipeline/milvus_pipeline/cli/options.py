"""What ``run`` is asked to do, and its queries: where they come from, how many, in batches."""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple, Protocol

from milvus_pipeline.cli.exit_codes import UsageError, tell
from milvus_pipeline.cli.writers import TABLE, check_output
from milvus_pipeline.files.lines import STDIN
from milvus_pipeline.files.queries import BadLines, InputFormat, QueryReader
from milvus_pipeline.jobs.claim import check_place
from milvus_pipeline.jobs.job import answer
from milvus_pipeline.pipeline import Pipeline
from milvus_pipeline.records import Query, SearchResult

Batch = Sequence[Query | SearchResult]
Answers = Generator[list[SearchResult], None, None]


class Asked(NamedTuple):
    """What the command line asks for; the fields are its options."""

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


class Answering(Protocol):
    """What answers a batch: a pipeline, or its dry run."""

    def run_batch(
        self, queries: Sequence[Query], *, timeout: float | None, return_errors: bool
    ) -> Sequence[SearchResult]:
        """One result a query, in their order."""


def source_of(texts: Sequence[str] | None, queries: Path | None) -> Path | None:
    """Where queries are read from besides the command line. UsageError where nothing is given."""
    if queries is not None or texts:
        return queries
    if sys.stdin.isatty():
        raise UsageError("no queries given: pass --query TEXT or --queries FILE, or pipe them in, one a line")
    return STDIN


def is_job(asked: Asked) -> bool:
    """Whether the results go to a file that can be gone on with: no table, no device, no pipe."""
    path = asked.output
    return path is not None and asked.output_format != TABLE and (path.is_file() or not path.exists())


def check_asked(asked: Asked, config: Path) -> None:
    """Find out before any work whether the results can be written where they are to go.

    Args:
        asked: what the command line asks for.
        config: the file of the pipeline.

    Raises:
        UsageError: they cannot, or options of a job are given without one.
        InputError: a job can neither begin there nor be gone on with.
    """
    if asked.accept_changes and not asked.resume:
        raise UsageError("--accept-changes: is for a job that is resumed", "pass it with --resume")
    if asked.output is not None and asked.output.is_file() and config.is_file() and asked.output.samefile(config):
        raise UsageError("is the configuration itself", "write to another file", place=str(asked.output))
    if asked.output is None or not is_job(asked):
        for option in ("resume", "stop_on_failure"):
            if getattr(asked, option):
                name = option.replace("_", "-")
                raise UsageError(
                    "is for a job", "pass --output FILE with it, for JSONL or a TREC run", place=f"--{name}"
                )
        check_output(asked.output, asked.overwrite, asked.source)
        return
    check_place(asked.output, asked.source, resume=asked.resume, overwrite=asked.overwrite)


def read_batches(asked: Asked) -> Iterator[Batch]:
    """The queries in batches, the first of which is read at once. UsageError where there is none."""
    batches = _batches(read_items(asked), asked.batch_size)
    first = next(batches, None)
    if first is None:
        raise UsageError(f"no queries given: {'stdin' if asked.source == STDIN else asked.source} holds none")
    return chain([first], batches)


def answers(answering: Answering, batch: Batch, timeout: float | None) -> list[SearchResult]:
    """The results of a batch in its order; what failed when it was read passes through."""
    queries = [item for item in batch if isinstance(item, Query)]
    found = iter(answering.run_batch(queries, timeout=timeout, return_errors=True))
    return [next(found) if isinstance(item, Query) else item for item in batch]


def answered_batches(pipeline: Pipeline, batches: Iterator[Batch], asked: Asked) -> Answers:
    """The results of one batch after another.

    Stages are at work on different batches where queries can be read ahead of the results. Whoever types queries into
    a pipe waits for the answer to one before the next.
    """
    if asked.source is None or asked.source.is_file():
        return answer(pipeline, batches, asked.timeout)
    return (answers(pipeline, batch, asked.timeout) for batch in batches)


def count_of(asked: Asked) -> int | None:
    """Number of queries, where it can be known beforehand."""
    if asked.source is None:
        return len(asked.texts)
    count = QueryReader(asked.source, asked.input_format, bad_lines=asked.bad_lines).count()
    return None if count is None else len(asked.texts) + count


def read_items(asked: Asked) -> Iterator[Query | SearchResult]:
    """The queries of the command line, then those of the source, numbered through."""
    for place, text in enumerate(asked.texts, start=1):
        yield Query(text, id=str(place))
    if asked.source is not None:
        first = len(asked.texts) + 1
        yield from QueryReader(
            asked.source, asked.input_format, bad_lines=asked.bad_lines, warn=tell_warning, first=first
        )


def tell_warning(message: str) -> None:
    """Write a warning to stderr."""
    tell(f"warning: {message}")


def _batches(items: Iterator[Query | SearchResult], size: int) -> Iterator[Batch]:
    while batch := list(islice(items, size)):
        yield batch
