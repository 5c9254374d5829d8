"""Scales of a chart: values to coordinates, and round values to label."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

_LOG_SPAN: Final = 10  # values that span a larger factor get a logarithmic scale
_STEPS: Final = (1, 2, 2.5, 5, 10)
_LEAST_TICKS: Final = 3
_ABOUT: Final = 1e-9  # tolerance for rounding


@dataclass(frozen=True, slots=True)
class Scale:
    """Maps values to coordinates.

    Args:
        low: the value at ``start``.
        high: the value at ``end``; above ``low``.
        start: a coordinate.
        end: another; smaller than ``start`` if the axis runs upwards.
        log: logarithmic: equal ratios have equal lengths.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Return the coordinate of a value within the scale."""
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self, at_most: int = 6) -> list[float]:
        """Return about ``at_most`` round values within the scale."""
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            coarse, fine = (
                [
                    tick
                    for decade in decades
                    for factor in factors
                    if self.low <= (tick := factor * 10.0**decade) <= self.high
                ]
                for factors in ((1,), (1, 2, 5))
            )
            ticks = fine if len(fine) <= at_most or len(coarse) < _LEAST_TICKS else coarse
            if len(ticks) >= _LEAST_TICKS:
                return [round(tick, 12) for tick in ticks[:: math.ceil(len(ticks) / at_most)]]
        rough = (self.high - self.low) / (at_most - 1)
        magnitude = 10.0 ** math.floor(math.log10(rough))
        step = next(factor * magnitude for factor in _STEPS if factor * magnitude >= rough * (1 - _ABOUT))
        first, last = math.ceil(self.low / step - _ABOUT), math.floor(self.high / step + _ABOUT)
        return [round(number * step, 12) for number in range(first, last + 1)]


def fit_scale(values: list[float], start: float, end: float, *, log: bool) -> Scale:
    """Return a scale that holds the values with some room at both ends.

    Args:
        values: at least one.
        start: the coordinate of the low end.
        end: the coordinate of the high end.
        log: use a logarithmic scale if the values are positive and span more than a factor of ten.
    """
    low, high = min(values), max(values)
    if log and low > 0 and high / low > _LOG_SPAN:
        room = max((high / low) ** 0.08, 1.1)
        return Scale(low / room, high * room, start, end, log=True)
    room = max((high - low) * 0.12, abs(high) * 0.02, 1e-6)
    return Scale(max(0.0, low - room) if low >= 0 else low - room, high + room, start, end)
