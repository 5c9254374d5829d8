"""A hundred threads and a hundred tasks have their hits reranked by a service that fails, dies, or hangs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import pytest

from milvus_pipeline import BreakerSettings, Pipeline, Query
from milvus_stages import Cohere
from support.fake_stages.basic import ListedSearch
from support.load import Question, judged, under_load
from support.ports import free_ports
from support.process_leaks import leaving_nothing
from support.proxy import Proxy
from support.standins import StandIn, ranking

DOCUMENTS = ("the blue sky", "a green pear", "plum jam, where the red plum is", "a red apple", "where the sky is")
FOUND = range(len(DOCUMENTS))
AWAY = {"unavailable", "circuit_open"}


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    with leaving_nothing():
        yield


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """It runs within its ``with``, always on the same port."""
    service = StandIn("cohere", port=free_ports(1)[0])
    monkeypatch.setenv(Cohere.key_names[0], service.key)
    return service


def questions() -> Sequence[Question]:
    texts = [f"where is the red plum number {number}?" for number in range(100)]
    return [Question(Query(text), [index for index, _ in ranking(text, DOCUMENTS)], FOUND) for text in texts]


def search(url: str, **fields: Any) -> Pipeline:
    """Documents, and a reranker that is skipped where it fails and tried again after a second."""
    fields = {"max_concurrency": 64, "breaker": BreakerSettings(wait=1.0), "on_error": "skip", **fields}
    return Pipeline([ListedSearch(documents=DOCUMENTS), Cohere(base_url=url, **fields)])


def test_a_service_that_fails_is_left_alone_and_tried_again(service: StandIn) -> None:
    """Its hits come as the search found them; soon it is asked no more; when it is well, it is used again."""
    with service, under_load(search(service.url), questions()) as ask:
        assert set(judged(ask(timeout=30), set())) == {"ok"}
        service.always(service.error(503))
        assert "ok" not in judged(ask(), AWAY)
        asked = len(service.requests)
        outcomes = ask()
        assert judged(outcomes, AWAY)["circuit_open"] >= 180
        assert {outcome.result.status for outcome in outcomes if outcome.result} == {"degraded"}
        assert len(service.requests) - asked <= 20  # of those that tried it again
        service.clear()
        ask.until_right(30, AWAY)
        assert set(judged(ask(timeout=30), set())) == {"ok"}


def test_a_service_that_dies_and_comes_back(service: StandIn) -> None:
    """Every query has its hits, reranked or not; the same pipeline finds the service that takes its place."""
    with under_load(search(service.url), questions()) as ask:
        with ExitStack() as running:
            running.enter_context(service)
            codes = judged(ask(times=3, meanwhile=running.close), AWAY)
        assert codes["ok"] >= 20
        assert "ok" not in judged(ask(), AWAY)
        with service:
            ask.until_right(30, AWAY)
            assert set(judged(ask(timeout=30), set())) == {"ok"}


def test_a_service_that_hangs(service: StandIn) -> None:
    """It costs what the stage may take, and no more; afterwards it is used again."""
    port = int(service.url.rpartition(":")[2])
    with service, Proxy(port) as proxy, under_load(search(proxy.url, timeout=0.5), questions()) as ask:
        ask(timeout=30)
        proxy.freeze()
        assert "ok" not in judged(ask(), {*AWAY, "deadline"})
        proxy.heal()
        ask.until_right(30, {*AWAY, "deadline"})
        # On a busy machine the stage's half second is not enough for all of two hundred at once.
        assert judged(ask(timeout=30), {"deadline"})["ok"] >= 20


@pytest.mark.parametrize("ending", ["cut", "reset"])
def test_connections_to_the_service_that_are_lost_once(service: StandIn, ending: str) -> None:
    """The requests that were under way are made again, and no caller notices."""
    service.latency = 0.05
    port = int(service.url.rpartition(":")[2])
    with service, Proxy(port) as proxy, under_load(search(proxy.url), questions()) as ask:
        assert set(judged(ask(timeout=30, times=2, meanwhile=getattr(proxy, ending)), set())) == {"ok"}
