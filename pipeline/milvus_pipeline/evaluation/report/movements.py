"""The section on single queries, prepared for the template: gains, losses, and the picture of each query."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from milvus_pipeline.evaluation.records import Evaluation
from milvus_pipeline.evaluation.report.bump import DEEPEST, bump_chart, drawn_documents, shade
from milvus_pipeline.explain import Movement, Standing
from milvus_pipeline.text import cut_text

_QUERY_CELLS: Final = 400
_BEGINNING_CELLS: Final = 150
_LEAST: Final = 0.0005  # differences below it are shown as 0


class DocumentRow(NamedTuple):
    """One document: its standing after each stage, None after stages that did not keep it."""

    document: str
    grade: int | None
    shade: int
    standings: Sequence[Standing | None]
    cut_by: str | None
    beginning: str


@dataclass(frozen=True, slots=True)
class MovementView:
    """One query: its picture, the relevant documents, all documents as a table."""

    anchor: str
    measure: str | None
    movement: Movement
    query: str
    first: float | None
    last: float | None
    picture: Mapping[str, Any] | None
    missed: Sequence[DocumentRow]
    rows: Sequence[DocumentRow]
    deepest: int = DEEPEST

    @property
    def gain(self) -> float | None:
        """The change of the measure since retrieval."""
        return None if self.first is None or self.last is None else self.last - self.first


def movement_groups(evaluation: Evaluation) -> list[tuple[str, list[MovementView]]]:
    """Return headings with their queries: gains and losses in the first measure, the largest first, then the rest."""
    measure = evaluation.measures[0] if evaluation.measures else None
    views = [_view(movement, measure, f"query-{number}") for number, movement in enumerate(evaluation.movements, 1)]
    views.sort(key=lambda view: -abs(view.gain or 0))
    gains = [view for view in views if (view.gain or 0) >= _LEAST]
    losses = [view for view in views if (view.gain or 0) <= -_LEAST]
    rest = [view for view in views if abs(view.gain or 0) < _LEAST]
    groups = [
        (f"Largest gains in {measure}", gains),
        (f"Largest losses in {measure}", losses),
        (f"No change in {measure}" if gains or losses else "Queries", rest),
    ]
    return [group for group in groups if group[1]]


def _view(movement: Movement, measure: str | None, anchor: str) -> MovementView:
    values = [ranking.measures[measure] for ranking in movement.rankings if measure and measure in ranking.measures]
    standings = movement.standings()
    return MovementView(
        anchor=anchor,
        measure=measure,
        movement=movement,
        query=cut_text(movement.query, _QUERY_CELLS),
        first=values[0] if values else None,
        last=values[-1] if values else None,
        picture=bump_chart(movement) if movement.rankings else None,
        missed=[_row(movement, document, ()) for document in movement.missed],
        rows=[_row(movement, document, standings[document]) for document in drawn_documents(movement)],
    )


def _row(movement: Movement, document: str, standings: Sequence[Standing | None]) -> DocumentRow:
    judged = movement.judged or {}
    grade = judged.get(document)
    return DocumentRow(
        document=document,
        grade=grade,
        shade=shade(grade, max(judged.values())) if grade else 0,
        standings=standings,
        cut_by=movement.cut_by(document),
        beginning=cut_text(movement.beginnings.get(document, ""), _BEGINNING_CELLS),
    )
