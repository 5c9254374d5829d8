"""Making a collection and filling it, for ``ingest``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from milvus_pipeline import CollectionSpec, FieldSpec, IngestError, PipelineError
from milvus_pipeline.plugin import Deadline
from milvus_stages.milvus import failures
from milvus_stages.milvus.client.lite import lite_path
from milvus_stages.milvus.client.pool import shared
from milvus_stages.milvus.client.server import CALL_SECONDS, Connection, is_lite, pymilvus_for
from milvus_stages.milvus.opening import connected

if TYPE_CHECKING:
    from milvus_stages.milvus.search import MilvusSearch

WRITE_SECONDS = 120.0
"""One batch, a flush or a look at the index may take this long."""

INDEX_SECONDS = 3600.0
"""Building the index and loading the collection may take this long."""

_UNFINISHED = "__ingest"
_REPLACED = "__replaced"


class Writer:
    """Writes rows into a collection of another name, which takes the stage's name when all rows are there.

    So a run that fails half way leaves an older collection of that name as it was, and nothing half made.

    Raises:
        IngestError: the specification does not fit the stage.
    """

    def __init__(self, stage: MilvusSearch, spec: CollectionSpec) -> None:
        self._stage = stage
        self._spec = spec
        self._name = stage.collection + _UNFINISHED
        self._connection: Connection | None = None
        self._overwrite = False
        self._rows = 0
        if problems := _misfits(stage, spec):
            raise IngestError("\n".join(f"collection {stage.collection!r}: {found}" for found in problems))

    @property
    def collection(self) -> str:
        """Name of the collection that is made."""
        return self._stage.collection

    @property
    def text_field(self) -> str | None:
        """The field whose text is embedded."""
        return self._stage.text_field

    def open(self, *, overwrite: bool = False) -> None:
        """Connect.

        Raises:
            StageError: the server cannot be reached.
            IngestError: the collection exists already, and ``overwrite`` is False.
        """
        if is_lite(self._stage.uri):
            Path(lite_path(self._stage.uri)).parent.mkdir(parents=True, exist_ok=True)
        self._connection = connected(self._stage, Deadline.after(self._stage.timeout))
        self._overwrite = overwrite
        self._refuse_to_overwrite()

    def create(self, dim: int) -> None:
        """Make the collection, empty, for vectors of ``dim`` numbers."""
        client = self._client
        with _Explained(self._stage):
            self._drop(self._name)  # what a killed run left behind
            client.create_collection(
                self._name, schema=self._schema(dim), timeout=WRITE_SECONDS, consistency_level="Bounded"
            )

    def insert(self, rows: Sequence[Mapping[str, Any]]) -> int:
        """Write rows of the schema's fields; the number written."""
        with _Explained(self._stage):
            answer = self._client.insert(self._name, [dict(row) for row in rows], timeout=WRITE_SECONDS)
        written = int(answer["insert_count"])
        if written != len(rows):
            raise IngestError(f"{len(rows)} rows were sent, but {written} were written", place=self._stage.where)
        self._rows += written
        return written

    def finish(self) -> int:
        """Build the index, give the collection its name, and load it; the number of rows written."""
        client = self._client
        self._refuse_to_overwrite()
        with _Explained(self._stage):
            client.flush(self._name, timeout=WRITE_SECONDS)
            # After the flush and before loading: an index that is made earlier is not used for what it was given
            # later until the collection is released and loaded again.
            client.create_index(self._name, self._index(), timeout=INDEX_SECONDS)
            self._take_the_name()
            client.load_collection(self._stage.collection, timeout=INDEX_SECONDS)
        return self._rows

    def _take_the_name(self) -> None:
        """Give the new collection its name; the old one is dropped only when that is done."""
        client, name, old = self._client, self._stage.collection, self._stage.collection + _REPLACED
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
        """Drop what is half made. Without effect after ``finish``."""
        if self._connection is not None:
            self._drop(self._name)

    def close(self) -> None:
        """Give the connection back."""
        if self._connection is not None:
            shared.release(self._connection)
            self._connection = None

    @property
    def _client(self) -> Any:
        if self._connection is None:
            raise IngestError("the writer is not open", "call open() first", place=self._stage.where)
        return self._connection.client

    def _refuse_to_overwrite(self) -> None:
        with _Explained(self._stage):
            exists = self._client.has_collection(self._stage.collection, timeout=CALL_SECONDS)
        if exists and not self._overwrite:
            raise IngestError(
                f"{self._stage.where} exists already",
                "pass --overwrite (overwrite=True) to replace it, or choose another name",
            )

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
        # Milvus Lite drops parameters that are not one level down; servers take both forms.
        params.add_index(
            self._spec.vector.name,
            index_type=index.index_type,
            metric_type=index.metric_type,
            params={"params": dict(index.params)},
        )
        return params


class _Explained:
    """Turns what pymilvus raises into our errors."""

    def __init__(self, stage: MilvusSearch) -> None:
        self._stage = stage

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, PipelineError):
            explained = failures.explained(error, self._stage.where, self._stage.token_env)
            raise explained from explained.__cause__


def _options(field: FieldSpec, dim: int) -> dict[str, Any]:
    options: dict[str, Any] = {"is_primary": field.is_primary}
    if field.is_primary:
        options["auto_id"] = field.auto_id
    if field.nullable:
        options["nullable"] = True
    if field.dtype == "VARCHAR":
        options["max_length"] = field.max_length or 65535
    if field.dtype == "FLOAT_VECTOR":
        options["dim"] = dim
    return options


def _misfits(stage: MilvusSearch, spec: CollectionSpec) -> list[str]:
    """Where the collection that is to be made and the search that is to use it disagree."""
    names = {field.name for field in spec.fields}
    problems = []
    if stage.anns_field is not None and stage.anns_field != spec.vector.name:
        problems.append(f"the vector field is {spec.vector.name!r}, but {stage.name} searches {stage.anns_field!r}")
    if spec.index.metric_type != stage.metric_type:
        problems.append(f"index.metric_type is {spec.index.metric_type}, but {stage.name} has {stage.metric_type}")
    if stage.index_type not in (spec.index.index_type, "AUTOINDEX"):
        problems.append(f"index.index_type is {spec.index.index_type}, but {stage.name} has {stage.index_type}")
    wanted: dict[str, list[str | None]] = {
        "text_field": [stage.text_field],
        "output_fields": [*(stage.output_fields or ())],
        "group_by_field": [stage.group_by_field],
    }
    for key, fields in wanted.items():
        problems.extend(
            f"{stage.name}.{key} is {name!r}, which is not among the fields ({', '.join(sorted(names))})"
            for name in fields
            if name is not None and name not in names and not spec.enable_dynamic_field
        )
    return problems
