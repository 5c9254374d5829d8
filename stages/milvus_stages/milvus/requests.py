"""From the queries of a batch to the calls that answer them, and from the answers to hits."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from milvus_pipeline import Hit, SearchResult, StageError
from milvus_pipeline.plugin import Context
from milvus_stages.milvus import filters
from milvus_stages.milvus.collection import CollectionState, check_vector
from milvus_stages.milvus.params import parse_numbers
from milvus_stages.milvus.settings import MAX_WINDOW


@dataclass(frozen=True)
class Request:
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

    def split(self, size: int) -> list[Request]:
        """Return requests of at most ``size`` queries that together do the same."""
        starts = range(0, len(self.positions), size)
        parts = [slice(start, start + size) for start in starts]
        return [replace(self, positions=self.positions[part], vectors=self.vectors[part]) for part in parts]

    def arguments(self, state: CollectionState) -> dict[str, Any]:
        """Return the arguments of ``MilvusClient.search``."""
        settings = state.settings
        # All are passed explicitly: the engines' defaults differ, above all for output_fields.
        arguments: dict[str, Any] = {
            "collection_name": settings.collection,
            "data": list(self.vectors),
            "anns_field": state.anns_field,
            "limit": settings.limit,
            "filter": self.expression,
            "output_fields": state.requested_fields,
            "search_params": {
                "metric_type": settings.metric_type,
                "params": dict(self.params),
                "offset": settings.offset,
            },
            "partition_names": settings.partition_names,
        }
        for name in ("consistency_level", "group_by_field"):
            if (value := getattr(settings, name)) is not None:
                arguments[name] = value
        return arguments


def requests_for(results: Sequence[SearchResult], state: CollectionState, context: Context) -> deque[Request]:
    """Return the requests that answer a batch. A query that cannot be sent fails here, alone."""
    settings = state.settings
    groups: dict[str, tuple[list[int], list[npt.NDArray[np.float32]], str, dict[str, Any]]] = {}
    for position, result in enumerate(results):
        query = result.query
        try:
            vector = check_vector(query.vector)
            values = {**settings.filter_params, **query.filter_params}
            expression = filters.join((settings.filter, query.filter), values, must_use=query.filter_params)
            params = state.search_params(parse_numbers(query.params))
            key = json.dumps([expression, params, vector.shape[0]], sort_keys=True, default=str)
        except Exception as error:  # whatever is wrong with one query, the others continue
            context.fail(position, error)
            continue
        if settings.metric_type != "L2" and not vector.any():
            context.warn("the query's vector is all zeros, so every score is 0; check its encoder", position)
        positions, vectors, _, _ = groups.setdefault(key, ([], [], expression, params))
        positions.append(position)
        vectors.append(vector)
    return deque(part for group in groups.values() for part in Request(*group).split(MAX_WINDOW))


def read_hits(answer: Iterable[Any], state: CollectionState) -> list[Hit]:
    """Return the hits of one query, best first, ties in the order of their keys.

    Args:
        answer: pymilvus's hits of the query.
        state: by which it is read: text, fields, and whether the distance rises as relevance falls (L2), when its
            negative is the score.

    Raises:
        StageError: a text is neither a string nor null.
    """
    settings, primary = state.settings, state.info.primary
    sign = -1.0 if settings.metric_type == "L2" else 1.0
    scored = [(sign * float(hit.distance), hit) for hit in answer]
    scored.sort(key=lambda pair: (-pair[0], pair[1].id))
    hits = []
    for rank, (score, hit) in enumerate(scored, start=1):
        row = hit["entity"]
        text = None if settings.text_field is None else _text(row, settings.text_field)
        fields = {name: hit.id if name == primary else _plain(row.get(name)) for name in state.fields}
        value = score if settings.round_decimal is None else round(score, settings.round_decimal)
        hits.append(Hit(hit.id, text, value, fields).ranked(settings.name, value, rank))
    return hits


def _text(row: Mapping[str, Any], field: str) -> str | None:
    text = row.get(field)
    if text is not None and not isinstance(text, str):
        raise StageError(
            f"text_field: {field!r} holds a value of type {type(text).__name__}, not text",
            "name the field that holds the text, or set `text_field: null`",
        )
    return text


def _plain(value: Any) -> Any:
    """A field's value as data that JSON can hold."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, bytes):
        return value.hex()
    return [_plain(item) for item in value] if isinstance(value, Iterable) else str(value)
