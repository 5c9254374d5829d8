"""How one query's documents moved: a column for each stage, a line for each document, the judged ones marked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from milvus_pipeline.evaluation.report.prose import seconds_said, value_said
from milvus_pipeline.evaluation.report.svg import Element, cut, drawing, element, rendered, shown
from milvus_pipeline.explain import Movement, Ranking
from milvus_pipeline.text import count_text

_LEFT: Final = 42
_TOP: Final = 58
_BOTTOM: Final = 12
_COLUMN: Final = 132
_FEWEST_COLUMNS: Final = 2  # a picture of one column has the width of two
_LABEL: Final = 76
_LABEL_CELLS: Final = 9
_NAME_CELLS: Final = 16  # the first one, which begins at the edge, has fewer
_FIRST_NAME_CELLS: Final = 13
_LINEAR: Final = 20  # places that are shown at their full distance
_STEP: Final = 18
_DEEP_STEP: Final = 3.0
_DEEP_MOST: Final = 240  # height of the deeper places together
DEEPEST: Final = 100
"""Documents that never stood among the first so many are left out of the picture, but for the relevant ones."""
_SHADES: Final = 4
_GAP: Final = 13  # least distance of two labels
_TICKS: Final = (1, 5, 10, 15, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)


@dataclass(frozen=True, slots=True)
class Places:
    """Where a place in a ranking is on paper: the first twenty in equal steps, the deeper ones pressed together."""

    deepest: int

    def __call__(self, place: int) -> float:
        """The vertical coordinate of a place, from 1."""
        linear = _TOP + _STEP * (min(place, _LINEAR) - 0.5)
        return linear + max(0, place - _LINEAR) * self._deep_step

    @property
    def _deep_step(self) -> float:
        deep = self.deepest - _LINEAR
        return min(_DEEP_STEP, _DEEP_MOST / deep) if deep > 0 else 0.0

    @property
    def end(self) -> float:
        """Below the last place."""
        return self(self.deepest) + _STEP / 2

    def ticks(self) -> list[int]:
        """Places to name at the side: round ones and the last, none on another."""
        ticks: list[int] = []
        for place in _TICKS:
            near = (*ticks[-1:], self.deepest)
            if place < self.deepest and all(abs(self(place) - self(other)) >= _GAP for other in near):
                ticks.append(place)
        return [*ticks, self.deepest]


def shade(grade: int, highest: int) -> int:
    """The shade, from 1 to 4, of a grade above 0 where ``highest`` is the highest grade of the query."""
    return max(1, round(_SHADES * grade / max(highest, 1)))


def drawn(movement: Movement) -> tuple[str, ...]:
    """The documents that a picture shows, in the final order; relevant ones whatever their place."""
    near = {document for ranking in movement.rankings for document in ranking.documents[:DEEPEST]}
    judged = movement.judged or {}
    return tuple(document for document in movement.documents if document in near or judged.get(document, 0) > 0)


def bump_chart(movement: Movement, measure: str | None) -> str:
    """The picture of one query.

    Args:
        movement: with at least one ranking.
        measure: is told above each column; None where there are no judgements.
    """
    documents = drawn(movement)
    places = [ranking.places for ranking in movement.rankings]
    deepest = max((at[document] for at in places for document in documents if document in at), default=1)
    down = Places(max(deepest, 2))
    columns = max(_FEWEST_COLUMNS, len(places)) - 1
    width, height = _LEFT + columns * _COLUMN + _LABEL, down.end + _BOTTOM
    root = drawing(width, height, _told(movement, documents), f"chart bump columns-{columns + 1}")
    _frame(root, movement, down, measure, width)
    judged = movement.judged or {}
    highest = max(judged.values(), default=1)
    # Later elements lie above earlier ones: the more relevant a document, the higher.
    for document in sorted(documents, key=lambda document: judged.get(document, -1)):
        _document(root, movement, places, document, down, highest)
    _labels(root, movement, down, _LEFT + (len(places) - 1) * _COLUMN)
    return rendered(root)


def _frame(root: Element, movement: Movement, down: Places, measure: str | None, width: float) -> None:
    """Stages above the columns, places at the side, a line where the scale changes."""
    group = element("g", root, class_="axis")
    for place in down.ticks():
        y = down(place)
        element("text", group, str(place), x=_LEFT - 11, y=y + 4, text_anchor="end")
    if down.deepest > _LINEAR:
        y = down(_LINEAR) + _STEP / 2
        element("line", group, x1=0, x2=width - _LABEL + 12, y1=y, y2=y, class_="fold")
    for column, ranking in enumerate(movement.rankings):
        x = _LEFT + column * _COLUMN
        element("line", group, x1=x, x2=x, y1=_TOP, y2=down.end, class_="column")
        _heading(root, ranking, x, column, measure)


def _heading(root: Element, ranking: Ranking, x: float, column: int, measure: str | None) -> None:
    anchor = "start" if column == 0 else "middle"
    x = 0 if column == 0 else x
    name = cut(ranking.stage, _FIRST_NAME_CELLS if column == 0 else _NAME_CELLS)
    element("text", root, name, x=x, y=15, text_anchor=anchor, class_="name")
    said = seconds_said(ranking.seconds)
    if ranking.status != "ok":
        said = f"{ranking.status}, {said}"
    element("text", root, said, x=x, y=31, text_anchor=anchor, class_="trouble" if ranking.status != "ok" else "small")
    if measure is not None and measure in ranking.measures:
        text = element("text", root, x=x, y=47, text_anchor=anchor, class_="small")
        element("tspan", text, f"{cut(measure, 12)} ")
        element("tspan", text, value_said(ranking.measures[measure]), class_="figure")


def _document(
    root: Element, movement: Movement, places: Sequence[Mapping[str, int]], document: str, down: Places, highest: int
) -> None:
    """The line of one document, with a mark at each stage, and a cross where it was cut."""
    grade = (movement.judged or {}).get(document)
    group = element("g", root, class_=_classes(grade, highest))
    element("title", group, told(movement, places, document))
    at = [
        (_LEFT + column * _COLUMN, down(here[document]), column)
        for column, here in enumerate(places)
        if document in here
    ]
    path = _path(at)
    if path:
        element("path", group, d=path, class_="line")
    relevant = grade is not None and grade > 0
    x, y, column = at[-1]
    if column < len(places) - 1 and (relevant or places[column][document] <= _LINEAR):
        element("path", group, d=f"M{x:.1f} {y:.1f}h14", class_="line")
        element("path", group, d=f"M{x + 14:.1f} {y - 3.5:.1f}l7 7m0 -7l-7 7", class_="cut")
    for x, y, column in at:
        large = relevant and places[column][document] <= _LINEAR
        element("circle", group, cx=x, cy=y, r=8 if large else 4 if relevant else 2, class_="mark")
        if large:
            element("text", group, str(grade), x=x, y=y + 3.8, text_anchor="middle", class_="grade")


def _path(at: Sequence[tuple[float, float, int]]) -> str:
    """The curve through the marks; a stage that a document was not in for once is passed over."""
    if len(at) < _FEWEST_COLUMNS:
        return ""
    parts = [f"M{at[0][0]:.0f} {at[0][1]:.1f}"]
    for (x1, y1, _), (x2, y2, _) in pairwise(at):
        middle = (x1 + x2) / 2
        parts.append(f"H{x2:.0f}" if y1 == y2 else f"C{middle:.0f} {y1:.1f} {middle:.0f} {y2:.1f} {x2:.0f} {y2:.1f}")
    return "".join(parts)


def _labels(root: Element, movement: Movement, down: Places, x: float) -> None:
    """Ids of the relevant documents beside their last places, pushed apart where they would touch."""
    judged = movement.judged or {}
    last = movement.rankings[-1].places
    standing = sorted((place, document) for document, place in last.items() if judged.get(document, 0) > 0)
    spots: list[float] = []
    for place, _ in standing:
        spots.append(max(down(place), spots[-1] + _GAP) if spots else down(place))
    limit = down.end + _BOTTOM - 4
    for number in range(len(spots) - 1, -1, -1):
        spots[number] = min(spots[number], limit)
        limit = spots[number] - _GAP
    for (place, document), y in zip(standing, spots, strict=True):
        if y < _TOP:
            continue  # more labels than there is room for; the list beside the picture has them all
        start = x + 11
        if abs(y - down(place)) > 1:
            element("path", root, d=f"M{start:.0f} {down(place):.1f}L{start + 7:.0f} {y:.1f}", class_="leader")
        text = cut(document, _LABEL_CELLS)
        element("text", root, text, x=start + 9, y=y + 4, class_="label")


def _classes(grade: int | None, highest: int) -> str:
    if grade is None:
        return "document unjudged"
    return f"document relevant shade-{shade(grade, highest)}" if grade > 0 else "document irrelevant"


def told(movement: Movement, places: Sequence[Mapping[str, int]], document: str) -> str:
    """What is known of a document: id, grade, place and score after each stage, the beginning of its text."""
    grade = (movement.judged or {}).get(document)
    lines = [shown(document) if grade is None else f"{shown(document)}, judged {grade}"]
    for ranking, at in zip(movement.rankings, places, strict=True):
        place = at.get(document)
        score = None if place is None else ranking.scores[place - 1]
        where = "not there" if place is None else f"place {place}"
        lines.append(f"{shown(ranking.stage)}: {where}" + ("" if score is None else f", score {score:.4g}"))
    beginning = shown(movement.beginnings.get(document, ""))
    return "\n".join([*lines, beginning] if beginning else lines)


def _told(movement: Movement, documents: Sequence[str]) -> str:
    relevant = sum(grade > 0 for grade in (movement.judged or {}).values())
    stages = ", ".join(ranking.stage for ranking in movement.rankings)
    said = f"places of {count_text(len(documents), 'document')} after the stages {stages}"
    return f"{said}; {count_text(relevant, 'document')} judged relevant are marked" if movement.judged else said
