"""The section on single queries, prepared for the template: gains, losses, and the picture of each query."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from milvus_pipeline.evaluation.records import Evaluation
from milvus_pipeline.evaluation.report.bump import bump_chart, drawn_documents
from milvus_pipeline.explain import Movement

_LEAST: Final = 0.0005  # differences below it are shown as 0


class MovementView(NamedTuple):
    """One query: the measure after its first and its last stage, its picture, and the documents to list."""

    anchor: str
    movement: Movement
    measure: str
    first: float | None
    last: float | None
    picture: Mapping[str, Any] | None
    documents: Sequence[str]

    @property
    def gain(self) -> float | None:
        """The change of the measure since retrieval."""
        return None if self.first is None or self.last is None else self.last - self.first


def movement_groups(evaluation: Evaluation) -> list[tuple[str, list[MovementView]]]:
    """Return headings with their queries: gains and losses in the first measure, the largest first, then the rest."""
    measure = evaluation.measures[0]
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


def _view(movement: Movement, measure: str, anchor: str) -> MovementView:
    values = [ranking.measures[measure] for ranking in movement.rankings if measure in ranking.measures]
    first, last = (values[0], values[-1]) if values else (None, None)
    picture = bump_chart(movement) if movement.rankings else None
    return MovementView(anchor, movement, measure, first, last, picture, drawn_documents(movement))
