"""Numbers, counts, values and errors as text for messages and tables."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping
from typing import Final

from milvus_pipeline.errors import PipelineError

STATUS_WORDS: Final[Mapping[str, str]] = {"skipped": "was skipped", "partial": "did part of its work"}
"""What a stage did, by the status of its report."""

_FIRST = ("requests", "retries")
"""The words that every service has come before its own."""


def figures_text(figures: Mapping[str, int | float]) -> str:
    """Return the figures that are not 0, as ``12 requests, 1 retry, 48,210 total tokens``; all if all are 0."""
    words = sorted(figures, key=lambda word: _FIRST.index(word) if word in _FIRST else len(_FIRST))
    return ", ".join(_figure_text(figures[word], word) for word in words if figures[word] or not any(figures.values()))


def number_text(number: int | float) -> str:
    """Return the number with thousands separators, and no more decimals than a reader needs."""
    if number == int(number):
        return f"{int(number):,}"
    return f"{number:,.2f}" if abs(number) >= 1 else f"{number:.3g}"


def count_text(number: int, noun: str) -> str:
    """Return ``1 query``, ``225 queries``."""
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


def _figure_text(number: int | float, word: str) -> str:
    return f"{number_text(number)} {(_singular(word) if number == 1 else word).replace('_', ' ')}"


def _singular(word: str) -> str:
    if word.endswith("ies"):
        return word.removesuffix("ies") + "y"
    return word.removesuffix("s")


_BIDI_CONTROLS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""They reverse the order of the text behind them, so that it can pass for another (Unicode TR36, 2.3)."""


def printable(text: str) -> str:
    """Return the text with every control character replaced, so that input cannot control the terminal.

    Other invisible characters stay, as scripts and emoji need them, for example the joiners of Persian words.
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
    """Return ``repr(value)`` for a message, cut to ``limit`` characters."""
    return _cut(repr(value), limit)


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def error_parts(error: BaseException) -> tuple[str, str]:
    """Return what an exception says, with its place, and its next step (empty for a foreign one)."""
    if not isinstance(error, PipelineError):
        return error_text(error), ""
    what, next_step = error.parts()
    return (f"{error.place}: {what}" if error.place else what), next_step


def error_text(error: BaseException, limit: int = 300) -> str:
    """Return the message of an exception, for a message of ours.

    Our own are returned as they are. A foreign one gets its class in front, and is cut to its first line and ``limit``
    characters, because libraries like to repeat their whole input.
    """
    if isinstance(error, PipelineError):
        return str(error)
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {_cut(lines[0], limit)}" if lines else type(error).__name__
