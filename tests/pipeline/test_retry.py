"""The retry policy: what is repeated, how often, and when it gives up."""

from __future__ import annotations

import asyncio

import pytest
from pydantic import ValidationError

from milvus_pipeline import CircuitOpenError
from milvus_pipeline.plugin import Deadline
from milvus_pipeline.retry import RetrySettings, async_retrying, retrying

QUICK = RetrySettings(attempts=4, min_wait=0.001, max_wait=0.01)


class Passing(Exception):  # noqa: N818 - named for what it is
    """An error worth another attempt."""


def is_passing(error: BaseException) -> bool:
    return isinstance(error, Passing | CircuitOpenError)


class Service:
    """A service that fails a number of times, then answers; it counts its calls."""

    def __init__(self, failures: int, error: BaseException | None = None) -> None:
        self.failures = failures
        self.error = error or Passing("busy")
        self.calls = 0

    def __call__(self, answer: str) -> str:
        self.calls += 1
        if self.calls <= self.failures:
            raise self.error
        return answer

    async def acall(self, answer: str) -> str:
        return self(answer)


def run(way: str, service: Service, settings: RetrySettings, deadline: Deadline) -> str:
    """Call the service under the policy, blocking or on an event loop."""
    if way == "sync":
        return retrying(settings, deadline, is_passing)(service, "answer")

    async def main() -> str:
        return await async_retrying(settings, deadline, is_passing)(service.acall, "answer")

    return asyncio.run(main())


pytestmark = pytest.mark.parametrize("way", ["sync", "async"])


def test_a_passing_failure_is_repeated(way: str) -> None:
    """The call is repeated until it succeeds."""
    service = Service(failures=3)
    assert run(way, service, QUICK, Deadline()) == "answer"
    assert service.calls == 4


def test_attempts_are_bounded_and_the_last_error_is_raised(way: str) -> None:
    """The caller sees the service's own exception, not the policy's."""
    service = Service(failures=9)
    with pytest.raises(Passing, match="busy"):
        run(way, service, QUICK, Deadline())
    assert service.calls == 4


class Shut(Service):
    """A service whose circuit opens after its first failures."""

    def __call__(self, answer: str) -> str:
        self.error = Passing("busy") if self.calls < 3 else CircuitOpenError("left alone")
        return super().__call__(answer)


def test_refusals_of_a_breaker_take_no_attempt(way: str) -> None:
    """Refusals by the circuit breaker do not use up attempts, and there are at most as many of them."""
    service = Shut(failures=5)
    assert run(way, service, QUICK, Deadline()) == "answer"
    assert service.calls == 6
    service = Shut(failures=99)
    with pytest.raises(CircuitOpenError):
        run(way, service, QUICK, Deadline())
    assert service.calls == 3 + 4


@pytest.mark.parametrize("error", [ValueError("bad request"), KeyboardInterrupt()])
def test_other_failures_are_final(way: str, error: BaseException) -> None:
    """A bad request is not repeated, nor is Ctrl-C."""
    service = Service(failures=9, error=error)
    with pytest.raises(type(error)):
        run(way, service, QUICK, Deadline())
    assert service.calls == 1


def test_no_wait_goes_past_the_deadline(way: str) -> None:
    """If the next attempt would begin after the deadline, the error is raised at once."""
    service = Service(failures=9)
    with pytest.raises(Passing):
        run(way, service, RetrySettings(attempts=9, min_wait=60, max_wait=60), Deadline.after(5))
    assert service.calls == 1


def test_waits_grow_up_to_the_ceiling(way: str) -> None:
    """Each wait lies between half of and all of its step, the steps double, and max_wait bounds them."""
    waits: list[float] = []

    async def note(seconds: float) -> None:
        waits.append(seconds)

    settings = RetrySettings(attempts=6, min_wait=1, max_wait=5)
    policy = (retrying if way == "sync" else async_retrying)(settings, Deadline(), is_passing)
    with pytest.raises(Passing):
        if way == "sync":
            policy.copy(sleep=waits.append)(Service(9), "answer")
        else:
            asyncio.run(policy.copy(sleep=note)(Service(9).acall, "answer"))
    assert len(waits) == 5
    for wait, step in zip(waits, (1, 2, 4, 5, 5), strict=True):
        assert step / 2 <= wait <= step


@pytest.mark.parametrize("fields", [{"attempts": 0}, {"min_wait": 2, "max_wait": 1}, {"max_wait": 0}, {"tries": 3}])
def test_settings_are_checked(way: str, fields: dict) -> None:
    """Invalid and unknown settings are refused."""
    with pytest.raises(ValidationError):
        RetrySettings(**fields)
