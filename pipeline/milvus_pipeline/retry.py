"""The one retry policy: how often a failed call is tried again, and how long to wait before it is.

Which errors are worth another attempt the caller says; this module knows no client library.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Annotated, Any, Self

import tenacity
from pydantic import BaseModel, ConfigDict, Field, model_validator

from milvus_pipeline.deadline import Deadline

Retryable = Callable[[BaseException], bool]
"""Tells whether another attempt may succeed where this error ended one."""

WaitHint = Callable[[BaseException], float | None]
"""The seconds that a service asked to be left alone (``Retry-After``); None where it asked for nothing."""


class RetrySettings(BaseModel):
    """How calls that fail for a passing reason are repeated: exponential backoff with jitter.

    Before the attempt n + 1 a random time between half of and all of ``min_wait * 2**(n - 1)`` passes, at most
    ``max_wait``. No wait goes on past the deadline of the query.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

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


def retrying(
    settings: RetrySettings, deadline: Deadline, retryable: Retryable, wait_hint: WaitHint | None = None
) -> tenacity.Retrying:
    """The policy for blocking calls: ``retrying(...)(function, *arguments)``.

    Args:
        settings: attempts and waits.
        deadline: of the query; an attempt that would begin after it is not made.
        retryable: whether an error is worth another attempt.
        wait_hint: the wait that a service asked for; it replaces the backoff where it is longer.

    Returns:
        A callable that runs a function under the policy. The last attempt's own exception is raised.
    """
    return tenacity.Retrying(**_policy(settings, deadline, retryable, wait_hint))


def async_retrying(
    settings: RetrySettings, deadline: Deadline, retryable: Retryable, wait_hint: WaitHint | None = None
) -> tenacity.AsyncRetrying:
    """The same for coroutine functions, whose waits do not block the event loop."""
    return tenacity.AsyncRetrying(**_policy(settings, deadline, retryable, wait_hint))


def _policy(
    settings: RetrySettings, deadline: Deadline, retryable: Retryable, wait_hint: WaitHint | None
) -> dict[str, Any]:
    def hint(state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        return (wait_hint(error) if wait_hint and error else None) or 0.0

    def wait(state: tenacity.RetryCallState) -> float:
        ceiling = min(settings.max_wait, settings.min_wait * 2.0 ** (state.attempt_number - 1))
        return max(random.uniform(ceiling / 2, ceiling), hint(state))  # noqa: S311 - spreads load, hides nothing

    def stop(state: tenacity.RetryCallState) -> bool:
        left = deadline.remaining()
        return (
            state.attempt_number >= settings.attempts
            or state.upcoming_sleep > settings.max_wait
            or (left is not None and state.upcoming_sleep >= left)
        )

    # Exception, not BaseException: neither Ctrl-C nor the cancellation of a task is ever swallowed.
    retry = tenacity.retry_if_exception(lambda error: isinstance(error, Exception) and retryable(error))
    return {"stop": stop, "wait": wait, "retry": retry, "reraise": True}
