"""Collections that are dropped, recreated or released while a stage that searches them is open."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from milvus_pipeline import DeadlineError, Pipeline, PipelineError, Query, StageError
from milvus_pipeline.plugin import Deadline
from milvus_stages.milvus.client.server import Connection
from support.collections import make_collection, make_index

from .conftest import DIM, Engine, run_async, run_sync, unit

NAME = "changing"
ROWS = 60


class Admin:
    """Changes the collection with a client that the stage does not know."""

    def __init__(self, uri: str) -> None:
        from pymilvus import MilvusClient

        self.client = MilvusClient(uri, timeout=10, dedicated=True)

    def make(self, seed: int = 0, dim: int = DIM, metric: str = "IP", text: str = "text") -> Any:
        """Make the collection anew, and return its vectors."""
        vectors = unit(np.random.default_rng(seed).normal(size=(ROWS, dim)))
        columns = {"id": range(ROWS), "vector": vectors, text: [f"{seed}-{key}" for key in range(ROWS)]}
        make_collection(self.client, NAME, {**columns, "extra": range(ROWS)}, dynamic=["extra"], flush=False)
        self.index(metric)
        return vectors

    def index(self, metric: str = "IP") -> None:
        """Make the index, and load the collection."""
        make_index(self.client, NAME, "IVF_FLAT", metric, nlist=4)

    def drop(self) -> None:
        """Drop the collection."""
        self.client.drop_collection(NAME, timeout=60)

    def release(self) -> None:
        """Release the collection from memory."""
        self.client.release_collection(NAME, timeout=60)


LITE = ("lite sync", "lite async")
ON_LITE = pytest.mark.parametrize("way", LITE, indirect=True)
"""For tests that would take long on a server and show nothing more there."""


@pytest.fixture(params=[*LITE, pytest.param("server async", marks=pytest.mark.server)])
def way(request: pytest.FixtureRequest) -> list[str]:
    """Engine and way to run a query; on a server, which takes seconds to make a collection, only one."""
    return request.param.split()


@pytest.fixture
def engine(request: pytest.FixtureRequest, way: list[str], vectors: Any) -> Engine:
    if way[0] == "lite":
        return request.getfixturevalue("lite")
    return Engine("server", request.getfixturevalue("milvus_server"), vectors)


@pytest.fixture
def run(way: list[str]) -> Callable[..., Any]:
    return run_sync if way[1] == "sync" else run_async


def administer(engine: Engine) -> Iterator[Admin]:
    admin = Admin(engine.uri)
    yield admin
    admin.drop()
    admin.client.close()


@pytest.fixture
def admin(engine: Engine) -> Iterator[Admin]:
    yield from administer(engine)


@pytest.fixture
def lite_admin(lite: Engine) -> Iterator[Admin]:
    """``admin`` for tests that run on Milvus Lite in one way."""
    yield from administer(lite)


def query(dim: int = DIM) -> Query:
    return Query("q", vector=unit(np.random.default_rng(7).normal(size=dim)))


def best(vectors: Any) -> list[int]:
    scores = vectors @ np.asarray(query(vectors.shape[1]).vector)
    return [int(key) for key in np.argsort(-scores)[:10]]


def search(engine: Engine, **fields: Any) -> Pipeline:
    return Pipeline([engine.stage(collection=NAME, params={"nprobe": 4}, consistency_level="Strong", **fields)]).open()


def failure(pipeline: Pipeline, run: Callable[..., Any] = run_sync) -> tuple[str, str]:
    """Run the query, which fails; return the code of the error and its message."""
    with pytest.raises(PipelineError) as raised:
        run(pipeline, query())
    return raised.value.reason_code, str(raised.value)


def test_a_collection_that_is_dropped_and_made_as_it_was(engine: Engine, admin: Admin, run: Any) -> None:
    """A missing collection is reported; once it is recreated, the same pipeline loads it and finds its rows."""
    admin.make(0)
    with search(engine) as pipeline:
        assert next(hit.text for hit in run(pipeline, query())).startswith("0-")
        admin.drop()
        assert failure(pipeline, run)[0] == "not_found"
        vectors = admin.make(1)
        admin.release()
        hits = run(pipeline, query()).hits
        assert [hit.id for hit in hits] == best(vectors)
        assert hits[0].text == f"1-{best(vectors)[0]}"


@ON_LITE
def test_a_collection_of_another_dimension(engine: Engine, admin: Admin, run: Any) -> None:
    """Queries that no longer fit fail with both dimensions; those that fit now are answered; and vice versa."""
    admin.make(0)
    with search(engine) as pipeline:
        run(pipeline, query())
        smaller = admin.make(1, dim=8)
        code, message = failure(pipeline, run)
        assert code == "schema_changed"
        assert "held vectors of 16 numbers" in message
        assert "holds vectors of 8 now" in message
        assert [hit.id for hit in run(pipeline, query(8))] == best(smaller)
        again = admin.make(2)
        assert [hit.id for hit in run(pipeline, query())] == best(again)


L2 = ({"metric": "L2"}, "the index was built with L2, not IP")
NO_TEXT = ({"text": "words"}, "text_field")


@pytest.mark.parametrize(
    ("way", "change", "message"),
    [
        *((way, *change) for way in LITE for change in (L2, NO_TEXT)),
        pytest.param("server async", *NO_TEXT, marks=pytest.mark.server),
    ],
    indirect=["way"],
)
def test_a_collection_that_does_not_fit_any_more(
    engine: Engine, admin: Admin, run: Any, change: dict[str, str], message: str
) -> None:
    """Another metric or a missing text field is an error with a next step, never wrong scores or hits without text."""
    admin.make(0)
    with search(engine, output_fields=[]) as pipeline:
        run(pipeline, query())
        admin.make(1, **change)
        code, text = failure(pipeline, run)
    assert code == "schema_changed"
    assert message in text
    assert "has changed since the stage was opened" in text


def test_another_index_of_the_same_collection(lite: Engine, lite_admin: Admin) -> None:
    """A new index with another metric, with which Milvus Lite returns wrong scores, is noticed."""
    lite_admin.make(0)
    with search(lite) as pipeline:
        pipeline.run(query())
        lite_admin.release()
        lite_admin.client.drop_index(NAME, "vector", timeout=60)
        lite_admin.index("L2")
        assert failure(pipeline)[0] == "schema_changed"


class Watcher:
    """Counts the calls of a method, which only the thread that renews a collection makes, and can hold them up."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, method: str = "has_collection") -> None:
        self.count = 0
        self.go_on = threading.Event()
        call = Connection.call

        def watched(connection: Connection, deadline: Deadline, name: str, *arguments: Any) -> Any:
            if name == method:
                self.count += 1
                self.go_on.wait(30)
            return call(connection, deadline, name, *arguments)

        monkeypatch.setattr(Connection, "call", watched)


def test_a_renewal_that_began_before_a_change(lite: Engine, lite_admin: Admin, monkeypatch: pytest.MonkeyPatch) -> None:
    """A search that waits for a renewal that began before it was sent has the collection inspected once more."""
    lite_admin.make(0)
    with search(lite) as pipeline:
        opened = pipeline.stages[0].opened
        watcher = Watcher(monkeypatch, "get_load_state")
        opened.start_renewal(opened.state)
        lite_admin.make(1, dim=8)
        threading.Timer(0.3, watcher.go_on.set).start()
        assert failure(pipeline)[0] == "schema_changed"


def test_bad_filters_have_a_collection_inspected_once(lite: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fifty filters that cannot be read have the collection inspected once a second, not once each."""
    watcher = Watcher(monkeypatch)
    watcher.go_on.set()
    with Pipeline([lite.stage()]) as pipeline:
        watcher.count, began = 0, time.monotonic()
        results = pipeline.run_batch([lite.query(0, filter=f"year ==== {n}") for n in range(50)], return_errors=True)
        assert {result.error.reason_code for result in results} == {"query"}
        assert watcher.count <= time.monotonic() - began + 1


def test_a_crowd_has_a_collection_loaded_once(engine: Engine, admin: Admin, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of sixty queries that find it released, one loads it; the others wait, each until its own deadline."""
    vectors = admin.make(0)
    with search(engine) as pipeline, ThreadPoolExecutor(20) as threads:
        pipeline.run(query())
        admin.release()
        watcher = Watcher(monkeypatch)

        async def crowd() -> list[Any]:
            with pytest.raises(DeadlineError):
                await pipeline.arun(query(), timeout=0.3)
            tasks = [asyncio.create_task(pipeline.arun(query())) for _ in range(40)]
            await asyncio.sleep(0)
            watcher.go_on.set()
            return await asyncio.gather(*tasks)

        blocking = [threads.submit(pipeline.run, query()) for _ in range(20)]
        with pytest.raises(DeadlineError):
            pipeline.run(query(), timeout=0.3)
        results = [*asyncio.run(crowd()), *(each.result() for each in blocking)]
    assert {tuple(hit.id for hit in result) for result in results} == {tuple(best(vectors))}
    assert watcher.count == 1


def test_closing_ends_a_renewal(lite: Engine, lite_admin: Admin, monkeypatch: pytest.MonkeyPatch) -> None:
    """A query that waits for a renewal fails when the stage is closed."""
    lite_admin.make(0)
    pipeline = search(lite)
    watcher = Watcher(monkeypatch)
    future = pipeline.stages[0].opened.start_renewal(pipeline.stages[0].opened.state)
    pipeline.close()
    watcher.go_on.set()
    with pytest.raises(StageError, match="was closed"):
        future.result(30)
