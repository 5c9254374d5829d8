"""How results are written: the formats of an output, each as lines of text."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import TypeAlias

import numpy as np

from milvus_pipeline.errors import PipelineError
from milvus_pipeline.files.lines import suffix_of
from milvus_pipeline.files.plain import json_line
from milvus_pipeline.records import SearchResult

_WORD = re.compile(r"[^\s\0\ud800-\udfff]+")
_LARGEST = 1e37  # with room below the largest number of 32 bits, 3.4e38
_SMALLEST = float(np.finfo(np.float32).tiny)


class OutputError(PipelineError):
    """A result cannot be written, because it does not fit the format or because the file cannot take it."""


class JsonLines:
    """One JSON object a line: ``SearchResult.to_dict()``.

    Args:
        figures: include what differs from run to run, such as the seconds of each stage.
    """

    def __init__(self, figures: bool = True) -> None:
        self._figures = figures

    def text(self, result: SearchResult) -> str:
        """Return the line of one result."""
        return json_line(result.to_dict(figures=self._figures))

    def resume(self, lines: Iterable[bytes]) -> None:
        """Continue behind these lines of the same output. They are not read: no line depends on another."""


class TrecRun:
    """A run as trec_eval reads it: ``qid Q0 docno rank score tag``. A failed query has no line in it.

    Args:
        tag: name of the run; blanks in it become underscores.
    """

    def __init__(self, tag: str) -> None:
        self._tag = "_".join(tag.split()) or "run"
        self._ids: set[str] = set()

    def text(self, result: SearchResult) -> str:
        """Return the lines of one result, one a hit; empty if its query failed.

        Raises:
            OutputError: an id is empty, contains a blank, or is there twice: a query's id in the run, or a hit's id in
                the query.
        """
        if result.status == "failed":
            return ""
        query_id = _one_word(result.query.id or "", "the query id")
        if query_id in self._ids:
            raise OutputError(f"duplicate query id {query_id!r}", "a TREC run needs unique ids")
        documents = [_one_word(str(hit.id), "the id of a hit") for hit in result.hits]
        if len(set(documents)) < len(documents):
            raise OutputError("two hits have the same id", "a TREC run needs unique ids; write JSONL instead")
        if documents:  # a query without a line is unknown when the run is resumed, so it is never remembered
            self._ids.add(query_id)
        scores = decreasing([hit.score for hit in result.hits])
        return "".join(
            f"{query_id} Q0 {document} {rank} {score:.9g} {self._tag}\n"
            for rank, (document, score) in enumerate(zip(documents, scores, strict=True), start=1)
        )

    def resume(self, lines: Iterable[bytes]) -> None:
        """Remember the queries of these lines, so that none of them is written twice."""
        self._ids.update(line.split(b" ", 1)[0].decode("utf-8") for line in lines)


LineFormat: TypeAlias = JsonLines | TrecRun
"""Turns results into whole lines."""


class OutputFormat(StrEnum):
    """How the results of a job are written."""

    JSONL = "jsonl"
    """One JSON object for each query."""
    TREC = "trec"
    """A run as trec_eval reads it."""


def line_format(output_format: OutputFormat, name: str, *, figures: bool) -> LineFormat:
    """Return what writes results in this format.

    Args:
        output_format: of the output.
        name: of the run, the tag in TREC.
        figures: include in JSON lines what differs from run to run.
    """
    return TrecRun(name) if output_format is OutputFormat.TREC else JsonLines(figures)


def format_of(path: Path) -> OutputFormat:
    """Return the format that the file's name implies, with or without ``.gz``; JSONL by default."""
    return OutputFormat.TREC if suffix_of(path) in {".trec", ".run"} else OutputFormat.JSONL


def decreasing(scores: list[float]) -> list[float]:
    """Return scores that strictly decrease in 32 bits, so that sorting by them keeps the order of the hits.

    trec_eval ignores the rank column: it sorts by score, held in 32 bits, and ties by document id. A score that is not
    below the one before it (a tie, or hits with scores of different stages) is replaced by the one before it less one
    unit in the last place. Scores are clipped to 1e37, and denormal ones become 0; NaN ties with the score before it.
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
    if not _WORD.fullmatch(text):
        raise OutputError(f"{what} must be one word without blanks in a TREC run, got {text!r}", "write JSONL instead")
    return text
