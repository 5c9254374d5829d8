"""What ``run`` writes: JSON lines or a TREC run, and where."""

from __future__ import annotations

import io
import json
import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol, TextIO

import numpy as np

from milvus_pipeline.cli.faults import UsageError
from milvus_pipeline.errors import PipelineError
from milvus_pipeline.records import SearchResult

_LINE_BREAKS = {ord(sign): f"\\u{ord(sign):04x}" for sign in "\x85\u2028\u2029"}
"""Signs that JSON lets stand in a text, and at which some readers of lines would break it."""


class Format(StrEnum):
    """How results are written."""

    TABLE = "table"
    JSONL = "jsonl"
    TREC = "trec"


class OutputError(PipelineError):
    """A result cannot be written: not in the format asked for, or not to its place."""


class Writer(Protocol):
    """Writes results, one at a time. OutputError where one does not fit the format."""

    def write(self, result: SearchResult) -> None:
        """Write one result."""


def chosen_format(asked: Format | None, output: Path | None) -> Format:
    """The format asked for, else by the file's name, else a table for a terminal and JSON lines for the rest."""
    if asked is not None:
        return asked
    if output is not None:
        return Format.TREC if output.suffix in {".trec", ".run"} else Format.JSONL
    return Format.TABLE if sys.stdout.isatty() else Format.JSONL


def check_output(path: Path | None, overwrite: bool, source: Path | None) -> None:
    """Find out before any work whether the output can be written.

    Raises:
        UsageError: it cannot.
    """
    if path is None:
        return
    if path.is_dir():
        raise UsageError(f"{path}: is a folder; give the name of a file in it")
    if not path.parent.is_dir():
        raise UsageError(f"{path}: the folder {path.parent} does not exist; make it first")
    if path.exists() and source is not None and source.exists() and path.samefile(source):
        raise UsageError(f"{path}: is the file of queries itself; write to another file")
    if path.exists() and not overwrite:
        raise UsageError(f"{path}: exists already; choose another file, or pass --overwrite")


@contextmanager
def opened(path: Path | None, overwrite: bool) -> Iterator[TextIO]:
    """The file, or stdout, for text. JSON and TREC runs are UTF-8 whatever the locale.

    A lone surrogate, which UTF-8 cannot hold, is written as the JSON escape it came from.

    Raises:
        UsageError: the file cannot be opened.
        OutputError: it cannot take what is written, as its disk is full, say.
        BrokenPipeError: the reader of stdout has left.
    """
    if path is None:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
        file: AbstractContextManager[TextIO] = nullcontext(sys.stdout)
    else:
        try:
            file = path.open("w" if overwrite else "x", encoding="utf-8", errors="backslashreplace", newline="\n")
        except OSError as error:
            raise UsageError(f"{path}: cannot be written: {error.strerror}") from error
    try:
        with file as stream:
            yield stream
    except BrokenPipeError:
        raise
    except OSError as error:
        reason = error.strerror or error
        raise OutputError(f"{path or 'stdout'}: cannot be written: {reason}; what it holds is not whole") from error


class JsonLines:
    """One JSON object a line: ``SearchResult.to_dict()``."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, result: SearchResult) -> None:
        """Write one result."""
        self._stream.write(json_text(result.to_dict()).translate(_LINE_BREAKS) + "\n")


class TrecRun:
    """A run as trec_eval reads it: ``qid Q0 docno rank score tag``. A failed query has no line in it.

    Args:
        stream: where to.
        tag: name of the run; blanks in it become underscores.
    """

    def __init__(self, stream: TextIO, tag: str) -> None:
        self._stream = stream
        self._tag = "_".join(tag.split())
        self._ids: set[str] = set()

    def write(self, result: SearchResult) -> None:
        """Write one result, unless its query failed.

        Raises:
            OutputError: an id is empty, holds a blank, or is that of a query written earlier.
        """
        if result.status == "failed":
            return
        query_id = _one_word(result.query.id or "", "the query's id")
        if query_id in self._ids:
            raise OutputError(f"the query id {query_id!r} stands twice; a TREC run needs ids that differ")
        documents = [_one_word(str(hit.id), "the id of a hit") for hit in result.hits]
        self._ids.add(query_id)
        scores = falling([hit.score for hit in result.hits])
        self._stream.writelines(
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
