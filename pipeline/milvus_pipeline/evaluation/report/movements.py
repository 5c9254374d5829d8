"""The single queries, prepared for the template: what was gained most, what was lost most, each with its picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from milvus_pipeline.evaluation.records import Evaluation
from milvus_pipeline.evaluation.report.bump import DEEPEST, bump_chart, drawn, shade
from milvus_pipeline.evaluation.report.svg import cut
from milvus_pipeline.explain import Movement

_QUERY_CELLS: Final = 400
_BEGINNING_CELLS: Final = 150
_LEAST: Final = 0.0005  # differences below this are shown as 0


@dataclass(frozen=True, slots=True)
class DocumentRow:
    """One document: ``places`` and ``scores`` after each stage, None where it was not there or had no score."""

    document: str
    grade: int | None
    shade: int
    places: Sequence[int | None]
    scores: Sequence[float | None]
    cut_by: str | None
    beginning: str


@dataclass(frozen=True, slots=True)
class MovementView:
    """One query: its picture, the relevant documents, all documents as a table."""

    anchor: str
    movement: Movement
    query: str
    first: float | None
    last: float | None
    picture: str
    relevant: Sequence[DocumentRow]
    missed: Sequence[DocumentRow]
    rows: Sequence[DocumentRow]
    left_out: int
    deepest: int = DEEPEST

    @property
    def gain(self) -> float | None:
        """What the stages behind retrieval made of the measure."""
        return None if self.first is None or self.last is None else self.last - self.first


@dataclass(frozen=True, slots=True)
class Group:
    """Movements under a heading."""

    heading: str
    views: Sequence[MovementView]


def movement_groups(evaluation: Evaluation) -> list[Group]:
    """The movements by what the stages did to the first measure: gains, losses, the rest; the largest first."""
    measure = evaluation.measures[0] if evaluation.measures else None
    views = [_view(movement, measure, f"query-{number}") for number, movement in enumerate(evaluation.movements, 1)]
    gains = [view for view in views if view.gain is not None and view.gain >= _LEAST]
    losses = [view for view in views if view.gain is not None and view.gain <= -_LEAST]
    rest = [view for view in views if view.gain is None or abs(view.gain) < _LEAST]
    groups = [
        Group(f"What gained most in {measure}", sorted(gains, key=lambda view: -(view.gain or 0))),
        Group(f"What lost most in {measure}", sorted(losses, key=lambda view: view.gain or 0)),
        Group(f"No change in {measure}" if gains or losses else "Queries", rest),
    ]
    return [group for group in groups if group.views]


def _view(movement: Movement, measure: str | None, anchor: str) -> MovementView:
    values = [ranking.measures[measure] for ranking in movement.rankings if measure and measure in ranking.measures]
    documents = drawn(movement)
    places = [ranking.places for ranking in movement.rankings]
    rows = [_row(movement, places, document) for document in documents]
    relevant = [row for row in rows if row.grade is not None and row.grade > 0]
    return MovementView(
        anchor=anchor,
        movement=movement,
        query=cut(movement.query, _QUERY_CELLS),
        first=values[0] if values else None,
        last=values[-1] if values else None,
        picture=bump_chart(movement, measure) if movement.rankings else "",
        relevant=relevant,
        missed=[_row(movement, places, document) for document in movement.missed],
        rows=rows,
        left_out=len(movement.documents) - len(documents),
    )


def _row(movement: Movement, places: Sequence[dict[str, int]], document: str) -> DocumentRow:
    judged = movement.judged or {}
    grade = judged.get(document)
    at = [here.get(document) for here in places]
    scores = [
        None if place is None else ranking.scores[place - 1]
        for ranking, place in zip(movement.rankings, at, strict=True)
    ]
    return DocumentRow(
        document=document,
        grade=grade,
        shade=shade(grade, max(judged.values())) if grade else 0,
        places=at,
        scores=scores,
        cut_by=movement.cut_by(document),
        beginning=cut(movement.beginnings.get(document, ""), _BEGINNING_CELLS),
    )
