"""The exceptions of the framework.

Every message says where, what and the next step. None of ours carries a key or the text of a document; of a foreign
exception only the first line is told, and not even that where it repeats a document.
"""

from __future__ import annotations


class PipelineError(Exception):
    """Base of everything this framework raises on purpose."""


class ConfigError(PipelineError, ValueError):
    """A pipeline, a stage or a configuration file is wrong; nothing was run."""


class QueryError(PipelineError, ValueError):
    """One query cannot be run as it is (empty text, a vector with NaN, a wrong dimension)."""


class StageError(PipelineError):
    """A stage could not be opened or failed on its input; ``__cause__`` holds the first cause."""


class DeadlineError(StageError, TimeoutError):
    """The time given to a query was used up."""


class ServiceError(StageError):
    """A service that a stage calls refused a request, answered wrongly, or did not answer.

    Where a stage fails in a pipeline, this is the ``__cause__`` of the error that says so.

    Attributes:
        status: HTTP status of the reply; None where there was none.
        code: the service's own word for the error.
        detail: what the service said, without keys and texts of the request; empty where it said nothing.
        request_id: by which the service knows the request.
        retry_after: seconds that the service asked to be left alone.
        retryable: whether the same request may succeed later.
        attempts: how often it was tried, the last included.
        waited: seconds of the last wait between attempts.
        given_up: why it was not tried again, though it may succeed later.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        code: str | None = None,
        detail: str = "",
        request_id: str | None = None,
        retry_after: float | None = None,
        retryable: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.detail = detail
        self.request_id = request_id
        self.retry_after = retry_after
        self.retryable = retryable
        self.attempts = 1
        self.waited = 0.0
        self.given_up = ""

    def __str__(self) -> str:
        message = super().__str__()
        if self.attempts > 1:
            message += f" ({self.attempts} attempts, the last after a wait of {self.waited:.1f} s)"
        return f"{message}; not tried again: {self.given_up}" if self.given_up else message


class IngestError(PipelineError):
    """Records could not be written into a collection."""


def shown(value: object, limit: int = 60) -> str:
    """``repr(value)`` for a message, cut to ``limit`` characters."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def told(error: BaseException, limit: int = 300) -> str:
    """What an exception says, for a message of ours.

    Our own messages are taken whole. A foreign one is named by its class and cut to its first line and
    ``limit`` characters, because libraries like to echo their whole input.
    """
    if isinstance(error, PipelineError):
        return str(error)
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else ""
    text = text if len(text) <= limit else text[: limit - 1] + "…"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
