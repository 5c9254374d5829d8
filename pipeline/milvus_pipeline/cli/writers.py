"""Where and in which format ``run`` writes results: a table on the terminal, or one of the formats of lines."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, TextIO

from milvus_pipeline.cli.exit_codes import UsageError
from milvus_pipeline.files.output import check_target
from milvus_pipeline.files.results import LineFormat, OutputError, OutputFormat, format_of
from milvus_pipeline.records import SearchResult

TABLE: Final = "table"
"""The format for a terminal, besides those that ``files.results`` knows."""

if TYPE_CHECKING:
    Format = str
else:  # the choices of --format
    Format = StrEnum("Format", [TABLE, *OutputFormat])


class Writer(Protocol):
    """Writes results, one at a time. OutputError where one does not fit the format."""

    def write(self, result: SearchResult) -> None:
        """Write one result."""


class Lines:
    """Writes results in a format of lines."""

    def __init__(self, stream: TextIO, line_format: LineFormat) -> None:
        self._stream = stream
        self._format = line_format

    def write(self, result: SearchResult) -> None:
        """Write one result."""
        self._stream.write(self._format.text(result))


def choose_format(asked: str | None, output: Path | None) -> str:
    """Return the format asked for, else that of the file's name, else a table for a terminal, else JSON lines."""
    if asked is not None:
        return asked
    if output is not None:
        return format_of(output)
    return TABLE if sys.stdout.isatty() else OutputFormat.JSONL


def check_output(path: Path | None, overwrite: bool, source: Path | None) -> None:
    """Find out before any work whether the output can be written.

    Raises:
        InputError: it cannot, and UsageError if it exists.
    """
    if path is None:
        return
    check_target(path, source)
    if path.exists() and not overwrite:
        raise UsageError("exists already", "choose another file, or pass --overwrite", place=str(path))


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
            raise UsageError(f"cannot be written: {error.strerror}", place=str(path)) from error
    try:
        with file as stream:
            yield stream
    except BrokenPipeError:
        raise
    except OSError as error:
        reason = error.strerror or error
        raise OutputError(
            f"cannot be written: {reason}", "what it holds is not whole", place=str(path or "stdout")
        ) from error
