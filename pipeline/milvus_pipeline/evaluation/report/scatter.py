"""The chart of quality against latency: a point for each system, and the Pareto front."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Final

from milvus_pipeline.evaluation.records import SystemFigures
from milvus_pipeline.evaluation.report.svg import Box, Element, Scale, drawing, element, fit_scale, to_html, width_of
from milvus_pipeline.text import cut_text, measure_text, time_text

_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 16, 18, 46
_RADIUS: Final = 5.5
_FONT: Final = 12
_NAMED: Final = 8  # more systems than this are numbered
_NAME_CELLS: Final = 32
_LEAST_WIDTH_FOR_NAMES: Final = 560
_NEAR: Final = (10.0, 15.0, 21.0, 28.0, 36.0)  # distances of a label from its point
_FAR: Final = (46.0, 58.0, 72.0, 90.0)
_ANGLES: Final = (0, -45, 45, -90, 90, 180, -135, 135, -20, 20, -70, 70, -110, 110, 160, -160)  # degrees, right first
_ANGLES_ON_FRONT: Final = (-135, -155, -115, -90, 180, *_ANGLES)  # above and left of the front there is nothing
_LEADER_FROM: Final = 22.0  # a label farther from its point than this is connected with a line
_LINE: Final = 1.0  # half the width of the front's line
_LEAST_SECONDS: Final = 1e-9  # a logarithmic scale has no 0


@dataclass(frozen=True, slots=True)
class _Point:
    number: int
    system: SystemFigures
    x: float
    y: float
    text: str

    @property
    def box(self) -> Box:
        return Box(self.x - _RADIUS, self.y - _RADIUS, self.x + _RADIUS, self.y + _RADIUS)


_Label = tuple[Box, float]
"""Where a label is, and its distance from the point."""


def is_drawn(system: SystemFigures, measure: str) -> bool:
    """Return whether the system gets a point: it answers, and has a value."""
    return system.answers and math.isfinite(system.measures.get(measure, math.nan))


def scatter(systems: Sequence[SystemFigures], measure: str, width: float, height: float) -> str:
    """Draw systems by median latency and quality; points on the front are filled, the baseline has a ring.

    Few systems are labelled with their names, many with their numbers in the table. A label without room is left out,
    those on the front last; the name of every point is in its title.

    Args:
        systems: in the order of the table, the baseline first; at least one of them ``is_drawn``.
        measure: on the vertical axis.
        width: of the picture, in CSS pixels.
        height: of the picture, in CSS pixels.
    """
    numbered = [(number, system) for number, system in enumerate(systems, 1) if is_drawn(system, measure)]
    front = ", ".join(system.name for _, system in numbered if system.on_front)
    label = f"{measure} against median latency of {len(numbered)} systems"
    root = drawing(width, height, f"{label}; on the Pareto front: {front}" if front else label, "chart scatter")
    seconds = {number: max(system.latency.p50, _LEAST_SECONDS) for number, system in numbered}
    across = fit_scale(list(seconds.values()), _LEFT, width - _RIGHT)
    up = fit_scale([system.measures[measure] for _, system in numbered], height - _BOTTOM, _TOP, log=False)
    named = len(systems) <= _NAMED and width >= _LEAST_WIDTH_FOR_NAMES
    points = []
    for number, system in numbered:
        text = cut_text(system.name, _NAME_CELLS) if named and system.name else str(number)
        points.append(_Point(number, system, across(seconds[number]), up(system.measures[measure]), text))
    _draw_axes(root, across, up, measure, width, height)
    corners = _front_corners(points, across)
    if corners:
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in corners)
        element("path", root, d=f"M{path}", class_="front")
    lines = [_line_box(start, end) for start, end in pairwise(corners)]
    labels = _place_labels(points, lines, Box(_LEFT + 2, 2, width - 2, height - _BOTTOM - 2))
    for point in sorted(points, key=lambda point: (point.system.on_front, -point.number)):
        _draw_point(root, point, labels.get(point.number), measure)
    return to_html(root)


def _draw_axes(root: Element, across: Scale, up: Scale, measure: str, width: float, height: float) -> None:
    group = element("g", root, class_="axis")
    for value in up.ticks(6):
        y = up(value)
        element("line", group, x1=_LEFT, x2=width - _RIGHT, y1=y, y2=y)
        element("text", group, f"{value:g}", x=_LEFT - 8, y=y + 4, text_anchor="end")
    for value in across.ticks(max(4, int(width / 110))):
        x = across(value)
        element("line", group, x1=x, x2=x, y1=_TOP - 6, y2=height - _BOTTOM)
        element("text", group, time_text(value), x=x, y=height - _BOTTOM + 17, text_anchor="middle")
    kind = ", logarithmic" if across.log else ""
    element("text", group, f"median latency{kind} →", x=width - _RIGHT, y=height - 8, text_anchor="end", class_="unit")
    element("text", group, f"↑ {cut_text(measure, 24)}", x=2, y=12, class_="unit")


def _front_corners(points: Sequence[_Point], across: Scale) -> list[tuple[float, float]]:
    """Return the corners of the front's steps: the best quality that is reached within a time."""
    corners: list[tuple[float, float]] = []
    for x, y in sorted((point.x, point.y) for point in points if point.system.on_front):
        if corners and y > corners[-1][1]:
            continue
        corners += [(x, corners[-1][1]), (x, y)] if corners else [(x, y)]
    return [*corners, (across.end, corners[-1][1])] if corners else []


def _line_box(start: tuple[float, float], end: tuple[float, float]) -> Box:
    """Return the box that a horizontal or vertical line takes."""
    (left, right), (top, bottom) = sorted((start[0], end[0])), sorted((start[1], end[1]))
    return Box(left - _LINE, top - _LINE, right + _LINE, bottom + _LINE)


def _draw_point(root: Element, point: _Point, label: _Label | None, measure: str) -> None:
    system = point.system
    group = element("g", root, class_="system on-front" if system.on_front else "system")
    title = [
        f"{point.number}  {system.name}",
        f"{measure} {measure_text(system.measures[measure])}",
        f"half of the queries within {time_text(system.latency.p50)}",
        f"95 % within {time_text(system.latency.p95)}",
        *(["on the Pareto front"] if system.on_front else []),
    ]
    element("title", group, "\n".join(title))
    if label is not None:
        box, distance = label
        if distance > _LEADER_FROM:
            x, y = min(max(point.x, box.left), box.right), min(max(point.y, box.top), box.bottom)
            element("line", group, x1=point.x, y1=point.y, x2=x, y2=y, class_="leader")
        x, y = (box.left + box.right) / 2, (box.top + box.bottom) / 2
        element("text", group, point.text, x=x, y=y + 4, text_anchor="middle", class_="label")
    element("circle", group, cx=point.x, cy=point.y, r=_RADIUS, class_="point")
    if point.number == 1:
        element("circle", group, cx=point.x, cy=point.y, r=_RADIUS + 3.5, class_="ring")


def _place_labels(points: Sequence[_Point], lines: Sequence[Box], bounds: Box) -> Mapping[int, _Label]:
    """Return labels near their points, on no other label or point, and not on the front's lines if possible."""
    taken = [point.box for point in points]
    labels: dict[int, _Label] = {}
    for point in sorted(points, key=lambda point: (not point.system.on_front, point.number != 1, point.number)):
        label = _find_room(point, [*taken, *lines], bounds) or _find_room(point, taken, bounds)
        if label is not None:
            labels[point.number] = label
            taken.append(label[0])
    return labels


def _find_room(point: _Point, taken: Sequence[Box], bounds: Box) -> _Label | None:
    """Return the first free place for the label of a point, the nearest ones first."""
    width, height = width_of(point.text, _FONT) + 4, _FONT + 3
    important = point.system.on_front or point.number == 1
    angles = _ANGLES_ON_FRONT if point.system.on_front else _ANGLES
    for distance, degrees in product(_NEAR + _FAR if important else _NEAR, angles):
        across, down = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        # The distance is that of the side of the label that faces the point, not of its middle.
        left = point.x + distance * across + width / 2 * (across - 1)
        y = point.y + distance * down
        box = Box(left, y - height / 2, left + width, y + height / 2)
        if box.within(bounds) and not any(box.meets(other) for other in taken):
            return box, distance
    return None
