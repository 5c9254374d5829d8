"""A collection that is dropped, made anew or released while a stage that searches it is open."""

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

from .conftest import DIM, Engine, unit

NAME = "changing"
ROWS = 60


class Admin:
    """Makes the collection as it shall be, with a client that the stage knows nothing of."""

    def __init__(self, uri: str) -> None:
        from pymilvus import MilvusClient

        self.client = MilvusClient(uri, timeout=10, dedicated=True)

    def make(
        self, seed: int = 0, dim: int = DIM, metric: str = "IP", index: str = "IVF_FLAT", text: str = "text"
    ) -> Any:
        """The collection anew; its vectors."""
        from pymilvus import DataType

        vectors = unit(np.random.default_rng(seed).normal(size=(ROWS, dim)))
        schema = self.client.create_schema(enable_dynamic_field=True)
        schema.add_field("id", DataType.INT64, is_primary=True)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=dim)
        schema.add_field(text, DataType.VARCHAR, max_length=200)
        self.drop()
        self.client.create_collection(NAME, schema=schema, timeout=60)
        rows = [{"id": key, "vector": vector.tolist(), text: f"{seed}-{key}"} for key, vector in enumerate(vectors)]
        self.client.insert(NAME, rows, timeout=60)
        self.index(metric, index)
        return vectors

    def index(self, metric: str = "IP", index: str = "IVF_FLAT") -> None:
        """The index, and the collection loaded."""
        params = {"nlist": 4} if index == "IVF_FLAT" else {"M": 8, "efConstruction": 64}
        made = self.client.prepare_index_params()
        made.add_index("vector", index_type=index, metric_type=metric, params={"params": params})
        self.client.create_index(NAME, made, timeout=60)
        self.client.load_collection(NAME, timeout=60)

    def drop(self) -> None:
        """The collection is gone."""
        self.client.drop_collection(NAME, timeout=60)

    def release(self) -> None:
        """The collection is in memory no more."""
        self.client.release_collection(NAME, timeout=60)


LITE_ALONE = pytest.mark.parametrize("way", ["lite sync", "lite async"], indirect=True)
"""For what a server would take long for, and shows nothing else of."""


@pytest.fixture(params=["lite sync", "lite async", pytest.param("server async", marks=pytest.mark.server)])
def way(request: pytest.FixtureRequest) -> tuple[str, str]:
    """Engine and way to run a query. A server takes seconds to make a collection, so it has one way."""
    kind, way = request.param.split()
    return kind, way


@pytest.fixture
def engine(request: pytest.FixtureRequest, way: tuple[str, str], vectors: Any) -> Engine:
    if way[0] == "lite":
        return request.getfixturevalue("lite")
    return Engine("server", request.getfixturevalue("milvus_server"), vectors)


@pytest.fixture
def admin(engine: Engine) -> Iterator[Admin]:
    admin = Admin(engine.uri)
    yield admin
    admin.drop()
    admin.client.close()


@pytest.fixture
def run(way: tuple[str, str]) -> Callable[..., Any]:
    """Runs a query, blocking or on an event loop."""
    if way[1] == "sync":
        return lambda pipeline, query, **options: pipeline.run(query, **options)
    return lambda pipeline, query, **options: asyncio.run(pipeline.arun(query, **options))


def query(dim: int = DIM) -> Query:
    return Query("q", vector=unit(np.random.default_rng(7).normal(size=dim)))


def best(vectors: Any) -> list[int]:
    scores = vectors @ np.asarray(query(vectors.shape[1]).vector)
    return [int(key) for key in np.argsort(-scores)[:10]]


def search(engine: Engine, **fields: Any) -> Pipeline:
    return Pipeline([engine.stage(collection=NAME, params={"nprobe": 4}, consistency_level="Strong", **fields)]).open()


def reason(pipeline: Pipeline, run: Callable[..., Any], asked: Query) -> tuple[str, str]:
    """The code and the words of the error that the query fails with."""
    with pytest.raises(PipelineError) as raised:
        run(pipeline, asked)
    return raised.value.reason_code, str(raised.value)


def test_a_collection_that_is_dropped_and_made_as_it_was(engine: Engine, admin: Admin, run: Any) -> None:
    """While it is gone, that is said; then the same pipeline finds what is in the new one, which is loaded for it."""
    admin.make(0)
    with search(engine) as pipeline:
        assert next(hit.text for hit in run(pipeline, query())).startswith("0-")
        admin.drop()
        assert reason(pipeline, run, query())[0] == "not_found"
        vectors = admin.make(1)
        admin.release()
        hits = run(pipeline, query()).hits
        assert [hit.id for hit in hits] == best(vectors)
        assert hits[0].text == f"1-{best(vectors)[0]}"


@LITE_ALONE
def test_a_collection_of_another_dimension(engine: Engine, admin: Admin, run: Any) -> None:
    """Queries that no longer fit are told both dimensions; those that fit now are answered; so is it the other way."""
    admin.make(0)
    with search(engine) as pipeline:
        run(pipeline, query())
        smaller = admin.make(1, dim=8)
        code, words = reason(pipeline, run, query())
        assert code == "schema_changed"
        assert "held vectors of 16 numbers" in words
        assert "holds vectors of 8 now" in words
        assert [hit.id for hit in run(pipeline, query(8))] == best(smaller)
        again = admin.make(2)
        assert [hit.id for hit in run(pipeline, query())] == best(again)


L2 = ({"metric": "L2"}, "the index was built with L2, not IP")
COSINE = ({"metric": "COSINE"}, "the index was built with COSINE, not IP")
NO_TEXT = ({"text": "words"}, "text_field")


@pytest.mark.parametrize(
    ("way", "change", "said"),
    [
        *((way, *change) for way in ("lite sync", "lite async") for change in (L2, COSINE, NO_TEXT)),
        pytest.param("server async", *NO_TEXT, marks=pytest.mark.server),
    ],
    indirect=["way"],
)
def test_a_collection_that_does_not_fit_any_more(
    engine: Engine, admin: Admin, run: Any, change: dict[str, str], said: str
) -> None:
    """Another metric or no text field is an error that says what to do, and never wrong scores or hits without text."""
    admin.make(0)
    with search(engine, output_fields=[]) as pipeline:
        run(pipeline, query())
        admin.make(1, **change)
        code, words = reason(pipeline, run, query())
        assert code == "schema_changed"
        assert said in words
        assert "has changed since the stage was opened" in words


def test_another_index_of_the_same_collection(lite: Engine) -> None:
    """Milvus Lite answers with wrong scores where the index has another metric now: that is noticed, too."""
    admin = Admin(lite.uri)
    admin.make(0)
    with search(lite) as pipeline:
        pipeline.run(query())
        admin.release()
        admin.client.drop_index(NAME, "vector", timeout=60)
        admin.index("L2")
        assert reason(pipeline, lambda pipeline, query: pipeline.run(query), query())[0] == "schema_changed"
    admin.drop()


class Watched:
    """Counts what is asked of a connection by the thread that looks at the collection again, and can hold it up."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.looks = 0
        self.go_on = threading.Event()
        call = Connection.call

        def counted(connection: Connection, deadline: Deadline, method: str, *arguments: Any) -> Any:
            if method == "has_collection":
                self.looks += 1
                self.go_on.wait(30)
            return call(connection, deadline, method, *arguments)

        monkeypatch.setattr(Connection, "call", counted)


def test_a_look_that_came_before_a_change(lite: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits for a look of others that began before his search was sent has another look had after it."""
    admin, go_on, call = Admin(lite.uri), threading.Event(), Connection.call
    admin.make(0)

    def held_at_its_end(connection: Connection, deadline: Deadline, method: str, *arguments: Any) -> Any:
        if method == "get_load_state":
            go_on.wait(30)
        return call(connection, deadline, method, *arguments)

    with search(lite) as pipeline:
        stage = pipeline.stages[0]
        monkeypatch.setattr(Connection, "call", held_at_its_end)
        stage.opened.start_renewal(stage.opened.state)
        admin.make(1, dim=8)
        threading.Timer(0.5, go_on.set).start()
        assert reason(pipeline, lambda pipeline, query: pipeline.run(query), query())[0] == "schema_changed"
    admin.drop()


def test_bad_filters_have_a_collection_looked_at_once(lite: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fifty filters that cannot be read cost fifty calls, and not a look at the collection each."""
    watched = Watched(monkeypatch)
    watched.go_on.set()
    with Pipeline([lite.stage()]) as pipeline:
        watched.looks, began = 0, time.monotonic()
        results = pipeline.run_batch([lite.query(0, filter=f"year ==== {n}") for n in range(50)], return_errors=True)
        assert {result.error.reason_code for result in results} == {"query"}
        assert watched.looks <= time.monotonic() - began + 1  # one a second


def test_a_crowd_has_a_collection_loaded_once(engine: Engine, admin: Admin, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of sixty queries that find it released, one looks and loads; the others wait, each until its own deadline."""
    vectors = admin.make(0)
    with search(engine) as pipeline, ThreadPoolExecutor(20) as threads:
        pipeline.run(query())
        admin.release()
        watched = Watched(monkeypatch)

        async def crowd() -> list[Any]:
            with pytest.raises(DeadlineError):
                await pipeline.arun(query(), timeout=0.3)
            tasks = [asyncio.create_task(pipeline.arun(query())) for _ in range(40)]
            await asyncio.sleep(0)
            watched.go_on.set()
            return await asyncio.gather(*tasks)

        blocking = [threads.submit(pipeline.run, query()) for _ in range(20)]
        with pytest.raises(DeadlineError):
            pipeline.run(query(), timeout=0.3)
        results = [*asyncio.run(crowd()), *(each.result() for each in blocking)]
    assert {tuple(hit.id for hit in result) for result in results} == {tuple(best(vectors))}
    assert watched.looks == 1


def test_a_stage_that_may_not_load(engine: Engine, admin: Admin, run: Any) -> None:
    """It says that the collection is not loaded, and leaves it so."""
    admin.make(0)
    with search(engine, load=False) as pipeline:
        admin.release()
        assert reason(pipeline, run, query())[0] == "not_loaded"
        assert admin.client.get_load_state(NAME)["state"].name == "NotLoad"


def test_closing_ends_a_look_that_is_under_way(lite: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits for it learns that the stage was closed, and no thread is left."""
    admin = Admin(lite.uri)
    admin.make(0)
    pipeline = search(lite)
    stage = pipeline.stages[0]
    watched = Watched(monkeypatch)
    future = stage.opened.start_renewal(stage.opened.state)
    pipeline.close()
    watched.go_on.set()
    with pytest.raises(StageError, match="was closed"):
        future.result(30)
    admin.drop()
