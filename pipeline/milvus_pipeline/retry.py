"""The one retry policy: how often a failed call is tried again, and how long to wait before it is.

Which errors are worth another attempt the caller says; this module knows no client library. For services on HTTP it
knows which statuses pass by themselves, and how a reply asks for a wait.
"""

from __future__ import annotations

import math
import random
import re
import time
from collections.abc import Callable, Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Annotated, Any, Final, Self

import tenacity
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from milvus_pipeline.context import Deadline
from milvus_pipeline.errors import CircuitOpenError

Retryable = Callable[[BaseException], bool]
"""Tells whether another attempt may succeed where this error ended one."""

WaitHint = Callable[[BaseException], float | None]
"""The seconds that a service asked to be left alone (``Retry-After``); None where it asked for nothing."""


OnWait = Callable[[BaseException, float], None]
"""Told of each wait before it begins: the error that ended the attempt, and the seconds."""

PASSING_STATUSES: Final = frozenset({408, 429, 500, 502, 503, 504, 529})
"""HTTP statuses of failures that pass by themselves. A request that is refused with another is refused again."""

_CROWD: Final = 0.1
"""Those whom a service sent away together shall not come back together: a wait asked for is longer by up to this."""


class Settings(BaseModel):
    """Numbers that a field of a stage is made of."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any) -> Any:
        # pydantic takes `attempts: true` for 1.
        if isinstance(value, bool):
            raise ValueError(f"must not be {str(value).lower()}")
        return value


class RetrySettings(Settings):
    """How calls that fail for a passing reason are repeated: exponential backoff with jitter.

    Before the attempt n + 1 a random time between half of and all of ``min_wait * 2**(n - 1)`` passes, at most
    ``max_wait``. No wait goes on past the deadline of the query.
    """

    attempts: Annotated[int, Field(ge=1, le=100, description="Attempts in all; 1 for no repetition.")] = 3
    min_wait: Annotated[
        float, Field(gt=0, allow_inf_nan=False, description="Seconds before the second attempt, at most.")
    ] = 0.1
    max_wait: Annotated[
        float,
        Field(
            gt=0,
            allow_inf_nan=False,
            description="Seconds before any attempt, at most; an error that asks for a longer wait is final.",
        ),
    ] = 5.0

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.max_wait < self.min_wait:
            raise ValueError(f"max_wait ({self.max_wait:g}) must be at least min_wait ({self.min_wait:g})")
        return self


def retry_after(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """The seconds that a reply asks to be left alone: by ``retry-after-ms``, else by ``Retry-After``.

    Args:
        headers: of the reply; looked up by lower-case names.
        now: the time in seconds since 1970, by which a date is turned into seconds.

    Returns:
        At least 0; None where the reply does not ask, or not in a way that can be read (RFC 9110, section 10.2.3,
        with fractions of a second allowed).
    """
    milliseconds = _seconds(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    given = headers.get("retry-after")
    seconds = _seconds(given)
    if seconds is not None or given is None or not given.isascii():
        return seconds
    try:
        date = parsedate_to_datetime(given)
        date = date if date.tzinfo else date.replace(tzinfo=UTC)  # dates of HTTP are in UTC, said or not
        return max(0.0, date.timestamp() - (time.time() if now is None else now))
    except (ValueError, TypeError, OverflowError, OSError):
        return None


def _seconds(text: str | None) -> float | None:
    # `float` reads more: 1e3, 1_0, nan, the digits of other scripts.
    if text is None or not re.fullmatch(r"[0-9]+(?:\.[0-9]+)?", text.strip()):
        return None
    value = float(text)
    return value if math.isfinite(value) else None


def retrying(
    settings: RetrySettings,
    deadline: Deadline,
    retryable: Retryable,
    wait_hint: WaitHint | None = None,
    on_wait: OnWait | None = None,
) -> tenacity.Retrying:
    """The policy for blocking calls: ``retrying(...)(function, *arguments)``.

    Args:
        settings: attempts and waits.
        deadline: of the query; an attempt that would begin after it is not made.
        retryable: whether an error is worth another attempt. A CircuitOpenError is no attempt: of those there may be as
            many as there are attempts.
        wait_hint: the wait that a service asked for; it replaces the backoff where it is longer.
        on_wait: told of each wait.

    Returns:
        A callable that runs a function under the policy. The last attempt's own exception is raised.
    """
    return tenacity.Retrying(**_policy(settings, deadline, retryable, wait_hint, on_wait))


def async_retrying(
    settings: RetrySettings,
    deadline: Deadline,
    retryable: Retryable,
    wait_hint: WaitHint | None = None,
    on_wait: OnWait | None = None,
) -> tenacity.AsyncRetrying:
    """The same for coroutine functions, whose waits do not block the event loop."""
    return tenacity.AsyncRetrying(**_policy(settings, deadline, retryable, wait_hint, on_wait))


def _policy(
    settings: RetrySettings,
    deadline: Deadline,
    retryable: Retryable,
    wait_hint: WaitHint | None,
    on_wait: OnWait | None,
) -> dict[str, Any]:
    def hint(state: tenacity.RetryCallState) -> float:
        error = _error(state)
        return (wait_hint(error) if wait_hint and error else None) or 0.0

    def wait(state: tenacity.RetryCallState) -> float:
        ceiling = min(settings.max_wait, settings.min_wait * 2.0 ** (state.attempt_number - 1))
        backoff = random.uniform(ceiling / 2, ceiling)  # noqa: S311 - spreads load, hides nothing
        asked = hint(state)
        if asked > settings.max_wait:
            return asked  # too long: `stop` ends it
        return max(backoff, min(settings.max_wait, asked * random.uniform(1, 1 + _CROWD)))  # noqa: S311

    refused = 0

    def stop(state: tenacity.RetryCallState) -> bool:
        nonlocal refused
        refused = int(isinstance(_error(state), CircuitOpenError)) + (refused if state.attempt_number > 1 else 0)
        left = deadline.remaining()
        # Refusals are counted by themselves: they take nothing from the attempts that are really made.
        return (
            max(refused, state.attempt_number - refused) >= settings.attempts
            or state.upcoming_sleep > settings.max_wait
            or (left is not None and state.upcoming_sleep >= left)
        )

    def told(state: tenacity.RetryCallState) -> None:
        error = _error(state)
        if on_wait and error:
            on_wait(error, state.upcoming_sleep)

    # Exception, not BaseException: neither Ctrl-C nor the cancellation of a task is ever swallowed.
    retry = tenacity.retry_if_exception(lambda error: isinstance(error, Exception) and retryable(error))
    return {"stop": stop, "wait": wait, "retry": retry, "reraise": True, "before_sleep": told}


def _error(state: tenacity.RetryCallState) -> BaseException | None:
    return state.outcome.exception() if state.outcome else None
