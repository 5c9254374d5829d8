"""The commands in a document with their output, and the comparison with what they really print."""

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
        language: the word after the backticks.
        about: the rest of that line; the name, if the block shows a file.
        text: the code.
        line: its first line in the document, from 1.
    """

    language: str
    about: str
    text: str
    line: int

    def commands(self) -> list[tuple[str, str]]:
        """Return each command after a ``$`` with the output that the document shows."""
        parts = re.split(r"^\$ ", self.text, flags=re.MULTILINE)[1:]
        found = []
        for part in parts:
            lines = part.splitlines()
            ends = next(number for number, line in enumerate(lines) if not line.endswith("\\"))
            found.append(("\n".join(lines[: ends + 1]), "\n".join(lines[ends + 1 :])))
        return found


def blocks_of(document: Path) -> list[Block]:
    """Return the blocks of a document, in order."""
    text = document.read_text(encoding="utf-8")
    return [
        Block(found[1], found[2] or "", found[3], text.count("\n", 0, found.start()) + 1)
        for found in _BLOCK.finditer(text)
    ]


def difference(shown: str, printed: str) -> str | None:
    """Return both texts if the shown output does not match the printed one, else None.

    ``…`` matches anything within its line, and alone in a line any number of lines. The length of blanks and of rules
    does not matter, because the widths of columns depend on measured times; nor do blanks at the end of a line.
    """
    wanted, got = _lines(shown), _lines(printed)
    pattern = "".join(r"(?:[^\n]*\n)*?" if line == _ANYTHING else _anything_at(line) + "\n" for line in wanted)
    if re.fullmatch(pattern, "".join(line + "\n" for line in got)):
        return None
    return f"shown:\n{shown}\nprinted:\n{printed}"


def _anything_at(line: str) -> str:
    """Return the line as a pattern; dots between two blanks may match nothing, with a single blank."""
    return re.escape(line).replace(rf"\ {_ANYTHING}\ ", r"\ (?:[^\n]*?\ )?").replace(_ANYTHING, r"[^\n]*?")


def _lines(text: str) -> list[str]:
    lines = [re.sub(r"─+", "─", " ".join(line.split())) for line in text.splitlines()]
    return [line for line in lines if line]
