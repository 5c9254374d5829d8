"""``milvus-pipeline ingest``: fill the collection of a configuration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from milvus_pipeline.cli.faults import Debug, UsageError, reported, tell
from milvus_pipeline.cli.jsonlines import STDIN, read_lines
from milvus_pipeline.cli.tables import progress_bar
from milvus_pipeline.ingest import ingest as ingest_records
from milvus_pipeline.pipeline import Pipeline


@reported
def ingest(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="The pipeline, a YAML file with a `collection:`.")],
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Records, one JSON object a line; may be gzipped (.gz).")
    ],
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the collection if it exists; what it holds is lost.")
    ] = False,
    debug: Debug = False,
) -> int:
    """Make the collection that a configuration describes, and fill it with the records of JSONL files.

    The files are read once to check them, before anything is written; then the records are encoded and inserted in
    batches, and the collection is indexed and loaded.
    """
    pipeline = Pipeline.from_yaml(config)
    total = _checked(files)
    with progress_bar() as progress:
        task = progress.add_task(pipeline.name, total=total)
        report = ingest_records(
            pipeline,
            _records(files),
            overwrite=overwrite,
            on_progress=lambda rows: progress.update(task, completed=rows),
        )
    for warning in report.warnings:
        tell(f"warning: {warning}")
    tell(f"{pipeline.name}: {report.rows} rows in the collection {report.collection!r}, {report.seconds:.1f} s")
    return 0


def _checked(files: Sequence[Path]) -> int | None:
    """Number of records, each line parsed once; None where a file, such as a pipe, can be read only once.

    Raises:
        UsageError: a file cannot be read, or a line is no JSON object; named by file and line.
    """
    total: int | None = 0
    for path in files:
        if path == STDIN:
            raise UsageError("records cannot come from stdin, as they are read twice; put them into a file")
        if path.exists() and not path.is_file() and not path.is_dir():
            total = None
            continue
        count = sum(1 for _ in _records([path]))
        total = None if total is None else total + count
    if total == 0:
        raise UsageError(f"no records: {', '.join(map(str, files))} {'is' if len(files) == 1 else 'are'} empty")
    return total


def _records(files: Sequence[Path]) -> Iterator[Mapping[str, Any]]:
    for path in files:
        for line in read_lines(path):
            yield line.object()
