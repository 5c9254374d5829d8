"""``milvus-pipeline ingest``: fill the collection of a configuration."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

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
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE", help="Records, one JSON object a line; may be gzipped (.gz).")
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
    places = Places()
    with ProgressBar(pipeline.name, lambda: total) as bar:
        try:
            report = ingest_records(
                pipeline,
                places.noted(files),
                overwrite=overwrite,
                on_progress=bar.update,
            )
        except IngestError as error:
            places.add_to(error)
            raise
    for warning in report.warnings:
        print_warning(warning)
    print_message(
        f"{pipeline.name}: {report.rows} rows in the collection {report.collection!r}, {report.seconds:.1f} s"
    )
    return 0


class Places:
    """Where the records of several files stand, by their numbers over all files, from 1.

    Kept as runs of lines that follow each other, so that a file costs one entry, and one more for every blank line.
    """

    def __init__(self) -> None:
        self._firsts: list[int] = []  # number of each run's first record
        self._runs: list[tuple[str, int]] = []  # its file, and the lines before a record less the records before it

    def noted(self, files: Sequence[Path]) -> Iterator[Mapping[str, Any]]:
        """The records of the files; their places are known from then on."""
        lines = (line for path in files for line in read_lines(path))
        for number, line in enumerate(lines, start=1):
            run = (line.file, line.number - number)
            if not self._runs or self._runs[-1] != run:
                self._firsts.append(number)
                self._runs.append(run)
            yield line.object()

    def add_to(self, error: IngestError) -> None:
        """Add file and line of the records that the error is about."""
        if error.record is not None:
            error.at(self._of(error.record))
        if error.earlier is not None:
            error.what += f" ({self._of(error.earlier)})"

    def _of(self, number: int) -> str:
        file, ahead = self._runs[bisect_right(self._firsts, number) - 1]
        return f"{file}:{number + ahead}"


def _checked(files: Sequence[Path]) -> int | None:
    """Number of records, each line parsed once; None where a file, such as a pipe, can be read only once.

    Raises:
        InputError: a file cannot be read, or a line is no JSON object; named by file and line.
    """
    total: int | None = 0
    for path in files:
        if path == STDIN:
            raise UsageError("records cannot come from stdin, as they are read twice", "put them into a file")
        if path.exists() and not path.is_file() and not path.is_dir():
            total = None
            continue
        count = sum(1 for _ in map(Line.object, read_lines(path)))
        total = None if total is None else total + count
    if total == 0:
        raise UsageError(f"no records: {', '.join(map(str, files))} {'is' if len(files) == 1 else 'are'} empty")
    return total
