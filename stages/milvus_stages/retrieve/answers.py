"""From Milvus's answer to hits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from milvus_pipeline import Hit, StageError


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
            f"text_field: {field!r} holds a {type(text).__name__}, not text; name the field that holds the text, or "
            "set `text_field: null`"
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
