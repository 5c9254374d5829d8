"""A hundred threads and a hundred tasks search while the network between them and Milvus breaks."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from support.known_collection import questions
from support.load import count_codes, under_load
from support.milvus_server import MilvusServer
from support.proxy import Proxy

from .conftest import search

pytestmark = pytest.mark.server

AWAY = {"unavailable", "circuit_open", "deadline"}

FAULTS: dict[str, Callable[[Proxy], None]] = {
    "slow": lambda proxy: proxy.delay(0.3),
    "cut within a reply": lambda proxy: proxy.cut_after(1000),
    "reset": lambda proxy: proxy.reset(new=True),
    "refused": lambda proxy: proxy.refuse(),
    "frozen": lambda proxy: proxy.freeze(),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_network_that_breaks_and_heals(server: MilvusServer, fault: str) -> None:
    """Every query is answered correctly or fails in time with a reason; the same pipeline works afterwards."""
    with Proxy(server.port) as proxy:

        def break_and_heal() -> None:
            FAULTS[fault](proxy)
            time.sleep(0.7)
            proxy.heal()

        with under_load(search(proxy.url), questions()) as ask:
            count_codes(ask(timeout=0.5 if fault == "frozen" else 2, times=2, meanwhile=break_and_heal), AWAY)
            ask.until_right(20, AWAY)
            assert set(count_codes(ask(timeout=30), set())) == {"ok"}


@pytest.mark.parametrize("ending", ["cut", "reset"])
def test_connections_that_are_lost_once(server: MilvusServer, ending: str) -> None:
    """Searches that were under way are repeated, and no caller notices."""
    with Proxy(server.port) as proxy, under_load(search(proxy.url), questions()) as ask:
        assert set(count_codes(ask(timeout=30, times=2, meanwhile=getattr(proxy, ending)), set())) == {"ok"}
