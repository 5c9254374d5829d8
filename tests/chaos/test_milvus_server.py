"""A hundred threads and a hundred tasks search while the Milvus server dies, freezes, or loses its collection."""

from __future__ import annotations

import time
from contextlib import closing

import pytest

from support.known_collection import COLLECTION, DIM, make_known_collection, questions, unit
from support.load import count_codes, under_load
from support.milvus_server import MilvusServer

from .conftest import search

pytestmark = pytest.mark.server

AWAY = {"unavailable", "circuit_open", "deadline"}


def test_a_server_is_killed_and_comes_back(server: MilvusServer) -> None:
    """Every query is answered correctly or fails in time with a reason; the same pipeline finds the new server."""
    with under_load(search(server.uri), questions()) as ask:
        codes = count_codes(ask(times=4, meanwhile=server.kill), AWAY)
        assert codes["ok"] >= 20
        assert codes.total() - codes["ok"] >= 200
        assert "ok" not in count_codes(ask(), AWAY)
        server.restart()
        ask.until_right(60, AWAY | {"not_loaded"})
        assert set(count_codes(ask(timeout=30), set())) == {"ok"}


def test_a_server_stands_still_and_goes_on(server: MilvusServer) -> None:
    """No query waits longer than its deadline, and the same pipeline works afterwards."""

    def stand_still() -> None:
        server.freeze()
        time.sleep(1.5)
        server.thaw()

    with under_load(search(server.uri), questions()) as ask:
        assert count_codes(ask(timeout=1, times=4, meanwhile=stand_still), AWAY)["deadline"]
        ask.until_right(30, AWAY)
        assert set(count_codes(ask(timeout=30), set())) == {"ok"}


def test_a_collection_is_dropped_and_made_anew(server: MilvusServer) -> None:
    """Queries report that it is gone, then that it has changed; created as before, it is searched again."""
    from pymilvus import MilvusClient

    with under_load(search(server.uri), questions()) as ask:
        with closing(MilvusClient(server.uri, timeout=10, dedicated=True)) as client:
            client.drop_collection(COLLECTION, timeout=60)
        assert set(count_codes(ask(), {"not_found"})) == {"not_found"}
        make_known_collection(server.uri, unit(2, (500, DIM + 8)), flushed=False)
        assert set(count_codes(ask(), {"schema_changed"})) == {"schema_changed"}
        make_known_collection(server.uri, flushed=False)
        ask.until_right(30, {"not_loaded"})
        assert set(count_codes(ask(timeout=30), set())) == {"ok"}


def test_a_collection_is_released(server: MilvusServer) -> None:
    """Queries load it again; none gets the empty result that the server gives meanwhile."""
    from pymilvus import MilvusClient

    with (
        closing(MilvusClient(server.uri, timeout=10, dedicated=True)) as client,
        under_load(search(server.uri), questions()) as ask,
    ):
        outcomes = ask(timeout=30, times=4, meanwhile=lambda: client.release_collection(COLLECTION, timeout=60))
        assert set(count_codes(outcomes, set())) == {"ok"}
