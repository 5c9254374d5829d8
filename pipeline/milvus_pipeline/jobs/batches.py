"""The queries of a job in batches, and the digest by which they are known again when the job is resumed."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from milvus_pipeline.files.plain import json_text
from milvus_pipeline.files.queries import InputFormat, QueryReader
from milvus_pipeline.jobs.claim import ResumeError
from milvus_pipeline.jobs.manifest import Input, Manifest
from milvus_pipeline.records import Query, SearchResult

if TYPE_CHECKING:
    from hashlib import _Hash as Hash

Item: TypeAlias = Query | SearchResult
"""A query, or a bad line as the failed result that it becomes."""


class Reading:
    """Reads the queries of a job one after another, each once, and none before it is needed.

    Args:
        queries: a file, ``-`` for stdin, or the queries themselves.
        input_format: how to read a file.
        bad_lines: what is done about a line that is no query; see ``BadLines``.
        warn: told what the user should know, but not of queries that are passed over, since it was told then.

    Attributes:
        told: what a manifest tells about them.
        name: where they come from, for messages.
        digests: of each batch that was read, the digest up to its end; whoever writes a batch takes the first.
    """

    def __init__(
        self,
        queries: str | Path | Iterable[str | Item],
        input_format: InputFormat | None,
        bad_lines: str,
        warn: Callable[[str], None],
    ) -> None:
        self.told = Input(path=None, format=None)
        self.name = "the iterable"
        self.digests: deque[Hash] = deque()
        self._digest = hashlib.sha256()
        self._warn = warn
        self._muted = False
        items: Iterable[str | Item]
        if isinstance(queries, str | Path):
            items = reader = QueryReader(Path(queries), input_format, bad_lines=bad_lines, warn=self._tell)
            self.told = Input(path=str(reader.source), format=reader.input_format)
            self.name = "stdin" if str(queries) == "-" else str(reader.source)
        else:
            items = queries
        self._items = _with_ids(items)

    def _tell(self, message: str) -> None:
        if not self._muted:
            self._warn(message)

    def has_more(self) -> bool:
        """Whether there is a query left; reads it, if so."""
        for item in self._items:
            self._items = chain([item], self._items)
            return True
        return False

    def batches(self, size: int) -> Iterator[list[Item]]:
        """What is left, in batches of ``size``; the last may be smaller."""
        while batch := list(self._taken(size)):
            self.digests.append(self._digest.copy())
            yield batch

    def passed_over(self, path: Path, manifest: Manifest) -> Hash | None:
        """Pass over what is done; the digest up to there, or None where the job is complete and nothing is left.

        Raises:
            ResumeError: these are not the queries that were done.
        """
        done, start = manifest.progress, manifest.goes_on_from.progress
        self._muted = True
        count = sum(1 for _ in self._taken(start.queries))
        digest = self._digest.copy()
        rest = list(self._taken(done.queries - start.queries))  # of the last batch, where it was not full
        self._muted = False
        if (count := count + len(rest)) < done.queries:
            raise _changed(path, f"there are only {count} of the {done.queries} that are done")
        if self._digest.hexdigest() != done.input_sha256:
            raise _changed(path, f"the first {done.queries} are no longer the same")
        if manifest.state == "complete" and not self.has_more():
            return None
        self._items, self._digest = chain(rest, self._items), digest.copy()
        return digest

    def _taken(self, count: int) -> Iterator[Item]:
        """The next ``count`` queries, or as many as there are."""
        for item in islice(self._items, count):
            self._digest.update(_fingerprint(item))
            yield item


def _changed(path: Path, what: str) -> ResumeError:
    words = f"the queries have changed: {what}"
    advice = "give the same queries, to which others may be added at the end, or begin anew with --overwrite"
    return ResumeError(f"{path}: cannot be resumed, as {words}; {advice}", [words])


def _fingerprint(item: Item) -> bytes:
    """By what a query is known again: all that it asks. A bad line has its id only."""
    if isinstance(item, SearchResult):
        return json_text(["bad line", item.query.id]).encode("utf-8", "backslashreplace")
    asked = [item.id, item.text, item.filter, item.filter_params, item.params]
    words = json_text(asked).encode("utf-8", "backslashreplace")
    if item.vector is None:
        return words
    try:
        return words + np.asarray(item.vector, dtype=np.float64).tobytes()
    except (TypeError, ValueError):  # it is no vector, and its query will fail
        return words + b"no vector"


def _with_ids(items: Iterable[str | Item]) -> Iterator[Item]:
    """The queries, each with an id: its own, else its place, from 1."""
    for place, item in enumerate(items, start=1):
        query = Query(item) if isinstance(item, str) else item
        yield replace(query, id=str(place)) if isinstance(query, Query) and query.id is None else query
