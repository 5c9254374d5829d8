"""A sample of a collection's rows, spread over it, for checks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from milvus_pipeline.plugin import Deadline
from milvus_stages.milvus.client.server import CALL_SECONDS, Connection
from milvus_stages.milvus.collection import CollectionInfo
from milvus_stages.milvus.requests import MAX_WINDOW

if TYPE_CHECKING:
    from milvus_stages.milvus.search import MilvusSearch

SAMPLE: Final = 200
"""Rows that are looked at."""

_PAGES: Final = 20  # calls that the sample is taken in
_STRIDE: Final = 7  # in this order of pages a sample that is broken off is spread, too; no divisor of their number
_PAGE_BYTES: Final = 8 * 2**20  # vectors that come in one answer

Row = Mapping[str, Any]


class Sample(NamedTuple):
    """Rows of a collection.

    Args:
        rows: with the fields that were asked for; the primary key always.
        spread: False where only the first rows, in the order of their keys, could be reached.
    """

    rows: Sequence[Row]
    spread: bool


class Asked:
    """Asks for rows of a stage's collection that is in memory.

    Args:
        stage: the configuration.
        connection: to its server.
        info: its collection.
        deadline: for all calls.
    """

    def __init__(self, stage: MilvusSearch, connection: Connection, info: CollectionInfo, deadline: Deadline) -> None:
        self.info = info
        self._stage = stage
        self._connection = connection
        self._deadline = deadline

    def rows(self, fields: Sequence[str], expression: str = "", **options: Any) -> list[Row]:
        """Rows that fulfil the expression; ``options`` are ``limit``, ``offset``, ``ids`` and ``partition_names``."""
        self._deadline.check()
        answer = self._connection.client.query(
            self._stage.collection,
            filter=expression,
            output_fields=list(fields),
            timeout=self._deadline.remaining(at_most=CALL_SECONDS),
            **options,
        )
        return list(answer)

    def count(self, expression: str = "") -> int:
        """How many rows fulfil the expression."""
        return int(self.rows(["count(*)"], expression)[0]["count(*)"])

    def sample(self, rows: int, fields: Sequence[str]) -> Sample:
        """``SAMPLE`` rows of a collection of so many, or all where they are fewer."""
        if rows <= SAMPLE:
            return Sample(self.rows(fields, limit=SAMPLE), True)
        lite = self._connection.is_lite
        if rows > MAX_WINDOW and not lite and (found := self._by_remainder(rows, fields)):
            return Sample(found, True)
        reach = rows if lite else min(rows, MAX_WINDOW)  # Milvus looks no further; Milvus Lite does
        return Sample(list(self._paged(reach, fields)), reach == rows)

    def vectors(self, field: str, keys: Sequence[Any]) -> npt.NDArray[np.float32]:
        """The vectors ``(found, dim)`` of the rows with these primary keys."""
        found: list[Any] = []
        step = self._page(field)
        for start in range(0, len(keys), step):
            found += [row[field] for row in self.rows([field], ids=list(keys[start : start + step]))]
        return np.asarray(found, dtype=np.float32).reshape(len(found), self.info.dims[field])

    def all_vectors(
        self, field: str, expression: str, partitions: Sequence[str] | None
    ) -> Iterator[tuple[list[Any], npt.NDArray[np.float32]]]:
        """Keys and vectors ``(page, dim)`` of the rows that fulfil the expression, ``MAX_WINDOW`` at most."""
        step = self._page(field)
        for start in range(0, MAX_WINDOW, step):
            limit = min(step, MAX_WINDOW - start)
            options = {"partition_names": list(partitions)} if partitions else {}
            page = self.rows([self.info.primary, field], expression, limit=limit, offset=start, **options)
            if page:
                yield [row[self.info.primary] for row in page], np.asarray([row[field] for row in page], np.float32)
            if len(page) < limit:
                return

    def _page(self, field: str) -> int:
        return max(1, min(1000, _PAGE_BYTES // (4 * self.info.dims[field])))

    def _paged(self, reach: int, fields: Sequence[str]) -> Iterator[Row]:
        size = SAMPLE // _PAGES
        began = self._deadline.remaining()
        for turn in range(_PAGES):
            left = self._deadline.remaining()
            if turn and began is not None and left is not None and left < began / 2:
                return  # what was found is enough to go by, and other checks want their time
            page = turn * _STRIDE % _PAGES
            yield from self.rows(fields, limit=size, offset=page * (reach - size) // (_PAGES - 1))

    def _by_remainder(self, rows: int, fields: Sequence[str]) -> list[Row] | None:
        """Rows whose whole-number key leaves no remainder by a number; None where that is no way to sample."""
        primary = self.info.primary
        if self.info.fields[primary] != "INT64":
            return None
        found = self.rows(fields, f"{primary} % {rows // SAMPLE} == 0", limit=2 * SAMPLE)
        return found if len(found) >= SAMPLE // 4 else None
