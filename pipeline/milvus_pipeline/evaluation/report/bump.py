"""The chart of one query: a column for each stage, a line for each document, relevant ones marked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, NamedTuple

from milvus_pipeline.explain import Movement, Standing

_LEFT: Final = 42
_TOP: Final = 58
_BOTTOM: Final = 12
_COLUMN: Final = 132
_FEWEST_COLUMNS: Final = 2  # a picture of one column has the width of two
_LABEL: Final = 76
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
        return round(_TOP + _STEP * (min(place, _LINEAR) - 0.5) + max(0, place - _LINEAR) * step, 2)

    def ticks(self) -> list[int]:
        """Return places to label: round ones and the last, none on top of another."""
        ticks: list[int] = []
        for place in _TICKS:
            near = (*ticks[-1:], self.deepest)
            if place < self.deepest and all(abs(self(place) - self(other)) >= _GAP for other in near):
                ticks.append(place)
        return [*ticks, self.deepest]


class DocumentLine(NamedTuple):
    """The line of one document.

    Args:
        kind: CSS classes: "unjudged", "irrelevant", or "relevant" with its shade.
        grade: written into its large marks, those of a relevant document within the first twenty places.
        document: its id.
        standings: place and score after each stage.
        path: through the marks.
        marks: x, y, and radius of the mark after each stage.
        cut: x and y of the last mark, if a stage cut the document and a cross shows that; otherwise None.
    """

    kind: str
    grade: int | None
    document: str
    standings: Sequence[Standing | None]
    path: str
    marks: Sequence[tuple[float, float, int]]
    cut: tuple[float, float] | None


def shade(grade: int, highest: int) -> int:
    """Return the shade, from 1 to 4, of a grade above 0; ``highest`` is the highest grade of the query."""
    return max(1, round(_SHADES * grade / max(highest, 1)))


def drawn_documents(movement: Movement) -> tuple[str, ...]:
    """Return the documents of the picture in the final order; relevant ones whatever their place."""
    near = {document for ranking in movement.rankings for document in ranking.documents[:DEEPEST]}
    judged = movement.judged or {}
    return tuple(document for document in movement.documents if document in near or judged.get(document, 0) > 0)


def bump_chart(movement: Movement) -> dict[str, Any]:
    """Return the coordinates and texts of the picture of one query, which has at least one ranking."""
    documents, standings, judged = drawn_documents(movement), movement.standings(), movement.judged or {}
    deepest = max((at.place for document in documents for at in standings[document] if at), default=1)
    down = PlaceScale(max(deepest, 2))
    bottom = down(down.deepest) + _STEP / 2
    columns = max(_FEWEST_COLUMNS, len(movement.rankings))
    return {
        "deepest": DEEPEST,
        "columns": columns,
        "width": _LEFT + (columns - 1) * _COLUMN + _LABEL,
        "height": bottom + _BOTTOM,
        "top": _TOP,
        "bottom": bottom,
        "fold": down(_LINEAR) + _STEP / 2 if deepest > _LINEAR else None,
        "ticks": [(down(place), place) for place in down.ticks()],
        "rankings": [(_LEFT + column * _COLUMN, ranking) for column, ranking in enumerate(movement.rankings)],
        # Later elements are drawn over earlier ones: the more relevant a document, the later.
        "documents": [
            _line(movement, document, standings[document], down)
            for document in sorted(documents, key=lambda document: judged.get(document, -1))
        ],
        "labels": list(_labels(movement, down)),
    }


def _line(movement: Movement, document: str, standings: Sequence[Standing | None], down: PlaceScale) -> DocumentLine:
    judged = movement.judged or {}
    grade = judged.get(document)
    relevant = grade is not None and grade > 0
    kind = "unjudged" if grade is None else "irrelevant"
    if relevant:
        kind = f"relevant shade-{shade(judged[document], max(judged.values()))}"
    last = max(column for column, at in enumerate(standings) if at)
    marks = [
        (_LEFT + column * _COLUMN, down(at.place), (8 if at.place <= _LINEAR else 4) if relevant else 2)
        for column, at in enumerate(standings)
        if at
    ]
    at = standings[last]
    crossed = standings[-1] is None and at is not None and (relevant or at.place <= _LINEAR)
    return DocumentLine(
        kind=kind,
        grade=grade,
        document=document,
        standings=standings,
        path=_curve([(x, y) for x, y, _ in marks]),
        marks=marks,
        cut=marks[-1][:2] if crossed else None,
    )


def _curve(spots: Sequence[tuple[float, float]]) -> str:
    """Return the path through the marks; a stage without the document is passed over."""
    parts = [f"M{spots[0][0]} {spots[0][1]}"]
    for (x1, y1), (x2, y2) in pairwise(spots):
        middle = (x1 + x2) / 2
        parts.append(f"C{middle} {y1} {middle} {y2} {x2} {y2}")
    return "".join(parts)


def _labels(movement: Movement, down: PlaceScale) -> Iterator[tuple[float, float, str]]:
    """Yield x, y and the id of each relevant document beside its last place, unless it would touch another's."""
    above = 0.0
    for place, document in enumerate(movement.rankings[-1].documents, 1):
        if (movement.judged or {}).get(document, 0) > 0 and down(place) - above >= _GAP:
            above = down(place)
            yield _LEFT + (len(movement.rankings) - 1) * _COLUMN + 12, above, document
