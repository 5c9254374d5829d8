"""The commit protocol of a job: what is written in which order, and what holds wherever it is interrupted.

The output grows by whole batches. The manifest, which says how much of the output is valid, is replaced whole, and only
after that part of the output has reached the disk. So the manifest is never ahead of the output; if it is behind, the
rest is done again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from milvus_pipeline.files.results import LineFormat, OutputError
from milvus_pipeline.jobs.manifest import Figures, Manifest, Point, Progress, State, now, write_manifest
from milvus_pipeline.jobs.output import OutputFile, gzip_member
from milvus_pipeline.records import SearchResult

if TYPE_CHECKING:
    from hashlib import _Hash as Hash

_INTERVAL: Final = 1.0
"""Seconds between two manifests, from the first batch on. A killed job repeats what it did since the last one."""


class CommitPoint(NamedTuple):
    """How far a job is. It is replaced whole, so that an interrupt between two steps finds the one or the other.

    Args:
        queries: number of queries done.
        size: bytes of their results.
        input_digest: of the queries.
        output_digest: of the bytes.
        figures: sums over the queries.
        seconds: that the job has worked for them.
    """

    queries: int
    size: int
    input_digest: Hash
    output_digest: Hash
    figures: Figures
    seconds: float

    def record(self) -> Point:
        """Return the point as a manifest has it."""
        progress = Progress(
            queries=self.queries,
            bytes=self.size,
            input_sha256=self.input_digest.hexdigest(),
            output_sha256=self.output_digest.hexdigest(),
        )
        return Point(progress=progress, figures=self.figures.with_seconds(self.seconds))


class Commits:
    """Writes the results of a job, batch by batch, and its manifest.

    Args:
        output: the file, which only this job writes.
        manifest_at: the path of the manifest.
        manifest: its content except how far the job is.
        point: where the job starts, or goes on.
        lines: turns results into text.
        batch_size: number of queries in a batch, except the last.

    Attributes:
        point: how far the job is.
    """

    def __init__(
        self,
        output: OutputFile,
        manifest_at: Path,
        manifest: Manifest,
        point: CommitPoint,
        lines: LineFormat,
        batch_size: int,
    ) -> None:
        self.point = point
        self._output = output
        self._manifest_at = manifest_at
        self._manifest = manifest
        self._lines = lines
        self._batch_size = batch_size
        self._full = point  # behind the last batch that was full, where a job that is not complete goes on
        self._seconds_before = point.seconds
        self._started = time.perf_counter()
        self._manifest_time = -math.inf  # none in this run yet: the first batch is followed by one

    def begin(self) -> None:
        """Write the first manifest, then cut the output to its size.

        In this order, so that the manifest of an earlier job is never taken for one of the new output.
        """
        with self._writing(self._manifest_at):
            self._write_manifest("running")
        with self._writing(self._output.path):
            self._output.cut(self.point.size)

    def add(self, results: Sequence[SearchResult], input_digest: Hash) -> list[OutputError | None]:
        """Write the results of one batch, and move the commit point behind it.

        Args:
            results: of the batch, in its order.
            input_digest: of the queries up to its end.

        Returns:
            For each result why it does not fit the format, or None if it was written.

        Raises:
            OutputError: the file cannot take them.
        """
        texts: list[str] = []
        unwritten: list[OutputError | None] = []
        for result in results:
            try:
                texts.append(self._lines.text(result))
                unwritten.append(None)
            except OutputError as error:
                unwritten.append(error)
        figures = self.point.figures.plus(results, unwritten)
        point = self._append("".join(texts).encode("utf-8", "backslashreplace"))
        seconds = self._seconds_before + time.perf_counter() - self._started
        queries = point.queries + len(results)
        self.point = point._replace(queries=queries, input_digest=input_digest, figures=figures, seconds=seconds)
        if len(results) == self._batch_size:
            self._full = self.point
            if time.monotonic() - self._manifest_time >= _INTERVAL:
                self._commit("running")
                self._manifest_time = time.monotonic()
        return unwritten

    def _append(self, data: bytes, *, always: bool = False) -> CommitPoint:
        """Write data behind the commit point, and return the point after it.

        Args:
            data: to write, as a gzip member if the output is gzipped.
            always: write a member also if there is no data.
        """
        if self._manifest.output.gzip and (data or always):
            data = gzip_member(data)
        with self._writing(self._output.path):
            self._output.write(data, self.point.size)
        digest = self.point.output_digest.copy()
        digest.update(data)
        return self.point._replace(size=self.point.size + len(data), output_digest=digest)

    def _commit(self, state: State) -> None:
        """Flush the output to the disk, then write a manifest of it."""
        with self._writing(self._output.path):
            self._output.sync()
        with self._writing(self._manifest_at):
            self._write_manifest(state)

    def finish(self) -> None:
        """Complete the job, whose queries are all done."""
        if self._manifest.output.gzip and not self.point.size:
            self.point = self._append(b"", always=True)  # an empty file is not a gzip file
        self._commit("complete")

    def halt(self, state: State) -> None:
        """End the job before it is complete. The output is cut to the commit point, as far as that can be done."""
        self.point = self._full
        with suppress(OSError):
            self._output.cut(self.point.size)
            self._output.sync()
            self._write_manifest(state)

    def _write_manifest(self, state: State) -> None:
        point = self.point.record()
        written = now()
        times = self._manifest.times.model_copy(
            update={"written": written, "ended": written if state == "complete" else None}
        )
        manifest = self._manifest.model_copy(
            update={
                "state": state,
                "times": times,
                "progress": point.progress,
                "figures": point.figures,
                "whole_batches": None if self.point is self._full else self._full.record(),
            }
        )
        write_manifest(self._manifest_at, manifest, self._output.mode)

    @contextmanager
    def _writing(self, path: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            done = f"{self._full.queries} queries are done, and their results are in {self._output.path}"
            raise OutputError(
                f"cannot be written: {error.strerror or error}",
                f"{done}. Once it can be written again, --resume goes on with the others",
                place=str(path),
            ) from error
