"""What each stage buys and what it costs: one picture of quality, one of time, drawn to the same pattern of rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from milvus_pipeline.evaluation.records import Comparison, Latency, StageFigures, SystemFigures
from milvus_pipeline.evaluation.report.prose import p_said, seconds_said, signed, value_said
from milvus_pipeline.evaluation.report.svg import Element, Scale, cut, drawing, element, rendered

_ROW: Final = 78
_BAR_TOP: Final = 24
_BAR: Final = 16
_INTERVAL: Final = 5  # below the bar
_BELOW: Final = _BAR_TOP + _BAR + 21
_AXIS: Final = 26
_EDGE: Final = 18  # a figure nearer to the end of an axis does not stand in the middle of its line
_NAME_CELL: Final = 8.2  # CSS pixels of a character of a name
_SHORT: Final = 0.001  # seconds; the axis where nothing took any time


def quality_chart(system: SystemFigures, measure: str, comparisons: Sequence[Comparison], width: float) -> str:
    """A bar for each ranking stage, the part that a perfect order of its hits would add, and the change it made.

    Args:
        system: what is shown.
        measure: in which.
        comparisons: of stages; those of other systems or measures are passed over.
        width: of the picture, in CSS pixels.
    """
    stages = [stage for stage in system.stages if measure in stage.measures]
    changes = {
        found.stage: found
        for found in comparisons
        if found.measure == measure and found.system == found.baseline_system == system.name
    }
    height = _ROW * len(stages) + _AXIS
    said = "; ".join(f"{stage.stage} {value_said(stage.measures[measure])}" for stage in stages)
    root = drawing(width, height, f"{measure} after each stage: {said}", "chart quality")
    reached = [value for stage in stages for value in (stage.measures[measure], stage.ceilings.get(measure, 0.0))]
    top = max((value for value in reached if math.isfinite(value)), default=0.0) or 1.0
    scale = Scale(0, top, 1, width - 1)
    _axis(root, scale, height, [(tick, f"{tick:g}") for tick in scale.ticks()])
    before: StageFigures | None = None
    for number, stage in enumerate(stages):
        row = element("g", root, transform=f"translate(0 {number * _ROW})")
        _quality_row(row, scale, stage, before, measure, changes.get(stage.stage), width)
        before = stage
    return rendered(root)


def _quality_row(
    row: Element,
    scale: Scale,
    stage: StageFigures,
    before: StageFigures | None,
    measure: str,
    change: Comparison | None,
    width: float,
) -> None:
    value, ceiling = stage.measures[measure], stage.ceilings.get(measure)
    element("title", row, _quality_told(stage, measure, change))
    right = f" of {value_said(ceiling)}" if ceiling is not None else ""
    _headline(row, stage.stage, value_said(value), right, width)
    if math.isnan(value):
        element("text", row, "no query has a value", x=0, y=_BELOW, class_="small")
        return
    x = scale(value)
    if ceiling is not None and scale(ceiling) - x > 1:
        end = scale(ceiling)
        element("rect", row, x=x, y=_BAR_TOP, width=end - x, height=_BAR, class_="reachable")
        element("line", row, x1=end, x2=end, y1=_BAR_TOP, y2=_BAR_TOP + _BAR, class_="ceiling")
    element("rect", row, x=scale(0), y=_BAR_TOP, width=max(1, x - scale(0)), height=_BAR, class_="bar", rx=1.5)
    if before is None:
        element("text", row, "as retrieved", x=0, y=_BELOW, class_="small")
        return
    then = before.measures[measure]
    if math.isnan(then):
        return
    element(
        "line", row, x1=scale(then), x2=scale(then), y1=_BAR_TOP - 4, y2=_BAR_TOP + _BAR + _INTERVAL + 3, class_="then"
    )
    if change is None:
        said = "no ranking changed" if value == then else signed(value - then)
        element("text", row, said, x=0, y=_BELOW, class_="small")
        return
    if change.better == change.worse == 0:
        element("text", row, "the same for every query", x=0, y=_BELOW, class_="small")
        return
    low, high = scale(then + change.low), scale(then + change.high)
    if high - low > 1:
        y = _BAR_TOP + _BAR + _INTERVAL
        path = f"M{low:.1f} {y - 3}v6M{low:.1f} {y}H{high:.1f}M{high:.1f} {y - 3}v6"
        element("path", row, d=path, class_="interval")
    text = element("text", row, x=0, y=_BELOW, class_="small")
    element("tspan", text, signed(change.difference), class_=change_class(change))
    element("tspan", text, f" {_interval_said(change)}, {p_said(change.p_corrected)}")


def change_class(change: Comparison) -> str:
    """Name of the CSS class for a difference: better or worse where it is significant, else neither."""
    if not change.significant:
        return "change unsure"
    return "change better" if change.difference > 0 else "change worse"


def _interval_said(change: Comparison) -> str:
    return f"({signed(change.low)} to {signed(change.high)})"


def _quality_told(stage: StageFigures, measure: str, change: Comparison | None) -> str:
    parts = [f"{stage.stage}: {measure} {value_said(stage.measures[measure])}"]
    if measure in stage.ceilings:
        parts.append(f"at best {value_said(stage.ceilings[measure])} with the same {stage.hits:.0f} hits")
    if change is not None:
        parts.append(
            f"{signed(change.difference)} to {change.baseline_stage}, 95 % interval {_interval_said(change)}, "
            f"{p_said(change.p_corrected)}; better for {change.better} queries, worse for {change.worse}, "
            f"the same for {change.same}"
        )
    return "; ".join(parts)


def latency_chart(system: SystemFigures, width: float) -> str:
    """A bar for each stage's median time, with its 95th and 99th percentile, and one for all stages together."""
    rows: list[tuple[str, Latency, str]] = [(stage.stage, stage.latency, "bar") for stage in system.stages]
    rows.append(("all stages", system.latency, "bar total"))
    height = _ROW * len(rows) + _AXIS
    said = "; ".join(f"{name} {seconds_said(latency.p50)}" for name, latency, _ in rows)
    root = drawing(width, height, f"median time of each stage: {said}", "chart latency")
    # A single slow query shall not press all the others against the axis: the 99th percentile may lie outside.
    scale = Scale(0, (max(latency.p95 for _, latency, _ in rows) or _SHORT) * 1.04, 1, width - 8)
    unit, each = ("s", 1.0) if scale.high >= 2 else ("ms", 1000.0)
    shown_scale = Scale(0, scale.high * each, scale.start, scale.end)
    _axis(root, shown_scale, height, [(tick, f"{tick:g}") for tick in shown_scale.ticks(5)], unit)
    for number, (name, latency, kind) in enumerate(rows):
        row = element("g", root, transform=f"translate(0 {number * _ROW})")
        element("title", row, f"{name}: {_percentiles_said(latency)}, mean {seconds_said(latency.mean)}")
        _latency_row(row, scale, name, latency, kind, width)
    return rendered(root)


def _latency_row(row: Element, scale: Scale, name: str, latency: Latency, kind: str, width: float) -> None:
    _headline(row, name, seconds_said(latency.p50), "", width)
    start, median, slow = scale(0), scale(latency.p50), scale(latency.p95)
    middle = _BAR_TOP + _BAR / 2
    element("rect", row, x=start, y=_BAR_TOP, width=max(1, median - start), height=_BAR, class_=kind, rx=1.5)
    if slow - median > 1:
        element("path", row, d=f"M{median:.1f} {middle}H{slow:.1f}M{slow:.1f} {middle - 5}v10", class_="whisker")
    if latency.p99 <= scale.high and scale(latency.p99) - slow > 1:
        element("circle", row, cx=scale(latency.p99), cy=middle, r=2.5, class_="slowest")
    elif latency.p99 > scale.high:
        element("path", row, d=f"M{width - 5} {middle - 4}l4 4l-4 4", class_="whisker")
    percentiles = f"95 % {seconds_said(latency.p95)} · 99 % {seconds_said(latency.p99)}"
    element("text", row, percentiles, x=0, y=_BELOW, class_="small")


def _percentiles_said(latency: Latency) -> str:
    return (
        f"half of the queries within {seconds_said(latency.p50)}, 95 % within {seconds_said(latency.p95)}, "
        f"99 % within {seconds_said(latency.p99)}"
    )


def _headline(row: Element, name: str, value: str, addition: str, width: float) -> None:
    """The name of a stage at the left, its figure at the right, above the bar."""
    room = width - _NAME_CELL * (len(value) + len(addition) + 2)
    element("text", row, cut(name, int(room / _NAME_CELL)), x=0, y=16, class_="name")
    text = element("text", row, x=width, y=16, class_="value", text_anchor="end")
    element("tspan", text, value, class_="figure")
    if addition:
        element("tspan", text, addition, class_="addition")


def _axis(root: Element, scale: Scale, height: float, ticks: list[tuple[float, str]], unit: str = "") -> None:
    """Lines behind the rows, and their values below."""
    bottom = height - _AXIS + 4
    group = element("g", root, class_="axis")
    for number, (value, said) in enumerate(ticks):
        x = scale(value)
        last = number == len(ticks) - 1
        element("line", group, x1=x, x2=x, y1=_BAR_TOP - 4, y2=bottom)
        anchor = "start" if x < scale.start + _EDGE else "end" if x > scale.end - _EDGE else "middle"
        element("text", group, f"{said} {unit}" if unit and last else said, x=x, y=bottom + 15, text_anchor=anchor)
