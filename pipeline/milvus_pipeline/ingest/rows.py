"""From records to the rows of a collection. Every value is checked before anything is written.

Messages name a record by its number and its keys, never by its text.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, Field, FiniteFloat, TypeAdapter, ValidationError

from milvus_pipeline.config.collection import CollectionSpec, FieldSpec
from milvus_pipeline.errors import IngestError
from milvus_pipeline.problems import kind_of, problems_of
from milvus_pipeline.text import count_text, short_repr

_VARCHAR_BYTES = 65535


def _integer(bits: int) -> TypeAdapter[int]:
    bound = 1 << (bits - 1)
    return TypeAdapter(Annotated[int, Field(ge=-bound, lt=bound)])


_VALUES: dict[str, TypeAdapter[Any]] = {
    **{f"INT{bits}": _integer(bits) for bits in (8, 16, 32, 64)},
    **dict.fromkeys(("FLOAT", "DOUBLE"), TypeAdapter(FiniteFloat)),
    "BOOL": TypeAdapter(bool),
    "VARCHAR": TypeAdapter(str),
}
"""How a value is checked by the type of its field, apart from vectors and JSON."""


class RowMaker:
    """Makes rows of records.

    Args:
        spec: the schema.
        text_field: the field whose text is embedded.
    """

    def __init__(self, spec: CollectionSpec, text_field: str | None) -> None:
        self._spec = spec
        self._text_field = text_field
        self._sources = {
            field.name: field.source if isinstance(field.source, list) else [field.source or field.name]
            for field in spec.fields
        }
        self._used = {key for keys in self._sources.values() for key in keys}
        self._keys: dict[Any, int] = {}
        self._blank = 0

    def row(self, record: Mapping[str, Any], number: int) -> dict[str, Any]:
        """Return the row of a record, without its vector if the record has none.

        Args:
            record: a line of the input.
            number: of the record, from 1, for messages.

        Raises:
            IngestError: a value is missing or does not fit its field, or the primary key was there before.
        """
        try:
            row = self._row(record)
            self._check_key(row, number)
        except IngestError as error:
            error.of_record(number)
            raise
        text = row.get(self._text_field) if self._text_field else None
        self._blank += isinstance(text, str) and not text.strip()
        return row

    def _row(self, record: Mapping[str, Any]) -> dict[str, Any]:
        if not isinstance(record, Mapping):
            raise IngestError(f"must be a mapping of keys to values, got {kind_of(record)}")
        row: dict[str, Any] = {}
        for field in self._spec.fields:
            value = None if field.auto_id else self._value(record, field)
            if value is not None:
                row[field.name] = value
        if self._spec.enable_dynamic_field:
            extra = {key: value for key, value in record.items() if key not in self._used and key not in self._sources}
            row.update((str(key), _json(value, repr(key))) for key, value in extra.items())
        return row

    def _value(self, record: Mapping[str, Any], field: FieldSpec) -> Any:
        """Return the value of a field; None for a vector that is to be made, or a value that may be missing."""
        keys = self._sources[field.name]
        place = " + ".join(map(repr, keys))
        present = {key: record[key] for key in keys if record.get(key) is not None}
        if not present:
            if field.nullable or field.dtype == "FLOAT_VECTOR":
                return None
            what = f"is missing, but the field {field.name!r} needs it"
            raise IngestError(what, f"the record has {', '.join(sorted(map(str, record))[:10])}", place=place)
        if len(keys) == 1:
            return _fitted(present[keys[0]], field, place)
        parts = [_part(value, repr(key)) for key, value in present.items()]
        return _fitted(" ".join(part for part in parts if part.strip()), field, place)

    def _check_key(self, row: Mapping[str, Any], number: int) -> None:
        primary = self._spec.primary
        if primary.auto_id:
            return
        if primary.name not in row:
            raise IngestError(f"has no {primary.name!r}, the primary key")
        earlier = self._keys.setdefault(row[primary.name], number)
        if earlier != number:
            # Milvus Lite would silently replace the earlier row, and a server keep both.
            what = f"has the same {primary.name!r} ({short_repr(row[primary.name])}) as record {earlier}"
            raise IngestError(what, "give each record a unique primary key", earlier=earlier)

    def text(self, row: Mapping[str, Any], number: int) -> str:
        """Return the text to embed.

        Raises:
            IngestError: the row has none.
        """
        text = row.get(self._text_field) if self._text_field else None
        if not isinstance(text, str):
            what = f"has neither a vector nor a text to embed (`text_field` is {self._text_field!r})"
            raise IngestError(what).of_record(number)
        return text

    def warnings(self) -> list[str]:
        """Return what the user should know about the rows so far."""
        records = count_text(self._blank, "record")
        message = f"{records} with a blank {self._text_field!r}; kept, though a search can hardly find it"
        return [message] if self._blank else []


def check_vectors(rows: list[dict[str, Any]], field: str, dim: int | None, first: int) -> int:
    """Check the vectors of a batch, make them float32 in place, and return their dimension.

    Args:
        rows: complete rows.
        field: the vector field.
        dim: the dimension they must have; that of the first one if None.
        first: number of the first row's record, for messages.

    Raises:
        IngestError: a vector is not a flat list of finite numbers, or has another dimension.
    """
    for number, row in enumerate(rows, start=first):
        try:
            row[field] = _vector(row[field], dim)
        except IngestError as error:
            error.at(repr(field)).of_record(number)
            raise
        dim = len(row[field])
    assert dim is not None  # noqa: S101 - a batch is never empty
    return dim


def _vector(value: Any, dim: int | None) -> Any:
    try:
        vector = np.asarray(value)
    except ValueError:  # lists of different lengths
        vector = np.empty(0, dtype=object)
    if vector.ndim != 1 or vector.dtype.kind not in "fiu" or not vector.size:
        raise IngestError("must be a flat list of numbers")
    if len(vector) != (dim or len(vector)):
        raise IngestError(f"must have {dim} numbers, got {len(vector)}", "make `dim`, encoder and vectors agree")
    with np.errstate(over="ignore"):
        vector = vector.astype(np.float32)
    if not np.isfinite(vector).all():
        raise IngestError("holds NaN or infinity")
    return vector


def _fitted(value: Any, field: FieldSpec, place: str) -> Any:
    """Return the value if it fits the type of its field."""
    if field.dtype == "JSON":
        return _json(value, place)
    if field.dtype == "FLOAT_VECTOR":
        return value  # checked with those of its batch
    try:
        value = _VALUES[field.dtype].validate_python(value, strict=True)
        size = len(value.encode()) if isinstance(value, str) else 0
    except ValidationError as error:
        raise IngestError(problems_of(error, BaseModel)[0].what, place=place) from None
    except UnicodeEncodeError:
        raise IngestError("must be valid Unicode text, without lone surrogates", place=place) from None
    if size > (most := field.max_length or _VARCHAR_BYTES):
        what = f"has {size} bytes of UTF-8, but its field holds {most}"
        raise IngestError(what, "split it into passages, or increase max_length", place=place)
    return value


def _part(value: Any, place: str) -> str:
    """Return a value as a part of a text that is joined from several."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        what = f"must be a string or a finite number to be joined with others, got {kind_of(value)}"
        raise IngestError(what, place=place)
    return str(value)


def _json(value: Any, place: str) -> Any:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise IngestError(f"cannot be written as JSON ({type(error).__name__})", place=place) from None
    return value
