"""The commit protocol of a job: what is written, in which order, and what holds wherever it is cut off.

The output grows by whole batches. The manifest, which tells how far the output is good, is replaced whole, after what
it tells of has reached the disk. So it is never ahead of the output; where it is behind, the rest is done again.
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

_EVERY: Final = 1.0
"""Seconds between two manifests, from the first batch on; what a killed job has done since the last is done again."""


class CommitPoint(NamedTuple):
    """How far a job is; replaced whole, so that an interrupt between two steps finds the one or the other.

    Args:
        queries: number of queries done.
        size: bytes of their results.
        asked: digest of the queries.
        written: digest of the bytes.
        figures: sums over the queries.
        seconds: that the job has worked for them.
    """

    queries: int
    size: int
    asked: Hash
    written: Hash
    figures: Figures
    seconds: float

    def told(self) -> Point:
        """The point as a manifest tells it."""
        progress = Progress(
            queries=self.queries,
            bytes=self.size,
            input_sha256=self.asked.hexdigest(),
            output_sha256=self.written.hexdigest(),
        )
        return Point(progress=progress, figures=self.figures.timed(self.seconds))


class Commits:
    """Writes the results of a job, batch by batch, and its manifest.

    Args:
        output: the file, which is this job's alone.
        manifest_at: where the manifest stands.
        manifest: what it tells besides how far the job is.
        point: where the job begins, or goes on.
        lines: how results are written.
        batch_size: number of queries in a batch, but for the last.

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
        self._whole = point  # batches that were full, which a job that is not complete goes on behind
        self._seconds_before = point.seconds
        self._started = time.perf_counter()
        self._told_at = -math.inf  # nothing of this run: the first batch is told of at once

    def begin(self) -> None:
        """Write the first manifest, then cut the output to what it tells of.

        In this order: the manifest of a job that was here before must not be taken for one of the new output.
        """
        with self._writing(self._manifest_at):
            self._tell("running", self.point)
        with self._writing(self._output.path):
            self._output.cut(self.point.size)

    def add(self, results: Sequence[SearchResult], asked: Hash) -> list[OutputError | None]:
        """Write the results of one batch; the commit point is behind it then.

        Args:
            results: of the batch, in its order.
            asked: digest of the queries up to its end.

        Returns:
            For each result why it does not fit the format, or None where it was written.

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
        point = self._written("".join(texts).encode("utf-8", "backslashreplace"), self.point)
        seconds = self._seconds_before + time.perf_counter() - self._started
        queries = point.queries + len(results)
        self.point = point._replace(queries=queries, asked=asked, figures=figures, seconds=seconds)
        if len(results) == self._batch_size:
            self._whole = self.point
            if time.monotonic() - self._told_at >= _EVERY:
                self._tell_progress()
        return unwritten

    def _written(self, data: bytes, point: CommitPoint, *, member: bool = False) -> CommitPoint:
        """The point after this data was written behind it."""
        if self._manifest.output.gzip and (data or member):
            data = gzip_member(data)
        with self._writing(self._output.path):
            self._output.write(data, point.size)
        written = point.written.copy()
        written.update(data)
        return point._replace(size=point.size + len(data), written=written)

    def _tell_progress(self) -> None:
        with self._writing(self._output.path):
            self._output.sync()
        with self._writing(self._manifest_at):
            self._tell("running", self.point)
        self._told_at = time.monotonic()

    def finish(self) -> None:
        """All queries are done: the job is complete."""
        if self._manifest.output.gzip and not self.point.size:
            self.point = self._written(b"", self.point, member=True)  # an empty file is no gzip file
        with self._writing(self._output.path):
            self._output.sync()
        with self._writing(self._manifest_at):
            self._tell("complete", self.point)

    def halt(self, state: State) -> None:
        """The job ends before it is complete: the output is cut to the commit point, as far as that can be done."""
        self.point = self._whole
        with suppress(OSError):
            self._output.cut(self.point.size)
            self._output.sync()
            self._tell(state, self.point)

    def _tell(self, state: State, point: CommitPoint) -> None:
        told = point.told()
        whole = self._whole.told() if point is not self._whole else None
        written = now()
        times = self._manifest.times.model_copy(
            update={"written": written, "ended": written if state == "complete" else None}
        )
        manifest = self._manifest.model_copy(
            update={
                "state": state,
                "times": times,
                "progress": told.progress,
                "figures": told.figures,
                "whole_batches": whole,
            }
        )
        write_manifest(self._manifest_at, manifest, self._output.mode)

    @contextmanager
    def _writing(self, path: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            done = self._whole.queries
            raise OutputError(
                f"cannot be written: {error.strerror or error}",
                (
                    f"done so far: {done} queries, which stand in {self._output.path}. Once it can be "
                    "written again, --resume goes on with the others"
                ),
                place=str(path),
            ) from error
