"""How results are written, as text: JSON lines, or a run as trec_eval reads it."""

from __future__ import annotations

import math
from enum import StrEnum
from pathlib import Path
from typing import Protocol

import numpy as np

from milvus_pipeline.errors import PipelineError
from milvus_pipeline.files.lines import suffix_of
from milvus_pipeline.files.plain import json_line
from milvus_pipeline.records import SearchResult

_LARGEST = 1e37  # with room below the largest number of 32 bits, 3.4e38
_SMALLEST = float(np.finfo(np.float32).tiny)


class OutputFormat(StrEnum):
    """How the results of a job are written."""

    JSONL = "jsonl"
    """A JSON object a line and query."""
    TREC = "trec"
    """A run as trec_eval reads it."""


def format_of(path: Path) -> OutputFormat:
    """What a file's name says: ``.trec`` and ``.run`` are TREC runs, the rest is JSONL; ``.gz`` behind it or not."""
    return OutputFormat.TREC if suffix_of(path) in {".trec", ".run"} else OutputFormat.JSONL


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
        return json_line(result.to_dict(figures=self._figures))


class TrecRun:
    """A run as trec_eval reads it: ``qid Q0 docno rank score tag``. A failed query has no line in it.

    Args:
        tag: name of the run; blanks in it become underscores.
    """

    def __init__(self, tag: str) -> None:
        self._tag = "_".join(tag.split()) or "run"
        self._ids: set[str] = set()

    def remember(self, query_id: str) -> None:
        """Take note of a query that is in the run already, where a run is gone on with."""
        self._ids.add(query_id)

    def text(self, result: SearchResult) -> str:
        """The lines of one result, one a hit; nothing where its query failed.

        Raises:
            OutputError: an id is empty, holds a blank, or stands twice: that of a query in the run, that of a hit in
                the query.
        """
        if result.status == "failed":
            return ""
        query_id = _one_word(result.query.id or "", "the query's id")
        if query_id in self._ids:
            raise OutputError(f"the query id {query_id!r} stands twice", "a TREC run needs ids that differ")
        documents = [_one_word(str(hit.id), "the id of a hit") for hit in result.hits]
        if len(set(documents)) < len(documents):
            raise OutputError("two hits have the same id", "a TREC run needs ids that differ, so write JSONL instead")
        if documents:  # what has no line cannot be remembered where the run is gone on with
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
    unit in the last place stands for it. Scores beyond 1e37 are written as that, and denormal ones as 0; a score that
    is no number ties with the one before it.
    """
    rounded = np.clip(np.asarray(scores, dtype=np.float64), -_LARGEST, _LARGEST).astype(np.float32)
    rounded[np.abs(rounded) < _SMALLEST] = 0.0
    written: list[float] = []
    before = math.inf
    for value in rounded.tolist():
        if math.isnan(value):
            value = min(before, _LARGEST)
        before = value if value < before else _just_below(before)
        written.append(before)
    return written


def _just_below(value: float) -> float:
    # Near zero the last place would be a denormal number, which not every reader of a run understands.
    step = np.spacing(np.float32(max(abs(value), 1e-6)))
    return float(np.float32(value - float(step)))


def _one_word(text: str, what: str) -> str:
    if text.split() != [text] or "\0" in text or not _is_utf8(text):
        raise OutputError(f"{what} must be one word without blanks in a TREC run, is {text!r}", "write JSONL instead")
    return text


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
