"""``milvus-pipeline split``: splits a folder of texts into passages, which ``ingest`` reads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from milvus_pipeline.cli.exit_codes import command, print_message, print_warning
from milvus_pipeline.cli.options import Debug, Overwrite
from milvus_pipeline.cli.writers import check_output, open_output
from milvus_pipeline.files.output import open_whole
from milvus_pipeline.files.plain import json_line
from milvus_pipeline.text import count_text


@command
def split(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="With files that end in .md, .markdown or .txt.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write here instead of stdout.")
    ] = None,
    max_chars: Annotated[int, typer.Option(min=1, help="Characters of a passage at most.")] = 1000,
    glob: Annotated[str | None, typer.Option(metavar="PATTERN", help="Read only matching files: '**/*.md'.")] = None,
    bad_files: Annotated[
        Literal["fatal", "skip"], typer.Option(help="Fail on a file that cannot be read or is not UTF-8, or skip it.")
    ] = "fatal",
    overwrite: Overwrite = False,
    debug: Debug = False,
) -> int:
    """Split the texts of a folder into passages, one JSON object per line, for `ingest`.

    Paragraphs, lists and code blocks under one Markdown heading are packed into passages of at most --max-chars
    characters. Each has an _id (FILE#NUMBER), a title (the path of headings, or the file's name), its text, and its
    file. The output is gzipped if its name ends in .gz.
    """
    from milvus_pipeline.ingest.passages import passages  # no other command needs the parser of Markdown

    check_output(output, overwrite)
    skip = (lambda message: print_warning(f"{message}; skipped")) if bad_files == "skip" else None
    count, longest, files = 0, 0, set[str]()
    found = passages(folder, max_chars=max_chars, glob=glob, on_bad_file=skip)
    with open_output() if output is None else open_whole(output) as stream:
        for passage in found:
            stream.write(json_line(passage))
            count, longest = count + 1, max(longest, len(passage["text"]))
            files.add(passage["file"])
    read = f"{count_text(count, 'passage')} of {count_text(len(files), 'file')}"
    print_message(f"{folder}: {read}, the longest of {count_text(longest, 'character')}")
    return 0
