"""How results are written, as text: JSON lines, or a run as trec_eval reads it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from milvus_pipeline.errors import PipelineError
from milvus_pipeline.files.lines import suffix_of
from milvus_pipeline.records import SearchResult

_RECENT = 1 << 16


class SeenIds:
    """A set of ids that takes 8 bytes for each: a million of them are 8 MB, where a set of texts takes a hundred.

    It keeps hashes of 64 bits. That two ids of a million have the same, so that one of them is taken for the other, is
    as likely as 3 in 100 million.
    """

    def __init__(self) -> None:
        self._recent: set[int] = set()
        self._older = np.empty(0, dtype=np.int64)  # sorted

    def add(self, seen: str) -> bool:
        """Remember an id; False where it is known already."""
        if seen in self:
            return False
        self._recent.add(hash(seen))
        if len(self._recent) >= _RECENT:
            added = np.fromiter(self._recent, dtype=np.int64, count=len(self._recent))
            self._older = np.sort(np.concatenate([self._older, added]))
            self._recent.clear()
        return True

    def __contains__(self, seen: str) -> bool:
        key = hash(seen)
        if key in self._recent:
            return True
        place = int(np.searchsorted(self._older, key))
        return place < len(self._older) and int(self._older[place]) == key


_UNSAFE = re.compile("[\x85\u2028\u2029\ud800-\udfff]")
"""Signs that JSON lets stand in a text, and at which some readers of lines would break it; and lone surrogates, which
UTF-8 cannot hold."""
_LARGEST = 1e37  # with room below the largest number of 32 bits, 3.4e38
_SMALLEST = float(np.finfo(np.float32).tiny)
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


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
        self._ids = SeenIds()

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


def json_line(data: Any) -> str:
    """The data as strict JSON on one line, with its line break; see ``json_text``. It can be encoded as UTF-8."""
    line = json_text(data)
    if not line.isascii():
        line = _UNSAFE.sub(lambda sign: f"\\u{ord(sign[0]):04x}", line)
    return line + "\n"


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
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, set | frozenset):  # its order differs from process to process
        return sorted((_plain(inner) for inner in value), key=json_text)
    if isinstance(value, np.generic | np.ndarray):
        return _plain(value.tolist())
    return _ADDRESS.sub("", str(value))
