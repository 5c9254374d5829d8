"""What a failed call to Milvus means: whether to try again, and what to tell the reader.

pymilvus raises bare gRPC errors, its own exception and some twenty subclasses of it, and the codes 1 and 2 stand for
many things: so the class is looked at first, then the gRPC status, then the code.
"""

from __future__ import annotations

from typing import Final

from milvus_pipeline import PipelineError, ReasonCode, StageError
from milvus_pipeline.plugin import FAIR_SECONDS
from milvus_stages.milvus.client import tls
from milvus_stages.milvus.filters import texts_of, without_values
from milvus_stages.privacy.redaction import Private, chain_is_clean
from milvus_stages.privacy.secrets import environment

_EXHAUSTED: Final = "RESOURCE_EXHAUSTED"  # too many calls, or too large a message
_TRANSIENT_STATUS = frozenset({"UNAVAILABLE", "DEADLINE_EXCEEDED", _EXHAUSTED})
_REFUSED_STATUS = frozenset({"UNAUTHENTICATED", "PERMISSION_DENIED"})

_PLAIN: Final = "MilvusException"
_UNEXPECTED = 1
_LOST = 2
_RATE_LIMITED = 8  # or all is denied
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
_PLAN_WORDS: Final = "failed to create query plan"  # of the filter mostly, but also of a field or a metric
# gRPC's words for bytes that are no reply, and what pymilvus's event-loop client makes of the None that it gets then.
_UNREADABLE_WORDS = ("exception deserializing response", "'nonetype' object has no attribute")
_SIZE_WORDS = ("larger than max", "too large", "maximum size", "message size")


def status(error: BaseException) -> str | None:
    """Name of the gRPC status that an error carries, such as ``UNAVAILABLE``; None where it carries none."""
    code = getattr(error, "code", None)
    if callable(code):  # a gRPC error; pymilvus's own have an attribute, a number or a gRPC status
        code = code()
    if isinstance(code, int):  # pymilvus's numbers may have names, too
        return None
    name = getattr(code, "name", None)
    return name if isinstance(name, str) else None


def code(error: BaseException) -> int | None:
    """Milvus's error code; None for an error that is not pymilvus's."""
    found = getattr(error, "code", None)
    return found if isinstance(found, int) else None


def is_transient(error: BaseException) -> bool:
    """Whether a call that failed so may succeed when it is made again."""
    if isinstance(error, PipelineError) or is_too_large(error) or _lacks_database(error):
        return False
    found = status(error)
    if found is not None:
        return found in _TRANSIENT_STATUS
    if type(error).__name__ != _PLAIN:  # its subclasses all tell of bad input or a bad set-up
        return False
    if code(error) == _UNEXPECTED:
        return any(words in str(error) for words in (_NO_ANSWER, _NOT_READY))
    if code(error) == _LOST and (cause := _status_of_cause(error)) is not None:
        return cause in _TRANSIENT_STATUS and tls.meaning(error) is None
    return is_not_loaded(error) or code(error) in _TRANSIENT_CODES


def is_transient_at_connect(error: BaseException) -> bool:
    """The same for making a connection, where every fault, of authentication too, is raised as code 2."""
    return _status_of_cause(error) in _TRANSIENT_STATUS and tls.meaning(error) is None and not _lacks_database(error)


def says_unreachable(error: BaseException, seconds: float | None) -> bool | None:
    """What a failed call says of its server: True that it is gone or stuck, False that it is alive, None nothing.

    Args:
        error: what the call raised.
        seconds: that it had.
    """
    if isinstance(error, PipelineError):
        if error.reason_code in ("deadline", "circuit_open", "error"):
            return None
        return error.reason_code == "unavailable"
    if is_timeout(error):  # of a caller in a hurry nothing follows
        return True if seconds is None or seconds >= FAIR_SECONDS else None
    if tls.meaning(error):  # what one configuration is refused for says nothing to another one
        return None
    found = status(error) or _status_of_cause(error)
    return code(error) == _LOST if found is None else found == "UNAVAILABLE"


def is_timeout(error: BaseException) -> bool:
    """Whether the call was not answered in its time, whoever found that out."""
    if isinstance(error, TimeoutError) or "DEADLINE_EXCEEDED" in _names(error):
        return True
    return type(error).__name__ == _PLAIN and _NO_ANSWER in str(error)


def is_refusal(error: BaseException) -> bool:
    """Whether the server answered that it cannot do what was asked: the collection may be another than it was."""
    answered = status(error) is None and code(error) is not None
    return answered and not is_transient(error) and not is_unreadable(error)


def is_bad_filter(error: BaseException) -> bool:
    """Whether the server cannot read the filter, for which no other way to search the collection is a cure."""
    return code(error) == _FILTER_REFUSED or _FILTER_WORDS in str(error)


def is_not_loaded(error: BaseException) -> bool:
    """Whether the collection is not in memory, for good or not yet (as after a restart of the server)."""
    return status(error) is None and code(error) == _NOT_LOADED


def is_too_large(error: BaseException) -> bool:
    """Whether the answer was over the size of one message (64 MB by default), and not a limit of something else."""
    if status(error) != _EXHAUSTED:
        return False
    details = _first_line(error).lower()
    return "message" in details and any(words in details for words in _SIZE_WORDS)


def is_unreadable(error: BaseException) -> bool:
    """Whether there was a reply, and it was not one of Milvus's."""
    first = _first_line(error).lower()
    return any(words in first for words in _UNREADABLE_WORDS)


def reason_of(error: BaseException) -> ReasonCode:
    """What kind of fault it is."""
    return error.reason_code if isinstance(error, PipelineError) else _meaning(error, None, "")[0]


def explained(
    error: BaseException, where: str, token_env: str | None = None, expression: str = "", loads: bool = False
) -> StageError:
    """The error as one of ours, with the next step.

    Args:
        error: what a call raised; returned as it is where it is ours already.
        where: the collection and its server, for the message; without credentials.
        token_env: name of the variable that holds the token.
        expression: the filter of the call, which is not repeated: it may hold private values.
        loads: whether whoever called loads a collection that is not loaded.

    Returns:
        An error whose ``__cause__`` is the given one, unless that repeats the token or the filter. It is to be raised
        ``from`` its cause.
    """
    if isinstance(error, StageError):
        return error
    reason, words = _meaning(error, token_env, expression)
    if loads and is_not_loaded(error):
        words = (
            "the server says again and again that the collection is not loaded, though it was asked to load it; look "
            "at the server's log and its memory, or release the collection and load it again"
        )
    explanation = StageError(str(words), place=where, reason_code=reason)
    secret = environment(token_env) if token_env else ""
    clean = chain_is_clean(error, Private([secret], lambda: texts_of(expression)))
    explanation.__cause__ = error if clean else None  # also that is kept from a traceback by what is set here
    return explanation


def _status_of_cause(error: BaseException) -> str | None:
    # pymilvus raises errors `from` themselves.
    return status(error.__cause__) if error.__cause__ is not None and error.__cause__ is not error else None


def _lacks_database(error: BaseException) -> bool:
    if code(error) == _NO_DATABASE:
        return True
    # To connect fails with code 2, whatever the fault.
    return type(error).__name__ == _PLAIN and _NO_DATABASE_WORDS in f"{error} {error.__cause__}"


def _names(error: BaseException) -> set[str | None]:
    return {status(error), _status_of_cause(error)}


def _meaning(error: BaseException, token_env: str | None, expression: str) -> tuple[ReasonCode, str]:
    names, number, said = _names(error), code(error), _said(error, expression)
    if words := tls.meaning(error):
        return "unavailable", words
    if names & _REFUSED_STATUS:
        variable = f"the environment variable {token_env}" if token_env else "`token_env`"
        return "unauthorized", (
            f"the server refused the credentials; put the right token (user:password, or an API key) in {variable}"
        )
    if is_timeout(error):
        return "unavailable", "the server did not answer in time; check that it is well, or raise `timeout`"
    if is_unreadable(error):
        return "bad_reply", (
            "the reply cannot be read, so it is not one of Milvus's; check that host and port of `uri` are those of "
            "Milvus, and what else listens there"
        )
    if _lacks_database(error):
        return "not_found", f"there is no such database ({said}); check `db_name`"
    if "UNIMPLEMENTED" in names:
        return "refused", (
            "the server does not know this call; check that `uri` names Milvus's gRPC port, or upgrade the server"
        )
    if is_too_large(error):
        return "too_large", (
            "the answer to one query is over the size of a message; lower `limit` or ask for fewer output_fields"
        )
    if _EXHAUSTED in names:
        return _rate_limited(said)
    if "UNAVAILABLE" in names or number == _LOST:
        return "unavailable", (
            f"cannot be reached ({said}); check that the server runs and that `uri` is right{tls.hint(error)}"
        )
    return _meaning_of_code(error, number, said)


def _meaning_of_code(error: BaseException, number: int | None, said: str) -> tuple[ReasonCode, str]:
    if number in _IN_TROUBLE or (number == _UNEXPECTED and _NOT_READY in str(error)):
        return "unavailable", f"the server is not ready ({said}); check that it is well, or come again later"
    if number == _RATE_LIMITED:
        return _rate_limited(said)
    if number == _NOT_LOADED:
        return "not_loaded", "the collection is not loaded; load it, or set `load: true`"
    if number in _PARTLY_LOADED:
        return "not_loaded", f"the collection is not loaded in full ({said}); wait until it is, or load it again"
    if number == _NOT_FOUND:
        return "not_found", "the collection is gone; make it with `milvus-pipeline ingest`"
    if is_bad_filter(error) or _PLAN_WORDS in str(error):
        return "query", f"Milvus cannot read the filter: {said}"
    return "refused", f"Milvus refused the call: {said}"


def _rate_limited(said: str) -> tuple[ReasonCode, str]:
    return "rate_limited", f"the server wants fewer calls ({said}); call it less often, or raise its limits"


def _said(error: BaseException, expression: str) -> str:
    """The first line of what an error says, without pymilvus's frame around it and without a filter's values."""
    line = _first_line(error, expression)
    return line if len(line) <= 300 else line[:299] + "…"


def _first_line(error: BaseException, expression: str = "") -> str:
    message = getattr(error, "message", None) or getattr(error, "details", None)
    text = message() if callable(message) else message
    if not isinstance(text, str) or not text.strip():
        text = f"{type(error).__name__}: {error}" if str(error).strip() else type(error).__name__
    return without_values(text, expression).strip().splitlines()[0]
