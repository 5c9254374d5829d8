"""The queries of a job in batches, and the digest by which a resumed job recognizes them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from milvus_pipeline.files.lines import STDIN
from milvus_pipeline.files.plain import json_text
from milvus_pipeline.files.queries import BadLines, InputFormat, input_format_of, read_queries, source_file
from milvus_pipeline.jobs.claim import ResumeError
from milvus_pipeline.jobs.manifest import Input, Manifest
from milvus_pipeline.records import Query, SearchResult

if TYPE_CHECKING:
    from hashlib import _Hash as Hash

Item: TypeAlias = Query | SearchResult
"""A query, or the failed result of a bad line."""


class BatchReader:
    """Reads the queries of a job one after another, each once, and none before it is needed.

    Args:
        queries: a file, ``-`` for stdin, or the queries themselves.
        input_format: how to read a file.
        bad_lines: what is done about a line that is not a query; see ``BadLines``.
        warn: called with what the user should know, except about queries that were done before a resumption.

    Attributes:
        source: where the queries come from, for the manifest.
        name: the same for messages.
    """

    def __init__(
        self,
        queries: str | Path | Iterable[str | Item],
        input_format: InputFormat | None,
        bad_lines: BadLines,
        warn: Callable[[str], None],
    ) -> None:
        self.source = Input(path=None, format=None)
        self.name = "the iterable"
        self._muted = False
        items: Iterable[str | Item]
        if isinstance(queries, str | Path):
            file = source_file(Path(queries))
            input_format = input_format or input_format_of(file)
            self.source = Input(path=str(file), format=input_format)
            self.name = "stdin" if file == STDIN else str(file)
            items = read_queries(
                file, input_format, bad_lines=bad_lines, warn=lambda message: None if self._muted else warn(message)
            )
        else:
            items = queries
        self._items = _with_ids(items)

    def has_more(self) -> bool:
        """Whether there is a query left. Reads it."""
        for item in self._items:
            self._items = chain([item], self._items)
            return True
        return False

    def batches(self, size: int) -> Iterator[list[Item]]:
        """Yield the remaining queries in batches of ``size``; the last may be smaller."""
        while batch := list(islice(self._items, size)):
            yield batch

    def skip_done(self, path: Path, manifest: Manifest) -> Hash | None:
        """Skip the whole batches that are done. Return the digest of their queries.

        Returns:
            None if the job is complete and nothing is left.

        Raises:
            ResumeError: these are not the queries that were done.
        """
        done, start = manifest.progress, manifest.goes_on_from.progress
        digest = hashlib.sha256()
        self._muted = True
        count = add_to_digest(digest, islice(self._items, start.queries))
        digest_of_start = digest.copy()
        rest = list(islice(self._items, done.queries - start.queries))  # of the last batch, if it was not full
        self._muted = False
        count += add_to_digest(digest, rest)
        changed = ""
        if count < done.queries:
            changed = f"there are only {count} of the {done.queries} that are done"
        elif digest.hexdigest() != done.input_sha256:
            changed = f"the first {done.queries} are no longer the same"
        if changed:
            step = "give the same queries, with new ones only at the end"
            raise ResumeError([f"the queries have changed: {changed}"], step, place=str(path))
        if manifest.state == "complete" and not self.has_more():
            return None
        self._items = chain(rest, self._items)
        return digest_of_start


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


def _with_ids(items: Iterable[str | Item]) -> Iterator[Item]:
    """Yield the queries, each with an id: its own, else its place, from 1."""
    for place, item in enumerate(items, start=1):
        query = Query(item) if isinstance(item, str) else item
        yield replace(query, id=str(place)) if isinstance(query, Query) and query.id is None else query
