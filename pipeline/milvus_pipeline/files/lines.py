"""Reading input line by line: text or JSON objects, plain or gzipped, from a file or stdin."""

from __future__ import annotations

import codecs
import gzip
import json
import sys
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, NoReturn, cast

from milvus_pipeline.errors import InputError
from milvus_pipeline.problems import kind_of

STDIN = Path("-")
_MAX_BYTES = 1 << 26  # of a line, as much as a row of Milvus; a longer one comes from a file without lines
MAX_BAD_LINES = 5
"""Bad lines that a message lists. Reading stops at the last of them, or their warnings do."""


class Line(NamedTuple):
    """One line that is not blank, without its line break. Its number in the file counts from 1."""

    file: str
    number: int
    raw: bytes

    @property
    def where(self) -> str:
        """File and line: ``queries.jsonl:7``."""
        return f"{self.file}:{self.number}"

    def text(self) -> str:
        """Return the line as text. Raises InputError if it is not UTF-8, or contains a NUL."""
        return decode(self.raw, self.where)

    def object(self) -> dict[str, Any]:
        """Return the line as a JSON object. Raises InputError if it is not one."""
        try:
            data = json.loads(self.text(), parse_constant=_no_constant)
        except json.JSONDecodeError as error:
            raise InputError(f"is not valid JSON: {error.msg} at column {error.colno}", place=self.where) from error
        except (ValueError, RecursionError) as error:
            raise InputError(f"is not valid JSON: {error}", place=self.where) from error
        if not isinstance(data, dict):
            raise InputError(f"must be a JSON object, {{...}}, on one line, got {kind_of(data)}", place=self.where)
        return data


def decode(raw: bytes, place: str) -> str:
    """Return UTF-8 bytes as text.

    Raises:
        InputError: they are not UTF-8, or contain a NUL, as UTF-16 does in every other byte.
    """
    if b"\0" in raw:
        raise InputError(f"is not UTF-8 text (a NUL at byte {raw.index(0)})", "is it UTF-16?", place=place)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"is not UTF-8 text ({error.reason} at byte {error.start})", place=place) from error


def read_lines(path: Path) -> Iterator[Line]:
    """Yield the lines of a file that are not blank; gunzipped if its name ends in .gz; ``-`` is stdin.

    Raises:
        InputError: the file cannot be read, or one of its lines is longer than 64 MiB.
    """
    name = "<stdin>" if path == STDIN else str(path)
    try:
        with _open(path) as stream:
            number = 0
            while raw := stream.readline(_MAX_BYTES + 1):
                number += 1
                line = raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw
                if len(raw) > _MAX_BYTES:
                    raise InputError("is longer than 64 MiB", "is this a file of lines?", place=f"{name}:{number}")
                if line.strip():
                    yield Line(name, number, line.rstrip(b"\r\n"))
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"is not a complete gzip file: {error}", place=name) from error
    except OSError as error:
        raise InputError(*read_failure(error), place=name) from error


def read_failure(error: OSError) -> tuple[str, str]:
    """Return why a file cannot be read, and the next step."""
    if isinstance(error, FileNotFoundError):
        return "no such file", f"check the path, which is relative to {Path.cwd()}"
    if isinstance(error, IsADirectoryError):
        return "is a folder", "give the name of a file in it"
    return f"cannot be read: {error.strerror}", ""


def file_in(path: Path, name: str) -> Path:
    """Return the file that is meant: in a folder in BEIR's layout the one of this name, gzipped or not.

    Raises:
        InputError: it is a folder without one.
    """
    if not path.is_dir():
        return path
    for file in (path / name, path / f"{name}.gz"):
        if file.is_file():
            return file
    others = sorted(str(file.relative_to(path)) for file in (path / name).parent.glob(f"*{Path(name).suffix}*"))
    found = f" (it has {', '.join(others)})" if others else ""
    raise InputError(f"is a folder without {name}{found}", "give the name of a file in it", place=str(path))


def suffix_of(path: Path) -> str:
    """Return the suffix that says what a file contains, in lower case: ``.jsonl`` of ``queries.jsonl.gz``."""
    return (Path(path.stem) if path.suffix == ".gz" else path).suffix.lower()


def _open(path: Path) -> AbstractContextManager[BinaryIO]:
    if path == STDIN:
        return nullcontext(sys.stdin.buffer)
    if path.suffix == ".gz":
        return cast("AbstractContextManager[BinaryIO]", gzip.open(path, "rb"))
    return path.open("rb")


def _no_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is not a JSON number")
