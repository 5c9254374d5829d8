"""Output files: whether one can be written, and files that appear complete or not at all."""

from __future__ import annotations

import gzip
import io
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, TextIO, cast

from milvus_pipeline.errors import InputError
from milvus_pipeline.files.results import OutputError


def check_target(path: Path, *sources: Path | None) -> None:
    """Check before any work whether a file can be written here.

    Args:
        path: the output.
        sources: files that are read, and must not be overwritten.

    Raises:
        InputError: it cannot; with what to do about it.
    """
    if path.is_dir():
        raise InputError("is a folder", "give the name of a file in it", place=str(path))
    if not path.parent.is_dir():
        raise InputError(f"the folder {path.parent} does not exist", "create it first", place=str(path))
    if path.exists() and any(source and source.exists() and path.samefile(source) for source in sources):
        raise InputError("is one of the files that are read", "write to another file", place=str(path))


@contextmanager
def open_whole(path: Path) -> Iterator[TextIO]:
    """Open a UTF-8 file for text, gzipped if the name ends in ``.gz``; an existing file is replaced at the end.

    The text goes to a draft beside it, which gets the name when the context ends; if it fails, the draft is removed and
    an existing file stays as it was. A lone surrogate, which UTF-8 cannot hold, is written as an escape.

    Raises:
        OutputError: the file cannot be created or written.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
    try:
        with ExitStack() as stack:
            file: IO[bytes] = stack.enter_context(draft.open("xb"))
            if path.suffix == ".gz":  # without a name and a time in it, so that equal texts give equal bytes
                file = stack.enter_context(cast("IO[bytes]", gzip.GzipFile("", "wb", fileobj=file, mtime=0)))
            text = io.TextIOWrapper(file, encoding="utf-8", errors="backslashreplace", newline="\n")
            yield stack.enter_context(text)
        draft.replace(path)
    except OSError as error:
        raise OutputError(
            f"cannot be written: {error.strerror or error}", "nothing was left there", place=str(path)
        ) from error
    finally:
        draft.unlink(missing_ok=True)
