"""Fixtures for the tests of hosted rerankers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.standins import PROVIDERS, StandIn


@pytest.fixture(params=PROVIDERS)
def server(request: pytest.FixtureRequest) -> Iterator[StandIn]:
    """A stand-in for each service in turn; it wants its key."""
    with StandIn(request.param, locked=True) as server:
        yield server


@pytest.fixture
def provider(server: StandIn) -> str:
    """The service's name."""
    return server.provider.name
