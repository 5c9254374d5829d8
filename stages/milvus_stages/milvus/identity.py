"""What a search works with: schema, index and rows of its collection, and the server's version."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from milvus_pipeline import StageError
from milvus_pipeline.plugin import Deadline, retrying
from milvus_stages.milvus import failures
from milvus_stages.milvus.client.server import CALL_SECONDS
from milvus_stages.milvus.collection import describe_index, type_name
from milvus_stages.milvus.state import OpenCollection, guarded_call

_SIZES: Final = ("dim", "max_length", "max_capacity")
_ROLES: Final = ("is_primary", "auto_id", "is_partition_key", "nullable")


def search_identity(collection: OpenCollection) -> dict[str, Any]:
    """Return the collection as it is now, in pymilvus's words, and the version of its server.

    Rows are counted, at strong consistency: a server's statistics ignore rows that are not flushed yet, and count
    deleted rows and duplicates. Counting takes about 0.2 s on a server, less on Milvus Lite.

    Raises:
        StageError: the server cannot be asked within ``CALL_SECONDS``.
    """
    settings, deadline = collection.settings, Deadline.after(CALL_SECONDS)

    def attempt() -> dict[str, Any]:
        with guarded_call(settings, deadline.remaining()):
            return _ask(collection, deadline)

    with failures.explained(settings.where, settings.token_env):
        return retrying(settings.retry, deadline, failures.is_transient)(attempt)


def _ask(opened: OpenCollection, deadline: Deadline) -> dict[str, Any]:
    connection, name, anns_field = opened.connection, opened.settings.collection, opened.state.anns_field
    version = str(connection.call(deadline, "get_server_version"))
    schema = connection.call(deadline, "describe_collection", name)
    index = describe_index(connection, name, anns_field, deadline)
    if index is None:
        raise StageError(f"the field {anns_field!r} has no index any more", "make one", place=opened.settings.where)
    counted = {"filter": "", "output_fields": ["count(*)"], "consistency_level": "Strong"}
    count = connection.call(deadline, "query", name, **counted)
    collection = {
        "name": schema["collection_name"],
        "fields": [_field(field) for field in schema["fields"]],
        "dynamic": bool(schema.get("enable_dynamic_field")),
        "index": {
            "field": anns_field,
            "index_type": index.index_type,
            "metric_type": index.metric_type,
            "params": dict(index.params),
        },
        "rows": int(count[0]["count(*)"]),
    }
    if created := schema.get("created_timestamp"):  # differs for another collection of the same name
        collection["created"] = int(created)
    return {"collection": collection, "server": version.replace("milvus_lite-", "Milvus Lite ")}


def _field(field: Mapping[str, Any]) -> dict[str, Any]:
    """A field's name, type, sizes, and special roles."""
    params = field.get("params") or {}
    sizes = {name: int(params[name]) for name in _SIZES if name in params}
    return {"name": field["name"], "dtype": type_name(field), **sizes, **{r: True for r in _ROLES if field.get(r)}}
