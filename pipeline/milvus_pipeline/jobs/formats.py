"""How results are written, as text: JSON lines, or a run as trec_eval reads it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from milvus_pipeline.errors import PipelineError
from milvus_pipeline.records import SearchResult

_LINE_BREAKS = {ord(sign): f"\\u{ord(sign):04x}" for sign in "\x85\u2028\u2029"}
"""Signs that JSON lets stand in a text, and at which some readers of lines would break it."""


class OutputError(PipelineError):
    """A result cannot be written: not in the format asked for, or not to its place."""


class LineFormat(Protocol):
    """Says how a result is written, in whole lines."""

    def text(self, result: SearchResult) -> str:
        """The lines of one result, each with its line break; empty where there is nothing to write.

        Raises:
            OutputError: the result does not fit the format.
        """


class JsonLines:
    """One JSON object a line: ``SearchResult.to_dict()``.

    Args:
        figures: with what differs from run to run, such as the times that the stages took.
    """

    def __init__(self, figures: bool = True) -> None:
        self._figures = figures

    def text(self, result: SearchResult) -> str:
        """The line of one result."""
        return json_text(result.to_dict(figures=self._figures)).translate(_LINE_BREAKS) + "\n"


class TrecRun:
    """A run as trec_eval reads it: ``qid Q0 docno rank score tag``. A failed query has no line in it.

    Args:
        tag: name of the run; blanks in it become underscores.
    """

    def __init__(self, tag: str) -> None:
        self._tag = "_".join(tag.split())
        self._ids: set[str] = set()

    def text(self, result: SearchResult) -> str:
        """The lines of one result, one a hit; nothing where its query failed.

        Raises:
            OutputError: an id is empty, holds a blank, or is that of a query written earlier.
        """
        if result.status == "failed":
            return ""
        query_id = _one_word(result.query.id or "", "the query's id")
        if query_id in self._ids:
            raise OutputError(f"the query id {query_id!r} stands twice; a TREC run needs ids that differ")
        documents = [_one_word(str(hit.id), "the id of a hit") for hit in result.hits]
        self._ids.add(query_id)
        scores = falling([hit.score for hit in result.hits])
        return "".join(
            f"{query_id} Q0 {document} {rank} {score:.9g} {self._tag}\n"
            for rank, (document, score) in enumerate(zip(documents, scores, strict=True), start=1)
        )


def falling(scores: list[float]) -> list[float]:
    """Scores that strictly fall in 32 bits, so that sorting by them keeps the order of the hits.

    trec_eval ignores the rank column: it sorts by score, held in 32 bits, and ties by document id. Where a score is
    not below the one before it (a tie, or hits that carry scores of different stages), the score before it less one
    unit in the last place stands for it. Scores beyond 1e37 are written as that.
    """
    written: list[float] = []
    before = float("inf")
    for score in scores:
        value = float(np.float32(min(max(score, -1e37), 1e37)))
        before = value if value < before else _just_below(before)
        written.append(before)
    return written


def _just_below(value: float) -> float:
    # Near zero the last place would be a denormal number, which not every reader of a run understands.
    step = np.spacing(np.float32(max(abs(value), 1e-6)))
    return float(np.float32(value - float(step)))


def _one_word(text: str, what: str) -> str:
    if not text or text.split() != [text]:
        raise OutputError(f"{what} must be one word without blanks in a TREC run, is {text!r}; write JSONL instead")
    return text


def json_text(data: Any, indent: int | None = None) -> str:
    """The data as strict JSON: NaN and infinities become null, what JSON does not know becomes text."""
    try:
        return json.dumps(data, ensure_ascii=False, allow_nan=False, indent=indent)
    except (TypeError, ValueError):
        return json.dumps(_plain(data), ensure_ascii=False, allow_nan=False, indent=indent)


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(inner) for inner in value]
    if isinstance(value, np.generic | np.ndarray):
        return _plain(value.tolist())
    return str(value)
