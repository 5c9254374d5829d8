"""The circuit breaker: a server that keeps failing is not called for a while, so it costs its callers no time."""

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
"""A call with a shorter timeout than this that times out is no sign that the server fails."""

Counts = Callable[[Exception], bool | str | None]
"""What an error says about the server: True or a word that it fails, False that it is alive, None nothing."""


class BreakerSettings(Settings):
    """When a circuit opens, and for how long.

    After ``failures`` in a row, spread over at least ``over`` seconds, calls fail at once, without being made. After
    ``wait`` seconds one trial call is let through: its success closes the circuit, its failure starts the wait again.
    """

    failures: Annotated[int, Field(ge=1, le=10_000, description="Failures in a row after which calls are refused.")] = 5
    over: Annotated[
        float,
        Field(
            ge=0,
            allow_inf_nan=False,
            description="Seconds that the failures are spread over, at least: one lost connection ends all calls that "
            "are running, and the next ones find the server alive.",
        ),
    ] = 0.5
    wait: Annotated[
        float, Field(gt=0, allow_inf_nan=False, description="Seconds until one call is let through to try again.")
    ] = 10.0


class Breaker:
    """Counts the failures of one server, for all threads and event loops of the process; see ``breaker_for``.

    No lock is held while a call runs. If a trial call has no outcome within ``wait``, another is let through beside it,
    so that a call that never ends cannot keep the circuit open for ever.

    Args:
        name: of the server, for messages; without a key.
        settings: when it opens, and for how long.
    """

    def __init__(self, name: str, settings: BreakerSettings) -> None:
        self.name = name
        self._settings = settings
        self._lock = threading.Lock()
        self.forget()

    @contextmanager
    def crossing_fork(self) -> Iterator[None]:
        """Return a context for a fork: the child, which has seen no failure, starts with a closed circuit."""
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
        """Whether calls are refused, except a trial call that is due."""
        return self._next_trial is not None

    def check(self) -> None:
        """Raise if a call would be refused now, without making one.

        Raises:
            CircuitOpenError: see ``guarding``.
        """
        with self._lock:
            self._refuse(time.monotonic())

    @contextmanager
    def guarding(self, counts: Counts) -> Iterator[None]:
        """Return a context for a call, blocking or awaited.

        Args:
            counts: whether an error of the call means that the server fails. If it returns False, or there is no error,
                the server is alive. None, a cancellation and Ctrl-C have no effect; if that was the trial call, the
                next call is one.

        Raises:
            CircuitOpenError: the circuit is open, and the call was not made.
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
        """The period of a call; and if it is a trial, when the next one is due."""
        with self._lock:
            now = time.monotonic()
            self._refuse(now)
            if self._next_trial is not None:
                self._next_trial = now + self._settings.wait
            return self._period, self._next_trial

    def _end(
        self, period: object, trial: float | None, failed: bool | str | None, error: Exception | None = None
    ) -> None:
        with self._lock:
            if period is not self._period:
                return  # the call began before the circuit last opened or closed: outdated
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
                self._last = failed if isinstance(failed, str) else _kind(error)
                row = self._count >= self._settings.failures and now - self._since >= self._settings.over
                if trial is not None or row:
                    self._next_trial = now + self._settings.wait
                    self._period = self._period if trial is not None else object()

    def _refuse(self, now: float) -> None:
        if self._next_trial is None or now >= self._next_trial:
            return
        left = self._next_trial - now
        failures = "1 failure" if self._count == 1 else f"{self._count} consecutive failures"
        raise CircuitOpenError(
            f"circuit open after {failures} (last: {self._last})",
            f"next attempt in {left:.1f} s; check the service's health",
            place=self.name,
            retry_after=left,
        )


def _kind(error: Exception | None) -> str:
    """The kind of an error in a word or two; never its message."""
    kind = error.reason_code if isinstance(error, PipelineError) else type(error).__name__
    status = getattr(error, "status", None)
    return f"{kind}, status {status}" if isinstance(status, int) else kind


_breakers: Shared[tuple[tuple[str, ...], BreakerSettings], Breaker] = Shared(at_fork=Breaker.crossing_fork)


def breaker_for(key: tuple[str, ...], name: str, settings: BreakerSettings) -> Breaker:
    """Return the breaker of an endpoint: one in the process for all callers with these settings, while it runs.

    Args:
        key: what identifies the endpoint; not a secret.
        name: for messages.
        settings: callers with other settings get another breaker.
    """
    return _breakers.acquire((key, settings), lambda: Breaker(name, settings))
