"""A hundred threads and a hundred tasks use a rerank service that fails, dies, or hangs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import pytest

from milvus_pipeline import BreakerSettings, Pipeline, Query
from milvus_stages import Cohere
from support.fake_stages.basic import ListedSearch
from support.load import Question, count_codes, under_load
from support.ports import free_ports
from support.process_leaks import leaving_nothing
from support.proxy import Proxy
from support.standins import StandIn, ranking

DOCUMENTS = ("the blue sky", "a green pear", "plum jam, where the red plum is", "a red apple", "where the sky is")
FOUND = range(len(DOCUMENTS))
AWAY = {"unavailable", "circuit_open"}


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """Check that a test leaves no thread and no socket behind."""
    with leaving_nothing():
        yield


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """A service that runs inside its ``with``, always on the same port."""
    service = StandIn("cohere", port=free_ports(1)[0])
    monkeypatch.setenv(Cohere.key_names[0], service.key)
    return service


def questions() -> Sequence[Question]:
    texts = [f"where is the red plum number {number}?" for number in range(100)]
    return [Question(Query(text), [index for index, _ in ranking(text, DOCUMENTS)], FOUND) for text in texts]


def search(url: str, **fields: Any) -> Pipeline:
    """Return a pipeline whose reranker is skipped if it fails, and tried again after a second."""
    fields = {"max_concurrency": 64, "breaker": BreakerSettings(wait=1.0), "on_error": "skip", **fields}
    return Pipeline([ListedSearch(documents=DOCUMENTS), Cohere(base_url=url, **fields)])


def test_a_service_that_fails_is_left_alone_and_tried_again(service: StandIn) -> None:
    """Hits keep the order of the search; soon the service gets no requests; when it works again, it is used again."""
    with service, under_load(search(service.url), questions()) as ask:
        assert set(count_codes(ask(timeout=30), set())) == {"ok"}
        service.always(service.error(503))
        assert "ok" not in count_codes(ask(), AWAY)
        asked = len(service.requests)
        outcomes = ask()
        assert count_codes(outcomes, AWAY)["circuit_open"] >= 180
        assert {outcome.result.status for outcome in outcomes if outcome.result} == {"degraded"}
        assert len(service.requests) - asked <= 20  # trial requests
        service.clear()
        ask.until_right(30, AWAY)
        assert set(count_codes(ask(timeout=30), set())) == {"ok"}


def test_a_service_that_dies_and_comes_back(service: StandIn) -> None:
    """Every query gets its hits, reranked or not; the same pipeline finds the new service on the port."""
    with under_load(search(service.url), questions()) as ask:
        with ExitStack() as running:
            running.enter_context(service)
            codes = count_codes(ask(times=3, meanwhile=running.close), AWAY)
        assert codes["ok"] >= 20
        assert "ok" not in count_codes(ask(), AWAY)
        with service:
            ask.until_right(30, AWAY)
            assert set(count_codes(ask(timeout=30), set())) == {"ok"}


def test_a_service_that_hangs(service: StandIn) -> None:
    """It costs no more than the stage's timeout, and is used again afterwards."""
    port = int(service.url.rpartition(":")[2])
    with service, Proxy(port) as proxy, under_load(search(proxy.url, timeout=0.5), questions()) as ask:
        ask(timeout=30)
        proxy.freeze()
        assert "ok" not in count_codes(ask(), {*AWAY, "deadline"})
        proxy.heal()
        ask.until_right(30, {*AWAY, "deadline"})
        # On a busy machine the stage's half second is not enough for all of two hundred at once.
        assert count_codes(ask(timeout=30), {"deadline"})["ok"] >= 20


@pytest.mark.parametrize("ending", ["cut", "reset"])
def test_connections_to_the_service_that_are_lost_once(service: StandIn, ending: str) -> None:
    """Requests that were under way are repeated, and no caller notices."""
    service.latency = 0.05
    port = int(service.url.rpartition(":")[2])
    with service, Proxy(port) as proxy, under_load(search(proxy.url), questions()) as ask:
        assert set(count_codes(ask(timeout=30, times=2, meanwhile=getattr(proxy, ending)), set())) == {"ok"}
