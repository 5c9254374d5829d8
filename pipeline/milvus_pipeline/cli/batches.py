"""What ``run`` is asked to do, and its queries in batches: where they come from, how many, what is answered."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple, Protocol

from milvus_pipeline.cli.faults import UsageError, tell
from milvus_pipeline.cli.outputs import Format
from milvus_pipeline.jobs.lines import STDIN
from milvus_pipeline.jobs.queries import InputFormat, QueryReader, survey
from milvus_pipeline.records import Query, SearchResult

Batch = Sequence[Query | SearchResult]


class Job(NamedTuple):
    """What the command line asks for; the fields are its options."""

    texts: Sequence[str]
    source: Path | None
    input_format: InputFormat | None
    batch_size: int
    timeout: float | None
    output: Path | None
    output_format: Format | None
    overwrite: bool
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


def read_batches(job: Job) -> Iterator[Batch]:
    """The queries in batches, the first of which is read at once. UsageError where there is none."""
    batches = _batches(_items(job), job.batch_size)
    first = next(batches, None)
    if first is None:
        raise UsageError(f"no queries given: {'stdin' if job.source == STDIN else job.source} holds none")
    return chain([first], batches)


def answers(answering: Answering, batch: Batch, timeout: float | None) -> Iterator[SearchResult]:
    """The results of a batch in its order; what failed when it was read passes through."""
    asked = [item for item in batch if isinstance(item, Query)]
    answered = iter(answering.run_batch(asked, timeout=timeout, return_errors=True))
    for item in batch:
        yield next(answered) if isinstance(item, Query) else item


def count_of(job: Job) -> int | None:
    """Number of queries, where it can be known beforehand."""
    if job.source is None:
        return len(job.texts)
    found = survey(job.source, job.input_format)
    return None if found is None else len(job.texts) + found.count


def _items(job: Job) -> Iterator[Query | SearchResult]:
    for place, text in enumerate(job.texts, start=1):
        yield Query(text, id=str(place))
    if job.source is not None:
        yield from QueryReader(
            job.source,
            job.input_format,
            warn=lambda message: tell(f"warning: {message}"),
            first=len(job.texts) + 1,
        )


def _batches(items: Iterator[Query | SearchResult], size: int) -> Iterator[Batch]:
    while batch := list(islice(items, size)):
        yield batch
