"""From the queries of a batch to the calls that answer them."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from milvus_pipeline import Context, SearchResult
from milvus_stages.retrieve import filters
from milvus_stages.retrieve.checks import checked_vector
from milvus_stages.retrieve.params import numbered

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from milvus_stages.retrieve.opening import Opened

MAX_WINDOW = 16384
"""Milvus's bound on ``limit + offset``, and on the queries of one call. Milvus Lite has none; kept for both."""


@dataclass(frozen=True)
class Job:
    """Queries of a batch that one call answers: they share filter and parameters.

    Args:
        positions: of the queries in the batch.
        vectors: of the queries, ``(dim,)`` each and of one dimension, in the order of ``positions``.
        expression: the filter; empty for none.
        params: of the index.
    """

    positions: Sequence[int]
    vectors: Sequence[npt.NDArray[np.float32]]
    expression: str
    params: Mapping[str, Any]

    @property
    def dim(self) -> int:
        """Dimension of the vectors."""
        return int(self.vectors[0].shape[0])

    def halves(self) -> tuple[Job, Job]:
        """Two jobs that do this one's work."""
        middle = len(self.positions) // 2
        return self._part(slice(None, middle)), self._part(slice(middle, None))

    def parts(self, size: int) -> list[Job]:
        """Jobs of at most ``size`` queries that do this one's work."""
        return [self._part(slice(start, start + size)) for start in range(0, len(self.positions), size)]

    def arguments(self, state: Opened) -> dict[str, Any]:
        """Those of ``MilvusClient.search``."""
        stage = state.stage
        # Everything is said in words: the engines' defaults differ, for output_fields above all.
        arguments: dict[str, Any] = {
            "collection_name": stage.collection,
            "data": list(self.vectors),
            "anns_field": state.anns_field,
            "limit": stage.limit,
            "filter": self.expression,
            "output_fields": state.requested_fields,
            "search_params": {"metric_type": stage.metric_type, "params": dict(self.params), "offset": stage.offset},
            "partition_names": stage.partition_names,
        }
        if stage.consistency_level is not None:
            arguments["consistency_level"] = stage.consistency_level
        if stage.group_by_field is not None:
            arguments["group_by_field"] = stage.group_by_field
        return arguments

    def _part(self, part: slice) -> Job:
        return replace(self, positions=self.positions[part], vectors=self.vectors[part])


def jobs_of(results: Sequence[SearchResult], state: Opened, context: Context) -> deque[Job]:
    """The calls to make for a batch. A query that cannot be sent as it is fails here, alone."""
    stage = state.stage
    groups: dict[str, tuple[str, dict[str, Any], list[int], list[npt.NDArray[np.float32]]]] = {}
    for position, result in enumerate(results):
        query = result.query
        try:
            vector = checked_vector(query.vector)
            values = {**stage.filter_params, **query.filter_params}
            expression = filters.joined((stage.filter, query.filter), values, must_use=query.filter_params)
            params = state.search_params(numbered(query.params))
            key = json.dumps([expression, params, vector.shape[0]], sort_keys=True, default=str)
        except Exception as error:  # whatever is wrong with one query, the others go on
            context.fail(position, error)
            continue
        if stage.metric_type != "L2" and not vector.any():
            context.warn("the query's vector is all zeros, so every score is 0; check its encoder", position)
        _, _, positions, vectors = groups.setdefault(key, (expression, params, [], []))
        positions.append(position)
        vectors.append(vector)
    return deque(
        part
        for expression, params, positions, vectors in groups.values()
        for part in Job(positions, vectors, expression, params).parts(MAX_WINDOW)
    )
