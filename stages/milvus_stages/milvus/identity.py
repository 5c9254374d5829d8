"""What a search works with: schema, index and rows of its collection, and the server's version."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from milvus_pipeline import PipelineError, StageError
from milvus_pipeline.plugin import Deadline, retrying
from milvus_stages.milvus import failures
from milvus_stages.milvus.client.server import CALL_SECONDS

if TYPE_CHECKING:
    from milvus_stages.milvus.opening import Opened

_SIZES: Final = ("dim", "max_length", "max_capacity")
_ROLES: Final = ("is_primary", "auto_id", "is_partition_key", "nullable")
_NAMED: Final = ("index_type", "metric_type")
_INDEX_STATE: Final = (
    "params",
    "field_name",
    "index_name",
    "total_rows",
    "indexed_rows",
    "pending_index_rows",
    "state",
)


def search_identity(state: Opened) -> dict[str, Any]:
    """The collection as it is now, in words of pymilvus, and the version of its server.

    Rows are counted, at strong consistency: the statistics of a server know nothing of what it has not written out
    yet, and take deleted rows and copies for rows. On a server that takes some 0.2 s, on Milvus Lite less.

    Raises:
        StageError: the server cannot be asked; a deadline of ``CALL_SECONDS`` holds for all.
    """
    stage, deadline = state.stage, Deadline.after(CALL_SECONDS)

    def attempt() -> dict[str, Any]:
        with stage.guarding(deadline.remaining()):
            return _asked(state, deadline)

    try:
        return retrying(stage.retry, deadline, failures.is_transient)(attempt)
    except PipelineError:
        raise
    except Exception as error:
        explained = failures.explained(error, stage.where, stage.token_env)
        raise explained from explained.__cause__


def _asked(state: Opened, deadline: Deadline) -> dict[str, Any]:
    call, name = state.connection.call, state.stage.collection
    version = str(call(deadline, "get_server_version"))
    schema = call(deadline, "describe_collection", name)
    counted = state.connection.client.query(
        name,
        filter="",
        output_fields=["count(*)"],
        consistency_level="Strong",
        timeout=deadline.remaining(at_most=CALL_SECONDS),
    )
    collection = {
        "name": schema["collection_name"],
        "fields": [_field(field) for field in schema["fields"]],
        "dynamic": bool(schema.get("enable_dynamic_field")),
        "index": _index(state, call(deadline, "list_indexes", name), deadline),
        "rows": int(counted[0]["count(*)"]),
    }
    if created := schema.get("created_timestamp"):  # another collection of the same name has another one
        collection["created"] = int(created)
    return {"collection": collection, "server": version.replace("milvus_lite-", "Milvus Lite ")}


def _field(field: Mapping[str, Any]) -> dict[str, Any]:
    """A field's name and type, its sizes, and what it is beyond a plain field."""
    params = field.get("params") or {}
    sizes = {name: int(params[name]) for name in _SIZES if name in params}
    roles = {name: True for name in _ROLES if field.get(name)}
    kind = field["type"]
    return {"name": field["name"], "dtype": str(getattr(kind, "name", kind)), **sizes, **roles}


def _index(state: Opened, names: Sequence[str], deadline: Deadline) -> dict[str, Any]:
    """The index over the field that is searched."""
    for name in names:
        data = state.connection.call(deadline, "describe_index", state.stage.collection, name)
        # Milvus Lite describes the index it has for whatever field it is asked.
        if data and data.get("field_name") == state.anns_field:
            # Depending on how the index was made, its parameters come flat or one level down.
            flat = {**data, **(data.get("params") or {})}
            own = {key: _number(value) for key, value in flat.items() if key not in (*_INDEX_STATE, *_NAMED)}
            named = {key: str(flat[key]) for key in _NAMED}
            return {"field": state.anns_field, **named, "params": dict(sorted(own.items()))}
    raise StageError(f"the field {state.anns_field!r} has no index any more", "make one", place=state.stage.where)


def _number(value: Any) -> Any:
    """Numbers that an engine gives as text, as numbers; anything that is no plain datum, as text."""
    if isinstance(value, str) and value.isascii() and value.isdigit():
        return int(value)
    return value if isinstance(value, int | float | bool | str) else str(value)
