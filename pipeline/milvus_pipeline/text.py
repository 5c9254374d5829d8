"""What is told, in words: ``was skipped``, ``225 queries``, usage as ``12 requests, 1 retry, 48,210 total tokens``."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from typing import Final

from milvus_pipeline.errors import PipelineError

STATUS_WORDS: Final[Mapping[str, str]] = {"skipped": "was skipped", "partial": "did part of its work"}
"""What a stage did that lacks in a result."""

_FIRST = ("requests", "retries")
"""What every service has comes before its own words."""


def figures_text(figures: Mapping[str, int | float]) -> str:
    """The figures that are not 0, on one line; the first of them where all are."""
    words = sorted(figures, key=lambda word: _FIRST.index(word) if word in _FIRST else len(_FIRST))
    return ", ".join(_said(figures[word], word) for word in words if figures[word] or not any(figures.values()))


def number_text(number: int | float) -> str:
    """The number with its thousands apart, and no more decimals than a reader has use for."""
    if number == int(number):
        return f"{int(number):,}"
    return f"{number:,.2f}" if abs(number) >= 1 else f"{number:.3g}"


def count_text(number: int, noun: str) -> str:
    """``1 query``, ``225 queries``."""
    if number == 1:
        return f"1 {noun}"
    plural = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{number:,} {plural}"


def _said(number: int | float, word: str) -> str:
    return f"{number_text(number)} {(_singular(word) if number == 1 else word).replace('_', ' ')}"


def _singular(word: str) -> str:
    if word.endswith("ies"):
        return word.removesuffix("ies") + "y"
    return word.removesuffix("s")


_BIDI_CONTROLS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""They turn the order of what follows, by which a text can pass for another (Unicode TR36, 2.3)."""


def printable(text: str) -> str:
    """The text with a replacement sign for every control character: input shall not steer the terminal.

    Other invisible signs stay, as scripts and emoji need them: the joiners of Persian words and of families, say.
    """
    return "".join(sign if sign.isprintable() or _is_format(sign) else "\ufffd" for sign in text)


def _is_format(sign: str) -> bool:
    return unicodedata.category(sign) == "Cf" and sign not in _BIDI_CONTROLS


def short_repr(value: object, limit: int = 60) -> str:
    """``repr(value)`` for a message, cut to ``limit`` characters."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def error_text(error: BaseException, limit: int = 300) -> str:
    """What an exception says, for a message of ours.

    Our own messages are taken whole. A foreign one is named by its class and cut to its first line and
    ``limit`` characters, because libraries like to echo their whole input.
    """
    if isinstance(error, PipelineError):
        return str(error)
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else ""
    text = text if len(text) <= limit else text[: limit - 1] + "…"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
