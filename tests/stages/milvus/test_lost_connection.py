"""A server that goes away and comes back, played by a proxy in front of it."""

from __future__ import annotations

import threading
from typing import Any

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
    return Pipeline([MilvusSearch(uri=proxy.url, **fields)]).open()


def test_a_connection_that_comes_back(lite: Engine, proxy: Proxy, run: Any) -> None:
    """A client that lost its server finds it again without being opened again."""
    with search(proxy, PATIENT) as pipeline:
        expected = run(pipeline, lite.query(0))
        proxy.refuse()
        back = threading.Timer(0.2, proxy.heal)
        back.start()
        result = run(pipeline, lite.query(0))
        back.join()
    assert result.hits == expected.hits
    assert result.report("milvus_search").details["retries"] > 0


def test_a_connection_that_stays_lost(lite: Engine, proxy: Proxy, run: Any) -> None:
    """After the last attempt the error says what to check."""
    with search(proxy, HASTY) as pipeline:
        proxy.refuse()
        with pytest.raises(StageError, match=r"cannot be reached .* check that the server runs"):
            run(pipeline, lite.query(0))


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
