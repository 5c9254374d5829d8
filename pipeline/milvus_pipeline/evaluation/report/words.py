"""Figures and names in words, as the report says them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

_TESTS: Final[Mapping[str, str]] = {
    "t": "paired t-test",
    "permutation": "paired permutation test",
}
_CORRECTIONS: Final[Mapping[str, str]] = {
    "holm": "Holm",
    "bonferroni": "Bonferroni",
    "fdr_bh": "Benjamini-Hochberg",
}
_LEAST_P: Final = 0.001
_LEAST_MS: Final = 0.1
_COARSE_P: Final = 0.1  # above it the third decimal tells nothing


def test_said(test: str, correction: str) -> str:
    """``paired t-test, p-values corrected after Holm``."""
    said = _TESTS[test]
    if correction == "none":
        return f"{said}, p-values not corrected for multiple comparisons"
    return f"{said}, p-values corrected after {_CORRECTIONS[correction]}"


def value_said(value: float) -> str:
    """A measure: ``0.412``; ``n/a`` where it has no value."""
    return "n/a" if math.isnan(value) else f"{value:.3f}"


def signed(value: float) -> str:
    """A difference with its sign: ``+0.031``, ``-0.002`` (with a minus sign), ``±0``; ``n/a`` where it is none."""
    if math.isnan(value):
        return "n/a"
    rounded = f"{abs(value):.3f}"
    if float(rounded) == 0:
        return "±0"
    return f"+{rounded}" if value > 0 else f"\u2212{rounded}"


def p_said(p_value: float) -> str:
    """``p = 0.012``, ``p = 0.31``, ``p < 0.001``."""
    if p_value < _LEAST_P:
        return f"p < {_LEAST_P}"
    return f"p = {p_value:.3f}" if p_value < _COARSE_P else f"p = {round(p_value, 2):g}"


def seconds_said(seconds: float) -> str:
    """``7.3 µs``, ``0.42 ms``, ``38 ms``, ``1.25 s``."""
    if seconds >= 1:
        return f"{seconds:.3g} s" if seconds < 100 else f"{seconds:,.0f} s"
    milliseconds = 1000 * seconds
    if 0 < milliseconds < _LEAST_MS:
        return f"{1000 * milliseconds:.2g} µs"
    if milliseconds >= 10:
        return f"{milliseconds:.0f} ms"
    return f"{milliseconds:.1f} ms" if milliseconds >= 1 else f"{milliseconds:.2g} ms"


def money_said(amount: float) -> str:
    """An amount in the unit of the prices: ``12.40``, ``0.0031``."""
    return f"{amount:,.2f}" if amount >= 1 or amount == 0 else f"{amount:.2g}"


def number_said(number: int | float) -> str:
    """A number of things: ``1,000``, ``37.5``."""
    return f"{number:,.0f}" if float(number).is_integer() else f"{number:,.1f}"
