"""Replies: what a service answered, read without trust."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeGuard

from milvus_pipeline import ServiceError
from milvus_pipeline.plugin import short_repr

_RESULTS: Final = ("results", "data")
_SCORES: Final = ("relevance_score", "score")

_MOST_COUNTED: Final = 2**53
"""No service counts further; above it, sums in floating point are no longer exact."""


@dataclass(frozen=True, slots=True)
class Received:
    """A reply on HTTP.

    Args:
        status: of HTTP.
        headers: looked up by lower-case names.
        content: the body, as it came.
    """

    status: int
    headers: Mapping[str, str]
    content: bytes


class BadReply(Exception):  # noqa: N818 - a service's fault, told as a ServiceError once it is known whose
    """A reply that cannot be what the service means.

    Args:
        message: what is wrong with it, without any text of the service's.
        cut_short: the reply seems to end before its end, so that the next may be whole.
    """

    def __init__(self, message: str, *, cut_short: bool = False) -> None:
        super().__init__(message)
        self.cut_short = cut_short


@dataclass(frozen=True, slots=True)
class Reply:
    """What a service said about the documents of one request.

    Args:
        scores: pairs of a document's position in the request, from 0, and its score; in any order, not checked yet.
        usage: what the service counted, in its own words (``total_tokens``, ``search_units``).
        warnings: what the service wants to be known.
    """

    scores: Sequence[tuple[Any, Any]]
    usage: Mapping[str, Any] = field(default_factory=dict)
    warnings: Sequence[str] = ()


def read_json(received: Received) -> Any:
    """The body as data.

    Raises:
        BadReply: it is not JSON.
    """
    try:
        return json.loads(received.content)
    except (ValueError, RecursionError):
        # No cause is kept: that error carries the whole body.
        pass
    text = received.content.strip()
    if not text:
        raise BadReply("the reply is empty", cut_short=True)
    if text[:1] in b"[{":
        raise BadReply("the reply is not JSON, or not the whole of it", cut_short=True)
    kind = "an HTML page" if text[:1] == b"<" else "no JSON"
    raise BadReply(f"the reply is {kind}; check base_url")


def listed(
    data: Any, items: Sequence[str] = _RESULTS, scores: Sequence[str] = _SCORES, index: str = "index"
) -> list[tuple[Any, Any]]:
    """The pairs of index and score in a reply that lists one object a document.

    Args:
        data: the reply: the list itself, or an object that has it.
        items: names that the list may go by; the first that is there counts.
        scores: names that a score may go by.
        index: the name of a document's position.

    Raises:
        BadReply: there is no such list, or an entry lacks a member.
    """
    if isinstance(data, dict):
        name = next((name for name in items if name in data), None)
        if name is None:
            raise BadReply(f"the reply has no {_either(items)}")
        data = data[name]
    if not isinstance(data, list):
        raise BadReply(f"the reply has no list of results, but {_kind(data)}")
    return [_pair(item, place, scores, index) for place, item in enumerate(data)]


def _pair(item: Any, place: int, scores: Sequence[str], index: str) -> tuple[Any, Any]:
    if not isinstance(item, dict):
        raise BadReply(f"result {place} is not an object, but {_kind(item)}")
    score = next((name for name in scores if name in item), None)
    if index not in item or score is None:
        raise BadReply(f"result {place} has no {index if index not in item else _either(scores)}")
    return item[index], item[score]


def checked(pairs: Sequence[tuple[Any, Any]], count: int, wanted: int, *, more: bool = False) -> dict[int, float]:
    """The scores by position.

    Args:
        pairs: as they were read.
        count: number of documents in the request.
        wanted: number of scores that were asked for.
        more: a service may give more than it was asked for.

    Raises:
        BadReply: a position is not a whole number, out of range or repeated, a score is not a finite number, or there
            are not as many as were asked for.
    """
    found: dict[int, float] = {}
    for index, score in pairs:
        if type(index) is not int or not 0 <= index < count:
            raise BadReply(f"it scored document {_number(index)}, but {count} were sent, numbered from 0")
        if index in found:
            raise BadReply(f"it scored document {index} more than once")
        found[index] = _finite(score, index)
    if len(found) < wanted or (len(found) > wanted and not more):
        raise BadReply(f"it gave {len(found)} scores, but {wanted} were asked for")
    return found


def _number(index: Any) -> str:
    """A number as it is; of all else the kind, since it may be a text of the request."""
    return short_repr(index) if isinstance(index, int | float) else f"number {_kind(index)}"


def _finite(score: Any, index: int) -> float:
    if type(score) not in (int, float):
        raise BadReply(f"the score of document {index} is not a number, but {_kind(score)}")
    try:
        value = float(score)
    except OverflowError:
        value = math.inf
    if not math.isfinite(value):
        raise BadReply(f"the score of document {index} is not a finite number")
    return value


def counted(usage: Any, *words: str) -> dict[str, float]:
    """The figures among the members of a reply's usage; what is missing or no number is left out.

    Args:
        usage: the object, or whatever stands in its place.
        words: the members to take.
    """
    if not isinstance(usage, Mapping):
        return {}
    found = {word: usage.get(word) for word in words}
    return {word: value for word, value in found.items() if _is_figure(value)}


def _is_figure(value: Any) -> TypeGuard[float]:
    return type(value) in (int, float) and 0 <= value <= _MOST_COUNTED  # NaN is not


def members(data: Any, *path: str) -> Any:
    """What lies at the end of a path of member names; None where it ends before."""
    for name in path:
        data = data.get(name) if isinstance(data, Mapping) else None
    return data


def bad_reply_error(error: BadReply, service: str, request: str, status: int) -> ServiceError:
    """The error that a bad reply with a status of success ends in."""
    return ServiceError(
        f"{request} answered wrongly: {error}",
        place=str(service),
        status=status,
        retryable=error.cut_short,
        reason_code="bad_reply",
    )


def _either(names: Sequence[str]) -> str:
    return " or ".join(map(repr, names))


def _kind(value: Any) -> str:
    return "null" if value is None else f"a value of type {type(value).__name__}"
