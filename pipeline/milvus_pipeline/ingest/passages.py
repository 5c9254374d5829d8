"""The text and Markdown files of a folder as passages: records for ``ingest``."""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from milvus_pipeline.errors import InputError
from milvus_pipeline.files.lines import decode
from milvus_pipeline.ingest.split import cut, markdown_sections, plain_section
from milvus_pipeline.text import count_text

MARKDOWN = frozenset({".md", ".markdown"})
TEXT = frozenset({".txt"})

_UNFIT_FOR_IDS = re.compile(r"[\s%\x00-\x1f\x7f\ud800-\udfff]")
"""Blanks would end an id in a TREC run, and surrogates cannot be written as UTF-8; ``%`` keeps ids unique."""


def passages(
    folder: Path | str,
    *,
    max_chars: int = 1000,
    glob: str | None = None,
    on_bad_file: Callable[[str], None] | None = None,
) -> Iterator[dict[str, str]]:
    """Yield the passages of a folder's files, in the order of their paths. The same folder gives the same passages.

    A passage is a piece of a file: as many paragraphs, lists and code blocks under one heading as fit. A block that is
    longer than ``max_chars`` is split between its items or rows, else after a sentence, else between words; only a
    longer word is split itself. Apart from front matter, which is left out, nothing is lost or repeated.

    Each record has ``_id`` (``path/of/the/file.md#3``, counted from 1), ``title`` (the headings above the passage,
    outermost first, or the file's name if there are none), ``text``, and ``file`` (its path in the folder).

    Hidden files and folders are skipped, and links to folders are not followed.

    Args:
        folder: contains the files, at any depth.
        max_chars: most characters of a passage's text.
        glob: selects files, relative to the folder (``**/*.md``); by default all that end in .md, .markdown or .txt.
            A file with another suffix is read as plain text.
        on_bad_file: called with a message for each file that cannot be read or is not UTF-8, which is then skipped.

    Raises:
        ValueError: ``max_chars`` is below 1.
        InputError: there is no such folder, it has no such files or no text in them, or a file is bad and there is
            no ``on_bad_file``.
    """
    if max_chars < 1:
        raise ValueError(f"max_chars must be 1 or more, got {max_chars}")
    root = Path(folder)
    files = _files(root, glob)
    return _records(root, files, max_chars, on_bad_file)


def _records(
    root: Path, files: list[str], max_chars: int, on_bad_file: Callable[[str], None] | None
) -> Iterator[dict[str, str]]:
    empty = True
    for name in files:
        try:
            text = _text(root / name)
        except InputError as error:
            if on_bad_file is None:
                raise
            on_bad_file(str(error))
            continue
        path = Path(name)
        unnamed = _readable(path.stem).replace("_", " ").replace("-", " ")
        sections = markdown_sections(text) if path.suffix.lower() in MARKDOWN else [plain_section(text)]
        pieces = (
            (" > ".join(section.headings) or unnamed, piece)
            for section in sections
            for piece in cut(section, max_chars)
        )
        for number, (title, piece) in enumerate(pieces, start=1):
            empty = False
            yield {"_id": f"{_id_of(name)}#{number}", "title": title, "text": piece, "file": _readable(name)}
    if empty:
        raise InputError(f"there is no text in {count_text(len(files), 'file')}", place=str(root))


def _files(root: Path, glob: str | None) -> list[str]:
    """Return the sorted paths of the files to read, relative to the folder, with ``/`` between their parts.

    Raises:
        InputError: there is no such folder, it cannot be read, or it has no such files.
    """
    if not root.is_dir():
        raise InputError("is not a folder", "check the path", place=str(root))
    try:
        matching = None if glob is None else set(root.glob(glob))
    except (ValueError, NotImplementedError) as error:
        what = f"the glob {glob!r} cannot be used: {error}"
        raise InputError(what, "write it relative to the folder: **/*.md") from error
    found: list[str] = []
    for above, folders, names in os.walk(root, onerror=_cannot_be_listed):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(above, name)
            selected = path.suffix.lower() in MARKDOWN | TEXT if matching is None else path in matching
            # A dangling link is reported as a file that cannot be read; reading a pipe would never end.
            if selected and not name.startswith(".") and (path.is_file() or path.is_symlink()):
                found.append(path.relative_to(root).as_posix())
    if not found:
        kind = "end in .md, .markdown or .txt" if glob is None else f"match {glob!r}"
        what = f"has no files that {kind} (hidden ones are skipped)"
        raise InputError(what, "check the folder and the glob", place=str(root))
    return sorted(found)


def _cannot_be_listed(error: OSError) -> None:
    raise InputError(f"cannot be listed: {error.strerror}", place=error.filename) from error


def _text(path: Path) -> str:
    """Return the file's text, with line feeds at the ends of its lines.

    Raises:
        InputError: it cannot be read, or is not UTF-8.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", place=str(path)) from error
    text = decode(raw.removeprefix(codecs.BOM_UTF8), str(path))
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _id_of(name: str) -> str:
    return _UNFIT_FOR_IDS.sub(lambda sign: "".join(f"%{byte:02X}" for byte in os.fsencode(sign[0])), name)


def _readable(name: str) -> str:
    """Return a file's name as text; bytes that are not UTF-8 become replacement characters."""
    return os.fsencode(name).decode("utf-8", "replace")
