"""Fixtures of the tests of evaluations."""

import pytest

from support.fake_stages.evaluation import calls, setups


@pytest.fixture(autouse=True)
def nothing_counted():
    """What counting stages saw in one test is forgotten in the next."""
    calls.clear()
    setups.clear()
