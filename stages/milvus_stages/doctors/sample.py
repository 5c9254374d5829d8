"""A sample of a collection's rows, spread over the collection, for checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
        lite, primary = self.connection.is_lite, self.info.primary
        if rows > MAX_WINDOW and not lite and self.info.fields[primary] == "INT64":
            found = self.rows(fields, f"{primary} % {rows // SAMPLE} == 0", limit=2 * SAMPLE)
            if len(found) >= SAMPLE // 4:  # keys with gaps may have too few of these remainders
                return Sample(found, True)
        reach = rows if lite else min(rows, MAX_WINDOW)  # a server reads no further; Milvus Lite does
        size = SAMPLE // _PAGES
        starts = [page * (reach - size) // (_PAGES - 1) for page in range(_PAGES)]
        found = [row for start in starts for row in self.rows(fields, limit=size, offset=start)]
        return Sample(found, reach == rows)

    def vectors(self, field: str, keys: Sequence[Any]) -> npt.NDArray[np.float32]:
        """Return the vectors ``(found, dim)`` of the rows with these primary keys."""
        found = [row[field] for row in self.rows([field], ids=list(keys))]
        return np.asarray(found, dtype=np.float32).reshape(len(found), self.info.dims[field])
