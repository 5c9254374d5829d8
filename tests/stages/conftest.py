"""Fixtures of the tests of stages: a clock for deadlines, and services for hosted rerankers."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from support.hosted import KEY, STAGES
from support.standins import StandIn


class FakeTime:
    """A clock for deadlines that moves only when it sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        """The time in seconds."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Move the time on."""
        self.now += seconds


@pytest.fixture
def fake_time(monkeypatch) -> FakeTime:
    """The clock of all deadlines while a test runs."""
    clock = FakeTime()
    monkeypatch.setattr("milvus_pipeline.context.time", clock)
    return clock


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., StandIn]]:
    """Yield a function that starts a stand-in with its key in the variables that its stage reads; all end with it."""
    with ExitStack() as ending:

        def start(provider: str, **settings: Any) -> StandIn:
            server = ending.enter_context(StandIn(provider, **settings))
            for variable in STAGES[provider].key_names or (KEY,):
                monkeypatch.setenv(variable, server.key)
            return server

        yield start
