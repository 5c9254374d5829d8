"""Fixtures of the tests of each provider's stage."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.hosted import Serve, serving


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Starts stand-ins, with their keys in the environment."""
    yield from serving(monkeypatch)


@pytest.fixture(params=["sync", "async"])
def way(request: pytest.FixtureRequest) -> str:
    """Blocking, or on an event loop."""
    return request.param
