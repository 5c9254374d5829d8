"""How long a server that is gone or frozen can delay callers, and what remains of calls that were given up."""

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
from milvus_stages.milvus.client import server
from support.collections import make_collection, make_index
from support.proxy import Proxy

from .conftest import NLIST, Engine, run_sync, unit

SLACK = 5.0
"""Seconds that a busy machine may add; what is tested here would add 10 or more."""


def stage(proxy: Proxy, **fields: Any) -> MilvusSearch:
    """Return a search with one attempt and no circuit breaker, unless fields say otherwise."""
    fields = {"retry": RetrySettings(attempts=1), "breaker": None, "params": {"nprobe": NLIST}, **fields}
    return MilvusSearch(uri=proxy.url, collection="things", **fields)


def failure(run: Callable[..., Any], *arguments: Any, **options: Any) -> tuple[str, float]:
    """Return the code of the error, and the seconds until it was raised."""
    began = time.monotonic()
    with pytest.raises(PipelineError) as raised:
        run(*arguments, **options)
    return raised.value.reason_code, time.monotonic() - began


def test_no_search_outlasts_its_deadline(lite: Engine, proxy: Proxy, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The deadline holds for a frozen server too, also after lost connections, which pymilvus would retry for 10 s."""
    # gRPC knows that the connection is lost, and has not tried again, while the server is frozen.
    monkeypatch.setitem(server._RECONNECTING, "grpc.initial_reconnect_backoff_ms", 1000)
    monkeypatch.setitem(server._RECONNECTING, "grpc.min_reconnect_backoff_ms", 20_000)
    with Pipeline([stage(proxy, retry=RetrySettings(attempts=50, min_wait=0.05, max_wait=0.2))]) as pipeline:
        right = run(pipeline, lite.query(0)).hits
        proxy.freeze()
        code, seconds = failure(run, pipeline, lite.query(0), timeout=0.3)
        assert code == "deadline"
        assert seconds < 0.3 + SLACK
        proxy.refuse()
        failure(run, pipeline, lite.query(0), timeout=0.2)
        proxy.freeze()
        for _ in range(2):
            code, seconds = failure(run, pipeline, lite.query(0), timeout=0.3)
            assert code in ("deadline", "unavailable")  # gRPC may not have tried to reconnect yet
            assert seconds < 0.3 + SLACK
        proxy.heal()
        assert run(pipeline, lite.query(0), timeout=30).hits == right


def test_a_frozen_server_without_any_timeout(
    lite: Engine, proxy: Proxy, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without any timeout, a search, and connecting on a new event loop, are limited to the seconds of one call."""
    with Pipeline([MilvusSearch(uri=proxy.url, collection="things")]) as pipeline:
        run(pipeline, lite.query(0))
        for module in ("execute", "client.server"):
            monkeypatch.setattr(f"milvus_stages.milvus.{module}.CALL_SECONDS", 0.4)
        proxy.freeze()
        with pytest.raises(StageError, match="the server did not answer in time; check that it is healthy"):
            run(pipeline, lite.query(0))


def test_a_pymilvus_with_other_internals(lite: Engine, proxy: Proxy, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Searches work without the internals of pymilvus that a later version may lack."""
    monkeypatch.setitem(sys.modules, "pymilvus.client.connection_manager", ModuleType("empty"))
    with Pipeline([stage(proxy)]) as pipeline, Pipeline([lite.stage()]) as direct:
        for _ in range(2):
            assert run(pipeline, lite.query(0)).hits == run(direct, lite.query(0)).hits


def test_a_frozen_server_does_not_delay_clients_of_another(lite: Engine, proxy: Proxy) -> None:
    """While a search waits for it, another pipeline connects, searches and closes."""
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
    """After a cancellation the connection stays usable, also for queries that were waiting on it."""
    async with Pipeline([stage(proxy)]) as pipeline:
        right = (await pipeline.arun(lite.query(0))).hits
        proxy.freeze()
        tasks = [asyncio.create_task(pipeline.arun(lite.query(0))) for _ in range(10)]
        await asyncio.sleep(0.2)
        for task in tasks[1:]:
            task.cancel()
        outcomes = await asyncio.gather(*tasks[1:], return_exceptions=True)
        assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)
        proxy.heal()
        assert (await tasks[0]).hits == right
        assert (await pipeline.arun(lite.query(0))).hits == right


def test_a_loop_that_ended_leaves_nothing(lite: Engine, proxy: Proxy) -> None:
    """An event loop leaves no client and no connection, even if calls were under way and the pipeline stays open."""
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


PATIENT_BREAKER = BreakerSettings(failures=3, wait=60.0, over=0.0)
EAGER_BREAKER = BreakerSettings(failures=3, wait=0.3, over=0.0)


def test_a_dead_server_opens_the_circuit(lite: Engine, proxy: Proxy, run: Any) -> None:
    """After three failures queries fail at once, with the kind of the last failure, and so do all of a batch."""
    with Pipeline([stage(proxy, breaker=PATIENT_BREAKER)]) as pipeline:
        run(pipeline, lite.query(0))
        proxy.refuse()
        codes = [failure(run, pipeline, lite.query(0), timeout=5)[0] for _ in range(4)]
        assert codes == ["unavailable", "unavailable", "unavailable", "circuit_open"]
        with pytest.raises(StageError, match=r"last: unavailable\)"):
            run(pipeline, lite.query(0), timeout=5)
        queries = [lite.query(0, filter=f"year > {year}") for year in range(50)]
        results = pipeline.run_batch(queries, timeout=5, return_errors=True)
        assert {result.error.reason_code for result in results} == {"circuit_open"}


def test_a_server_that_is_back_closes_the_circuit(lite: Engine, proxy: Proxy, run: Any) -> None:
    """Once the server is back, a trial call finds out, and queries are answered again."""
    with Pipeline([stage(proxy, breaker=EAGER_BREAKER)]) as pipeline:
        right = run(pipeline, lite.query(0)).hits
        proxy.refuse()
        for _ in range(3):
            failure(run, pipeline, lite.query(0), timeout=5)
        proxy.heal()
        deadline = time.monotonic() + 20
        while (result := pipeline.run_batch([lite.query(0)], return_errors=True)[0]).error:
            assert result.error.reason_code in ("unavailable", "circuit_open")  # gRPC may not have reconnected yet
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert result.hits == run(pipeline, lite.query(0)).hits == right


def test_a_job_without_deadline_waits_for_the_trial(lite: Engine, proxy: Proxy, run: Any) -> None:
    """A query without a deadline does not fail because the circuit is open."""
    patient = RetrySettings(attempts=50, min_wait=0.05, max_wait=0.5)
    with Pipeline([stage(proxy, breaker=EAGER_BREAKER, retry=patient)]) as pipeline:
        right = run(pipeline, lite.query(0)).hits
        proxy.refuse()
        back = threading.Timer(0.5, proxy.heal)
        back.start()
        assert run(pipeline, lite.query(0)).hits == right
        back.join()


def test_a_pipeline_that_cannot_be_opened_opens_the_circuit(proxy: Proxy, lite: Engine) -> None:
    """Queries of a closed pipeline, each of which would open it and wait for a dead server, soon fail at once."""
    proxy.refuse()
    pipeline = Pipeline([stage(proxy, breaker=PATIENT_BREAKER)])
    codes = [failure(run_sync, pipeline, lite.query(0))[0] for _ in range(3)]
    assert codes == ["unavailable"] * 3
    with pytest.raises(StageError) as raised:
        pipeline.open()
    assert isinstance(raised.value.__cause__, CircuitOpenError)


@pytest.mark.server
def test_answers_over_the_size_of_a_message(milvus_server: str) -> None:
    """Four answers of 25 MB come in halves; one of 75 MB is an error that says what to lower."""
    from pymilvus import MilvusClient

    client = MilvusClient(milvus_server, timeout=10, dedicated=True)
    name, rows = "large", 1600
    vectors = unit(np.random.default_rng(3).normal(size=(rows, 16)))
    columns = {"id": range(rows), "vector": vectors, "text": [f"{key:>50000}" for key in range(rows)]}
    make_collection(client, name, columns, flush=False)
    make_index(client, name)
    search = {"uri": milvus_server, "collection": name, "index_type": "FLAT", "consistency_level": "Strong"}
    queries = [Engine("server", milvus_server, np.empty(0)).query(seed) for seed in range(4)]
    ways = (
        lambda pipeline, queries: pipeline.run_batch(queries, return_errors=True),
        lambda pipeline, queries: asyncio.run(pipeline.arun_batch(queries, return_errors=True)),
    )
    with (
        Pipeline([MilvusSearch(**search, limit=500)]) as fits,
        Pipeline([MilvusSearch(**search, limit=1500)]) as too_large,
    ):
        for run_batch in ways:
            for result in run_batch(fits, queries):
                assert len(result) == 500
                assert all(hit.text == f"{hit.id:>50000}" for hit in result)
            # Of two filters, one has answers that fit: those queries are answered.
            small = [replace(query, filter="id < 100") for query in queries[2:]]
            results = run_batch(too_large, [*queries[:2], *small])
            assert [result.status for result in results] == ["failed", "failed", "ok", "ok"]
            assert all(result.error.reason_code == "too_large" for result in results[:2])
            assert "lower `limit`" in str(results[0].error)
            assert [len(result) for result in results[2:]] == [100, 100]
    client.drop_collection(name, timeout=60)
    client.close()
