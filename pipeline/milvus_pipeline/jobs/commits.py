"""The commit protocol of a job: what is written in which order, and what holds wherever it is interrupted.

The output grows by whole batches. The manifest, which says how much of the output is valid, is replaced whole, and only
after that part of the output has reached the disk. So the manifest is never ahead of the output; if it is behind, the
rest is done again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np

from milvus_pipeline.files.plain import json_text
from milvus_pipeline.files.results import LineFormat, OutputError
from milvus_pipeline.jobs.manifest import Figures, Manifest, Point, Progress, State, now, write_manifest
from milvus_pipeline.jobs.output import OutputFile, gzip_member
from milvus_pipeline.records import Query, SearchResult

if TYPE_CHECKING:
    from hashlib import _Hash as Hash

Item: TypeAlias = Query | SearchResult
"""A query, or the failed result of a bad line."""

_INTERVAL: Final = 1.0
"""Seconds between two manifests, from the first batch on. A killed job repeats what it did since the last one."""


def add_to_digest(digest: Hash, items: Iterable[Item]) -> int:
    """Add everything that the queries ask to the digest by which a resumed job recognizes them; return their number."""
    count = 0
    for item in items:
        digest.update(_fingerprint(item))
        count += 1
    return count


def _fingerprint(item: Item) -> bytes:
    """Return what a query is recognized by: everything it asks. Of a bad line that is only its id."""
    if isinstance(item, SearchResult):
        return json_text(["bad line", item.query.id]).encode("utf-8", "backslashreplace")
    fields = [item.id, item.text, item.filter, item.filter_params, item.params]
    data = json_text(fields).encode("utf-8", "backslashreplace")
    if item.vector is None:
        return data
    try:
        return data + np.asarray(item.vector, dtype=np.float64).tobytes()
    except (TypeError, ValueError):  # not a vector, so its query will fail
        return data + b"no vector"


class Commits:
    """Writes the results of a job, batch by batch, and its manifest.

    Args:
        output: the file, which only this job writes.
        manifest_at: the path of the manifest.
        manifest: its content; its commit point is where the job starts, or goes on.
        input_digest: of the queries that are done.
        lines: turns results into text.

    Attributes:
        point: how far the job is.
    """

    def __init__(
        self, output: OutputFile, manifest_at: Path, manifest: Manifest, input_digest: Hash, lines: LineFormat
    ) -> None:
        self.point = manifest.goes_on_from
        self._output = output
        self._manifest_at = manifest_at
        self._manifest = manifest
        self._lines = lines
        self._input_digest = input_digest
        self._output_digest = output.digest(self.point.progress.bytes)
        # Behind the last batch that was full: a job that is not complete goes on there. Only this is used after an
        # interrupt, which can come between any two steps.
        self._whole = self.point
        self._started = time.perf_counter() - self.point.figures.seconds
        self._manifest_time = -math.inf  # none in this run yet: the first batch is followed by one

    def begin(self) -> None:
        """Write the first manifest, then cut the output to its size.

        In this order, so that the manifest of an earlier job is never taken for one of the new output.
        """
        with self._writing():
            self._write_manifest("running")
            self._output.cut(self.point.progress.bytes)

    def add(self, batch: Sequence[Item], results: Sequence[SearchResult]) -> list[OutputError | None]:
        """Write the results of one batch, and move the commit point behind it.

        Args:
            batch: its queries.
            results: of each of them.

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
        data = "".join(texts).encode("utf-8", "backslashreplace")
        if self._manifest.output.gzip and data:
            data = gzip_member(data)
        add_to_digest(self._input_digest, batch)
        seconds = time.perf_counter() - self._started
        self._append(data, len(batch), self.point.figures.plus(results, unwritten, seconds))
        if len(batch) == self._manifest.options.batch_size:
            self._whole = self.point
            if time.monotonic() - self._manifest_time >= _INTERVAL:
                self._commit("running")
                self._manifest_time = time.monotonic()
        return unwritten

    def _append(self, data: bytes, queries: int, figures: Figures) -> None:
        """Write data behind the commit point, and move the point behind it.

        Args:
            data: the results.
            queries: number of queries that they are of.
            figures: the sums up to their end.
        """
        before = self.point.progress
        with self._writing():
            self._output.write(data, before.bytes)
        self._output_digest.update(data)
        progress = Progress(
            queries=before.queries + queries,
            bytes=before.bytes + len(data),
            input_sha256=self._input_digest.hexdigest(),
            output_sha256=self._output_digest.hexdigest(),
        )
        self.point = Point(progress=progress, figures=figures)

    def _commit(self, state: State) -> None:
        """Flush the output to the disk, then write a manifest of it."""
        with self._writing():
            self._output.sync()
            self._write_manifest(state)

    def finish(self) -> None:
        """Complete the job, whose queries are all done."""
        if self._manifest.output.gzip and not self.point.progress.bytes:
            self._append(gzip_member(b""), 0, self.point.figures)  # an empty file is not a gzip file
        self._commit("complete")

    def halt(self, state: State) -> None:
        """End the job before it is complete. The output is cut to the commit point, as far as that can be done."""
        self.point = self._whole
        with suppress(OSError):
            self._output.cut(self.point.progress.bytes)
            self._output.sync()
            self._write_manifest(state)

    def _write_manifest(self, state: State) -> None:
        written = now()
        times = {"written": written, "ended": written if state == "complete" else None}
        update = {
            "state": state,
            "times": self._manifest.times.model_copy(update=times),
            "progress": self.point.progress,
            "figures": self.point.figures,
            "whole_batches": None if self.point is self._whole else self._whole,
        }
        write_manifest(self._manifest_at, self._manifest.model_copy(update=update), self._output.mode)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            done = f"{self._whole.progress.queries} queries are done, and their results are in {self._output.path}"
            raise OutputError(
                f"cannot be written: {error.strerror or error}",
                f"{done}. Once it can be written again, --resume goes on with the others",
                place=str(error.filename2 or error.filename or self._output.path),
            ) from error
