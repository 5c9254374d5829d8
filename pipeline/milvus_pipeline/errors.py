"""The exceptions of the framework.

Every message says where, what and the next step. None of ours carries a key or the text of a document; of a foreign
exception only the first line is told, and not even that where it repeats a document.
"""

from __future__ import annotations

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
"""Why a stage did not do all of its work, for programs; ``docs/reliability.md`` tells what each stands for.

deadline: the time given is used up; unavailable: a server cannot be reached, lost the connection, or answers that it is
in trouble; circuit_open: it was not asked, since it failed again and again a moment ago; rate_limited: it wants to be
asked less often; unauthorized: it refuses the credentials; refused: it refuses the request for good; bad_reply: what it
answered cannot be read; too_large: the request or the answer is over a limit; not_found: the collection is gone;
not_loaded: it is not in memory; schema_changed: it is no longer the collection that the stage was opened for;
no_score: a threshold had no score to cut on; query: the query cannot be run; config: the configuration is wrong;
error: anything else.
"""

REASON_CODES: Final[frozenset[str]] = frozenset(get_args(ReasonCode))


class PipelineError(Exception):
    """Base of everything this framework raises on purpose.

    The parts are kept apart, so that code can add a place or read the next step without parsing a message; ``str``
    renders them as ``place: what; next step``.

    Args:
        what: what is wrong.
        next_step: what the reader can do about it; empty if there is nothing more to say.
        place: where it is wrong: a file and line, a stage of a pipeline, a field.
        reason_code: the kind of fault; by default that of the class.

    Attributes:
        what: as above.
        next_step: as above.
        place: as above.
        reason_code: the kind of fault, for programs.
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
        """This error, with ``place`` in front of the place it has."""
        self.place = f"{place}: {self.place}" if self.place else place
        return self

    def parts(self) -> tuple[str, str]:
        """Return ``what`` and ``next_step``, with what this kind of error adds to them."""
        return self.what, self.next_step

    def __str__(self) -> str:
        what, next_step = self.parts()
        message = f"{self.place}: {what}" if self.place else what
        return f"{message}; {next_step}" if next_step else message

    def __reduce__(self) -> tuple[Any, ...]:  # the default would lose keyword arguments on the way between processes
        return _restored, (type(self), self.args, self.__dict__)


def _restored(kind: type[PipelineError], args: tuple[Any, ...], state: dict[str, Any]) -> PipelineError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error


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
        if self.problems:
            what = "\n".join(str(problem._replace(next_step="", line=0)) for problem in self.problems)
            next_step = self.problems[0].next_step if len(self.problems) == 1 else ""
        super().__init__(what, next_step, place=place)

    def __str__(self) -> str:
        place = f"{self.place}: " if self.place else ""
        return "\n".join(f"{place}{problem}" for problem in self.problems) if self.problems else super().__str__()


class QueryError(PipelineError, ValueError):
    """One query cannot be run as it is (empty text, a vector with NaN, a wrong dimension)."""

    reason_code: ReasonCode = "query"


class InputError(PipelineError):
    """What was named as input or output cannot be used: a file that cannot be read, a job that cannot go on."""


class StageError(PipelineError):
    """A stage could not be opened or failed on its input; ``__cause__`` holds the first cause."""


class DeadlineError(StageError, TimeoutError):
    """The time given to a query was used up."""

    reason_code: ReasonCode = "deadline"


class CircuitOpenError(StageError):
    """A server was not asked, since it failed again and again a moment ago.

    Attributes:
        retry_after: seconds until it is tried again.
    """

    reason_code: ReasonCode = "circuit_open"

    def __init__(self, what: str = "", next_step: str = "", *, place: str = "", retry_after: float = 0.0) -> None:
        super().__init__(what, next_step, place=place)
        self.retry_after = retry_after


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
    """What kind of fault a reply with this HTTP status is, or the lack of a reply (None)."""
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
