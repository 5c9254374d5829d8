"""``milvus-pipeline ingest``: creates and fills the collection of a configuration."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from milvus_pipeline.cli.exit_codes import UsageError, command, print_message, print_warning
from milvus_pipeline.cli.options import Config, Debug
from milvus_pipeline.cli.progress import ProgressBar
from milvus_pipeline.errors import IngestError
from milvus_pipeline.files.lines import STDIN, Line, read_lines
from milvus_pipeline.ingest.ingest import ingest as ingest_records
from milvus_pipeline.pipeline import Pipeline


@command
def ingest(
    config: Config,
    files: Annotated[list[Path], typer.Argument(metavar="FILE", help="Records as JSONL, gzipped (.gz) or not.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the collection; its rows are lost.")] = False,
    debug: Debug = False,
) -> int:
    """Create the collection that a configuration describes, and fill it with the records of JSONL files.

    The files are read twice: first to check them, before anything is written; then the records are encoded and inserted
    in batches, and the collection is indexed and loaded.
    """
    pipeline = Pipeline.from_yaml(config)
    total = _count_records(files)
    records = (line.object() for path in files for line in read_lines(path))
    with ProgressBar(pipeline.name, lambda: total) as bar:
        try:
            report = ingest_records(pipeline, records, overwrite=overwrite, on_progress=bar.update)
        except IngestError as error:
            if total is not None and error.record is not None:  # a pipe cannot be read again to find the line
                error.at(_place_of(files, error.record))
            if total is not None and error.earlier is not None:
                error.what += f" ({_place_of(files, error.earlier)})"
            raise
    for warning in report.warnings:
        print_warning(warning)
    rows = f"{report.rows} rows in the collection {report.collection!r}"
    print_message(f"{pipeline.name}: {rows}, {report.seconds:.1f} s")
    return 0


def _place_of(files: Sequence[Path], number: int) -> str:
    """Return file and line of a record by its number over all files, from 1."""
    lines = (line for path in files for line in read_lines(path))
    line = next(islice(lines, number - 1, None))
    return f"{line.file}:{line.number}"


def _count_records(files: Sequence[Path]) -> int | None:
    """Parse each line and return the number of records; None if a file, such as a pipe, can be read only once.

    Raises:
        InputError: a file cannot be read, or a line is not a JSON object.
        UsageError: there are no records, or they come from stdin.
    """
    total: int | None = 0
    for path in files:
        if path == STDIN:
            raise UsageError("records cannot come from stdin, because they are read twice", "put them into a file")
        if path.exists() and not path.is_file() and not path.is_dir():
            total = None
            continue
        count = sum(1 for _ in map(Line.object, read_lines(path)))
        total = None if total is None else total + count
    if total == 0:
        raise UsageError("there are no records", "give files that are not empty", place=", ".join(map(str, files)))
    return total
