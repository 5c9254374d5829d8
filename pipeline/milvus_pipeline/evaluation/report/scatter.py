"""Quality against latency: a point for each system, the Pareto front between them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from milvus_pipeline.evaluation.records import SystemFigures
from milvus_pipeline.evaluation.report.prose import seconds_said, value_said
from milvus_pipeline.evaluation.report.svg import (
    Box,
    Element,
    Scale,
    cut,
    drawing,
    element,
    fitting,
    rendered,
    width_of,
)

_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 16, 18, 46
_RADIUS: Final = 5.5
_FONT: Final = 12
_NAMED: Final = 8  # more systems than this are numbered
_NAME_CELLS: Final = 32
_NEAR: Final = (10.0, 15.0, 21.0, 28.0, 36.0)
_FAR: Final = (46.0, 58.0, 72.0, 90.0)
_ANGLES: Final = (0, -45, 45, -90, 90, 180, -135, 135, -20, 20, -70, 70, -110, 110, 160, -160)  # degrees, right first
_ANGLES_ON_FRONT: Final = (-135, -155, -115, -90, 180, *_ANGLES)  # above and left of the front there is nothing
_LINE_FROM: Final = 22.0  # a label farther from its point than this has a line to it
_LEAST_WIDTH_FOR_NAMES: Final = 560
_LINE: Final = 1.0  # half of what the front's line is wide
_AWAY: Final = 1e-9


@dataclass(frozen=True, slots=True)
class _Point:
    number: int
    system: SystemFigures
    x: float
    y: float

    @property
    def box(self) -> Box:
        return Box(self.x - _RADIUS, self.y - _RADIUS, self.x + _RADIUS, self.y + _RADIUS)


@dataclass(frozen=True, slots=True)
class _Label:
    box: Box
    distance: float


def is_drawn(system: SystemFigures, measure: str) -> bool:
    """Whether there is a point for the system: it answers, and has a value."""
    return system.answers and math.isfinite(system.measures.get(measure, math.nan))


def scatter(systems: Sequence[SystemFigures], measure: str, width: float, height: float) -> str:
    """Systems by median latency and by quality; those on the front are filled, the first one has a ring.

    Few systems bear their names, many the numbers that they have in the table. A label that has no room is left out:
    the front's come first, and every point tells its name when it is pointed at.

    Args:
        systems: in the order of the table; at least one ``is_drawn``, and the others have no point.
        measure: on the vertical axis.
        width: of the picture, in CSS pixels.
        height: of the picture, in CSS pixels.
    """
    numbered = [(number, system) for number, system in enumerate(systems, 1) if is_drawn(system, measure)]
    root = drawing(width, height, _told([system for _, system in numbered], measure), "chart scatter")
    across = fitting([max(system.latency.p50, _AWAY) for _, system in numbered], _LEFT, width - _RIGHT)
    up = fitting([system.measures[measure] for _, system in numbered], height - _BOTTOM, _TOP, log=False)
    points = [
        _Point(number, system, across(max(system.latency.p50, _AWAY)), up(system.measures[measure]))
        for number, system in numbered
    ]
    _axes(root, across, up, measure, width, height)
    corners = _corners([point for point in points if point.system.on_front], across)
    _front(root, corners)
    named = len(systems) <= _NAMED and width >= _LEAST_WIDTH_FOR_NAMES
    texts = {
        point.number: cut(point.system.name, _NAME_CELLS) if named and point.system.name else str(point.number)
        for point in points
    }
    front = [_around(start, end) for start, end in pairwise(corners)]
    labels = _placed(points, texts, front, Box(_LEFT + 2, 2, width - 2, height - _BOTTOM - 2))
    for point in sorted(points, key=lambda point: (point.system.on_front, -point.number)):
        _draw(root, point, texts[point.number], labels.get(point.number), measure)
    return rendered(root)


def _axes(root: Element, across: Scale, up: Scale, measure: str, width: float, height: float) -> None:
    group = element("g", root, class_="axis")
    for value in up.ticks(6):
        y = up(value)
        element("line", group, x1=_LEFT, x2=width - _RIGHT, y1=y, y2=y)
        element("text", group, f"{value:g}", x=_LEFT - 8, y=y + 4, text_anchor="end")
    for value in across.ticks(max(4, int(width / 110))):
        x = across(value)
        element("line", group, x1=x, x2=x, y1=_TOP - 6, y2=height - _BOTTOM)
        element("text", group, seconds_said(value), x=x, y=height - _BOTTOM + 17, text_anchor="middle")
    kind = ", logarithmic" if across.log else ""
    element("text", group, f"median latency{kind} →", x=width - _RIGHT, y=height - 8, text_anchor="end", class_="unit")
    element("text", group, f"↑ {cut(measure, 24)}", x=2, y=12, class_="unit")


def _corners(points: Sequence[_Point], across: Scale) -> list[tuple[float, float]]:
    """Of the steps of what can be had: the best quality within a time."""
    corners: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda point: (point.x, point.y)):
        if corners and point.y > corners[-1][1]:
            continue
        if corners:
            corners.append((point.x, corners[-1][1]))
        corners.append((point.x, point.y))
    return [*corners, (across.end, corners[-1][1])] if corners else []


def _front(root: Element, corners: Sequence[tuple[float, float]]) -> None:
    if corners:
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in corners)
        element("path", root, d=f"M{path}", class_="front")


def _around(start: tuple[float, float], end: tuple[float, float]) -> Box:
    """The place that a line takes, which is level or upright."""
    (x, y), (other_x, other_y) = start, end
    return Box(min(x, other_x) - _LINE, min(y, other_y) - _LINE, max(x, other_x) + _LINE, max(y, other_y) + _LINE)


def _draw(root: Element, point: _Point, text: str, label: _Label | None, measure: str) -> None:
    group = element("g", root, class_="system on-front" if point.system.on_front else "system")
    element("title", group, _point_told(point, measure))
    if label is not None:
        x, y = (label.box.left + label.box.right) / 2, (label.box.top + label.box.bottom) / 2
        if label.distance > _LINE_FROM:
            end_x = min(max(point.x, label.box.left), label.box.right)
            end_y = min(max(point.y, label.box.top), label.box.bottom)
            element("line", group, x1=point.x, y1=point.y, x2=end_x, y2=end_y, class_="leader")
        element("text", group, text, x=x, y=y + 4, text_anchor="middle", class_="label")
    element("circle", group, cx=point.x, cy=point.y, r=_RADIUS, class_="point")
    if point.number == 1:
        element("circle", group, cx=point.x, cy=point.y, r=_RADIUS + 3.5, class_="ring")


def _placed(points: Sequence[_Point], texts: Mapping[int, str], front: Sequence[Box], bounds: Box) -> dict[int, _Label]:
    """Where the labels stand: near their points, on no other label and no point, and off the front as far as may be."""
    taken = [point.box for point in points]
    labels: dict[int, _Label] = {}
    for point in sorted(points, key=lambda point: (not point.system.on_front, point.number != 1, point.number)):
        distances = _NEAR + _FAR if point.system.on_front or point.number == 1 else _NEAR
        found = _free(point, texts[point.number], [*taken, *front], bounds, distances)
        found = found or _free(point, texts[point.number], taken, bounds, distances)
        if found is not None:
            labels[point.number] = found
            taken.append(found.box)
    return labels


def _free(point: _Point, text: str, taken: Sequence[Box], bounds: Box, distances: Sequence[float]) -> _Label | None:
    wide, tall = width_of(text, _FONT) + 4, _FONT + 3
    for distance in distances:
        for degrees in _ANGLES_ON_FRONT if point.system.on_front else _ANGLES:
            x = point.x + distance * math.cos(math.radians(degrees))
            y = point.y + distance * math.sin(math.radians(degrees))
            # The side of the label that faces the point is what has the distance, not its middle.
            left = x - wide / 2 + wide / 2 * math.cos(math.radians(degrees))
            box = Box(left, y - tall / 2, left + wide, y + tall / 2)
            if box.within(bounds) and not any(box.meets(other) for other in taken):
                return _Label(box, distance)
    return None


def _point_told(point: _Point, measure: str) -> str:
    system = point.system
    parts = [
        f"{point.number}  {system.name}",
        f"{measure} {value_said(system.measures[measure])}",
        f"half of the queries within {seconds_said(system.latency.p50)}",
        f"95 % within {seconds_said(system.latency.p95)}",
    ]
    if system.on_front:
        parts.append("on the Pareto front")
    return "\n".join(parts)


def _told(systems: Sequence[SystemFigures], measure: str) -> str:
    front = [system.name for system in systems if system.on_front]
    said = f"{measure} against median latency of {len(systems)} systems"
    return f"{said}; on the Pareto front: {', '.join(front)}" if front else said
