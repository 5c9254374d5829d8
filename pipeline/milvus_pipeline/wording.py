"""What is told, in words: ``was skipped``, ``225 queries``, usage as ``12 requests, 1 retry, 48,210 total tokens``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

STATUS_SAID: Final[Mapping[str, str]] = {"skipped": "was skipped", "partial": "did part of its work"}
"""What a stage did that lacks in a result."""

_FIRST = ("requests", "retries")
"""What every service has comes before its own words."""


def figures_said(figures: Mapping[str, int | float]) -> str:
    """The figures that are not 0, on one line; the first of them where all are."""
    words = sorted(figures, key=lambda word: _FIRST.index(word) if word in _FIRST else len(_FIRST))
    return ", ".join(_said(figures[word], word) for word in words if figures[word] or not any(figures.values()))


def number_said(number: int | float) -> str:
    """The number with its thousands apart, and no more decimals than a reader has use for."""
    if number == int(number):
        return f"{int(number):,}"
    return f"{number:,.2f}" if abs(number) >= 1 else f"{number:.3g}"


def counted(number: int, noun: str) -> str:
    """``1 query``, ``225 queries``."""
    if number == 1:
        return f"1 {noun}"
    plural = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{number:,} {plural}"


def _said(number: int | float, word: str) -> str:
    return f"{number_said(number)} {(_singular(word) if number == 1 else word).replace('_', ' ')}"


def _singular(word: str) -> str:
    if word.endswith("ies"):
        return word.removesuffix("ies") + "y"
    return word.removesuffix("s")
