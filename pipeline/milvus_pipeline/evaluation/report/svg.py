"""Small means to draw with: elements of SVG, scales with round ticks, how wide a text is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, NamedTuple
from xml.etree import ElementTree

from rich.cells import cell_len
from rich.text import Text

from milvus_pipeline.text import printable

Element = ElementTree.Element

_CELL: Final = 0.65  # width of a character in font sizes, bold ones of a wide font, so rather more than less
_LOG_SPAN: Final = 10  # values that span more than this are shown on a logarithmic scale
_STEPS: Final = (1, 2, 2.5, 5, 10)
_LOG_STEPS: Final = ((1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,))
_LEAST_TICKS: Final = 3
_ABOUT: Final = 1e-9  # what rounding may take off


def element(tag: str, parent: Element | None = None, text: str | None = None, **attributes: str | float) -> Element:
    """An element, put into ``parent``. ``class_`` is the attribute ``class``, ``text_anchor`` is ``text-anchor``."""
    named = {name.strip("_").replace("_", "-"): _said(value) for name, value in attributes.items()}
    made = Element(tag, named) if parent is None else ElementTree.SubElement(parent, tag, named)
    made.text = None if text is None else "\n".join(map(printable, text.split("\n")))
    return made


def drawing(width: float, height: float, label: str, name: str) -> Element:
    """The root of a picture, ``width`` by ``height`` CSS pixels; narrower where the page is.

    Args:
        width: in CSS pixels.
        height: in CSS pixels.
        label: what a screen reader says.
        name: the CSS class.
    """
    return element(
        "svg",
        viewBox=f"0 0 {_said(width)} {_said(height)}",
        width=width,
        height=height,
        role="img",
        aria_label=shown(label),
        class_=name,
    )


def rendered(root: Element) -> str:
    """The picture as text to stand in HTML; everything in it is escaped."""
    return ElementTree.tostring(root, encoding="unicode")


def shown(text: str) -> str:
    """Text on one line, without signs that steer a terminal or turn the direction of writing."""
    return printable(" ".join(text.split()))


def cut(text: str, cells: int) -> str:
    """Text on one line, at most so many cells wide, of which wide signs take two; an ellipsis where it was longer."""
    line = Text(shown(text))
    line.truncate(max(1, cells), overflow="ellipsis")
    return line.plain


def width_of(text: str, size: float) -> float:
    """About how wide a text is, in the units of the font's size."""
    return cell_len(text) * size * _CELL


def _said(value: str | float) -> str:
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
        return (
            self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom
        )

    def within(self, other: Box) -> bool:
        """Whether it lies in the other as a whole."""
        return (
            self.left >= other.left
            and self.right <= other.right
            and self.top >= other.top
            and self.bottom <= other.bottom
        )


@dataclass(frozen=True, slots=True)
class Scale:
    """Maps values to places on paper.

    Args:
        low: the value at ``start``.
        high: the value at ``end``; above ``low``.
        start: a coordinate.
        end: another; smaller than ``start`` where the axis runs upwards.
        log: in equal ratios rather than equal differences.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The coordinate of a value; of the nearer end where it lies outside."""
        value = min(max(value, self.low), self.high)
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self, at_most: int = 6) -> list[float]:
        """Round values within the scale, at most so many."""
        return _log_ticks(self.low, self.high, at_most) if self.log else _ticks(self.low, self.high, at_most)


def fitting(values: list[float], start: float, end: float, *, log: bool | None = None) -> Scale:
    """A scale on which the values lie with some room at both ends.

    Args:
        values: at least one.
        start: the coordinate of the low end.
        end: that of the high end.
        log: whether it is logarithmic; by default where the values span more than a factor of ten.
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
    """Round numbers of each decade; the densest kind that is not too dense. Linear ones where there are too few."""
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
