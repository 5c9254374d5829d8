"""Reading input line by line: text or JSON objects, plain or gzipped, from a file or stdin."""

from __future__ import annotations

import gzip
import json
import sys
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, NoReturn, cast

from milvus_pipeline.errors import InputError
from milvus_pipeline.text import count_text

STDIN = Path("-")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_LONGEST = 1 << 26  # bytes; as long as a row that Milvus takes. Longer ones come of files without lines
_SHOWN = 5


class Line(NamedTuple):
    """One line that is not blank, without its line break; its number in the file counts from 1."""

    file: str
    number: int
    raw: bytes

    @property
    def where(self) -> str:
        """Where it stands: ``queries.jsonl:7``."""
        return f"{self.file}:{self.number}"

    def text(self) -> str:
        """The line decoded. InputError where it is not UTF-8, or holds a NUL."""
        if b"\0" in self.raw:  # UTF-16 passes for UTF-8 with a NUL in every other place
            raise InputError(
                f"is not UTF-8 text (a NUL at byte {self.raw.index(0)})", "is it UTF-16?", place=self.where
            )
        try:
            return self.raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"is not UTF-8 text ({error.reason} at byte {error.start})", place=self.where) from error

    def object(self) -> dict[str, Any]:
        """The line as a JSON object. InputError where it is none."""
        try:
            data = json.loads(self.text(), parse_constant=_no_constant)
        except json.JSONDecodeError as error:
            raise InputError(f"is not valid JSON: {error.msg} at column {error.colno}", place=self.where) from error
        except (ValueError, RecursionError) as error:
            raise InputError(f"is not valid JSON: {error}", place=self.where) from error
        if not isinstance(data, dict):
            raise InputError("must be a JSON object, {...}, one a line", f"is {_kind(data)}", place=self.where)
        return data


class BadLineList:
    """What is wrong with the lines of a file: the first few in words, the others as a number."""

    def __init__(self) -> None:
        self.count = 0
        self._told: list[str] = []

    @property
    def full(self) -> bool:
        """Whether a further one is only counted."""
        return len(self._told) >= _SHOWN

    def add(self, message: str) -> None:
        """Count one; it is told where it is one of the few."""
        if not self.full:
            self._told.append(message)
        self.count += 1

    @property
    def untold(self) -> int:
        """Number of those that are not told one by one."""
        return self.count - len(self._told)

    def __str__(self) -> str:
        rest = [f"and {count_text(self.untold, 'line')} more like these"] if self.untold else []
        return "\n".join([*self._told, *rest])


def read_lines(path: Path) -> Iterator[Line]:
    """The lines of a file that are not blank; gunzipped where its name ends in .gz; ``-`` is stdin.

    Raises:
        InputError: the file cannot be read, or a line of it is longer than 64 MiB.
    """
    name = "<stdin>" if path == STDIN else str(path)
    try:
        with _opened(path) as stream:
            number = 0
            while raw := stream.readline(_LONGEST + 1):
                number += 1
                line = raw.removeprefix(_BYTE_ORDER_MARK) if number == 1 else raw
                if len(raw) > _LONGEST:
                    raise InputError(f"{name}:{number}: is longer than 64 MiB", "is this a file of lines?")
                if line.strip():
                    yield Line(name, number, line.rstrip(b"\r\n"))
    except FileNotFoundError:
        raise InputError("no such file", f"check the path, which is taken from {Path.cwd()}", place=name) from None
    except IsADirectoryError:
        raise InputError("is a folder", "give the name of a file in it", place=name) from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"is not a whole gzip file: {error}", place=name) from error
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", place=name) from error


def suffix_of(path: Path) -> str:
    """The suffix that tells what a file holds, in lower case: ``.jsonl`` of ``queries.jsonl.gz``."""
    return (Path(path.stem) if path.suffix == ".gz" else path).suffix.lower()


def _opened(path: Path) -> AbstractContextManager[BinaryIO]:
    if path == STDIN:
        return nullcontext(sys.stdin.buffer)
    if path.suffix == ".gz":
        return cast("AbstractContextManager[BinaryIO]", gzip.open(path, "rb"))
    return path.open("rb")


def _no_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is not a JSON number")


def _kind(data: object) -> str:
    kinds = {list: "a list", str: "a text", type(None): "null", bool: "true or false"}
    return kinds.get(type(data), "a number")
