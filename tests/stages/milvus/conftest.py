"""One small collection on each engine, made with pymilvus and not with the code under test."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from milvus_pipeline import Pipeline, Query
from milvus_stages import MilvusSearch
from support.collections import make_collection, make_index
from support.proxy import Proxy

ROWS, DIM, NLIST = 400, 16, 8


@dataclass(frozen=True)
class Engine:
    """A server or file with the collection ``things``, and the vectors in it."""

    kind: str
    uri: str
    vectors: npt.NDArray[np.float32]

    def stage(self, **fields: Any) -> MilvusSearch:
        """Return a search of all lists, whose answers are exact."""
        fields = {"collection": "things", "params": {"nprobe": NLIST}, **fields}
        return MilvusSearch(uri=self.uri, **fields)

    def query(self, seed: int, **fields: Any) -> Query:
        """Return a query whose vector depends on the seed."""
        return Query(f"query {seed}", vector=unit(np.random.default_rng(1000 + seed).normal(size=DIM)), **fields)

    def exact(self, query: Query) -> list[tuple[int, float]]:
        """Return every key with its inner product, best first."""
        scores = self.vectors @ np.asarray(query.vector, dtype=np.float32)
        return [(int(row), float(scores[row])) for row in np.lexsort((np.arange(ROWS), -scores))]


def unit(vectors: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Return the vectors at length 1."""
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def make_things(uri: str, name: str, vectors: npt.NDArray[np.float32], metric: str = "IP", nlist: int = NLIST) -> None:
    """Make a collection: even keys in partition `even`, odd ones in `odd`; `year` is 1900 + key."""
    from pymilvus import MilvusClient

    client = MilvusClient(uri, timeout=10, dedicated=True)
    keys = range(len(vectors))
    columns: dict[str, Any] = {
        "id": keys,
        "vector": vectors,
        "text": [f"text {key}" for key in keys],
        "tag": [f"tag {key}" for key in keys],
        "year": [1900 + key for key in keys],
        "extra": [key % 3 for key in keys],
    }
    parts = {"even": slice(0, None, 2), "odd": slice(1, None, 2)}
    make_collection(client, name, columns, dynamic=["extra"], parts=parts)
    make_index(client, name, "IVF_FLAT", metric, nlist=nlist)
    client.close()


@pytest.fixture(scope="session")
def vectors() -> npt.NDArray[np.float32]:
    return unit(np.random.default_rng(0).normal(size=(ROWS, DIM)))


@pytest.fixture(scope="session")
def lite(tmp_path_factory: pytest.TempPathFactory, vectors: npt.NDArray[np.float32]) -> Iterator[Engine]:
    """Milvus Lite, held open for the session as an application would."""
    engine = Engine("lite", str(tmp_path_factory.mktemp("lite") / "things.db"), vectors)
    make_things(engine.uri, "things", vectors)
    with engine.stage():
        yield engine


@pytest.fixture(scope="session")
def by_metric(tmp_path_factory: pytest.TempPathFactory, vectors: npt.NDArray[np.float32]) -> Iterator[Engine]:
    """Milvus Lite with a collection for each metric, of vectors of different lengths."""
    stretched = vectors * np.linspace(0.5, 2.0, ROWS, dtype=np.float32)[:, None]
    engine = Engine("lite", str(tmp_path_factory.mktemp("metrics") / "metrics.db"), stretched)
    for metric in ("IP", "COSINE", "L2"):
        make_things(engine.uri, metric, stretched, metric)
    with engine.stage(collection="IP"):
        yield engine


@pytest.fixture(scope="session")
def closed_database(tmp_path_factory: pytest.TempPathFactory, vectors: npt.NDArray[np.float32]) -> str:
    """A small database that nobody has open, for tests to copy."""
    from milvus_lite.server_manager import server_manager_instance

    uri = str(tmp_path_factory.mktemp("closed") / "closed.db")
    make_things(uri, "things", vectors[:50])
    server_manager_instance.release_server(uri)
    return uri


@pytest.fixture
def own(tmp_path: Path, closed_database: str, vectors: npt.NDArray[np.float32]) -> Iterator[Engine]:
    """A database for one test alone, closed until the test opens it."""
    from milvus_lite.server_manager import server_manager_instance

    uri = shutil.copytree(closed_database, str(tmp_path / "own.db"))
    yield Engine("lite", uri, vectors[:50])
    server_manager_instance.release_server(uri)


@pytest.fixture
def proxy(lite: Engine) -> Iterator[Proxy]:
    """A proxy in front of Milvus Lite, which behaves like a server to clients that connect to its address."""
    from milvus_lite.server_manager import server_manager_instance

    with Proxy(int(server_manager_instance.start_and_get_uri(lite.uri).rpartition(":")[2])) as proxy:
        yield proxy


@pytest.fixture(scope="session", params=["lite", pytest.param("server", marks=pytest.mark.server)])
def engine(request: pytest.FixtureRequest, vectors: npt.NDArray[np.float32]) -> Engine:
    """Milvus Lite, then a server."""
    if request.param == "lite":
        return request.getfixturevalue("lite")
    uri = request.getfixturevalue("milvus_server")
    make_things(uri, "things", vectors)
    return Engine("server", uri, vectors)


@pytest.fixture(params=["sync", "async"])
def run(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Run a query, blocking and on an event loop."""
    return run_sync if request.param == "sync" else run_async


def run_sync(pipeline: Pipeline, query: Query, **options: Any) -> Any:
    return pipeline.run(query, **options)


def run_async(pipeline: Pipeline, query: Query, **options: Any) -> Any:
    return asyncio.run(pipeline.arun(query, **options))


@pytest.fixture(params=["sync", "async"])
def run_batch(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Run a batch, blocking and on an event loop."""
    if request.param == "sync":
        return lambda pipeline, queries, **options: pipeline.run_batch(queries, **options)
    return lambda pipeline, queries, **options: asyncio.run(pipeline.arun_batch(queries, **options))
