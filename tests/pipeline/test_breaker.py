"""The circuit breaker: when calls are refused, which call may try again, and that no circuit stays open for ever."""

from __future__ import annotations

import asyncio
import os
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import SimpleNamespace

import pytest
from pydantic import ValidationError

from milvus_pipeline import BreakerSettings, CircuitOpenError, ServiceError, breaker
from milvus_pipeline.plugin import Breaker, breaker_for
from support.processes import in_its_own_process


class Clock:
    """The time that breakers see."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock that only the test moves."""
    clock = Clock()
    monkeypatch.setattr(breaker, "time", SimpleNamespace(monotonic=clock.monotonic))
    return clock


class Down(Exception):  # noqa: N818 - named for what it is
    """The server fails."""


class Refused(Exception):  # noqa: N818 - named for what it is
    """The server answers, but refuses the call."""


class Hurried(Exception):  # noqa: N818 - named for what it is
    """The caller had no time to wait."""


def counts(error: Exception) -> bool | None:
    return None if isinstance(error, Hurried) else isinstance(error, Down)


def call(guard: Breaker, error: BaseException | None = None) -> None:
    """A call that ends in this error, or well."""
    with suppress(*([type(error)] if error else [])), guard.guarding(counts):
        if error is not None:
            raise error


def opened(failures: int = 3, wait: float = 10.0) -> Breaker:
    """A breaker that has just opened."""
    guard = Breaker("POST http://server/rerank", BreakerSettings(failures=failures, wait=wait, over=0))
    for _ in range(failures):
        call(guard, Down())
    return guard


def refused(guard: Breaker) -> bool:
    """Whether a call is refused; a call that is made says nothing about the server."""
    try:
        call(guard, Hurried())
    except CircuitOpenError:
        return True
    return False


def test_failures_in_a_row_open_it_and_the_message_says_what_is_to_be_known(clock: Clock) -> None:
    """The error names the server, the number and kind of its failures, and the time of the next attempt."""
    guard = Breaker("POST http://server/rerank", BreakerSettings(failures=2, over=0))
    call(guard, Down())
    assert not refused(guard)
    with suppress(ServiceError), guard.guarding(lambda _: True):
        raise ServiceError("the answer was: secret", status=503, retryable=True)
    assert guard.is_open
    clock.now += 4.0
    with pytest.raises(CircuitOpenError) as caught:
        guard.check()
    assert str(caught.value) == (
        "POST http://server/rerank: circuit open after 2 consecutive failures (last: unavailable, status 503); "
        "next attempt in 6.0 s; check the service's health"
    )
    assert caught.value.retry_after == pytest.approx(6.0)
    assert caught.value.reason_code == "circuit_open"


@pytest.mark.parametrize("answer", [None, Refused()])
def test_an_answer_of_any_kind_begins_the_count_anew(answer: Exception | None) -> None:
    """Only failures in a row count, and a server that refuses a request is alive."""
    guard = Breaker("server", BreakerSettings(failures=2, over=0))
    for outcome in (Down(), answer, Down(), answer, Down()):
        call(guard, outcome)
    assert not guard.is_open


@pytest.mark.parametrize("nothing", [Hurried(), asyncio.CancelledError(), KeyboardInterrupt()])
def test_what_says_nothing_of_the_server_changes_nothing(nothing: BaseException) -> None:
    """A caller in a hurry and one that was cancelled neither open it nor keep it from opening."""
    guard = Breaker("server", BreakerSettings(failures=2, over=0))
    for _ in range(5):
        call(guard, nothing)
    assert not guard.is_open
    for outcome in (Down(), nothing, Down()):
        call(guard, outcome)
    assert guard.is_open


def test_one_event_that_ends_many_calls_is_no_row_of_failures(clock: Clock) -> None:
    """One lost connection ends all running calls at once; only failures after ``over`` seconds open the circuit."""
    alive, dead = Breaker("server", BreakerSettings()), Breaker("server", BreakerSettings())
    for _ in range(64):
        call(alive, Down())
        call(dead, Down())
    assert not alive.is_open
    clock.now += 0.5
    call(alive, None)
    call(alive, Down())
    call(dead, Down())
    assert (alive.is_open, dead.is_open) == (False, True)


def test_after_the_wait_one_call_is_let_through_whose_outcome_decides(clock: Clock) -> None:
    """While the trial runs, other calls are refused; its failure restarts the wait, its success closes the circuit."""
    guard = opened(wait=10.0)
    clock.now += 10.0
    with suppress(Down), guard.guarding(counts):
        assert refused(guard)
        clock.now += 1.0
        raise Down
    clock.now += 9.9
    assert refused(guard)
    clock.now += 0.1
    call(guard)
    assert not guard.is_open
    call(guard, Down())
    assert not guard.is_open


@pytest.mark.parametrize("end", [Hurried(), asyncio.CancelledError(), GeneratorExit()])
def test_a_trial_call_without_an_outcome_frees_its_place(clock: Clock, end: BaseException) -> None:
    """If the trial call is cancelled, the next call is the trial."""
    guard = opened()
    clock.now += 10.0
    call(guard, end)
    assert guard.is_open
    call(guard)
    assert not guard.is_open


def test_a_trial_call_that_never_ends_keeps_the_others_out_for_one_wait(clock: Clock) -> None:
    """Another trial is let through beside one that never ends; the success of either closes the circuit."""
    for first_to_end in (0, 1):
        guard = opened(wait=10.0)
        clock.now += 10.0
        trials = [guard.guarding(counts), guard.guarding(counts)]
        trials[0].__enter__()
        clock.now += 9.9
        assert refused(guard)
        clock.now += 0.1
        trials[1].__enter__()
        assert refused(guard)
        trials[first_to_end].__exit__(None, None, None)
        assert not guard.is_open
        with suppress(Down):
            trials[1 - first_to_end].__exit__(Down, Down(), None)
        assert not refused(guard)


def test_calls_that_began_before_it_changed_say_nothing(clock: Clock) -> None:
    """Calls from before the circuit opened that end late do not open, close or prolong it."""
    guard = Breaker("server", BreakerSettings(failures=2, over=0))
    herd = [guard.guarding(counts) for _ in range(6)]
    for each in herd:
        each.__enter__()

    def end(error: Exception | None) -> None:
        each = herd.pop()
        with suppress(Down):
            each.__exit__(type(error) if error else None, error, None)

    end(Down())
    end(Down())
    assert guard.is_open
    clock.now += 9.0
    end(None)
    end(Down())
    assert guard.is_open
    clock.now += 1.0
    call(guard)
    assert not guard.is_open
    end(Down())
    end(Down())
    assert not guard.is_open


def test_threads_and_event_loops_together_let_one_trial_through() -> None:
    """Of all callers in the process exactly one makes the trial call."""
    guard = opened(wait=0.01)
    crowd = 4
    barrier = threading.Barrier(2 * crowd)
    asked: list[str] = []
    done = threading.Event()
    ended = threading.Semaphore(0)

    def begin() -> None:
        barrier.wait()

    def by_thread() -> None:
        begin()
        try:
            with guard.guarding(counts):
                asked.append("thread")
                assert done.wait(30)
        except CircuitOpenError:
            ended.release()

    def by_loop() -> None:
        async def task() -> None:
            try:
                with guard.guarding(counts):
                    asked.append("task")
                    await asyncio.to_thread(done.wait, 30)
            except CircuitOpenError:
                ended.release()

        async def main() -> None:
            begin()
            await asyncio.gather(*(task() for _ in range(5)))

        asyncio.run(main())

    calls = crowd + 5 * crowd
    threading.Event().wait(0.02)
    # A caller that comes more than the wait after the trial call began would be let through as the next.
    guard._settings = BreakerSettings(wait=3600.0)
    with ThreadPoolExecutor(2 * crowd) as pool:
        futures = [pool.submit(each) for each in (by_thread, by_loop) for _ in range(crowd)]
        for _ in range(calls - 1):
            assert ended.acquire(timeout=30)
        assert len(asked) == 1
        done.set()
        for future in futures:
            future.result()
    assert not guard.is_open


def test_no_lock_is_held_while_calls_run() -> None:
    """Calls of a healthy server overlap."""
    guard = Breaker("server", BreakerSettings())
    together = threading.Barrier(3)

    def work() -> None:
        with guard.guarding(counts):
            together.wait(30)

    with ThreadPoolExecutor(3) as pool:
        for future in [pool.submit(work) for _ in range(3)]:
            future.result()


def test_any_order_of_outcomes_ends_as_a_plain_count_says(clock: Clock) -> None:
    """Any sequence of calls is refused exactly as a simple model of the rules says."""
    chance = random.Random(7)  # noqa: S311 - the same on every run
    for _ in range(200):
        limit, over = chance.randint(1, 4), chance.choice([0.0, 5.0])
        guard = Breaker("server", BreakerSettings(failures=limit, over=over))
        row, until, since = 0, None, 0.0
        for _ in range(40):
            clock.now += chance.choice([0.0, 1.0, 6.0, 11.0])
            expected = until is not None and clock.now < until
            outcome = chance.choice([Down(), Down(), None, Refused(), Hurried()])
            try:
                call(guard, outcome)
            except CircuitOpenError:
                assert expected
                continue
            assert not expected
            if isinstance(outcome, Down):
                since = since if row else clock.now
                row += 1
                many = row >= limit and clock.now - since >= over
                until = clock.now + 10.0 if until is not None or many else None
            elif not isinstance(outcome, Hurried):
                row, until = 0, None
            assert guard.is_open == (until is not None)


def test_an_endpoint_has_one_breaker_in_the_process() -> None:
    """Stages of one endpoint share a breaker; other settings and other endpoints have others."""
    one = breaker_for(("http://a",), "a", BreakerSettings())
    assert breaker_for(("http://a",), "a", BreakerSettings(failures=5)) is one
    assert breaker_for(("http://b",), "b", BreakerSettings()) is not one
    assert breaker_for(("http://a",), "a", BreakerSettings(failures=6)) is not one


def fork_while_used() -> None:
    """Fork while another thread locks and unlocks the breaker. A child's exception is its exit code."""
    guard = breaker_for(("http://server",), "server", BreakerSettings(failures=1, over=0))
    call(guard, Down())
    ended = threading.Event()

    def use() -> None:
        while not ended.is_set():
            with suppress(CircuitOpenError):
                guard.check()

    user = threading.Thread(target=use)
    user.start()
    for _ in range(20):
        child = os.fork()
        if child == 0:
            assert not guard.is_open
            call(guard)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    ended.set()
    user.join()
    assert guard.is_open


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_process_starts_with_a_closed_circuit() -> None:
    """It has seen no failure, and does not wait for a lock that a thread of its parent held."""
    done = in_its_own_process(__file__, "fork_while_used")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("wrong", [{"failures": 0}, {"failures": True}, {"wait": 0}, {"wait": float("inf")}, {"x": 1}])
def test_settings_are_checked(wrong: dict[str, object]) -> None:
    """Settings that would never open, never end, or are not numbers are refused."""
    with pytest.raises(ValidationError):
        BreakerSettings(**wrong)
