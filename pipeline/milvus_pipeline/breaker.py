"""The circuit breaker: a server that fails again and again is left alone for a while, and costs its callers nothing."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Final

from pydantic import Field

from milvus_pipeline.errors import CircuitOpenError, PipelineError
from milvus_pipeline.retry import Settings
from milvus_pipeline.shared import Shared

FAIR_SECONDS: Final = 0.25
"""A shorter time limit that runs out says that the caller was in a hurry, and nothing of the server."""

Counts = Callable[[Exception], bool | None]
"""What an error says of the server: True that it fails, False that it is alive, None nothing."""


class BreakerSettings(Settings):
    """When a server that fails again and again is left alone, and for how long.

    After so many failures in a row, over so many seconds, calls fail at once, without being made. When ``wait`` has
    passed, one call is let through: its success ends this, its failure begins the wait anew.
    """

    failures: Annotated[int, Field(ge=1, le=10_000, description="Failures in a row after which calls are refused.")] = 5
    over: Annotated[
        float,
        Field(
            ge=0,
            allow_inf_nan=False,
            description="Seconds that the failures are spread over, at least: a connection that is lost once ends all "
            "calls under way at once, and the next ones find the server alive.",
        ),
    ] = 0.5
    wait: Annotated[
        float, Field(gt=0, allow_inf_nan=False, description="Seconds until one call is let through to try again.")
    ] = 10.0


class Breaker:
    """Counts the failures of one server, for all threads and event loops of the process; ``breaker_for`` gives it.

    No lock is held while a call runs. A trial call that has no outcome within ``wait`` keeps its right to one, and
    another is let through beside it: a call that never ends cannot keep the others out for ever.

    Args:
        name: of the server, for messages; without a key.
        failures: in a row, after which calls are refused.
        wait: seconds until one is let through.
        over: seconds from the first of the failures to the last, at least.
    """

    def __init__(self, name: str, failures: int = 5, wait: float = 10.0, over: float = 0.5) -> None:
        self.name = name
        self._failures = failures
        self._wait = wait
        self._over = over
        self._lock = threading.Lock()
        self.forget()

    @contextmanager
    def crossing_fork(self) -> Iterator[None]:
        """Round a fork of the process: its child, which has seen no failure, starts with a closed circuit."""
        parent = os.getpid()
        with self._lock:
            yield
        if os.getpid() != parent:
            self.forget()

    def forget(self) -> None:
        """Close the circuit and forget all failures."""
        self._count = 0
        self._since = 0.0  # when the first of the failures in a row was
        self._last = ""
        self._next_trial: float | None = None  # None while calls pass
        self._period: object = object()  # replaced when it opens and when it closes

    @property
    def is_open(self) -> bool:
        """Whether calls are refused, but for a trial call that is due."""
        return self._next_trial is not None

    def check(self) -> None:
        """Raise where a call would be refused now, without making one.

        Raises:
            CircuitOpenError: see ``guarding``.
        """
        with self._lock:
            self._refuse(time.monotonic())

    @contextmanager
    def guarding(self, counts: Counts) -> Iterator[None]:
        """Round a call, blocking or awaited.

        Args:
            counts: whether an error of the call means that the server fails. An error of which it says False, and an
                end without one, mean that the server is alive. Of None, of a cancellation and of Ctrl-C nothing
                follows, and if it was the trial call, the next call is one.

        Raises:
            CircuitOpenError: the server failed again and again, and the call was not made.
        """
        period, trial = self._begin()
        try:
            yield
        except Exception as error:
            self._end(period, trial, counts(error), error)
            raise
        except BaseException:
            self._end(period, trial, None)
            raise
        self._end(period, trial, False)

    def _begin(self) -> tuple[object, float | None]:
        """The period that a call belongs to, and when the trial after it is due, if it is one itself."""
        with self._lock:
            now = time.monotonic()
            self._refuse(now)
            if self._next_trial is not None:
                self._next_trial = now + self._wait
            return self._period, self._next_trial

    def _end(self, period: object, trial: float | None, failed: bool | None, error: Exception | None = None) -> None:
        with self._lock:
            if period is not self._period:
                return  # begun before it opened or closed last: that is news no more
            if failed is None:
                if trial is not None and trial == self._next_trial:
                    self._next_trial = time.monotonic()
            elif not failed:
                self._count = 0
                if trial is not None:
                    self._next_trial, self._period = None, object()
            else:
                now = time.monotonic()
                self._since = self._since if self._count else now
                self._count += 1
                self._last = _kind(error)
                if trial is not None or (self._count >= self._failures and now - self._since >= self._over):
                    self._next_trial = now + self._wait
                    self._period = self._period if trial is not None else object()

    def _refuse(self, now: float) -> None:
        if self._next_trial is None or now >= self._next_trial:
            return
        left = self._next_trial - now
        times = "its last call" if self._count == 1 else f"its last {self._count} calls in a row"
        raise CircuitOpenError(
            f"{self.name} is not called, since {times} failed (the last: {self._last})",
            (f"it is tried again in {left:.1f} s; check that the service is well, and come again then"),
            retry_after=left,
        )


def _kind(error: Exception | None) -> str:
    """The kind of an error in a word or two; never what it says."""
    kind = error.reason_code if isinstance(error, PipelineError) else type(error).__name__
    status = getattr(error, "status", None)
    return f"{kind}, status {status}" if isinstance(status, int) else kind


_breakers: Shared[tuple[tuple[str, ...], BreakerSettings], Breaker] = Shared(at_fork=Breaker.crossing_fork)


def breaker_for(key: tuple[str, ...], name: str, settings: BreakerSettings) -> Breaker:
    """The breaker of an endpoint: one in the process for all callers with these settings, for as long as it runs.

    Args:
        key: what identifies the endpoint; not a secret.
        name: for messages.
        settings: callers with other settings get another breaker.
    """
    return _breakers.acquire((key, settings), lambda: Breaker(name, settings.failures, settings.wait, settings.over))


def forget_breakers() -> None:
    """Close all circuits and forget all failures."""
    for breaker in _breakers.values():
        breaker.forget()
