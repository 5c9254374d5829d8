"""The chart of quality against latency: a point for each system, and the Pareto front."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from rich.cells import cell_len

from milvus_pipeline.evaluation.records import SystemFigures
from milvus_pipeline.evaluation.report.scale import Scale, fit_scale
from milvus_pipeline.text import cut_text, time_text

_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 16, 18, 46
_RADIUS: Final = 5.5
_NAMED: Final = 8  # more systems than this are numbered
_NAME_CELLS: Final = 32
_LEAST_WIDTH_FOR_NAMES: Final = 560
_CELL: Final = 7.8  # width of a character, a bold one of a wide font, so rather more than less
_LINE: Final = 15  # height of a label
_LEAST_SECONDS: Final = 1e-9  # a logarithmic scale has no 0
_NEAR: Final = ((0, -16), (-1, -14), (1, -14), (1, 0), (-1, 0), (1, 14), (-1, 14), (0, 16))
"""Where a label may be: left of its point (-1), right of it (1) or centred, and how far down.

A point on the front prefers the room above the front, others the room below it.
"""


class Point(NamedTuple):
    """One system: its number in the table, and its coordinates."""

    number: int
    system: SystemFigures
    x: float
    y: float


class Label(NamedTuple):
    """The text beside a point, centred at ``x`` and ``y``."""

    text: str
    x: float
    y: float
    on_front: bool

    def meets(self, x: float, y: float, width: float, height: float) -> bool:
        """Return whether it touches a box of this size, centred at ``x`` and ``y``."""
        across, down = abs(self.x - x), abs(self.y - y)
        return across < (self.width + width) / 2 and down < (_LINE + height) / 2

    @property
    def width(self) -> float:
        """Its approximate width."""
        return cell_len(self.text) * _CELL + 4


def is_drawn(system: SystemFigures, measure: str) -> bool:
    """Return whether the system gets a point: it answers, and has a value."""
    return system.answers and math.isfinite(system.measures.get(measure, math.nan))


def scatter(systems: Sequence[SystemFigures], measure: str, width: float, height: float) -> dict[str, Any]:
    """Return coordinates and texts of the picture of systems by median latency and quality.

    Few systems are labelled with their names, many with their numbers in the table. A label without room is left out,
    those on the front last; the name of every point is in its title.

    Args:
        systems: in the order of the table, the baseline first; at least one of them ``is_drawn``.
        measure: on the vertical axis.
        width: of the picture, in CSS pixels.
        height: of the picture, in CSS pixels.
    """
    numbered = [(number, system) for number, system in enumerate(systems, 1) if is_drawn(system, measure)]
    seconds = {number: max(system.latency.p50, _LEAST_SECONDS) for number, system in numbered}
    across = fit_scale(list(seconds.values()), _LEFT, width - _RIGHT, log=True)
    up = fit_scale([system.measures[measure] for _, system in numbered], height - _BOTTOM, _TOP, log=False)
    points = [
        Point(number, system, across(seconds[number]), up(system.measures[measure])) for number, system in numbered
    ]
    points.sort(key=lambda point: (not point.system.on_front, point.number))
    named = len(systems) <= _NAMED and width >= _LEAST_WIDTH_FOR_NAMES
    return {
        "measure": measure,
        "width": width,
        "height": height,
        "left": _LEFT,
        "right": width - _RIGHT,
        "top": _TOP,
        "bottom": height - _BOTTOM,
        "log": across.log,
        "across": [(across(value), time_text(value)) for value in across.ticks(max(4, int(width / 110)))],
        "up": [(up(value), f"{value:g}") for value in up.ticks()],
        "front": _front_corners(points, across),
        "points": points[::-1],  # later elements are drawn over earlier ones
        "labels": _place_labels(points, width, height - _BOTTOM, named=named),
        "radius": _RADIUS,
    }


def _front_corners(points: Sequence[Point], across: Scale) -> list[tuple[float, float]]:
    """Return the corners of the front's steps: the best quality that is reached within a time."""
    corners: list[tuple[float, float]] = []
    for x, y in sorted((point.x, point.y) for point in points if point.system.on_front):
        if corners and y > corners[-1][1]:
            continue
        corners += [(x, corners[-1][1]), (x, y)] if corners else [(x, y)]
    return [*corners, (across.end, corners[-1][1])] if corners else []


def _place_labels(points: Sequence[Point], width: float, bottom: float, *, named: bool) -> list[Label]:
    """Return labels beside their points, on no other label or point; the first points choose first."""
    labels: list[Label] = []
    for point in points:
        text = cut_text(point.system.name, _NAME_CELLS) if named and point.system.name else str(point.number)
        for side, below in _NEAR if point.system.on_front else reversed(_NEAR):
            label = Label(text, point.x, point.y + below, point.system.on_front)
            label = label._replace(x=point.x + side * (label.width / 2 + (8 if below else 10)))
            inside = (
                _LEFT + label.width / 2 < label.x < width - label.width / 2 and _LINE < label.y < bottom - _LINE / 2
            )
            if (
                inside
                and not any(label.meets(other.x, other.y, 2 * _RADIUS, 2 * _RADIUS) for other in points)
                and not any(label.meets(other.x, other.y, other.width, _LINE) for other in labels)
            ):
                labels.append(label)
                break
    return labels
