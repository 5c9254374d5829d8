"""The retry policy: how often a failed call is repeated, and how long to wait before that.

The caller says which errors are worth another attempt; this module knows no client library. For HTTP services it knows
which statuses pass by themselves, and how a reply asks for a wait.
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
from milvus_pipeline.errors import CircuitOpenError, ConfigError

Retryable = Callable[[BaseException], bool]
"""Whether another attempt may succeed after this error."""

WaitHint = Callable[[BaseException], float | None]
"""The seconds that a service asks to wait (``Retry-After``); None if it does not ask."""

OnWait = Callable[[BaseException, float], None]
"""Called before each wait: with the error that ended the attempt, and the seconds."""

PASSING_STATUSES: Final = frozenset({408, 429, 500, 502, 503, 504, 529})
"""HTTP statuses of failures that pass by themselves. A request refused with another status is refused again."""

_CROWD: Final = 0.1
"""A wait that a service asks for is longer by up to this share, so that its clients do not come back all at once."""


class Settings(BaseModel):
    """Base of the settings in a field of a stage."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any) -> Any:
        # pydantic takes `attempts: true` for 1.
        if isinstance(value, bool):
            raise ConfigError(f"must not be {str(value).lower()}")
        return value


class RetrySettings(Settings):
    """How calls that fail for a passing reason are repeated: with exponential backoff and jitter.

    The wait before attempt n + 1 is random between half of and all of ``min_wait * 2**(n - 1)``, at most ``max_wait``.
    No wait outlasts the deadline of the query.
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
            raise ConfigError(f"max_wait ({self.max_wait:g}) must be at least min_wait ({self.min_wait:g})")
        return self


def retry_after(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """Return the seconds that a reply asks to wait: by ``retry-after-ms``, else by ``Retry-After``.

    Args:
        headers: of the reply; looked up by lower-case names.
        now: the time in seconds since 1970, from which a date counts; the current time by default.

    Returns:
        At least 0; None if the reply does not ask, or not in a valid format (RFC 9110, section 10.2.3, and also
        fractions of a second).
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
        date = date if date.tzinfo else date.replace(tzinfo=UTC)  # HTTP dates are in UTC, with or without a zone
        return max(0.0, date.timestamp() - (time.time() if now is None else now))
    except (ValueError, TypeError, OverflowError, OSError):
        return None


def _seconds(text: str | None) -> float | None:
    # `float` also reads 1e3, 1_0, nan, and digits of other scripts.
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
    """Return the policy for blocking calls: ``retrying(...)(function, *arguments)``.

    Args:
        settings: attempts and waits.
        deadline: of the query; no attempt begins after it.
        retryable: whether an error is worth another attempt. A CircuitOpenError does not count as an attempt; as many
            of them are allowed as there are attempts.
        wait_hint: the wait that a service asked for; it replaces a shorter backoff.
        on_wait: called before each wait.

    Returns:
        A callable that runs a function under the policy, and raises the exception of the last attempt.
    """
    return tenacity.Retrying(**_policy(settings, deadline, retryable, wait_hint, on_wait))


def async_retrying(
    settings: RetrySettings,
    deadline: Deadline,
    retryable: Retryable,
    wait_hint: WaitHint | None = None,
    on_wait: OnWait | None = None,
) -> tenacity.AsyncRetrying:
    """Return the policy for coroutine functions; its waits do not block the event loop."""
    return tenacity.AsyncRetrying(**_policy(settings, deadline, retryable, wait_hint, on_wait))


def _policy(
    settings: RetrySettings,
    deadline: Deadline,
    retryable: Retryable,
    wait_hint: WaitHint | None,
    on_wait: OnWait | None,
) -> dict[str, Any]:
    def wait(state: tenacity.RetryCallState) -> float:
        ceiling = min(settings.max_wait, settings.min_wait * 2.0 ** (state.attempt_number - 1))
        backoff = random.uniform(ceiling / 2, ceiling)  # noqa: S311 - spreads load, hides nothing
        error = _error(state)
        hint = (wait_hint(error) if wait_hint and error else None) or 0.0
        if hint > settings.max_wait:
            return hint  # too long: `stop` ends the attempts
        return max(backoff, min(settings.max_wait, hint * random.uniform(1, 1 + _CROWD)))  # noqa: S311

    refused = 0

    def stop(state: tenacity.RetryCallState) -> bool:
        nonlocal refused
        refused = int(isinstance(_error(state), CircuitOpenError)) + (refused if state.attempt_number > 1 else 0)
        left = deadline.remaining()
        # Refusals count separately: they do not use up attempts.
        return (
            max(refused, state.attempt_number - refused) >= settings.attempts
            or state.upcoming_sleep > settings.max_wait
            or (left is not None and state.upcoming_sleep >= left)
        )

    def before_sleep(state: tenacity.RetryCallState) -> None:
        error = _error(state)
        if on_wait and error:
            on_wait(error, state.upcoming_sleep)

    # Exception, not BaseException: neither Ctrl-C nor the cancellation of a task is ever swallowed.
    retry = tenacity.retry_if_exception(lambda error: isinstance(error, Exception) and retryable(error))
    return {"stop": stop, "wait": wait, "retry": retry, "reraise": True, "before_sleep": before_sleep}


def _error(state: tenacity.RetryCallState) -> BaseException | None:
    return state.outcome.exception() if state.outcome else None
