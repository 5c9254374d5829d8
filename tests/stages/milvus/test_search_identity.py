"""The identity of a search, on both engines."""

import json

import pytest

from milvus_pipeline import StageError
from milvus_stages import MilvusSearch

from .conftest import DIM, ROWS, Engine


def test_a_collection_is_described(engine: Engine):
    """The identity holds fields, index, rows and version as plain data, and is the same when asked again."""
    with engine.stage() as stage:
        identity = stage.identity()
        assert stage.identity() == identity
    collection = identity["collection"]
    assert collection["name"] == "things"
    assert collection["fields"] == [
        {"name": "id", "dtype": "INT64", "is_primary": True},
        {"name": "vector", "dtype": "FLOAT_VECTOR", "dim": DIM},
        {"name": "text", "dtype": "VARCHAR", "max_length": 65535},
        {"name": "tag", "dtype": "VARCHAR", "max_length": 65535},
        {"name": "year", "dtype": "INT64"},
    ]
    assert collection["dynamic"] is True
    assert collection["index"] == {
        "field": "vector",
        "index_type": "IVF_FLAT",
        "metric_type": "IP",
        "params": {"nlist": 8},
    }
    assert collection["rows"] == ROWS
    assert identity["server"].startswith("Milvus Lite 3." if engine.kind == "lite" else "v2.3.5")
    assert ("created" in collection) == (engine.kind == "server")
    assert json.loads(json.dumps(identity)) == identity


def test_rows_are_counted_and_not_estimated(engine: Engine):
    """Rows that were just inserted or deleted count, though a server's statistics do not include them yet."""
    from pymilvus import MilvusClient

    client = MilvusClient(engine.uri, timeout=10, dedicated=True)
    row = {"id": 9999, "vector": [1.0] * DIM, "text": "new", "tag": "", "year": 1}
    with engine.stage() as stage:
        client.insert("things", [row], timeout=60)
        assert stage.identity()["collection"]["rows"] == ROWS + 1
        client.delete("things", ids=[9999], timeout=60)
        assert stage.identity()["collection"]["rows"] == ROWS
    client.close()


def test_a_collection_that_is_gone(own: Engine):
    """The error names the collection and its place."""
    from pymilvus import MilvusClient

    with own.stage() as stage:
        client = MilvusClient(own.uri)
        client.drop_collection("things")
        client.close()
        with pytest.raises(StageError, match=r"collection .things. at .*own\.db") as caught:
            stage.identity()
    assert "Traceback" not in str(caught.value)


def test_a_closed_search_has_no_identity():
    """Asking a closed stage for its identity is an error."""
    with pytest.raises(StageError, match="is not open"):
        MilvusSearch(collection="things").identity()
