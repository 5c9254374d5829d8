"""What is told, in words: ``was skipped``, ``225 queries``, usage as ``12 requests, 1 retry, 48,210 total tokens``."""

from __future__ import annotations

import math
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


def milliseconds_text(seconds: float) -> str:
    """Return seconds as milliseconds without the unit, for a column: ``0.42``, ``7.3``, ``1,250``."""
    milliseconds = 1000 * seconds
    if milliseconds >= 9.95:
        return f"{milliseconds:,.0f}"
    return f"{milliseconds:.1f}" if milliseconds >= 0.95 else f"{milliseconds:.2f}"


def time_text(seconds: float) -> str:
    """Return a duration with its unit: ``7.3 µs``, ``0.42 ms``, ``38 ms``, ``1.25 s``."""
    if seconds >= 1:
        return f"{seconds:.3g} s" if seconds < 100 else f"{seconds:,.0f} s"
    return f"{milliseconds_text(seconds)} ms" if seconds >= 0.0001 else f"{1_000_000 * seconds:.2g} µs"


def money_text(amount: float) -> str:
    """Return an amount in the unit of the prices: ``12.40``, ``0.0031``."""
    return f"{amount:,.2f}" if amount >= 1 or amount == 0 else f"{amount:.2g}"


def measure_text(value: float) -> str:
    """Return the value of a measure: ``0.412``; ``n/a`` for NaN."""
    return "n/a" if math.isnan(value) else f"{value:.3f}"


def difference_text(value: float) -> str:
    """Return the difference of two measures: ``+0.031``, ``-0.002`` (with a minus sign), ``±0``; ``n/a`` for NaN."""
    if math.isnan(value):
        return "n/a"
    rounded = f"{abs(value):.3f}"
    if float(rounded) == 0:
        return "±0"
    return f"+{rounded}" if value > 0 else f"\u2212{rounded}"


def p_value_text(p_value: float) -> str:
    """Return a p-value: ``p = 0.012``, ``p = 0.31``, ``p < 0.001``."""
    if p_value < 0.001:
        return "p < 0.001"
    return f"p = {p_value:.3f}" if p_value < 0.1 else f"p = {round(p_value, 2):g}"


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


def one_line(text: str) -> str:
    """Return the text on one line, without control characters."""
    return printable(" ".join(text.split()))


def cut_text(text: str, cells: int) -> str:
    """Return the text on one line of at most ``cells`` columns, ended by an ellipsis if it was longer.

    Wide characters (Chinese, emoji) take two columns.
    """
    from rich.text import Text

    line = Text(one_line(text))
    line.truncate(max(1, cells), overflow="ellipsis")
    return line.plain


def short_repr(value: object, limit: int = 60) -> str:
    """``repr(value)`` for a message, cut to ``limit`` characters."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def error_parts(error: BaseException) -> tuple[str, str]:
    """Return what an exception says, with its place, and its next step, which a foreign one has not."""
    if not isinstance(error, PipelineError):
        return error_text(error), ""
    what, next_step = error.parts()
    return (f"{error.place}: {what}" if error.place else what), next_step


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
