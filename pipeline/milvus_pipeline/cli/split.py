"""``milvus-pipeline split``: a folder of text becomes passages, which ``ingest`` takes."""

from __future__ import annotations

import gzip
import io
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from enum import StrEnum
from pathlib import Path
from typing import IO, Annotated, TextIO, cast

import typer

from milvus_pipeline.cli.exit_codes import Debug, reported, tell
from milvus_pipeline.cli.writers import check_output
from milvus_pipeline.files.plain import json_line
from milvus_pipeline.files.results import OutputError
from milvus_pipeline.text import count_text


class BadFiles(StrEnum):
    """What becomes of files that cannot be read, or are not UTF-8."""

    FATAL = "fatal"
    SKIP = "skip"


@reported
def split(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="With files that end in .md, .markdown or .txt.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write here instead of stdout; gzipped if it ends in .gz."),
    ] = None,
    max_chars: Annotated[int, typer.Option(min=1, help="Characters of a passage at most.")] = 1000,
    glob: Annotated[
        str | None, typer.Option(metavar="PATTERN", help="Take the files that match, from FOLDER on: '**/*.md'.")
    ] = None,
    bad_files: Annotated[
        BadFiles, typer.Option(help="What a file does that cannot be read, or is not UTF-8: end all, or be left out.")
    ] = BadFiles.FATAL,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output file if it exists.")] = False,
    debug: Debug = False,
) -> int:
    """Cut the texts of a folder into passages, one JSON object a line, for `ingest`.

    Paragraphs, lists and code blocks under one Markdown heading are packed into passages of at most --max-chars
    characters. Each has an _id (FILE#NUMBER), a title (the path of headings, or the file's name), its text, and its
    file.
    """
    from milvus_pipeline.ingest.passages import passages  # no other command needs the parser of Markdown

    check_output(output, overwrite, None)
    skip = (lambda message: tell(f"warning: {message}; left out")) if bad_files is BadFiles.SKIP else None
    count, longest, files = 0, 0, set[str]()
    found = passages(folder, max_chars=max_chars, glob=glob, on_bad_file=skip)
    with _opened(output) as stream:
        for passage in found:
            stream.write(json_line(passage))
            count, longest = count + 1, max(longest, len(passage["text"]))
            files.add(passage["file"])
    found_in = f"{count_text(count, 'passage')} of {count_text(len(files), 'file')}"
    tell(f"{folder}: {found_in}, the longest of {count_text(longest, 'character')}")
    return 0


@contextmanager
def _opened(path: Path | None) -> Iterator[TextIO]:
    """The file, or stdout, for text in UTF-8. The file gets its name when it is whole, and a failure leaves none.

    Raises:
        OutputError: the file cannot be made, or cannot take what is written.
    """
    if path is None:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8")
        yield sys.stdout
        return
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with ExitStack() as stack:
            file: IO[bytes] = stack.enter_context(part.open("xb"))
            if path.suffix == ".gz":  # without name and time in it, so that the same passages are the same bytes
                file = stack.enter_context(cast("IO[bytes]", gzip.GzipFile("", "wb", fileobj=file, mtime=0)))
            yield stack.enter_context(io.TextIOWrapper(file, encoding="utf-8", newline="\n"))
        part.replace(path)
    except OSError as error:
        raise OutputError(
            f"cannot be written: {error.strerror or error}", "nothing was left there", place=str(path)
        ) from error
    finally:
        part.unlink(missing_ok=True)
