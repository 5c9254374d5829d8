"""Fixtures of the tests of each provider's stage."""

from __future__ import annotations

import pytest


@pytest.fixture(params=["sync", "async"])
def way(request: pytest.FixtureRequest) -> str:
    """Blocking, or on an event loop."""
    return request.param
