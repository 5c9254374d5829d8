"""The chart of one query: a column for each stage, a line for each document, relevant ones marked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from milvus_pipeline.evaluation.report.svg import Element, drawing, element, to_html
from milvus_pipeline.explain import Movement, Ranking, Standing
from milvus_pipeline.text import count_text, cut_text, measure_text, one_line, time_text

_LEFT: Final = 42
_TOP: Final = 58
_BOTTOM: Final = 12
_COLUMN: Final = 132
_FEWEST_COLUMNS: Final = 2  # a picture of one column has the width of two
_LABEL: Final = 76
_LABEL_CELLS: Final = 9
_NAME_CELLS: Final = 16  # the first one, which begins at the edge, has fewer
_FIRST_NAME_CELLS: Final = 13
_LINEAR: Final = 20  # places drawn at their full distance
_STEP: Final = 18
_DEEP_STEP: Final = 3.0
_DEEP_MOST: Final = 240  # height of the deeper places together
DEEPEST: Final = 100
"""Documents that were never above this place are left out of the picture, unless they are relevant."""
_SHADES: Final = 4
_GAP: Final = 13  # least distance of two labels
_TICKS: Final = (1, 5, 10, 15, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)


@dataclass(frozen=True, slots=True)
class PlaceScale:
    """Maps places in a ranking to vertical coordinates: the first twenty in equal steps, the deeper ones compressed."""

    deepest: int

    def __call__(self, place: int) -> float:
        """Return the coordinate of a place, from 1."""
        deep = self.deepest - _LINEAR
        step = min(_DEEP_STEP, _DEEP_MOST / deep) if deep > 0 else 0.0
        return _TOP + _STEP * (min(place, _LINEAR) - 0.5) + max(0, place - _LINEAR) * step

    @property
    def end(self) -> float:
        """The coordinate below the last place."""
        return self(self.deepest) + _STEP / 2

    def ticks(self) -> list[int]:
        """Return places to label: round ones and the last, none on top of another."""
        ticks: list[int] = []
        for place in _TICKS:
            near = (*ticks[-1:], self.deepest)
            if place < self.deepest and all(abs(self(place) - self(other)) >= _GAP for other in near):
                ticks.append(place)
        return [*ticks, self.deepest]


def shade(grade: int, highest: int) -> int:
    """Return the shade, from 1 to 4, of a grade above 0; ``highest`` is the highest grade of the query."""
    return max(1, round(_SHADES * grade / max(highest, 1)))


def drawn_documents(movement: Movement) -> tuple[str, ...]:
    """Return the documents of the picture in the final order; relevant ones whatever their place."""
    near = {document for ranking in movement.rankings for document in ranking.documents[:DEEPEST]}
    judged = movement.judged or {}
    return tuple(document for document in movement.documents if document in near or judged.get(document, 0) > 0)


def bump_chart(movement: Movement, measure: str | None) -> str:
    """Draw the picture of one query.

    Args:
        movement: with at least one ranking.
        measure: written above each column; None without judgements.
    """
    documents, standings, judged = drawn_documents(movement), movement.standings(), movement.judged or {}
    deepest = max((at.place for document in documents for at in standings[document] if at), default=1)
    down = PlaceScale(max(deepest, 2))
    columns = max(_FEWEST_COLUMNS, len(movement.rankings)) - 1
    width, height = _LEFT + columns * _COLUMN + _LABEL, down.end + _BOTTOM
    stages = ", ".join(ranking.stage for ranking in movement.rankings)
    label = f"places of {count_text(len(documents), 'document')} after the stages {stages}"
    if judged:
        label += f"; {count_text(sum(grade > 0 for grade in judged.values()), 'document')} judged relevant are marked"
    root = drawing(width, height, label, f"chart bump columns-{columns + 1}")
    _draw_frame(root, movement, down, measure, width)
    # Later elements are drawn over earlier ones: the more relevant a document, the later.
    for document in sorted(documents, key=lambda document: judged.get(document, -1)):
        _draw_document(root, movement, document, standings[document], down)
    _draw_labels(root, movement, down, _LEFT + (len(movement.rankings) - 1) * _COLUMN)
    return to_html(root)


def _draw_frame(root: Element, movement: Movement, down: PlaceScale, measure: str | None, width: float) -> None:
    """Draw stages above the columns, places at the side, and a line where the scale changes."""
    group = element("g", root, class_="axis")
    for place in down.ticks():
        element("text", group, str(place), x=_LEFT - 11, y=down(place) + 4, text_anchor="end")
    if down.deepest > _LINEAR:
        y = down(_LINEAR) + _STEP / 2
        element("line", group, x1=0, x2=width - _LABEL + 12, y1=y, y2=y, class_="fold")
    for column, ranking in enumerate(movement.rankings):
        x = _LEFT + column * _COLUMN
        element("line", group, x1=x, x2=x, y1=_TOP, y2=down.end, class_="column")
        _draw_heading(root, ranking, x, column, measure)


def _draw_heading(root: Element, ranking: Ranking, x: float, column: int, measure: str | None) -> None:
    x, anchor = (x, "middle") if column else (0, "start")
    name = cut_text(ranking.stage, _NAME_CELLS if column else _FIRST_NAME_CELLS)
    element("text", root, name, y=15, class_="name", x=x, text_anchor=anchor)
    trouble = "" if ranking.status == "ok" else f"{ranking.status}, "
    element(
        "text",
        root,
        trouble + time_text(ranking.seconds),
        y=31,
        class_="trouble" if trouble else "small",
        x=x,
        text_anchor=anchor,
    )
    if measure is not None and measure in ranking.measures:
        text = element("text", root, y=47, class_="small", x=x, text_anchor=anchor)
        element("tspan", text, f"{cut_text(measure, 12)} ")
        element("tspan", text, measure_text(ranking.measures[measure]), class_="figure")


def _draw_document(
    root: Element, movement: Movement, document: str, standings: Sequence[Standing | None], down: PlaceScale
) -> None:
    """Draw the line of one document, with a mark at each stage, and a cross where it was cut."""
    judged = movement.judged or {}
    grade = judged.get(document)
    relevant = grade is not None and grade > 0
    kind = "unjudged" if grade is None else "irrelevant"
    if relevant:
        kind = f"relevant shade-{shade(judged[document], max(judged.values()))}"
    group = element("g", root, class_=f"document {kind}")
    element("title", group, _title(movement, document, standings))
    spots = [(_LEFT + column * _COLUMN, down(at.place), at.place) for column, at in enumerate(standings) if at]
    if len(spots) > 1:
        element("path", group, d=_curve([(x, y) for x, y, _ in spots]), class_="line")
    x, y, place = spots[-1]
    if standings[-1] is None and (relevant or place <= _LINEAR):
        element("path", group, d=f"M{x:.1f} {y:.1f}h14", class_="line")
        element("path", group, d=f"M{x + 14:.1f} {y - 3.5:.1f}l7 7m0 -7l-7 7", class_="cut")
    for x, y, place in spots:
        large = relevant and place <= _LINEAR
        element("circle", group, cx=x, cy=y, r=8 if large else 4 if relevant else 2, class_="mark")
        if large:
            element("text", group, str(grade), x=x, y=y + 3.8, text_anchor="middle", class_="grade")


def _curve(spots: Sequence[tuple[float, float]]) -> str:
    """Return the path through the marks; a stage without the document is passed over."""
    parts = [f"M{spots[0][0]:.0f} {spots[0][1]:.1f}"]
    for (x1, y1), (x2, y2) in pairwise(spots):
        middle = (x1 + x2) / 2
        parts.append(f"H{x2:.0f}" if y1 == y2 else f"C{middle:.0f} {y1:.1f} {middle:.0f} {y2:.1f} {x2:.0f} {y2:.1f}")
    return "".join(parts)


def _draw_labels(root: Element, movement: Movement, down: PlaceScale, x: float) -> None:
    """Write the ids of relevant documents beside their last places, pushed apart so that they do not touch."""
    judged = movement.judged or {}
    final = [
        (place, document)
        for place, document in enumerate(movement.rankings[-1].documents, 1)
        if judged.get(document, 0) > 0
    ]
    spots: list[float] = []
    for place, _ in final:
        spots.append(max(down(place), spots[-1] + _GAP) if spots else down(place))
    limit = down.end + _BOTTOM - 4
    for number in reversed(range(len(spots))):
        spots[number] = min(spots[number], limit)
        limit = spots[number] - _GAP
    for (place, document), y in zip(final, spots, strict=True):
        if y < _TOP:
            continue  # there is no room; the list beside the picture has all of them
        start = x + 11
        if abs(y - down(place)) > 1:
            element("path", root, d=f"M{start:.0f} {down(place):.1f}L{start + 7:.0f} {y:.1f}", class_="leader")
        element("text", root, cut_text(document, _LABEL_CELLS), x=start + 9, y=y + 4, class_="label")


def _title(movement: Movement, document: str, standings: Sequence[Standing | None]) -> str:
    """Return the title of a document: id, grade, place and score after each stage, the beginning of its text."""
    grade = (movement.judged or {}).get(document)
    lines = [one_line(document) if grade is None else f"{one_line(document)}, judged {grade}"]
    for ranking, at in zip(movement.rankings, standings, strict=True):
        text = "not there" if at is None else f"place {at.place}"
        score = "" if at is None or at.score is None else f", score {at.score:.4g}"
        lines.append(f"{one_line(ranking.stage)}: {text}{score}")
    beginning = one_line(movement.beginnings.get(document, ""))
    return "\n".join([*lines, beginning] if beginning else lines)
