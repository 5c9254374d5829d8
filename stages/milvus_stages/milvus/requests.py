"""From the queries of a batch to the calls that answer them."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from milvus_pipeline import Hit, SearchResult, StageError
from milvus_pipeline.plugin import Context
from milvus_stages.milvus import filters
from milvus_stages.milvus.collection import checked_vector
from milvus_stages.milvus.params import numbered

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from milvus_stages.milvus.opening import Opened


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


def hits_of(
    answer: Iterable[Any],
    *,
    stage: str,
    text_field: str | None,
    primary: str,
    fields: Sequence[str],
    rising: bool,
    decimals: int | None,
) -> list[Hit]:
    """The hits of one query, best first, ties by key.

    Args:
        answer: pymilvus's hits of the query.
        stage: name of the stage, under which score and rank are kept.
        text_field: the field that becomes ``hit.text``; None for none.
        primary: name of the primary key's field.
        fields: the fields that go into ``hit.fields``, as plain data; None where a row lacks one.
        rising: whether the distance rises as relevance falls (L2); its negative is then the score.
        decimals: digits that scores are rounded to; None for no rounding.

    Raises:
        StageError: a text is neither a string nor null.
    """
    scored = [(-float(hit.distance) if rising else float(hit.distance), hit) for hit in answer]
    scored.sort(key=lambda pair: (-pair[0], pair[1].id))
    hits = []
    for rank, (score, hit) in enumerate(scored, start=1):
        row = hit["entity"]
        text = None if text_field is None else _text(row, text_field)
        own = {name: hit.id if name == primary else plain(row.get(name)) for name in fields}
        value = score if decimals is None else round(score, decimals)
        hits.append(Hit(hit.id, text, value, own).ranked(stage, value, rank))
    return hits


def _text(row: Mapping[str, Any], field: str) -> str | None:
    text = row.get(field)
    if text is not None and not isinstance(text, str):
        raise StageError(
            f"text_field: {field!r} holds a {type(text).__name__}, not text",
            "name the field that holds the text, or set `text_field: null`",
        )
    return text


def plain(value: Any) -> Any:
    """A field's value as data that JSON can hold."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, bytes):
        return value.hex()
    return [plain(item) for item in value] if isinstance(value, Iterable) else str(value)
