"""A hundred threads and a hundred tasks ask while the Milvus server dies, stands still, or loses its collection."""

from __future__ import annotations

import time
from contextlib import closing

import pytest

from support.known_collection import COLLECTION, DIM, make_known_collection, questions, unit
from support.load import judged, under_load
from support.milvus_server import MilvusServer

from .conftest import search

pytestmark = pytest.mark.server

AWAY = {"unavailable", "circuit_open", "deadline"}


def test_a_server_is_killed_and_comes_back(server: MilvusServer) -> None:
    """Every query is answered rightly or fails in time and says why; the same pipeline finds the new server."""
    with under_load(search(server.uri), questions()) as ask:
        codes = judged(ask(times=4, meanwhile=server.kill), AWAY)
        assert codes["ok"] >= 20
        assert codes.total() - codes["ok"] >= 200
        assert "ok" not in judged(ask(), AWAY)
        server.restart()
        ask.until_right(60, AWAY | {"not_loaded"})
        assert set(judged(ask(timeout=30), set())) == {"ok"}


def test_a_server_stands_still_and_goes_on(server: MilvusServer) -> None:
    """No query waits for it longer than its deadline, and the same pipeline goes on with it."""

    def stand_still() -> None:
        server.freeze()
        time.sleep(1.5)
        server.thaw()

    with under_load(search(server.uri), questions()) as ask:
        assert judged(ask(timeout=1, times=4, meanwhile=stand_still), AWAY)["deadline"]
        ask.until_right(30, AWAY)
        assert set(judged(ask(timeout=30), set())) == {"ok"}


def test_a_collection_is_dropped_and_made_anew(server: MilvusServer) -> None:
    """It is said to be gone, then to have changed; made as it was, it is searched again."""
    from pymilvus import MilvusClient

    with under_load(search(server.uri), questions()) as ask:
        with closing(MilvusClient(server.uri, timeout=10, dedicated=True)) as client:
            client.drop_collection(COLLECTION, timeout=60)
        assert set(judged(ask(), {"not_found"})) == {"not_found"}
        make_known_collection(server.uri, unit(2, (500, DIM + 8)), flushed=False)
        assert set(judged(ask(), {"schema_changed"})) == {"schema_changed"}
        make_known_collection(server.uri, flushed=False)
        ask.until_right(30, {"not_loaded"})
        assert set(judged(ask(timeout=30), set())) == {"ok"}


def test_a_collection_is_released(server: MilvusServer) -> None:
    """It is loaded again by the queries that find it so; none gets the empty answer that the server gives meanwhile."""
    from pymilvus import MilvusClient

    with (
        closing(MilvusClient(server.uri, timeout=10, dedicated=True)) as client,
        under_load(search(server.uri), questions()) as ask,
    ):
        outcomes = ask(timeout=30, times=4, meanwhile=lambda: client.release_collection(COLLECTION, timeout=60))
        assert set(judged(outcomes, set())) == {"ok"}
