"""A sample of a collection's rows, spread over the collection, for checks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from milvus_pipeline.plugin import Deadline
from milvus_stages.milvus.client.server import Connection
from milvus_stages.milvus.collection import CollectionInfo
from milvus_stages.milvus.settings import MAX_WINDOW

SAMPLE: Final = 200
"""Rows in a sample."""

_PAGES: Final = 20  # calls that fetch the sample
_STRIDE: Final = 7  # between two pages, so that an incomplete sample is spread, too; coprime to the number of pages
_PAGE_BYTES: Final = 8 * 2**20  # of vectors in one answer

Row = Mapping[str, Any]


class Sample(NamedTuple):
    """Rows of a collection.

    Args:
        rows: with the requested fields; always with the primary key.
        spread: False if only the first rows, in the order of their keys, could be reached.
    """

    rows: Sequence[Row]
    spread: bool


@dataclass(frozen=True)
class RowReader:
    """Reads rows of a collection that is in memory.

    Args:
        connection: to its server.
        info: the collection.
        deadline: for all calls.
    """

    connection: Connection
    info: CollectionInfo
    deadline: Deadline

    def rows(self, fields: Sequence[str], expression: str = "", **options: Any) -> list[Row]:
        """Return rows that match the expression; ``options`` are those of ``MilvusClient.query``."""
        options |= {"filter": expression, "output_fields": list(fields)}
        return list(self.connection.call(self.deadline, "query", self.info.name, **options))

    def count(self) -> int:
        """Return the number of rows."""
        return int(self.rows(["count(*)"])[0]["count(*)"])

    def sample(self, rows: int, fields: Sequence[str]) -> Sample:
        """Return ``SAMPLE`` rows, or all ``rows`` of a smaller collection."""
        if rows <= SAMPLE:
            return Sample(self.rows(fields, limit=SAMPLE), True)
        lite = self.connection.is_lite
        if rows > MAX_WINDOW and not lite and (found := self._sample_by_key(rows, fields)):
            return Sample(found, True)
        reach = rows if lite else min(rows, MAX_WINDOW)  # a server reads no further; Milvus Lite does
        return Sample(list(self._sample_pages(reach, fields)), reach == rows)

    def vectors(self, field: str, keys: Sequence[Any]) -> npt.NDArray[np.float32]:
        """Return the vectors ``(found, dim)`` of the rows with these primary keys."""
        found: list[Any] = []
        step = self._page_size(field)
        for start in range(0, len(keys), step):
            found += [row[field] for row in self.rows([field], ids=list(keys[start : start + step]))]
        return np.asarray(found, dtype=np.float32).reshape(len(found), self.info.dims[field])

    def all_vectors(
        self, field: str, expression: str, partitions: Sequence[str] | None
    ) -> Iterator[tuple[list[Any], npt.NDArray[np.float32]]]:
        """Yield keys and vectors ``(page, dim)`` of the rows that match the expression, ``MAX_WINDOW`` at most."""
        step = self._page_size(field)
        for start in range(0, MAX_WINDOW, step):
            limit = min(step, MAX_WINDOW - start)
            options = {"partition_names": list(partitions)} if partitions else {}
            page = self.rows([self.info.primary, field], expression, limit=limit, offset=start, **options)
            if page:
                yield [row[self.info.primary] for row in page], np.asarray([row[field] for row in page], np.float32)
            if len(page) < limit:
                return

    def _page_size(self, field: str) -> int:
        return max(1, min(1000, _PAGE_BYTES // (4 * self.info.dims[field])))

    def _sample_pages(self, reach: int, fields: Sequence[str]) -> Iterator[Row]:
        size = SAMPLE // _PAGES
        began = self.deadline.remaining()
        for turn in range(_PAGES):
            left = self.deadline.remaining()
            if turn and began is not None and left is not None and left < began / 2:
                return  # an incomplete sample is good enough, and other checks need time, too
            page = turn * _STRIDE % _PAGES
            yield from self.rows(fields, limit=size, offset=page * (reach - size) // (_PAGES - 1))

    def _sample_by_key(self, rows: int, fields: Sequence[str]) -> list[Row] | None:
        """Every n-th row by its integer key; None if the keys do not allow it."""
        primary = self.info.primary
        if self.info.fields[primary] != "INT64":
            return None
        found = self.rows(fields, f"{primary} % {rows // SAMPLE} == 0", limit=2 * SAMPLE)
        return found if len(found) >= SAMPLE // 4 else None
