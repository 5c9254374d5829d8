"""Collections made with pymilvus and not with the code under test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

BATCH = 400  # rows of one insert, which may hold 64 MB
ALL = {"_default": slice(None)}
NONE = {"_default": slice(0)}


def make_collection(
    client: Any,
    name: str,
    columns: Mapping[str, Sequence[Any]],
    *,
    dynamic: Sequence[str] = (),
    parts: Mapping[str, slice] = ALL,
    flush: bool = True,
) -> None:
    """Make a collection anew, without an index.

    Args:
        client: ``MilvusClient``.
        name: of the collection.
        columns: values by field, at least one each: the primary key first; a matrix is a vector field.
        dynamic: columns that are not in the schema; with any, the schema is dynamic.
        parts: the rows of each partition.
        flush: write the rows to disk: a server that is killed loses others. Flushing takes seconds.
    """
    from pymilvus import DataType

    schema = client.create_schema(enable_dynamic_field=bool(dynamic))
    for number, (field, values) in enumerate(columns.items()):
        if isinstance(values, np.ndarray):
            schema.add_field(field, DataType.FLOAT_VECTOR, dim=values.shape[1])
        elif isinstance(values[0], str):
            schema.add_field(field, DataType.VARCHAR, max_length=65535)
        elif field not in dynamic:
            schema.add_field(field, DataType.INT64, is_primary=number == 0)
    client.drop_collection(name, timeout=60)
    client.create_collection(name, schema=schema, timeout=60)
    plain = {field: values.tolist() if isinstance(values, np.ndarray) else values for field, values in columns.items()}
    rows = [dict(zip(plain, row, strict=True)) for row in zip(*plain.values(), strict=True)]
    for partition, part in parts.items():
        if partition != "_default":
            client.create_partition(name, partition, timeout=60)
        for start in range(0, len(rows[part]), BATCH):
            client.insert(name, rows[part][start : start + BATCH], partition_name=partition, timeout=60)
    if flush:
        client.flush(name, timeout=60)


def make_index(client: Any, name: str, index_type: str = "FLAT", metric: str = "IP", **params: Any) -> None:
    """Make the index of the field ``vector``, and load the collection."""
    index = client.prepare_index_params()
    index.add_index("vector", index_type=index_type, metric_type=metric, params={"params": params})
    client.create_index(name, index, timeout=60)
    client.load_collection(name, timeout=120)
    # New rows may be missed for a moment; after this call, all are visible.
    client.query(name, filter="", output_fields=["count(*)"], consistency_level="Strong", timeout=60)
