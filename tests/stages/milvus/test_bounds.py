"""How long a server that is gone or stands still can hold anybody, and what is left of those who gave it up."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from milvus_pipeline import BreakerSettings, CircuitOpenError, Pipeline, PipelineError, RetrySettings, StageError
from milvus_stages import MilvusSearch
from milvus_stages.milvus.client import server as connection
from support.proxy import Proxy

from .conftest import NLIST, Engine, unit

SLACK = 3.0  # seconds that a busy machine may add


def stage(proxy: Proxy, **fields: Any) -> MilvusSearch:
    """A search that makes one attempt and leaves nobody alone, unless it is told otherwise."""
    fields = {"retry": RetrySettings(attempts=1), "breaker": None, "params": {"nprobe": NLIST}, **fields}
    return MilvusSearch(uri=proxy.url, collection="things", **fields)


@pytest.fixture(params=["sync", "async"])
def run(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Both ways to run a query."""
    if request.param == "sync":
        return lambda pipeline, query, **options: pipeline.run(query, **options)
    return lambda pipeline, query, **options: asyncio.run(pipeline.arun(query, **options))


def failure(run: Callable[..., Any], *arguments: Any, **options: Any) -> tuple[str, float]:
    """The code of the error, and the seconds that it took."""
    began = time.monotonic()
    with pytest.raises(PipelineError) as raised:
        run(*arguments, **options)
    return raised.value.reason_code, time.monotonic() - began


def test_no_search_outlasts_its_deadline(lite: Engine, proxy: Proxy, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor where the server stands still after its connections broke, which pymilvus by itself mends for 10 s."""
    # gRPC knows that the connection is lost, and has not tried again, while the server stands still.
    monkeypatch.setitem(connection._RECONNECTING, "grpc.initial_reconnect_backoff_ms", 1000)
    monkeypatch.setitem(connection._RECONNECTING, "grpc.min_reconnect_backoff_ms", 20_000)
    with Pipeline([stage(proxy, retry=RetrySettings(attempts=50, min_wait=0.05, max_wait=0.2))]) as pipeline:
        right = run(pipeline, lite.query(0)).hits
        proxy.freeze()
        code, seconds = failure(run, pipeline, lite.query(0), timeout=0.5)
        assert code == "deadline"
        assert seconds < 0.5 + SLACK
        proxy.refuse()
        failure(run, pipeline, lite.query(0), timeout=0.3)
        proxy.freeze()
        for _ in range(3):
            code, seconds = failure(run, pipeline, lite.query(0), timeout=0.5)
            assert code in ("deadline", "unavailable")  # gRPC may not have tried to connect again yet
            assert seconds < 0.5 + SLACK
        proxy.heal()
        assert run(pipeline, lite.query(0), timeout=30).hits == right


def test_a_pymilvus_with_other_inner_parts(
    lite: Engine, proxy: Proxy, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a later one may lack is done without."""
    monkeypatch.setitem(sys.modules, "pymilvus.client.connection_manager", ModuleType("empty"))
    with Pipeline([stage(proxy)]) as pipeline, Pipeline([lite.stage()]) as straight:
        for _ in range(2):
            assert run(pipeline, lite.query(0)).hits == run(straight, lite.query(0)).hits


def test_a_server_that_stands_still_keeps_no_client_of_another_waiting(lite: Engine, proxy: Proxy) -> None:
    """While searches wait for it, another pipeline connects, searches and closes in a moment."""
    with Pipeline([stage(proxy)]) as stuck:
        stuck.run(lite.query(0))
        proxy.refuse()
        proxy.freeze()
        waiting = threading.Thread(target=stuck.run_batch, args=([lite.query(0)],), kwargs={"return_errors": True})
        waiting.start()
        with Pipeline([lite.stage()]) as pipeline:
            assert len(pipeline.run(lite.query(0), timeout=6)) == 10
        assert waiting.is_alive()
        proxy.heal()
        stuck.run(lite.query(0), timeout=30)
        waiting.join()


async def test_a_cancelled_query_ends_its_call(lite: Engine, proxy: Proxy) -> None:
    """The connection stays usable, for those that were waiting beside it, too."""
    async with Pipeline([stage(proxy)]) as pipeline:
        right = (await pipeline.arun(lite.query(0))).hits
        proxy.freeze()
        tasks = [asyncio.create_task(pipeline.arun(lite.query(0))) for _ in range(10)]
        await asyncio.sleep(0.2)
        for task in tasks[1:]:
            task.cancel()
        assert all(
            isinstance(outcome, asyncio.CancelledError)
            for outcome in await asyncio.gather(*tasks[1:], return_exceptions=True)
        )
        proxy.heal()
        assert (await tasks[0]).hits == right
        assert (await pipeline.arun(lite.query(0))).hits == right


def test_a_loop_that_ended_leaves_nothing(lite: Engine, proxy: Proxy) -> None:
    """Neither a client nor a connection, also where the pipeline stays open and calls were under way."""
    from pymilvus.client.connection_manager import AsyncConnectionManager

    async def cut_off(pipeline: Pipeline) -> None:
        await pipeline.arun(lite.query(0))
        proxy.freeze()
        for _ in range(3):
            asyncio.get_running_loop().create_task(pipeline.arun(lite.query(0)))
        await asyncio.sleep(0.1)

    search = stage(proxy)
    with Pipeline([search]) as pipeline:
        pipeline.run(lite.query(0))
        before, managers = proxy.open, len(AsyncConnectionManager._instances)
        for _ in range(3):
            asyncio.run(cut_off(pipeline))
            proxy.heal()
        assert len(search.opened.connection._loops) == 0
        deadline = time.monotonic() + 10
        while proxy.open > before and time.monotonic() < deadline:
            gc.collect()
            time.sleep(0.05)
        assert proxy.open == before
        assert len(AsyncConnectionManager._instances) == managers


LEAVE_ALONE = BreakerSettings(failures=3, wait=0.5, over=0.0)


def test_a_dead_server_is_left_alone(lite: Engine, proxy: Proxy, run: Any) -> None:
    """After three failures in a row a query fails at once; when the server is back, one query finds out."""
    with Pipeline([stage(proxy, breaker=LEAVE_ALONE)]) as pipeline:
        right = run(pipeline, lite.query(0)).hits
        proxy.refuse()
        codes = [failure(run, pipeline, lite.query(0), timeout=5)[0] for _ in range(4)]
        assert codes == ["unavailable", "unavailable", "unavailable", "circuit_open"]
        with pytest.raises(StageError, match=r"\(the last: unavailable\)"):
            run(pipeline, lite.query(0), timeout=5)
        proxy.heal()
        time.sleep(LEAVE_ALONE.wait)
        # gRPC may not have connected again yet, and then the trial fails.
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            try:
                assert run(pipeline, lite.query(0), timeout=5).hits == right
                break
            except StageError as error:
                assert error.reason_code in ("unavailable", "circuit_open")
                time.sleep(0.1)
        assert run(pipeline, lite.query(0)).hits == right


def test_a_job_without_deadline_waits_for_the_trial(lite: Engine, proxy: Proxy, run: Any) -> None:
    """Who has all the time there is does not fail because the server was dead a moment ago."""
    patient = RetrySettings(attempts=30, min_wait=0.05, max_wait=0.5)
    with Pipeline([stage(proxy, breaker=LEAVE_ALONE, retry=patient)]) as pipeline:
        right = run(pipeline, lite.query(0)).hits
        proxy.refuse()
        back = threading.Timer(1.0, proxy.heal)
        back.start()
        assert run(pipeline, lite.query(0)).hits == right
        back.join()


def test_a_batch_stops_when_its_server_is_left_alone(lite: Engine, proxy: Proxy, run: Any) -> None:
    """Its other searches are not made, and each of its queries says why it has no hits."""
    with Pipeline([stage(proxy, breaker=LEAVE_ALONE)]) as pipeline:
        run(pipeline, lite.query(0))
        proxy.refuse()
        for _ in range(3):
            failure(run, pipeline, lite.query(0), timeout=5)
        queries = [lite.query(0, filter=f"year > {year}") for year in range(50)]
        results = pipeline.run_batch(queries, timeout=5, return_errors=True)
        assert {result.error.reason_code for result in results} == {"circuit_open"}


def test_a_pipeline_that_cannot_be_opened_is_left_alone(proxy: Proxy, lite: Engine) -> None:
    """Each query of a closed pipeline would open it, and wait for a dead server: soon they fail at once."""
    proxy.refuse()
    pipeline = Pipeline([stage(proxy, breaker=LEAVE_ALONE)])
    codes = [failure(pipeline.run, lite.query(0))[0] for _ in range(4)]
    assert codes == ["unavailable", "unavailable", "unavailable", "circuit_open"]
    with pytest.raises(StageError) as raised:
        pipeline.open()
    assert isinstance(raised.value.__cause__, CircuitOpenError)


@pytest.mark.server
def test_answers_over_the_size_of_a_message(milvus_server: str) -> None:
    """Four answers of 25 MB come in halves; one of 75 MB is an error that says what to lower."""
    from pymilvus import DataType, MilvusClient

    client = MilvusClient(milvus_server, timeout=10, dedicated=True)
    name, rows = "large", 1600
    schema = client.create_schema()
    schema.add_field("id", DataType.INT64, is_primary=True)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=16)
    schema.add_field("text", DataType.VARCHAR, max_length=65535)
    client.create_collection(name, schema=schema, timeout=60)
    vectors = unit(np.random.default_rng(3).normal(size=(rows, 16)))
    for first in range(0, rows, 400):
        batch = range(first, first + 400)
        records = [{"id": key, "vector": vectors[key].tolist(), "text": f"{key:>50000}"} for key in batch]
        client.insert(name, records, timeout=60)
    index = client.prepare_index_params()
    index.add_index("vector", index_type="FLAT", metric_type="IP", params={})
    client.create_index(name, index, timeout=60)
    client.load_collection(name, timeout=60)
    search = {"uri": milvus_server, "collection": name, "index_type": "FLAT", "consistency_level": "Strong"}
    asked = [Engine("server", milvus_server, np.empty(0)).query(seed) for seed in range(4)]
    ways = (
        lambda pipeline, queries: pipeline.run_batch(queries, return_errors=True),
        lambda pipeline, queries: asyncio.run(pipeline.arun_batch(queries, return_errors=True)),
    )
    with (
        Pipeline([MilvusSearch(**search, limit=500)]) as fits,
        Pipeline([MilvusSearch(**search, limit=1500)]) as not_so,
    ):
        for run_batch in ways:
            for result in run_batch(fits, asked):
                assert len(result) == 500
                assert all(hit.text == f"{hit.id:>50000}" for hit in result)
            # Of two filters, one has answers that fit: those queries are answered.
            small = [replace(query, filter="id < 100") for query in asked[2:]]
            results = run_batch(not_so, [*asked[:2], *small])
            assert [result.status for result in results] == ["failed", "failed", "ok", "ok"]
            assert all(result.error.reason_code == "too_large" for result in results[:2])
            assert "lower `limit`" in str(results[0].error)
            assert [len(result) for result in results[2:]] == [100, 100]
    client.drop_collection(name, timeout=60)
    client.close()
