"""The ``collection:`` section of a configuration: the Milvus collection that ``ingest`` makes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

DType = Literal["INT8", "INT16", "INT32", "INT64", "BOOL", "FLOAT", "DOUBLE", "VARCHAR", "JSON", "FLOAT_VECTOR"]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class FieldSpec(_Section):
    """One field of the collection, in pymilvus's terms."""

    name: Annotated[str, Field(min_length=1, description="The field's name.")]
    dtype: Annotated[DType, Field(description="Its Milvus data type.")]
    is_primary: Annotated[bool, Field(description="True for the one field that identifies a row.")] = False
    auto_id: Annotated[bool, Field(description="Milvus makes the primary key.")] = False
    max_length: Annotated[int | None, Field(ge=1, le=65535, description="Bytes of a VARCHAR; default 65535.")] = None
    dim: Annotated[
        int | None, Field(ge=1, le=32768, description="Dimension of a vector; the encoder's by default.")
    ] = None
    nullable: Annotated[bool, Field(description="Rows may be without it (Milvus 2.5 and later).")] = False
    source: Annotated[
        str | list[str] | None,
        Field(description="Key of the record that fills it, or several, joined by blanks; its own name by default."),
    ] = None

    @model_validator(mode="after")
    def _fits_its_type(self) -> FieldSpec:
        if self.is_primary and self.dtype not in ("INT64", "VARCHAR"):
            raise ValueError(f"the primary key must be INT64 or VARCHAR, got {self.dtype}")
        if self.auto_id and not self.is_primary:
            raise ValueError("auto_id belongs to the primary key only")
        for key, dtype in (("max_length", "VARCHAR"), ("dim", "FLOAT_VECTOR")):
            if getattr(self, key) is not None and self.dtype != dtype:
                raise ValueError(f"{key} belongs to {dtype} only, not to {self.dtype}")
        return self


class IndexSpec(_Section):
    """The index over the vector field."""

    index_type: Annotated[
        Literal["FLAT", "IVF_FLAT", "IVF_SQ8", "IVF_PQ", "HNSW", "AUTOINDEX", "DISKANN", "SCANN"],
        Field(description="Kind of index. Milvus Lite accepts unknown ones silently, so it is checked here."),
    ] = "IVF_FLAT"
    metric_type: Annotated[Literal["IP", "COSINE", "L2"], Field(description="How vectors are compared.")] = "IP"
    params: Annotated[
        dict[str, int | float | str],
        Field(description="Build parameters, such as nlist for IVF_FLAT or M and efConstruction for HNSW."),
    ] = {}

    @model_validator(mode="before")
    @classmethod
    def _nlist_by_default(cls, data: Any) -> Any:
        kind = data.get("index_type", "IVF_FLAT") if isinstance(data, dict) else None
        if isinstance(kind, str) and kind.startswith("IVF") and isinstance(data.get("params", {}), dict):
            return {**data, "params": {"nlist": 128, **data.get("params", {})}}
        return data


class CollectionSpec(_Section):
    """Schema and index of a collection. Its name and its server are those of the ``milvus_search`` stage."""

    fields: Annotated[list[FieldSpec], Field(min_length=2, description="The schema.")]
    index: Annotated[IndexSpec, Field(description="The index over the vector field.")] = IndexSpec()
    enable_dynamic_field: Annotated[bool, Field(description="Keep keys of a record outside the schema.")] = False
    description: Annotated[str, Field(description="Stored with the collection.")] = ""
    batch_size: Annotated[int, Field(ge=1, description="Records encoded and inserted at a time.")] = 256

    @model_validator(mode="after")
    def _has_key_and_vector(self) -> CollectionSpec:
        names = [field.name for field in self.fields]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two fields are named {name!r}")
        keys = [field.name for field in self.fields if field.is_primary]
        vectors = [field.name for field in self.fields if field.dtype == "FLOAT_VECTOR"]
        for role, found in (("have is_primary: true", keys), ("be a FLOAT_VECTOR", vectors)):
            if len(found) != 1:
                raise ValueError(f"exactly one field must {role}, got {', '.join(found) or 'none'}")
        return self

    @property
    def primary(self) -> FieldSpec:
        """The primary key's field."""
        return next(field for field in self.fields if field.is_primary)

    @property
    def vector(self) -> FieldSpec:
        """The vector field."""
        return next(field for field in self.fields if field.dtype == "FLOAT_VECTOR")

    def config(self) -> dict[str, Any]:
        """Return the section as plain data, without fields at their default."""
        return self.model_dump(mode="json", exclude_defaults=True)
