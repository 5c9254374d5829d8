"""The replies of a service, read without trust."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeGuard

from milvus_pipeline.plugin import short_repr

_RESULTS: Final = ("results", "data")
_SCORES: Final = ("relevance_score", "score")

_MOST_COUNTED: Final = 2**53
"""The largest usage figure that is believed; above it, sums in floating point are not exact."""


@dataclass(frozen=True, slots=True)
class Received:
    """A reply on HTTP.

    Args:
        status: of HTTP.
        headers: looked up by lower-case names.
        content: the body.
    """

    status: int
    headers: Mapping[str, str]
    content: bytes


class BadReply(Exception):  # noqa: N818 - raised to users as a ServiceError
    """A reply that is wrong.

    Args:
        message: what is wrong with it, without any text of the service.
        cut_short: the reply seems to be incomplete, so that a retry may help.
    """

    def __init__(self, message: str, *, cut_short: bool = False) -> None:
        super().__init__(message)
        self.cut_short = cut_short


@dataclass(frozen=True, slots=True)
class Reply:
    """What a service returned for the documents of one request.

    Args:
        scores: pairs of a document's position in the request, from 0, and its score; in any order, unchecked.
        usage: figures by the service's own names (``total_tokens``, ``search_units``).
        warnings: texts for the user.
    """

    scores: Sequence[tuple[Any, Any]]
    usage: Mapping[str, Any] = field(default_factory=dict)
    warnings: Sequence[str] = ()


def read_json(received: Received) -> Any:
    """Return the body as data.

    Raises:
        BadReply: it is not JSON.
    """
    try:
        return json.loads(received.content)
    except (ValueError, RecursionError):
        # Not kept as the cause: the error carries the whole body.
        pass
    text = received.content.strip()
    if not text:
        raise BadReply("the reply is empty", cut_short=True)
    if text[:1] in b"[{":
        raise BadReply("the reply is incomplete or invalid JSON", cut_short=True)
    kind = "an HTML page" if text[:1] == b"<" else "not JSON"
    raise BadReply(f"the reply is {kind}; check base_url")


def read_scores(
    data: Any, items: Sequence[str] = _RESULTS, scores: Sequence[str] = _SCORES, index: str = "index"
) -> list[tuple[Any, Any]]:
    """Return the pairs of index and score in a reply that lists one object per document.

    Args:
        data: the reply: the list itself, or an object that contains it.
        items: names that the list may have; the first that exists counts.
        scores: names that a score may have.
        index: the name of a document's position.

    Raises:
        BadReply: there is no such list, or a member of an entry is missing.
    """
    if isinstance(data, dict):
        name = next((name for name in items if name in data), None)
        if name is None:
            raise BadReply(f"the reply has no {_either(items)}")
        data = data[name]
    if not isinstance(data, list):
        raise BadReply(f"the reply has {_kind(data)} instead of a list of results")
    return [_pair(item, place, scores, index) for place, item in enumerate(data)]


def _pair(item: Any, place: int, scores: Sequence[str], index: str) -> tuple[Any, Any]:
    if not isinstance(item, dict):
        raise BadReply(f"result {place} must be an object, got {_kind(item)}")
    score = next((name for name in scores if name in item), None)
    if index not in item or score is None:
        raise BadReply(f"result {place} has no {index if index not in item else _either(scores)}")
    return item[index], item[score]


def check_scores(pairs: Sequence[tuple[Any, Any]], count: int, wanted: int, *, more: bool = False) -> dict[int, float]:
    """Return the scores by position.

    Args:
        pairs: as read from the reply.
        count: number of documents in the request.
        wanted: number of scores that were asked for.
        more: the service may return more than that.

    Raises:
        BadReply: a position is not a whole number, out of range or repeated, a score is not a finite number, or the
            number of scores is wrong.
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
    """Return a number as it is, and only the type of anything else, since it may be a text of the request."""
    return short_repr(index) if isinstance(index, int | float) else f"number {_kind(index)}"


def _finite(score: Any, index: int) -> float:
    if type(score) not in (int, float):
        raise BadReply(f"the score of document {index} must be a number, got {_kind(score)}")
    try:
        value = float(score)
    except OverflowError:
        value = math.inf
    if not math.isfinite(value):
        raise BadReply(f"the score of document {index} is not a finite number")
    return value


def read_figures(usage: Any, *words: str) -> dict[str, float]:
    """Return those members of a reply's usage that are figures.

    Args:
        usage: the object, or anything else, which has no figures.
        words: the names of the members.
    """
    if not isinstance(usage, Mapping):
        return {}
    found = {word: usage.get(word) for word in words}
    return {word: value for word, value in found.items() if _is_figure(value)}


def _is_figure(value: Any) -> TypeGuard[float]:
    return type(value) in (int, float) and 0 <= value <= _MOST_COUNTED  # NaN is not


def get_member(data: Any, *path: str) -> Any:
    """Return the value at the end of a path of member names, or None if there is none."""
    for name in path:
        data = data.get(name) if isinstance(data, Mapping) else None
    return data


def _either(names: Sequence[str]) -> str:
    return " or ".join(map(repr, names))


def _kind(value: Any) -> str:
    return "null" if value is None else f"a value of type {type(value).__name__}"
