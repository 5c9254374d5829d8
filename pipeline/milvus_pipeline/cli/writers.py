"""Where and in which format the commands write."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Final, TextIO

from milvus_pipeline.cli.exit_codes import UsageError
from milvus_pipeline.files.output import check_target
from milvus_pipeline.files.results import OutputError, OutputFormat, format_of

TABLE: Final = "table"
"""The format for a terminal, besides those that ``files.results`` knows."""

if TYPE_CHECKING:
    Format = str
else:  # the choices of --format
    Format = StrEnum("Format", [TABLE, *OutputFormat])


def choose_format(given: str | None, output: Path | None) -> str:
    """Return the format given, else that of the file's name, else a table for a terminal, else JSON lines."""
    if given is not None:
        return given
    if output is not None:
        return format_of(output)
    return TABLE if sys.stdout.isatty() else OutputFormat.JSONL


def check_output(path: Path | None, overwrite: bool, *inputs: Path | None) -> None:
    """Check before any work that the output can be written and is not one of the inputs.

    Raises:
        InputError: it cannot, and UsageError if it exists.
    """
    if path is None:
        return
    check_target(path, *inputs)
    if path.exists() and not overwrite:
        raise UsageError("already exists", "choose another file, or pass --overwrite", place=str(path))


@contextmanager
def open_output(path: Path | None = None, overwrite: bool = False) -> Iterator[TextIO]:
    """Open the file, or stdout, for text in UTF-8 whatever the locale.

    A lone surrogate, which UTF-8 cannot hold, is written as the JSON escape it came from.

    Raises:
        UsageError: the file cannot be opened.
        OutputError: it cannot be written, for example because the disk is full.
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
        reason, place = error.strerror or error, str(path or "stdout")
        raise OutputError(f"cannot be written: {reason}", "its contents are incomplete", place=place) from error
