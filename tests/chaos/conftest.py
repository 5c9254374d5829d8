"""A Milvus server that these tests may kill, with a collection whose correct hits are known."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from milvus_pipeline import BreakerSettings, Pipeline
from milvus_stages import MilvusSearch
from support.known_collection import COLLECTION, LIMIT, make_known_collection, questions
from support.load import under_load
from support.milvus_server import MilvusServer, server_for_tests
from support.process_leaks import leaving_nothing

LEASE = 6
"""Seconds that the server needs to load its collections after a kill; it may be frozen for two thirds of them."""


def search(uri: str, **fields: Any) -> Pipeline:
    """Return a pipeline that searches the collection, and tries a dead server again after a second."""
    fields = {"collection": COLLECTION, "index_type": "FLAT", "limit": LIMIT, **fields}
    return Pipeline([MilvusSearch(uri=uri, breaker=BreakerSettings(wait=1.0), **fields)])


@pytest.fixture(scope="session")
def doomed_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MilvusServer]:
    """A server with the collection; a first search has created what libraries keep for good."""
    with server_for_tests(tmp_path_factory.mktemp("doomed-server"), LEASE) as server:
        make_known_collection(server.uri)
        with under_load(search(server.uri), questions()) as ask:
            ask(timeout=30)
        yield server


@pytest.fixture
def server(doomed_server: MilvusServer) -> Iterator[MilvusServer]:
    """The server; checks that a test leaves no thread and no socket behind."""
    with leaving_nothing():
        yield doomed_server
