"""What a failed call to Milvus means: whether to try again, and what to say about it.

pymilvus raises bare gRPC errors, its own exception and about twenty subclasses of it, and the codes 1 and 2 have many
meanings. So the class is checked first, then the gRPC status, then the code.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

from milvus_pipeline import PipelineError, ReasonCode, StageError
from milvus_pipeline.plugin import FAIR_SECONDS
from milvus_stages.milvus.client import tls
from milvus_stages.milvus.filters import private_texts, without_values
from milvus_stages.privacy.redaction import Private, chain_is_clean
from milvus_stages.privacy.secrets import environment

_EXHAUSTED: Final = "RESOURCE_EXHAUSTED"  # too many calls, or too large a message
_TRANSIENT_STATUS = frozenset({"UNAVAILABLE", "DEADLINE_EXCEEDED", _EXHAUSTED})
_REFUSED_STATUS = frozenset({"UNAUTHENTICATED", "PERMISSION_DENIED"})

_PLAIN: Final = "MilvusException"
_UNEXPECTED = 1
_LOST = 2
_RATE_LIMITED = 8  # or everything is denied
_NOT_FOUND = 100
_NOT_LOADED = 101
_PARTLY_LOADED = frozenset({103, 106})
_IN_TROUBLE = frozenset({202, 503})  # no replica is available; a node is out of service
_TRANSIENT_CODES = frozenset({_LOST, _RATE_LIMITED, *_PARTLY_LOADED, *_IN_TROUBLE})
_NO_ANSWER: Final = "Retry timeout"
_NOT_READY: Final = "service not ready"
_NO_DATABASE = 800
_NO_DATABASE_WORDS: Final = "database not found"
_FILTER_REFUSED = 6  # Milvus Lite's code for an expression it cannot read
_FILTER_WORDS: Final = "cannot parse expression"
_PLAN_WORDS: Final = "failed to create query plan"  # mostly about the filter, but also about a field or a metric
# gRPC's words for bytes that are not a reply, and what pymilvus's async client makes of the None that it then gets.
_UNREADABLE_WORDS = ("exception deserializing response", "'nonetype' object has no attribute")
_SIZE_WORDS = ("larger than max", "too large", "maximum size", "message size")


class Meaning(NamedTuple):
    """What an error means: the arguments of the error that explains it."""

    reason: ReasonCode
    what: str
    next_step: str = ""


def status(error: BaseException) -> str | None:
    """Return the name of the gRPC status that an error carries, such as ``UNAVAILABLE``, or None."""
    code = getattr(error, "code", None)
    if callable(code):  # a gRPC error; pymilvus's own have an attribute, a number or a gRPC status
        code = code()
    if isinstance(code, int):  # pymilvus's numbers may have names, too
        return None
    name = getattr(code, "name", None)
    return name if isinstance(name, str) else None


def code(error: BaseException) -> int | None:
    """Return Milvus's error code; None for an error that is not pymilvus's."""
    found = getattr(error, "code", None)
    return found if isinstance(found, int) else None


def is_transient(error: BaseException) -> bool:
    """Whether the call may succeed when it is repeated."""
    if isinstance(error, PipelineError) or is_too_large(error) or _is_database_missing(error):
        return False
    found = status(error)
    if found is not None:
        return found in _TRANSIENT_STATUS
    if type(error).__name__ != _PLAIN:  # all its subclasses mean bad input or a bad setup
        return False
    if code(error) == _UNEXPECTED:
        return any(words in str(error) for words in (_NO_ANSWER, _NOT_READY))
    if code(error) == _LOST and (cause := _status_of_cause(error)) is not None:
        return cause in _TRANSIENT_STATUS and tls.meaning(error) is None
    return code(error) in _TRANSIENT_CODES or is_not_loaded(error)


def shows_unreachable(error: BaseException, seconds: float | None) -> bool | None:
    """Whether the error shows that the server fails (True) or answers (False); None if it shows neither.

    Args:
        error: what the call raised.
        seconds: the time the call had.
    """
    if isinstance(error, PipelineError):
        if error.reason_code in ("deadline", "circuit_open", "error"):
            return None
        return error.reason_code == "unavailable"
    if is_timeout(error):  # a short timeout proves nothing
        return True if seconds is None or seconds >= FAIR_SECONDS else None
    if tls.meaning(error):  # another configuration may well be accepted
        return None
    found = status(error) or _status_of_cause(error)
    return code(error) == _LOST if found is None else found == "UNAVAILABLE"


def is_timeout(error: BaseException) -> bool:
    """Whether the call was not answered in time, whichever side noticed."""
    if isinstance(error, TimeoutError) or "DEADLINE_EXCEEDED" in _statuses(error):
        return True
    return type(error).__name__ == _PLAIN and _NO_ANSWER in str(error)


def is_refusal(error: BaseException) -> bool:
    """Whether the server answered that it cannot do this: the collection may have changed."""
    answered = status(error) is None and code(error) is not None
    return answered and not is_transient(error) and not is_unreadable(error)


def is_bad_filter(error: BaseException) -> bool:
    """Whether the server cannot read the filter, which no other state of the collection would cure."""
    return code(error) == _FILTER_REFUSED or _FILTER_WORDS in str(error)


def is_not_loaded(error: BaseException) -> bool:
    """Whether the collection is not in memory, or not yet (as after a restart of the server)."""
    return status(error) is None and code(error) == _NOT_LOADED


def is_too_large(error: BaseException) -> bool:
    """Whether the answer exceeds the size of one message (64 MB by default); the status also covers other limits."""
    if status(error) != _EXHAUSTED:
        return False
    details = _first_line(error).lower()
    return "message" in details and any(words in details for words in _SIZE_WORDS)


def is_unreadable(error: BaseException) -> bool:
    """Whether there was a reply that does not come from Milvus."""
    first = _first_line(error).lower()
    return any(words in first for words in _UNREADABLE_WORDS)


def reason_of(error: BaseException) -> ReasonCode:
    """Return the kind of fault."""
    return error.reason_code if isinstance(error, PipelineError) else _meaning(error, None, "").reason


@contextmanager
def explained(where: str, token_env: str | None = None, loads: bool = False) -> Iterator[None]:
    """Raise what pymilvus raises within the block as one of our errors; see ``explain``."""
    try:
        yield
    except PipelineError:
        raise
    except Exception as error:
        explanation = explain(error, where, token_env, loads=loads)
        raise explanation from explanation.__cause__


def explain(
    error: BaseException, where: str, token_env: str | None = None, expression: str = "", loads: bool = False
) -> StageError:
    """Return the error as one of ours, with a next step.

    Args:
        error: what a call raised; a StageError is returned as it is.
        where: the collection and its server, for the message; without credentials.
        token_env: name of the variable that holds the token.
        expression: the filter of the call, which is not repeated: it may hold private values.
        loads: whether the caller loads a collection that is not loaded.

    Returns:
        An error whose ``__cause__`` is the given one, unless that repeats the token or the filter. Raise it ``from``
        its cause.
    """
    if isinstance(error, StageError):
        return error
    meaning = _meaning(error, token_env, expression)
    if loads and is_not_loaded(error):
        meaning = Meaning(
            meaning.reason,
            "the server keeps reporting that the collection is not loaded, though it was asked to load it",
            "check the server's log and memory, or release the collection and load it again",
        )
    explanation = StageError(meaning.what, meaning.next_step, place=where, reason_code=meaning.reason)
    secret = environment(token_env) if token_env else ""
    clean = chain_is_clean(error, Private([secret], lambda: private_texts(expression)))
    explanation.__cause__ = error if clean else None  # setting it keeps the context out of a traceback, too
    return explanation


def _status_of_cause(error: BaseException) -> str | None:
    # pymilvus raises errors `from` themselves.
    return status(error.__cause__) if error.__cause__ is not None and error.__cause__ is not error else None


def _statuses(error: BaseException) -> set[str | None]:
    return {status(error), _status_of_cause(error)}


def _is_database_missing(error: BaseException) -> bool:
    if code(error) == _NO_DATABASE:
        return True
    # Connecting fails with code 2, whatever the fault.
    return type(error).__name__ == _PLAIN and _NO_DATABASE_WORDS in f"{error} {error.__cause__}"


def _meaning(error: BaseException, token_env: str | None, expression: str) -> Meaning:
    statuses, detail = _statuses(error), _detail(error, expression)
    if handshake := tls.meaning(error):
        return Meaning("unavailable", *handshake)
    if statuses & _REFUSED_STATUS:
        variable = f"the environment variable {token_env}" if token_env else "`token_env`"
        step = f"put the right token (user:password, or an API key) in {variable}"
        return Meaning("unauthorized", "the server refused the credentials", step)
    if is_timeout(error):
        step = "check that it is healthy, or increase `timeout`"
        return Meaning("unavailable", "the server did not answer in time", step)
    if is_unreadable(error):
        step = "check that host and port in `uri` are those of Milvus"
        return Meaning("bad_reply", "the reply cannot be read, so it does not come from Milvus", step)
    if _is_database_missing(error):
        return Meaning("not_found", f"the database does not exist ({detail})", "check `db_name`")
    if "UNIMPLEMENTED" in statuses:
        step = "check that `uri` names Milvus's gRPC port, or upgrade the server"
        return Meaning("refused", "the server does not know this call", step)
    if is_too_large(error):
        step = "lower `limit` or request fewer output_fields"
        return Meaning("too_large", "the answer to one query exceeds the maximum message size", step)
    if _EXHAUSTED in statuses or (code(error) == _RATE_LIMITED and "UNAVAILABLE" not in statuses):
        return Meaning("rate_limited", f"the server limits calls ({detail})", "call it less often, or raise its limits")
    if "UNAVAILABLE" in statuses or code(error) == _LOST:
        step = f"check that the server runs and that `uri` is right{tls.hint(error)}"
        return Meaning("unavailable", f"the server cannot be reached ({detail})", step)
    return _meaning_of_code(error, detail)


def _meaning_of_code(error: BaseException, detail: str) -> Meaning:
    number = code(error)
    if number in _IN_TROUBLE or (number == _UNEXPECTED and _NOT_READY in str(error)):
        return Meaning("unavailable", f"the server is not ready ({detail})", "check that it is healthy, or retry later")
    if number == _NOT_LOADED:
        return Meaning("not_loaded", "the collection is not loaded", "load it, or set `load: true`")
    if number in _PARTLY_LOADED:
        step = "wait until it is, or load it again"
        return Meaning("not_loaded", f"the collection is not fully loaded ({detail})", step)
    if number == _NOT_FOUND:
        return Meaning("not_found", "the collection does not exist any more", "make it with `milvus-pipeline ingest`")
    if is_bad_filter(error) or _PLAN_WORDS in str(error):
        return Meaning("query", f"Milvus cannot read the filter: {detail}")
    return Meaning("refused", f"Milvus refused the call: {detail}")


def _detail(error: BaseException, expression: str) -> str:
    """The first line of the error's message, without pymilvus's frame around it and without a filter's values."""
    line = _first_line(error, expression)
    return line if len(line) <= 300 else line[:299] + "…"


def _first_line(error: BaseException, expression: str = "") -> str:
    message = getattr(error, "message", None) or getattr(error, "details", None)
    text = message() if callable(message) else message
    if not isinstance(text, str) or not text.strip():
        text = f"{type(error).__name__}: {error}" if str(error).strip() else type(error).__name__
    return without_values(text, expression).strip().splitlines()[0]
