"""``milvus-pipeline run``: queries in, results out."""

from __future__ import annotations

import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Annotated, TextIO

import typer

from milvus_pipeline.cli.faults import FAILED, Debug, UsageError, reported, tell
from milvus_pipeline.cli.jsonlines import STDIN, read_lines
from milvus_pipeline.cli.outputs import (
    Format,
    JsonLines,
    OutputError,
    TrecRun,
    Writer,
    check_output,
    chosen_format,
    opened,
)
from milvus_pipeline.cli.queries import InputFormat, read_queries
from milvus_pipeline.cli.tables import ResultTables, progress_bar
from milvus_pipeline.errors import PipelineError
from milvus_pipeline.pipeline import Pipeline
from milvus_pipeline.records import Query, SearchResult

_SHOWN = 10
"""Failures and warnings told one by one on stderr; the rest is counted, and stands in the results."""

Batch = Sequence[Query | SearchResult]


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
    debug: Debug = False,
) -> int:
    """Answer queries: from --query, from a file (--queries), or from stdin.

    Results go to stdout or to a file, everything else to stderr. A line of JSONL is one query with its status, hits
    and a report of every stage. Ends with 1 if any query failed; the others are written all the same.
    """
    source = _source(query, queries)
    check_output(output, overwrite, source)
    pipeline = Pipeline.from_yaml(config)
    batches = _batches(read_queries(query or (), source, input_format, _warn), batch_size)
    first = next(batches, None)
    if first is None:
        raise UsageError(f"no queries given: {'stdin' if source == STDIN else source} holds none")
    chosen = chosen_format(output_format, output)
    started = time.perf_counter()
    pipeline.open(timeout)
    tally = Tally(pipeline.name, opened_in=time.perf_counter() - started, told=chosen is not Format.TABLE)
    try:
        with pipeline, opened(output, overwrite) as stream, progress_bar(hidden=stream.isatty()) as progress:
            total = None if progress.disable else _total(query or (), source)
            task = progress.add_task(pipeline.name, total=total)
            writer = _writer(chosen, stream, pipeline.name)
            for batch in chain([first], batches):
                for result in _answers(pipeline, batch, timeout):
                    tally.add(result, _written(writer, result), debug=debug)
                stream.flush()
                progress.advance(task, len(batch))
    except (KeyboardInterrupt, PipelineError) as error:
        tally.summarize(None if isinstance(error, OutputError) else output)
        raise
    tally.summarize(output)
    return FAILED if tally.failed else 0


class Tally:
    """Counts what became of the queries, and tells about it on stderr.

    Args:
        name: the pipeline's.
        opened_in: seconds it took to open.
        told: tell failures and warnings as well; without it only the counts.
    """

    def __init__(self, name: str, *, opened_in: float, told: bool) -> None:
        self._name = name
        self._opened_in = opened_in
        self._told = told
        self._started = time.perf_counter()
        self._states: Counter[str] = Counter()
        self._lines: list[str] = []
        self._untold = 0

    @property
    def failed(self) -> int:
        """Number of queries that failed."""
        return self._states["failed"]

    def add(self, result: SearchResult, unwritten: OutputError | None, *, debug: bool) -> None:
        """Count a result; ``unwritten`` says why it could not be written, ``debug`` shows tracebacks at once."""
        if debug and result.error is not None:
            traceback.print_exception(result.error)
        error = unwritten or result.error
        self._states["failed" if error else result.status] += 1
        lines = [f"error: query {result.query.id}: {error}"] if error else []
        lines += [f"warning: query {result.query.id}: {warning}" for warning in result.warnings]
        # A table shows a failed query where it stands; one that could not be written shows nowhere.
        for line in lines if self._told or unwritten else ():
            if len(self._lines) < _SHOWN:
                self._lines.append(line)
            else:
                self._untold += 1

    def summarize(self, output: Path | None) -> None:
        """Write the failures, the warnings and the counts to stderr."""
        for line in self._lines:
            tell(line)
        if self._untold:
            tell(f"{self._untold} more errors and warnings; every result carries its own")
        if not self._states:
            return
        count = self._states.total()
        others = "".join(f", {self._states[state]} {state}" for state in sorted(self._states) if state != "ok")
        where = f"; written to {output}" if output else ""
        seconds = time.perf_counter() - self._started
        noun = "query" if count == 1 else "queries"
        opened_in = f"opened in {self._opened_in:.2f} s"
        tell(f"{self._name}: {opened_in}; {count} {noun} in {seconds:.2f} s{others}{where}")


def _source(texts: list[str] | None, queries: Path | None) -> Path | None:
    """Where queries are read from besides the command line."""
    if queries is not None or texts:
        return queries
    if sys.stdin.isatty():
        raise UsageError("no queries given: pass --query TEXT or --queries FILE, or pipe them in, one a line")
    return STDIN


def _warn(message: str) -> None:
    tell(f"warning: {message}")


def _batches(items: Iterator[Query | SearchResult], size: int) -> Iterator[Batch]:
    while batch := list(islice(items, size)):
        yield batch


def _answers(pipeline: Pipeline, batch: Batch, timeout: float | None) -> Iterator[SearchResult]:
    """The results of a batch in its order; what failed when it was read passes through."""
    asked = [item for item in batch if isinstance(item, Query)]
    answered = iter(pipeline.run_batch(asked, timeout=timeout, return_errors=True))
    for item in batch:
        yield next(answered) if isinstance(item, Query) else item


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
    return TrecRun(stream, tag=name) if chosen is Format.TREC else JsonLines(stream)


def _total(texts: Sequence[str], source: Path | None) -> int | None:
    """Number of queries, where it can be known beforehand."""
    if source is None:
        return len(texts)
    return len(texts) + sum(1 for _ in read_lines(source)) if source.is_file() else None
