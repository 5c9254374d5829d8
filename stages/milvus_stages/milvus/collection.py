"""What a collection is like, and whether a search fits it: checked here, because the engines accept much silently.

Milvus Lite takes a wrong metric and answers with wrong scores; it drops unknown output fields; older servers ignore
``group_by_field``; neither objects to NaN.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import numpy as np
import numpy.typing as npt

from milvus_pipeline import QueryError, StageError
from milvus_pipeline.plugin import Deadline
from milvus_stages.milvus.client.server import Connection

_GROUPING_SINCE = (2, 4)


@dataclass(frozen=True)
class CollectionInfo:
    """A collection as its server describes it.

    Args:
        name: as asked for.
        real_name: of the collection itself, where that is an alias.
        primary: name of the primary key's field.
        fields: data type by field name, such as ``{"text": "VARCHAR"}``.
        dims: dimension by name of the FLOAT_VECTOR fields.
        dynamic: whether rows may hold fields that the schema lacks.
        partitions: names.
        rows: number of rows, as far as the server has counted them.
        marker: what the connection knows this state of it by; None where it knows nothing of the kind.
    """

    name: str
    real_name: str
    primary: str
    fields: Mapping[str, str]
    dims: Mapping[str, int]
    dynamic: bool
    partitions: Sequence[str]
    rows: int
    marker: object = None

    @property
    def plain_fields(self) -> list[str]:
        """The fields that are no vectors."""
        return [name for name, dtype in self.fields.items() if "VECTOR" not in dtype]


@dataclass(frozen=True)
class IndexInfo:
    """The index over a vector field; ``nlist`` is None where the index has no lists."""

    index_type: str
    metric_type: str
    nlist: int | None


def described(connection: Connection, collection: str, deadline: Deadline) -> CollectionInfo:
    """Ask the server about a collection.

    Raises:
        StageError: there is none of that name; the message says which there are.
    """
    if not connection.call(deadline, "has_collection", collection):
        existing = connection.call(deadline, "list_collections")
        raise StageError(_missing(collection, existing), reason_code="not_found")
    real_name = connection.call(deadline, "describe_collection", collection)["collection_name"]
    marker = connection.marker(real_name)
    data = connection.call(deadline, "describe_collection", collection)
    fields = {field["name"]: str(getattr(field["type"], "name", field["type"])) for field in data["fields"]}
    return CollectionInfo(
        name=collection,
        real_name=real_name,
        primary=next(field["name"] for field in data["fields"] if field.get("is_primary")),
        fields=fields,
        dims={f["name"]: int(f["params"]["dim"]) for f in data["fields"] if fields[f["name"]] == "FLOAT_VECTOR"},
        dynamic=bool(data.get("enable_dynamic_field")),
        partitions=connection.call(deadline, "list_partitions", collection),
        rows=int(connection.call(deadline, "get_collection_stats", collection).get("row_count", 0)),
        marker=marker,
    )


def index_of(connection: Connection, collection: str, field: str, deadline: Deadline) -> IndexInfo | None:
    """The index over a field; None where it has none."""
    # Milvus Lite describes the index it has for whatever field it is asked, so the answer's own field is compared.
    for name in connection.call(deadline, "list_indexes", collection):
        data = connection.call(deadline, "describe_index", collection, name)
        if data and data.get("field_name") == field:
            # Depending on how the index was made, its parameters come flat or one level down.
            params = {**data, **(data.get("params") or {})}
            nlist = params.get("nlist")
            return IndexInfo(data["index_type"], data["metric_type"], None if nlist is None else int(nlist))
    return None


def vector_field(info: CollectionInfo, anns_field: str | None) -> str:
    """The field to search: the one asked for, or the only one there is.

    Raises:
        StageError: it is missing, no FLOAT_VECTOR, or one of several.
    """
    if anns_field is not None:
        if anns_field not in info.fields:
            raise StageError(f"anns_field: {unknown_field(info, anns_field, list(info.dims))}", reason_code="config")
        if anns_field not in info.dims:
            raise StageError(
                (f"anns_field: {anns_field!r} is {info.fields[anns_field]}, but the search needs a FLOAT_VECTOR"),
                str(_listed("the collection has", info.dims)),
                reason_code="config",
            )
        return anns_field
    if len(info.dims) != 1:
        fields = _listed("the FLOAT_VECTOR fields are", info.dims)
        raise StageError("anns_field: name the field to search", str(fields), reason_code="config")
    return next(iter(info.dims))


def unknown_field(info: CollectionInfo, name: str, choices: Sequence[str] | None = None) -> str:
    """That the collection has no such field, and what it has."""
    known = choices if choices is not None else info.plain_fields
    return f"collection {info.name!r} has no field {name!r}{_near(name, known, 'it has')}"


def grouping_problem(version: str) -> str | None:
    """That the server would ignore ``group_by_field`` without a word; None where it would not.

    Args:
        version: as ``get_server_version`` says it: ``milvus_lite-3.2.2``, ``v2.3.5-lite`` (a server, too), ``2.6.0``.
    """
    if version.startswith("milvus_lite"):
        return None
    numbers = [int(part) if part.isdigit() else 0 for part in version.lstrip("v").split("-")[0].split(".")]
    if tuple(numbers[:2]) >= _GROUPING_SINCE:
        return None
    return f"group_by_field: the server is {version}, which ignores it; it needs Milvus 2.4 or later"


def checked_vector(vector: Any) -> npt.NDArray[np.float32]:
    """A query's vector as ``(dim,)`` float32, of whatever dimension.

    Raises:
        QueryError: there is none, it is no flat list of numbers, or is not finite.
    """
    if vector is None:
        raise QueryError("the query has no vector", "put an encode stage before this one, or pass Query(vector=...)")
    try:
        array = np.asarray(vector)
    except ValueError:  # lists of different lengths
        array = np.empty(0, dtype=object)
    if array.ndim != 1 or array.dtype.kind not in "fiu":
        raise QueryError("the query's vector must be a flat list of numbers, such as [0.1, 0.2]")
    with np.errstate(over="ignore"):
        array = array.astype(np.float32, copy=False)
    if not np.isfinite(array).all():
        raise QueryError("the query's vector holds NaN or infinity (or a number above float32)", "check its encoder")
    return array


def _missing(collection: str, existing: Sequence[str]) -> str:
    near = _near(collection, existing, "there are") if existing else "; there are none at all"
    return f"there is no collection {collection!r}{near}; make it with `milvus-pipeline ingest`, or correct the name"


def _near(word: str, known: Sequence[str], lead: str) -> str:
    close = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else f"; {_listed(lead, known)}"


def _listed(lead: str, names: Sequence[str] | Mapping[str, Any]) -> str:
    ordered = sorted(names)
    shown = ", ".join(ordered[:10]) + (", …" if len(ordered) > 10 else "")
    return f"{lead} {shown or 'none'}"
