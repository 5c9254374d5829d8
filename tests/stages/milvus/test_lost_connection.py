"""A server that goes away and comes back, as a proxy before it plays it."""

from __future__ import annotations

import asyncio
import threading

import pytest

from milvus_pipeline import Pipeline, StageError
from milvus_pipeline.retry import RetrySettings
from milvus_stages import MilvusSearch
from support.proxy import Proxy

from .conftest import NLIST, Engine

PATIENT = RetrySettings(attempts=100, min_wait=0.05, max_wait=0.2)
HASTY = RetrySettings(attempts=2, min_wait=0.01, max_wait=0.01)


def search(proxy: Proxy, retry: RetrySettings) -> Pipeline:
    fields = {"collection": "things", "params": {"nprobe": NLIST}, "retry": retry, "timeout": 20, "breaker": None}
    stage = MilvusSearch(uri=proxy.url, **fields)
    return Pipeline([stage]).open()


def test_a_connection_that_comes_back(lite: Engine, proxy: Proxy) -> None:
    """The client that lost its server finds it again; nothing has to be opened anew."""
    with search(proxy, PATIENT) as pipeline:
        expected = pipeline.run(lite.query(0))
        for run in (pipeline.run, lambda query: asyncio.run(pipeline.arun(query))):
            proxy.refuse()
            back = threading.Timer(0.3, proxy.heal)
            back.start()
            result = run(lite.query(0))
            assert result.hits == expected.hits
            assert result.report("milvus_search").details["retries"] > 0
            back.join()


async def test_a_connection_that_comes_back_under_an_event_loop(lite: Engine, proxy: Proxy) -> None:
    """The same for the client of a loop that goes on."""
    async with search(proxy, PATIENT) as pipeline:
        expected = await pipeline.arun(lite.query(0))
        proxy.refuse()
        threading.Timer(0.3, proxy.heal).start()
        assert (await pipeline.arun(lite.query(0))).hits == expected.hits


def test_a_connection_that_stays_lost(lite: Engine, proxy: Proxy) -> None:
    """After the attempts that the settings allow, the error says what to check."""
    with search(proxy, HASTY) as pipeline:
        proxy.refuse()
        for run in (pipeline.run, lambda query: asyncio.run(pipeline.arun(query))):
            with pytest.raises(StageError, match=r"cannot be reached .* check that the server runs"):
                run(lite.query(0))


def test_a_frozen_server_is_not_waited_for_without_end(
    lite: Engine, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without any timeout, a search and the connection of a new event loop share the bound of one call."""
    for module in ("execute", "client.server"):
        monkeypatch.setattr(f"milvus_stages.milvus.{module}.CALL_SECONDS", 0.5)
    with Pipeline([MilvusSearch(uri=proxy.url, collection="things")]) as pipeline:
        pipeline.run(lite.query(0))
        proxy.freeze()
        for run in (pipeline.run, lambda query: asyncio.run(pipeline.arun(query))):
            with pytest.raises(StageError, match="the server did not answer in time; check that it is healthy"):
                run(lite.query(0))
