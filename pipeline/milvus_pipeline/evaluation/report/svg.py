"""SVG elements, scales with round ticks, and the width of texts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, NamedTuple
from xml.etree import ElementTree

from rich.cells import cell_len

from milvus_pipeline.text import one_line, printable

Element = ElementTree.Element

_CELL: Final = 0.65  # width of a character in font sizes, bold ones of a wide font, so rather more than less
_LOG_SPAN: Final = 10  # values that span a larger factor get a logarithmic scale
_STEPS: Final = (1, 2, 2.5, 5, 10)
_LOG_STEPS: Final = ((1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,))
_LEAST_TICKS: Final = 3
_ABOUT: Final = 1e-9  # tolerance for rounding


def element(tag: str, parent: Element | None = None, text: str | None = None, **attributes: str | float) -> Element:
    """Make an element in ``parent``. ``class_`` is the attribute ``class``, ``text_anchor`` is ``text-anchor``."""
    named = {name.strip("_").replace("_", "-"): _attribute(value) for name, value in attributes.items()}
    made = Element(tag, named) if parent is None else ElementTree.SubElement(parent, tag, named)
    made.text = None if text is None else "\n".join(map(printable, text.split("\n")))
    return made


def drawing(width: float, height: float, label: str, name: str) -> Element:
    """Make the root of a picture, ``width`` by ``height`` CSS pixels; CSS shrinks it on a narrow page.

    Args:
        width: in CSS pixels.
        height: in CSS pixels.
        label: for screen readers.
        name: the CSS class.
    """
    box = f"0 0 {_attribute(width)} {_attribute(height)}"
    words = {"role": "img", "aria_label": one_line(label), "class_": name}
    return element("svg", None, None, viewBox=box, width=width, height=height, **words)


def to_html(root: Element) -> str:
    """Return the picture as HTML; everything in it is escaped."""
    return ElementTree.tostring(root, encoding="unicode")


def width_of(text: str, size: float) -> float:
    """Return the approximate width of a text, in the units of the font's size."""
    return cell_len(text) * size * _CELL


def _attribute(value: str | float) -> str:
    if isinstance(value, str):
        return value
    return f"{value:.1f}".removesuffix(".0")


class Box(NamedTuple):
    """A rectangle."""

    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: Box) -> bool:
        """Whether the two overlap."""
        across = self.left < other.right and other.left < self.right
        return across and self.top < other.bottom and other.top < self.bottom

    def within(self, other: Box) -> bool:
        """Whether it lies completely in the other."""
        across = self.left >= other.left and self.right <= other.right
        return across and self.top >= other.top and self.bottom <= other.bottom


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
        """Return the coordinate of a value; of the nearer end if it lies outside."""
        value = min(max(value, self.low), self.high)
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self, at_most: int = 6) -> list[float]:
        """Return about ``at_most`` round values within the scale."""
        return _log_ticks(self.low, self.high, at_most) if self.log else _ticks(self.low, self.high, at_most)


def fit_scale(values: list[float], start: float, end: float, *, log: bool | None = None) -> Scale:
    """Return a scale that holds the values with some room at both ends.

    Args:
        values: at least one.
        start: the coordinate of the low end.
        end: the coordinate of the high end.
        log: whether it is logarithmic; by default if the values span more than a factor of ten.
    """
    low, high = min(values), max(values)
    if log is None:
        log = low > 0 and high / low > _LOG_SPAN
    if log:
        room = max((high / low) ** 0.08, 1.1)
        return Scale(low / room, high * room, start, end, log=True)
    room = max((high - low) * 0.12, abs(high) * 0.02, 1e-6)
    return Scale(max(0.0, low - room) if low >= 0 else low - room, high + room, start, end)


def _ticks(low: float, high: float, at_most: int) -> list[float]:
    rough = (high - low) / max(1, at_most - 1)
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * magnitude for factor in _STEPS if factor * magnitude >= rough * (1 - _ABOUT))
    first, last = math.ceil(low / step - _ABOUT), math.floor(high / step + _ABOUT)
    return [round(number * step, 12) for number in range(first, last + 1)]


def _log_ticks(low: float, high: float, at_most: int) -> list[float]:
    """Return round numbers of each decade, as many as fit; linear ticks if these would be too few."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks: list[float] = []
    for factors in _LOG_STEPS:
        ticks = [round(factor * 10.0**decade, 12) for decade in decades for factor in factors]
        ticks = [tick for tick in ticks if low * (1 - _ABOUT) <= tick <= high * (1 + _ABOUT)]
        if len(ticks) <= at_most:
            break
    if len(ticks) < _LEAST_TICKS:
        return _ticks(low, high, at_most)
    return ticks[:: math.ceil(len(ticks) / at_most)]
