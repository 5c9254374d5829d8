"""A Milvus server that these tests may kill, with a collection whose right answers are known."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from milvus_pipeline import BreakerSettings, Pipeline, Query
from milvus_stages import MilvusSearch
from support.leaks import leaving_nothing
from support.milvus_server import MilvusServer, server_for_tests
from support.storm import Question, storm

ROWS, DIM, LIMIT, CROWD = 2000, 32, 10, 100
COLLECTION = "things"
LEASE = 8
"""Seconds; so long the server loads its collections after a kill, and two thirds of it may it stand still."""


def unit(seed: int, shape: tuple[int, ...]) -> Any:
    """Vectors of length 1, the same for the same seed."""
    vectors = np.random.default_rng(seed).normal(size=shape)
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


VECTORS = unit(0, (ROWS, DIM))


def questions(count: int = CROWD, dim: int = DIM, vectors: Any = VECTORS) -> Sequence[Question]:
    """Queries with the keys of the nearest vectors by inner product."""
    asked = unit(1, (count, dim))
    best = np.argsort(-(asked @ vectors.T), axis=1)[:, :LIMIT]
    return [
        Question(Query(f"question {number}", vector=asked[number]), [int(key) for key in best[number]])
        for number in range(count)
    ]


def make_things(
    uri: str, vectors: Any = VECTORS, flushed: bool = True, index_type: str = "FLAT", **params: Any
) -> None:
    """The collection anew: keys 0, 1, ... and an index that is exact, or another.

    A server that is killed has lost what was not flushed; flushing takes seconds.
    """
    from pymilvus import DataType, MilvusClient

    client = MilvusClient(uri, timeout=10, dedicated=True)
    schema = client.create_schema()
    schema.add_field("id", DataType.INT64, is_primary=True)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=vectors.shape[1])
    schema.add_field("text", DataType.VARCHAR, max_length=100)
    client.drop_collection(COLLECTION, timeout=60)
    client.create_collection(COLLECTION, schema=schema, timeout=60)
    rows = [{"id": key, "vector": vector.tolist(), "text": f"text {key}"} for key, vector in enumerate(vectors)]
    client.insert(COLLECTION, rows, timeout=60)
    if flushed:
        client.flush(COLLECTION, timeout=60)
    index = client.prepare_index_params()
    index.add_index("vector", index_type=index_type, metric_type="IP", params={"params": params})
    client.create_index(COLLECTION, index, timeout=60)
    client.load_collection(COLLECTION, timeout=60)
    # Searches may be a moment behind; this one waits until all rows are seen, and so do those after it.
    client.search(COLLECTION, vectors[:1], limit=1, consistency_level="Strong", timeout=60)
    client.close()


def search(uri: str, **fields: Any) -> Pipeline:
    """A pipeline that searches the collection; a dead server is tried again after a second."""
    fields = {"collection": COLLECTION, "index_type": "FLAT", "limit": LIMIT, **fields}
    return Pipeline([MilvusSearch(uri=uri, breaker=BreakerSettings(wait=1.0), **fields)])


@pytest.fixture(scope="session")
def doomed_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MilvusServer]:
    """A server of our own, with the collection. What libraries keep for good they have after this."""
    with server_for_tests(tmp_path_factory.mktemp("doomed-server"), LEASE) as server:
        make_things(server.uri)
        with storm(search(server.uri), questions()) as ask:
            ask(timeout=30)
        yield server


@pytest.fixture
def server(doomed_server: MilvusServer) -> Iterator[MilvusServer]:
    """The server; whoever uses it leaves no thread and no socket behind."""
    with leaving_nothing():
        yield doomed_server
