"""Charts of the stages of one system: one of quality, one of time, both with a row per stage."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from milvus_pipeline.evaluation.records import Comparison, Latency, StageFigures, SystemFigures
from milvus_pipeline.evaluation.report.svg import Element, Scale, drawing, element, to_html
from milvus_pipeline.text import cut_text, difference_text, measure_text, p_value_text, time_text

_ROW: Final = 78
_BAR_TOP: Final = 24
_BAR: Final = 16
_INTERVAL: Final = _BAR_TOP + _BAR + 5
_BELOW: Final = _BAR_TOP + _BAR + 21
_AXIS: Final = 26
_EDGE: Final = 18  # a figure nearer to the end of an axis is not centred on its line
_NAME_CELL: Final = 8.2  # CSS pixels of a character of a name
_SHORT: Final = 0.001  # seconds on the axis if nothing took any time


def quality_chart(system: SystemFigures, measure: str, comparisons: Sequence[Comparison], width: float) -> str:
    """Draw a bar for each ranking stage, what a perfect order of its hits would add, and the change it made.

    Args:
        system: whose stages are drawn.
        measure: of quality.
        comparisons: of the system's stages; those in other measures are ignored.
        width: of the picture, in CSS pixels.
    """
    stages = [stage for stage in system.stages if measure in stage.measures]
    changes = {found.stage: found for found in comparisons if found.measure == measure}
    height = _ROW * len(stages) + _AXIS
    label = "; ".join(f"{stage.stage} {measure_text(stage.measures[measure])}" for stage in stages)
    root = drawing(width, height, f"{measure} after each stage: {label}", "chart quality")
    reached = [value for stage in stages for value in (stage.measures[measure], stage.ceilings.get(measure, 0.0))]
    top = max((value for value in reached if math.isfinite(value)), default=0.0) or 1.0
    scale = Scale(0, top, 1, width - 1)
    _draw_axis(root, scale, height, scale.ticks())
    before: float | None = None
    for number, stage in enumerate(stages):
        row = _row(root, number, _quality_title(stage, measure, changes.get(stage.stage)))
        value, ceiling = stage.measures[measure], stage.ceilings.get(measure)
        addition = f" of {measure_text(ceiling)}" if ceiling is not None else ""
        _draw_headline(row, stage.stage, measure_text(value), addition, width)
        note = element("text", row, "no query has a value", x=0, y=_BELOW, class_="small")
        if not math.isnan(value):
            _draw_quality_bar(row, scale, value, ceiling)
            _draw_change(row, note, scale, value, before, changes.get(stage.stage))
        before = value
    return to_html(root)


def _draw_quality_bar(row: Element, scale: Scale, value: float, ceiling: float | None) -> None:
    x = scale(value)
    if ceiling is not None and scale(ceiling) - x > 1:
        end = scale(ceiling)
        element("rect", row, x=x, y=_BAR_TOP, width=end - x, height=_BAR, class_="reachable")
        element("line", row, x1=end, x2=end, y1=_BAR_TOP, y2=_BAR_TOP + _BAR, class_="ceiling")
    element("rect", row, x=scale(0), y=_BAR_TOP, width=max(1, x - scale(0)), height=_BAR, class_="bar", rx=1.5)


def _draw_change(
    row: Element, note: Element, scale: Scale, value: float, before: float | None, change: Comparison | None
) -> None:
    """Mark the value before the stage and the interval of the change, and describe the change in the note."""
    note.text = "as retrieved"
    if before is None:
        return
    if math.isnan(before):
        note.text = "no value before this stage"
        return
    element("line", row, x1=scale(before), x2=scale(before), y1=_BAR_TOP - 4, y2=_INTERVAL + 3, class_="then")
    if change is None:
        note.text = "no ranking changed" if value == before else difference_text(value - before)
    elif change.better == change.worse == 0:
        note.text = "the same for every query"
    else:
        low, high = scale(before + change.low), scale(before + change.high)
        if high - low > 1:
            path = f"M{low:.1f} {_INTERVAL - 3}v6M{low:.1f} {_INTERVAL}H{high:.1f}M{high:.1f} {_INTERVAL - 3}v6"
            element("path", row, d=path, class_="interval")
        note.text = None
        element("tspan", note, difference_text(change.difference), class_=change_class(change))
        element("tspan", note, f" ({_interval_text(change)}), {p_value_text(change.p_corrected)}")


def change_class(change: Comparison) -> str:
    """Return the CSS class of a difference: better or worse if it is significant, otherwise unsure."""
    if not change.significant:
        return "change unsure"
    return "change better" if change.difference > 0 else "change worse"


def _interval_text(change: Comparison) -> str:
    return f"{difference_text(change.low)} to {difference_text(change.high)}"


def _quality_title(stage: StageFigures, measure: str, change: Comparison | None) -> str:
    parts = [f"{stage.stage}: {measure} {measure_text(stage.measures[measure])}"]
    if measure in stage.ceilings:
        parts.append(f"at best {measure_text(stage.ceilings[measure])} with the same {stage.hits:.0f} hits")
    if change is not None:
        parts.append(
            f"{difference_text(change.difference)} from {change.baseline_stage}, 95 % interval "
            f"{_interval_text(change)}, {p_value_text(change.p_corrected)}; better for {change.better} queries, "
            f"worse for {change.worse}, the same for {change.same}"
        )
    return "; ".join(parts)


def latency_chart(system: SystemFigures, width: float) -> str:
    """Draw a bar for each stage's median time, with its 95th and 99th percentile, and one for all stages together."""
    rows: list[tuple[str, Latency, str]] = [(stage.stage, stage.latency, "bar") for stage in system.stages]
    rows.append(("all stages", system.latency, "bar total"))
    height = _ROW * len(rows) + _AXIS
    label = "; ".join(f"{name} {time_text(latency.p50)}" for name, latency, _ in rows)
    root = drawing(width, height, f"median time of each stage: {label}", "chart latency")
    # A single slow query must not squeeze all others against the axis: the 99th percentile may lie outside.
    scale = Scale(0, (max(latency.p95 for _, latency, _ in rows) or _SHORT) * 1.04, 1, width - 8)
    unit, each = ("s", 1.0) if scale.high >= 2 else ("ms", 1000.0)
    axis = Scale(0, scale.high * each, scale.start, scale.end)
    _draw_axis(root, axis, height, axis.ticks(5), unit)
    for number, (name, latency, kind) in enumerate(rows):
        title = f"half of the queries within {time_text(latency.p50)}, 95 % within {time_text(latency.p95)}"
        title += f", 99 % within {time_text(latency.p99)}, mean {time_text(latency.mean)}"
        row = _row(root, number, f"{name}: {title}")
        _draw_headline(row, name, time_text(latency.p50), "", width)
        _draw_latency(row, scale, latency, kind, width)
    return to_html(root)


def _draw_latency(row: Element, scale: Scale, latency: Latency, kind: str, width: float) -> None:
    start, median, slow = scale(0), scale(latency.p50), scale(latency.p95)
    middle = _BAR_TOP + _BAR / 2
    element("rect", row, x=start, y=_BAR_TOP, width=max(1, median - start), height=_BAR, class_=kind, rx=1.5)
    if slow - median > 1:
        element("path", row, d=f"M{median:.1f} {middle}H{slow:.1f}M{slow:.1f} {middle - 5}v10", class_="whisker")
    if latency.p99 > scale.high:
        element("path", row, d=f"M{width - 5} {middle - 4}l4 4l-4 4", class_="whisker")
    elif scale(latency.p99) - slow > 1:
        element("circle", row, cx=scale(latency.p99), cy=middle, r=2.5, class_="slowest")
    percentiles = f"95 % {time_text(latency.p95)} · 99 % {time_text(latency.p99)}"
    element("text", row, percentiles, x=0, y=_BELOW, class_="small")


def _row(root: Element, number: int, title: str) -> Element:
    row = element("g", root, transform=f"translate(0 {number * _ROW})")
    element("title", row, title)
    return row


def _draw_headline(row: Element, name: str, value: str, addition: str, width: float) -> None:
    """Write the name of a stage at the left and its figure at the right, above the bar."""
    room = width - _NAME_CELL * (len(value) + len(addition) + 2)
    element("text", row, cut_text(name, int(room / _NAME_CELL)), x=0, y=16, class_="name")
    text = element("text", row, x=width, y=16, class_="value", text_anchor="end")
    element("tspan", text, value, class_="figure")
    if addition:
        element("tspan", text, addition, class_="addition")


def _draw_axis(root: Element, scale: Scale, height: float, ticks: list[float], unit: str = "") -> None:
    """Draw lines behind the rows, with their values below; the last one has the unit."""
    bottom = height - _AXIS + 4
    group = element("g", root, class_="axis")
    for tick in ticks:
        x = scale(tick)
        element("line", group, x1=x, x2=x, y1=_BAR_TOP - 4, y2=bottom)
        anchor = "start" if x < scale.start + _EDGE else "end" if x > scale.end - _EDGE else "middle"
        text = f"{tick:g} {unit}".rstrip() if tick == ticks[-1] else f"{tick:g}"
        element("text", group, text, x=x, y=bottom + 15, text_anchor=anchor)
