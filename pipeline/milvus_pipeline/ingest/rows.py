"""From records to the rows of a collection, every value checked before anything is written.

Messages name a record by its number and its key, never by its text.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from milvus_pipeline.config.collection import CollectionSpec, FieldSpec
from milvus_pipeline.errors import IngestError
from milvus_pipeline.text import short_repr

_INT_BITS = {"INT8": 8, "INT16": 16, "INT32": 32, "INT64": 64}
_VARCHAR_BYTES = 65535


class RowMaker:
    """Makes rows out of records.

    Args:
        spec: the schema.
        text_field: the field whose text is embedded.
    """

    def __init__(self, spec: CollectionSpec, text_field: str | None) -> None:
        self._spec = spec
        self._text_field = text_field
        self._sources = {field.name: _source(field) for field in spec.fields}
        self._used = {key for keys in self._sources.values() for key in keys}
        self._keys: dict[Any, int] = {}
        self._blank = 0

    def row(self, record: Mapping[str, Any], number: int) -> dict[str, Any]:
        """The row of a record; without its vector where the record brings none.

        Args:
            record: what a line of the input says.
            number: of the record, from 1, for messages.

        Raises:
            IngestError: a value is missing, does not fit its field, or is a primary key met before.
        """
        if not isinstance(record, Mapping):
            raise IngestError(
                f"must be a mapping of keys to values, is {type(record).__name__}", place=f"record {number}"
            )
        row: dict[str, Any] = {}
        for field in self._spec.fields:
            if field.auto_id:
                continue
            value = self._value(record, field, f"record {number}")
            if value is not None:
                row[field.name] = value
        self._check_key(row, number)
        if self._spec.enable_dynamic_field:
            extra = {key: value for key, value in record.items() if key not in self._used and key not in self._sources}
            row.update((str(key), _json(value, f"record {number}: {key!r}")) for key, value in extra.items())
        text = row.get(self._text_field) if self._text_field else None
        self._blank += isinstance(text, str) and not text.strip()
        return row

    def text(self, row: Mapping[str, Any], number: int) -> str:
        """The text to embed.

        Raises:
            IngestError: the row has none.
        """
        text = row.get(self._text_field) if self._text_field else None
        if not isinstance(text, str):
            field = f"field {self._text_field!r}" if self._text_field else "`text_field` (it is null)"
            raise IngestError(f"has neither a vector nor a text to embed in the {field}", place=f"record {number}")
        return text

    def warnings(self) -> list[str]:
        """What the reader should know about the rows so far."""
        if not self._blank:
            return []
        count = "1 record has" if self._blank == 1 else f"{self._blank} records have"
        return [f"{count} a blank {self._text_field!r}; kept, though a search can hardly find it"]

    def _value(self, record: Mapping[str, Any], field: FieldSpec, place: str) -> Any:
        """The value of a field; None for a vector that is to be made, or a value that may be missing."""
        keys = self._sources[field.name]
        named = f"{place}: {' + '.join(map(repr, keys))}"
        present = {key: record[key] for key in keys if record.get(key) is not None}
        if not present:
            if field.nullable or field.dtype == "FLOAT_VECTOR":
                return None
            raise IngestError(
                f"{named} is missing, but the field {field.name!r} needs it", f"the record has {_has(record)}"
            )
        if len(keys) == 1:
            return _fitted(present[keys[0]], field, named)
        parts = [_part(value, f"{place}: {key!r}") for key, value in present.items()]
        return _fitted(" ".join(part for part in parts if part.strip()), field, named)

    def _check_key(self, row: Mapping[str, Any], number: int) -> None:
        primary = self._spec.primary
        if primary.auto_id:
            return
        if primary.name not in row:
            raise IngestError(f"has no {primary.name!r}, the primary key", place=f"record {number}")
        earlier = self._keys.setdefault(row[primary.name], number)
        if earlier != number:
            # Never silently: Milvus Lite would replace the earlier row, and a server keep both.
            raise IngestError(
                f"has the same {primary.name!r} ({short_repr(row[primary.name])}) as record {earlier}",
                "each needs a primary key of its own",
                place=f"record {number}",
            )


def checked_vectors(
    rows: list[dict[str, Any]], field: str, dim: int | None, first: int, *, from_encoder: set[int]
) -> int:
    """Check the vectors of a batch, in place as float32, and return their dimension.

    Args:
        rows: complete rows.
        field: the vector field.
        dim: the dimension they must have; the first one's if None.
        first: number of the first row's record, for messages.
        from_encoder: indices of the rows whose vector was made here.

    Raises:
        IngestError: a vector is no flat list of finite numbers, or has another dimension.
    """
    for index, row in enumerate(rows):
        place = f"record {first + index}: {field!r}"
        made = index in from_encoder
        try:
            vector = np.asarray(row[field])
        except ValueError:  # lists of different lengths
            vector = np.empty(0, dtype=object)
        if vector.ndim != 1 or vector.dtype.kind not in "fiu" or not vector.size:
            raise IngestError(f"{place} must be a flat list of numbers")
        dim = dim or len(vector)
        if len(vector) != dim:
            cause = "the encoder gives" if made else "it has"
            raise IngestError(
                f"{place} must have {dim} numbers, but {cause} {len(vector)}", "make `dim` and vectors agree"
            )
        with np.errstate(over="ignore"):
            row[field] = vector.astype(np.float32)
        if not np.isfinite(row[field]).all():
            raise IngestError(f"{place} holds NaN or infinity{' (made by the encoder)' if made else ''}")
    assert dim is not None  # noqa: S101 - a batch is never empty
    return dim


def _source(field: FieldSpec) -> list[str]:
    if field.source is None:
        return [field.name]
    return [field.source] if isinstance(field.source, str) else field.source


def _fitted(value: Any, field: FieldSpec, place: str) -> Any:
    """The value, checked against the type of its field."""
    dtype = field.dtype
    if dtype == "VARCHAR":
        return _text(value, field.max_length or _VARCHAR_BYTES, place)
    if dtype in _INT_BITS:
        bound = 2 ** (_INT_BITS[dtype] - 1)
        if isinstance(value, bool) or not isinstance(value, int) or not -bound <= value < bound:
            raise IngestError(f"{place} must be a whole number that fits into {dtype}, is {_kind(value)}")
    elif dtype in ("FLOAT", "DOUBLE"):
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise IngestError(f"{place} must be a finite number, is {_kind(value)}")
        return float(value)
    elif dtype == "BOOL":
        if not isinstance(value, bool):
            raise IngestError(f"{place} must be true or false, is {_kind(value)}")
    elif dtype == "JSON":
        return _json(value, place)
    return value


def _part(value: Any, place: str) -> str:
    """A value as a part of a text that is joined from several."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise IngestError(f"{place} must be text or a finite number to be joined with others, is {_kind(value)}")
    return str(value)


def _text(value: Any, most: int, place: str) -> str:
    if not isinstance(value, str):
        raise IngestError(f"{place} must be text, is {_kind(value)}")
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise IngestError(f"{place} is not valid Unicode text (a lone surrogate)") from None
    if size > most:
        raise IngestError(
            f"{place} has {size} bytes of UTF-8, but its field holds {most}",
            "cut it into passages, or raise max_length",
        )
    return value


def _json(value: Any, place: str) -> Any:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise IngestError(f"{place} is nothing that JSON can hold ({type(error).__name__})") from None
    return value


def _kind(value: Any) -> str:
    """What a value is, without saying the text of one."""
    return f"a {type(value).__name__}" if isinstance(value, str | list | dict) else short_repr(value)


def _has(record: Mapping[str, Any]) -> str:
    keys = sorted(map(str, record))
    return ", ".join(keys[:10]) + (", …" if len(keys) > 10 else "") if keys else "no keys at all"
