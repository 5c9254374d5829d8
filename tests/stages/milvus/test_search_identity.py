"""What a search says that it works with, on both engines."""

import json

import pytest

from milvus_pipeline import StageError
from milvus_stages import MilvusSearch

from .conftest import DIM, ROWS, Engine


def test_a_collection_is_described(engine: Engine):
    """Fields, index, rows and version, in plain data, and the same when asked again."""
    with engine.stage() as stage:
        told = stage.identity()
        assert stage.identity() == told
    collection = told["collection"]
    assert collection["name"] == "things"
    assert collection["fields"] == [
        {"name": "id", "dtype": "INT64", "is_primary": True},
        {"name": "vector", "dtype": "FLOAT_VECTOR", "dim": DIM},
        {"name": "text", "dtype": "VARCHAR", "max_length": 200},
        {"name": "tag", "dtype": "VARCHAR", "max_length": 200},
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
    assert told["server"].startswith("Milvus Lite 3." if engine.kind == "lite" else "v2.3.5")
    assert ("created" in collection) == (engine.kind == "server")
    assert json.loads(json.dumps(told)) == told


def test_rows_are_counted_and_not_estimated(engine: Engine):
    """What was just inserted or deleted counts, which a server's statistics do not know yet."""
    from pymilvus import MilvusClient

    client = MilvusClient(engine.uri, timeout=10, dedicated=True)
    row = {"id": 9999, "vector": [1.0] * DIM, "text": "new", "tag": "", "year": 1}
    with engine.stage() as stage:
        client.insert("things", [row], timeout=60)
        assert stage.identity()["collection"]["rows"] == ROWS + 1
        client.delete("things", ids=[9999], timeout=60)
        assert stage.identity()["collection"]["rows"] == ROWS
    client.close()


def test_a_collection_that_is_gone_is_told(own: Engine):
    """With its name and place, and in no foreign words."""
    from pymilvus import MilvusClient

    with own.stage() as stage:
        client = MilvusClient(own.uri)
        client.drop_collection("things")
        client.close()
        with pytest.raises(StageError, match=r"collection .things. at .*own\.db") as caught:
            stage.identity()
    assert "Traceback" not in str(caught.value)


def test_a_server_that_went_away_is_told(proxy):
    """In bounded time, as a search tells it."""
    stage = MilvusSearch(
        uri=f"http://127.0.0.1:{proxy.port}", collection="things", retry={"attempts": 2, "min_wait": 0.01}
    )
    with stage:
        proxy.refuse()
        with pytest.raises(StageError, match=r"cannot be reached|did not answer|lost") as caught:
            stage.identity()
    assert caught.value.reason_code == "unavailable"


def test_a_closed_search_does_not_know():
    """The stage has to be open."""
    with pytest.raises(StageError, match="is not open"):
        MilvusSearch(collection="things").identity()
