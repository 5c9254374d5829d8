"""Reading input line by line: text or JSON objects, plain or gzipped, from a file or stdin."""

from __future__ import annotations

import gzip
import json
import sys
import zlib
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from milvus_pipeline.errors import PipelineError

STDIN = Path("-")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class InputError(PipelineError):
    """A file that was named as input cannot be read, or is not what it is taken for; nothing was run."""


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
        """The line decoded. InputError where it is not UTF-8."""
        try:
            return self.raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{self.where}: is not UTF-8 text ({error.reason} at byte {error.start})") from error

    def object(self) -> dict[str, Any]:
        """The line as a JSON object. InputError where it is none."""
        try:
            data = json.loads(self.text(), parse_constant=_no_constant)
        except json.JSONDecodeError as error:
            raise InputError(f"{self.where}: is not valid JSON: {error.msg} at column {error.colno}") from error
        except (ValueError, RecursionError) as error:
            raise InputError(f"{self.where}: is not valid JSON: {error}") from error
        if not isinstance(data, dict):
            raise InputError(f"{self.where}: must be a JSON object, {{...}}, one a line; is {_kind(data)}")
        return data


def read_lines(path: Path) -> Iterator[Line]:
    """The lines of a file that are not blank; gunzipped where its name ends in .gz; ``-`` is stdin.

    Raises:
        InputError: the file cannot be read.
    """
    name = "<stdin>" if path == STDIN else str(path)
    try:
        with _opened(path) as stream:
            for number, raw in enumerate(stream, start=1):
                line = raw.removeprefix(_BYTE_ORDER_MARK) if number == 1 else raw
                if line.strip():
                    yield Line(name, number, line.rstrip(b"\r\n"))
    except FileNotFoundError:
        raise InputError(f"{name}: no such file; check the path, which is taken from {Path.cwd()}") from None
    except IsADirectoryError:
        raise InputError(f"{name}: is a folder; give the name of a file in it") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{name}: is not a whole gzip file: {error}") from error
    except OSError as error:
        raise InputError(f"{name}: cannot be read: {error.strerror}") from error


def _opened(path: Path) -> AbstractContextManager[Iterable[bytes]]:
    if path == STDIN:
        return nullcontext(sys.stdin.buffer)
    if path.suffix == ".gz":
        return gzip.open(path, "rb")
    return path.open("rb")


def _no_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is not a JSON number")


def _kind(data: object) -> str:
    kinds = {list: "a list", str: "a text", type(None): "null", bool: "true or false"}
    return kinds.get(type(data), "a number")
