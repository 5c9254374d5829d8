"""The exceptions of the framework.

Their tree::

    PipelineError                   what, next_step, place, reason_code
    ├── ConfigError                 (ValueError) a pipeline, stage or file is wrong; has all problems
    ├── QueryError                  (ValueError) one query cannot be run
    ├── InputError                  a file of queries or results cannot be used
    │   └── ResumeError             a job cannot be resumed (milvus_pipeline.jobs)
    ├── OutputError                 a result cannot be written in this format (milvus_pipeline.files)
    ├── StoppedError                a job was stopped (milvus_pipeline.jobs)
    ├── IngestError                 records cannot be written into a collection
    └── StageError                  a stage cannot be opened, or failed
        ├── DeadlineError           (TimeoutError) it took longer than its timeout
        ├── CircuitOpenError        a server was not called, since it kept failing
        └── ServiceError            a service refused, failed or did not answer; has status and request id

A message says where, what, and what to do. It never contains a key or the text of a document; of a foreign exception
it contains the first line, unless that repeats a document.
"""

from __future__ import annotations

import copyreg
import re
from collections.abc import Iterable
from typing import Any, Final, Literal, NamedTuple, Self, get_args

ReasonCode = Literal[
    "deadline",
    "unavailable",
    "circuit_open",
    "rate_limited",
    "unauthorized",
    "refused",
    "bad_reply",
    "too_large",
    "not_found",
    "not_loaded",
    "schema_changed",
    "no_score",
    "query",
    "config",
    "error",
]
"""Why a stage did not do all of its work, for programs; see ``docs/reliability.md``.

deadline: the time is over; unavailable: a server cannot be reached, lost the connection, or reports trouble;
circuit_open: it was not called, since it kept failing; rate_limited: it asks for fewer requests; unauthorized: it
refuses the credentials; refused: it refuses the request for good; bad_reply: its reply cannot be read; too_large: the
request or the reply is over a limit; not_found: the collection is gone; not_loaded: it is not in memory;
schema_changed: it is not the collection any more that the stage was opened for; no_score: a threshold had no score to
cut on; query: the query cannot be run; config: the configuration is wrong; error: anything else.
"""

REASON_CODES: Final[frozenset[str]] = frozenset(get_args(ReasonCode))


class PipelineError(Exception):
    """Base class of all exceptions that this framework raises on purpose.

    Its parts are kept apart; ``str`` renders them as ``place: what; next step``.

    Args:
        what: what is wrong.
        next_step: what the reader can do about it; may be empty.
        place: where it is wrong: a file and line, a stage of a pipeline, a field.
        reason_code: the kind of fault, for programs; by default that of the class.
    """

    reason_code: ReasonCode = "error"

    def __init__(
        self, what: str = "", next_step: str = "", *, place: str = "", reason_code: ReasonCode | None = None
    ) -> None:
        super().__init__(what, next_step)
        self.what = what
        self.next_step = next_step
        self.place = place
        if reason_code is not None:
            self.reason_code = reason_code

    def at(self, place: str) -> Self:
        """Put ``place`` in front of the place it has, and return this error."""
        self.place = f"{place}: {self.place}" if self.place else place
        return self

    def parts(self) -> tuple[str, str]:
        """Return ``what`` and ``next_step``, with what this kind of error adds to them."""
        return self.what, self.next_step

    def __str__(self) -> str:
        what, next_step = self.parts()
        message = f"{self.place}: {what}" if self.place else what
        return f"{message}; {next_step}" if next_step else message

    def __reduce__(self) -> tuple[Any, ...]:  # by default, keyword arguments would not survive pickling
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]


class Problem(NamedTuple):
    """One mistake in a configuration.

    Args:
        path: the keys and positions that lead to it.
        what: what is wrong.
        next_step: what to do about it; empty if there is nothing more to say.
        line: of the file, from 1; 0 if unknown.
    """

    path: tuple[str | int, ...]
    what: str
    next_step: str = ""
    line: int = 0

    def under(self, path: Iterable[str | int]) -> Problem:
        """Return the same problem of a value that is itself at ``path``."""
        return self._replace(path=(*path, *self.path))

    @property
    def message(self) -> str:
        """What is wrong and what to do, without the place."""
        return f"{self.what}; {self.next_step}" if self.next_step else self.what

    def __str__(self) -> str:
        line = f" (line {self.line})" if self.line else ""
        return f"{dotted(self.path)}: {self.message}{line}" if self.path else f"{self.message}{line}"


def dotted(path: Iterable[str | int]) -> str:
    """Render ``("stages", 1, "limit")`` as ``stages[1].limit``, with ``…`` for parts that do not look like keys."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
            continue
        words = part.split(".") if text == "sweep" else [part]  # the keys of a sweep are dotted paths themselves
        text += ("." if text else "") + ".".join(word if looks_like_a_key(word) else "…" for word in words)
    return text


_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*|[A-Za-z]+(?:-[A-Za-z]+)+", re.ASCII)
_MOST_DIGITS = 4
_LONGEST_KEY = 40


def looks_like_a_key(text: str) -> bool:
    """Whether this is most likely the name of a field or a header, and not a secret in its place."""
    digits = sum(map(str.isdigit, text))
    return _KEY.fullmatch(text) is not None and digits <= _MOST_DIGITS and len(text) <= _LONGEST_KEY


class ConfigError(PipelineError, ValueError):
    """A pipeline, a stage or a configuration file is wrong; nothing was run.

    A validator of a stage's fields may raise it, too: its parts become a problem of the field.

    Args:
        what: what is wrong.
        next_step: what to do about it.
        place: the file, pipeline or stage.
        problems: all mistakes, instead of ``what`` and ``next_step``; ``str`` gives each a line.

    Attributes:
        problems: as above; empty if the error was made of ``what``.
    """

    reason_code: ReasonCode = "config"

    def __init__(
        self, what: str = "", next_step: str = "", *, place: str = "", problems: Iterable[Problem] = ()
    ) -> None:
        self.problems = tuple(problems)
        if len(self.problems) == 1:
            what, next_step = str(self.problems[0]._replace(next_step="")), self.problems[0].next_step
        elif self.problems:
            what = "\n".join(map(str, self.problems))
        super().__init__(what, next_step, place=place)

    def __str__(self) -> str:
        place = f"{self.place}: " if self.place else ""
        return "\n".join(f"{place}{problem}" for problem in self.problems) if self.problems else super().__str__()


class QueryError(PipelineError, ValueError):
    """One query cannot be run (empty text, a vector with NaN, a wrong dimension)."""

    reason_code: ReasonCode = "query"


class InputError(PipelineError):
    """An input or output cannot be used: a file cannot be read, a job cannot be resumed."""


class StageError(PipelineError):
    """A stage could not be opened, or failed; ``__cause__`` is the original exception."""


class DeadlineError(StageError, TimeoutError):
    """A query, or a stage of it, took longer than its timeout."""

    reason_code: ReasonCode = "deadline"


class CircuitOpenError(StageError):
    """A server was not called, since it kept failing a moment ago.

    Attributes:
        retry_after: seconds until the next attempt.
    """

    reason_code: ReasonCode = "circuit_open"

    def __init__(self, what: str = "", next_step: str = "", *, place: str = "", retry_after: float = 0.0) -> None:
        super().__init__(what, next_step, place=place)
        self.retry_after = retry_after


class ServiceError(StageError):
    """A service that a stage calls refused a request, replied wrongly, or did not reply.

    If a stage fails in a pipeline, this is the ``__cause__`` of its error.

    Attributes:
        status: HTTP status of the reply; None without a reply.
        code: the service's own code of the error.
        detail: the service's own message, without keys and texts of the request; may be empty.
        request_id: the service's id of the request.
        retry_after: seconds that the service asks to wait.
        retryable: whether the same request may succeed later.
        attempts: number of attempts.
        waited: seconds of the last wait between attempts.
        given_up: why there was no other attempt, though it might have succeeded.
    """

    def __init__(
        self,
        what: str,
        next_step: str = "",
        *,
        place: str = "",
        status: int | None = None,
        code: str | None = None,
        detail: str = "",
        request_id: str | None = None,
        retry_after: float | None = None,
        retryable: bool = False,
        reason_code: ReasonCode | None = None,
    ) -> None:
        super().__init__(what, next_step, place=place, reason_code=reason_code or _reason_of(status, retryable))
        self.status = status
        self.code = code
        self.detail = detail
        self.request_id = request_id
        self.retry_after = retry_after
        self.retryable = retryable
        self.attempts = 1
        self.waited = 0.0
        self.given_up = ""

    def parts(self) -> tuple[str, str]:
        """Return ``what`` and ``next_step``, with the attempts that were made and why no other was."""
        what, *steps = filter(None, (self.what, self.next_step))
        if self.attempts > 1:
            attempts = f" ({self.attempts} attempts, the last after a wait of {self.waited:.1f} s)"
            what, steps = (what, [steps[0] + attempts]) if steps else (what + attempts, [])
        if self.given_up:
            steps.append(f"not tried again: {self.given_up}")
        return what, "; ".join(steps)


def _reason_of(status: int | None, retryable: bool) -> ReasonCode:
    """The kind of fault of a reply with this HTTP status, or of a missing reply (None)."""
    known: dict[int, ReasonCode] = {401: "unauthorized", 403: "unauthorized", 413: "too_large", 429: "rate_limited"}
    if status is not None and status in known:
        return known[status]
    if status is None or retryable or status >= 500:
        return "unavailable"
    return "bad_reply" if 200 <= status < 300 else "refused"


class IngestError(PipelineError):
    """Records could not be written into a collection.

    Attributes:
        record: number of the record that is wrong, from 1; None if the error is not about one record.
        earlier: number of the record that has the same primary key already; None if that is not the error.
    """

    def __init__(self, what: str = "", next_step: str = "", *, place: str = "", earlier: int | None = None) -> None:
        super().__init__(what, next_step, place=place)
        self.record: int | None = None
        self.earlier = earlier

    def of_record(self, number: int) -> Self:
        """Return this error as one of the record with this number, which goes in front of its place."""
        self.record = number
        return self.at(f"record {number}")
