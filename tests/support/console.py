"""The commands that a document shows, with what they print: run, and compared line by line."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_BLOCK = re.compile(r"^```(\w+)(?: ([^\n]*))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_ANYTHING = "…"


@dataclass(frozen=True)
class Block:
    """A block of code.

    Args:
        language: the word behind the backticks.
        about: the rest of that line; of a file that is shown, its name.
        text: the code.
        line: where it begins in the document, from 1.
    """

    language: str
    about: str
    text: str
    line: int

    def commands(self) -> list[tuple[str, str]]:
        """Each command behind a ``$``, with the lines that it prints."""
        parts = re.split(r"^\$ ", self.text, flags=re.MULTILINE)[1:]
        found = []
        for part in parts:
            lines = part.splitlines()
            ends = next(number for number, line in enumerate(lines) if not line.endswith("\\"))
            found.append(("\n".join(lines[: ends + 1]), "\n".join(lines[ends + 1 :])))
        return found


def blocks_of(document: Path) -> list[Block]:
    """The blocks of a document, in order."""
    text = document.read_text(encoding="utf-8")
    return [
        Block(found[1], found[2] or "", found[3], text.count("\n", 0, found.start()) + 1)
        for found in _BLOCK.finditer(text)
    ]


def difference(shown: str, printed: str) -> str | None:
    """What differs between what a document shows and what was printed; None where nothing does.

    ``…`` stands for anything in its line, and alone in a line for any number of lines. Blanks and lines of tables count
    once however long they are, as the widths of columns hang on times; blanks at the end of a line do not count.
    """
    wanted, got = _lines(shown), _lines(printed)
    pattern = "".join(r"(?:[^\n]*\n)*?" if line == _ANYTHING else _anything_at(line) + "\n" for line in wanted)
    if re.fullmatch(pattern, "".join(line + "\n" for line in got)):
        return None
    return f"shown:\n{shown}\nprinted:\n{printed}"


def _anything_at(line: str) -> str:
    """The line as a pattern; between two blanks, the dots may stand for nothing with one blank."""
    return re.escape(line).replace(rf"\ {_ANYTHING}\ ", r"\ (?:[^\n]*?\ )?").replace(_ANYTHING, r"[^\n]*?")


def _lines(text: str) -> list[str]:
    lines = [re.sub(r"─+", "─", " ".join(line.split())) for line in text.splitlines()]
    return [line for line in lines if line]
