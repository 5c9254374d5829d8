"""Making a collection and filling it, for ``ingest``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from milvus_pipeline import CollectionSpec, FieldSpec, IngestError
from milvus_pipeline.plugin import Deadline
from milvus_stages.milvus import failures
from milvus_stages.milvus.client.lite import lite_path
from milvus_stages.milvus.client.pool import connections
from milvus_stages.milvus.client.server import CALL_SECONDS, Connection, pymilvus_for
from milvus_stages.milvus.collection import VECTOR_TYPE
from milvus_stages.milvus.settings import SearchSettings
from milvus_stages.milvus.state import open_connection

WRITE_SECONDS = 120.0
"""Limit for one batch, or a flush."""

INDEX_SECONDS = 3600.0
"""Limit for building the index, and for loading the collection."""

_UNFINISHED = "__ingest"
_REPLACED = "__replaced"


class Writer:
    """Writes rows into a temporary collection, which takes the final name when all rows are written.

    So a run that fails leaves an older collection of that name unchanged, and nothing unfinished.

    Args:
        settings: of the search that the collection is for.
        spec: the collection to make.

    Raises:
        IngestError: the specification does not fit the search.
    """

    def __init__(self, settings: SearchSettings, spec: CollectionSpec) -> None:
        self._settings = settings
        self._spec = spec
        self._name = settings.collection + _UNFINISHED
        self._connection: Connection | None = None
        self._overwrite = False
        self._rows = 0
        if problems := [f"collection {settings.collection!r}: {problem}" for problem in _mismatches(settings, spec)]:
            raise IngestError("\n".join(problems))

    @property
    def collection(self) -> str:
        """Name of the collection that is made."""
        return self._settings.collection

    @property
    def text_field(self) -> str | None:
        """The field whose text is embedded."""
        return self._settings.text_field

    def open(self, *, overwrite: bool = False) -> None:
        """Connect.

        Raises:
            StageError: the server cannot be reached.
            IngestError: the collection exists already, and ``overwrite`` is False.
        """
        if self._settings.is_lite:
            Path(lite_path(self._settings.uri)).parent.mkdir(parents=True, exist_ok=True)
        self._connection = open_connection(self._settings, Deadline.after(self._settings.timeout))
        self._overwrite = overwrite
        self._check_overwrite()

    def create(self, dim: int) -> None:
        """Make the collection, empty, for vectors of ``dim`` numbers."""
        client = self._client
        with self._explained():
            self._drop(self._name)  # left behind by a run that was killed
            client.create_collection(
                self._name, schema=self._schema(dim), timeout=WRITE_SECONDS, consistency_level="Bounded"
            )

    def insert(self, rows: Sequence[Mapping[str, Any]]) -> int:
        """Write rows of the schema's fields; return the number written."""
        with self._explained():
            answer = self._client.insert(self._name, [dict(row) for row in rows], timeout=WRITE_SECONDS)
        written = int(answer["insert_count"])
        if written != len(rows):
            raise IngestError(f"{len(rows)} rows were sent, but {written} were written", place=self._settings.where)
        self._rows += written
        return written

    def finish(self) -> int:
        """Build the index, give the collection its name, and load it; return the number of rows written."""
        client = self._client
        self._check_overwrite()
        with self._explained():
            client.flush(self._name, timeout=WRITE_SECONDS)
            # After the flush and before loading: an index that is made earlier does not cover rows inserted later
            # until the collection is released and loaded again.
            client.create_index(self._name, self._index(), timeout=INDEX_SECONDS)
            self._rename()
            client.load_collection(self._settings.collection, timeout=INDEX_SECONDS)
        return self._rows

    def _rename(self) -> None:
        """Give the new collection its final name; the old one is dropped only when that is done."""
        client, name, old = self._client, self._settings.collection, self._settings.collection + _REPLACED
        self._drop(old)
        replaces = client.has_collection(name, timeout=CALL_SECONDS)
        if replaces:
            client.rename_collection(name, old, timeout=WRITE_SECONDS)
        try:
            client.rename_collection(self._name, name, timeout=WRITE_SECONDS)
        except Exception:
            if replaces:
                client.rename_collection(old, name, timeout=WRITE_SECONDS)
            raise
        self._drop(old)

    def _drop(self, name: str) -> None:
        if self._client.has_collection(name, timeout=CALL_SECONDS):
            self._client.drop_collection(name, timeout=WRITE_SECONDS)

    def abort(self) -> None:
        """Drop the unfinished collection. Without effect after ``finish``."""
        if self._connection is not None:
            self._drop(self._name)

    def close(self) -> None:
        """Release the connection."""
        if self._connection is not None:
            connections.release(self._connection)
            self._connection = None

    @property
    def _client(self) -> Any:
        if self._connection is None:
            raise IngestError("the writer is not open", "call open() first", place=self._settings.where)
        return self._connection.client

    def _explained(self) -> AbstractContextManager[None]:
        return failures.explained(self._settings.where, self._settings.token_env)

    def _check_overwrite(self) -> None:
        with self._explained():
            exists = self._client.has_collection(self._settings.collection, timeout=CALL_SECONDS)
        if exists and not self._overwrite:
            step = "pass --overwrite (overwrite=True) to replace it, or choose another name"
            raise IngestError("exists already", step, place=self._settings.where)

    def _schema(self, dim: int) -> Any:
        pymilvus = pymilvus_for("ingest")
        schema = pymilvus.MilvusClient.create_schema(
            enable_dynamic_field=self._spec.enable_dynamic_field, description=self._spec.description
        )
        for field in self._spec.fields:
            schema.add_field(field.name, getattr(pymilvus.DataType, field.dtype), **_options(field, dim))
        return schema

    def _index(self) -> Any:
        index, params = self._spec.index, pymilvus_for("ingest").MilvusClient.prepare_index_params()
        # Milvus Lite drops parameters that are not one level down; servers accept both forms.
        params.add_index(
            self._spec.vector.name,
            index_type=index.index_type,
            metric_type=index.metric_type,
            params={"params": dict(index.params)},
        )
        return params


def _options(field: FieldSpec, dim: int) -> dict[str, Any]:
    primary: dict[str, Any] = {"is_primary": True, "auto_id": field.auto_id} if field.is_primary else {}
    nullable = {"nullable": True} if field.nullable else {}
    length = {"max_length": field.max_length or 65535} if field.dtype == "VARCHAR" else {}
    return {**primary, **nullable, **length, **({"dim": dim} if field.dtype == VECTOR_TYPE else {})}


def _mismatches(settings: SearchSettings, spec: CollectionSpec) -> Iterator[str]:
    """How the collection that is to be made and the search that is to use it disagree."""
    name, index, vector = settings.name, spec.index, spec.vector.name
    if settings.anns_field not in (None, vector):
        yield f"the vector field is {vector!r}, but {name} searches {settings.anns_field!r}"
    if index.metric_type != settings.metric_type:
        yield f"index.metric_type is {index.metric_type}, but {name} has {settings.metric_type}"
    if settings.index_type not in (index.index_type, "AUTOINDEX"):
        yield f"index.index_type is {index.index_type}, but {name} has {settings.index_type}"
    fields = sorted(field.name for field in spec.fields)
    for key in ("text_field", "output_fields", "group_by_field"):
        value = getattr(settings, key)
        for wanted in value if isinstance(value, list) else [value]:
            if wanted is not None and wanted not in fields and not spec.enable_dynamic_field:
                yield f"{name}.{key} is {wanted!r}, which is not one of the fields ({', '.join(fields)})"
