"""Fixtures for the tests of hosted rerankers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.hosted import Serve, serving
from support.standins import PROVIDERS, StandIn


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """A function that starts stand-ins, with their keys in the environment."""
    yield from serving(monkeypatch)


@pytest.fixture(params=PROVIDERS)
def server(request: pytest.FixtureRequest) -> Iterator[StandIn]:
    """A stand-in for each service in turn; it wants its key."""
    with StandIn(request.param, locked=True) as server:
        yield server


@pytest.fixture
def provider(server: StandIn) -> str:
    """The service's name."""
    return server.provider.name
