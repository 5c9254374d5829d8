"""Fixtures for stages that have a deadline."""

import pytest


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
