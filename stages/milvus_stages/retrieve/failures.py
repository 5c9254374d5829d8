"""What a failed call to Milvus means: whether to try again, and what to tell the reader.

pymilvus raises bare gRPC errors, its own exception and some twenty subclasses of it, and the codes 1 and 2 stand for
many things: so the class is looked at first, then the gRPC status, then the code.
"""

from __future__ import annotations

from milvus_pipeline import PipelineError, StageError
from milvus_stages.retrieve import tls
from milvus_stages.retrieve.filters import without_values

_TRANSIENT_STATUS = frozenset({"UNAVAILABLE", "DEADLINE_EXCEEDED"})
_REFUSED_STATUS = frozenset({"UNAUTHENTICATED", "PERMISSION_DENIED"})

# 2: connection lost; 8: rate limit or force deny; 103, 106: not fully loaded; 202: no replica available;
# 503: a node is out of service.
_TRANSIENT_CODES = frozenset({2, 8, 103, 106, 202, 503})
_NOT_FOUND = 100
_NOT_LOADED = 101
_UNEXPECTED = 1
_TRANSIENT_WORDS = ("Retry timeout", "service not ready")
_FILTER_REFUSED = 6  # Milvus Lite's code for an expression it cannot read
_FILTER_WORDS = ("cannot parse expression", "failed to create query plan")


def status(error: BaseException) -> str | None:
    """Name of the gRPC status that an error carries, such as ``UNAVAILABLE``; None where it carries none."""
    code = getattr(error, "code", None)
    if callable(code):  # a gRPC error; pymilvus's own have an attribute, a number or a gRPC status
        code = code()
    name = getattr(code, "name", None)
    return name if isinstance(name, str) else None


def code(error: BaseException) -> int | None:
    """Milvus's error code; None for an error that is not pymilvus's."""
    found = getattr(error, "code", None)
    return found if isinstance(found, int) else None


def is_transient(error: BaseException) -> bool:
    """Whether a call that failed so may succeed when it is made again."""
    if isinstance(error, PipelineError):
        return False
    found = status(error)
    if found is not None:
        return found in _TRANSIENT_STATUS
    if type(error).__name__ != "MilvusException":  # its subclasses all tell of bad input or a bad set-up
        return False
    if code(error) == _UNEXPECTED:
        return any(words in str(error) for words in _TRANSIENT_WORDS)
    return is_not_loaded(error) or code(error) in _TRANSIENT_CODES


def is_transient_at_connect(error: BaseException) -> bool:
    """The same for making a connection, where every fault, of authentication too, is raised as code 2."""
    cause = error.__cause__
    passing = cause is not None and cause is not error and status(cause) in _TRANSIENT_STATUS
    return passing and tls.meaning(error) is None


def is_not_loaded(error: BaseException) -> bool:
    """Whether the collection is not in memory, for good or not yet (as after a restart of the server)."""
    return status(error) is None and code(error) == _NOT_LOADED


def is_too_large(error: BaseException) -> bool:
    """Whether the answer was over the size of one message (64 MB by default)."""
    return status(error) == "RESOURCE_EXHAUSTED"


def explained(error: BaseException, where: str, token_env: str | None = None, expression: str = "") -> StageError:
    """The error as one of ours, with the next step.

    Args:
        error: what a call raised; returned as it is where it is ours already.
        where: the collection and its server, for the message; without credentials.
        token_env: name of the variable that holds the token.
        expression: the filter of the call, which is not repeated: it may hold private values.
    """
    if isinstance(error, StageError):
        return error
    explanation = StageError(f"{where}: {_meaning(error, token_env, expression)}")
    explanation.__cause__ = error
    return explanation


def _meaning(error: BaseException, token_env: str | None, expression: str) -> str:
    names = {status(error), status(error.__cause__) if error.__cause__ else None}
    if said := tls.meaning(error):
        return said
    if names & _REFUSED_STATUS:
        variable = f"the environment variable {token_env}" if token_env else "`token_env`"
        return f"the server refused the credentials; put the right token (user:password, or an API key) in {variable}"
    if isinstance(error, TimeoutError) or "DEADLINE_EXCEEDED" in names or "Retry timeout" in str(error):
        return "the server did not answer in time; check that it is well, or raise `timeout`"
    if "UNIMPLEMENTED" in names:
        return "the server does not know this call; check that `uri` names Milvus's gRPC port, or upgrade the server"
    if is_too_large(error):
        return "the answer to one query is over the size of a message; lower `limit` or ask for fewer output_fields"
    if "UNAVAILABLE" in names or code(error) in {2, *_TRANSIENT_CODES}:
        check = f"check that the server runs and that `uri` is right{tls.hint(error)}"
        return f"cannot be reached ({_said(error, expression)}); {check}"
    if is_not_loaded(error):
        return "the collection is not loaded; load it, or set `load: true`"
    if code(error) == _NOT_FOUND:
        return "the collection is gone; make it with `milvus-pipeline ingest`"
    if code(error) == _FILTER_REFUSED or any(words in str(error) for words in _FILTER_WORDS):
        return f"Milvus cannot read the filter: {_said(error, expression)}"
    return f"Milvus refused the call: {_said(error, expression)}"


def _said(error: BaseException, expression: str) -> str:
    """The first line of what an error says, without pymilvus's frame around it and without a filter's values."""
    message = getattr(error, "message", None) or getattr(error, "details", None)
    text = message() if callable(message) else message
    if not isinstance(text, str) or not text.strip():
        text = f"{type(error).__name__}: {error}" if str(error).strip() else type(error).__name__
    line = without_values(text, expression).strip().splitlines()[0]
    return line if len(line) <= 300 else line[:299] + "…"
