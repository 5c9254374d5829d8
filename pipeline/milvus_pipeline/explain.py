"""How the documents of one query move through the stages: the ranking after each of them, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from milvus_pipeline.context import Deadline, resolve_timeout
from milvus_pipeline.pipeline import Pipeline
from milvus_pipeline.records import Query, SearchResult, StageReport, StageStatus
from milvus_pipeline.run.loop import initial_results, unwrap

_BEGINNING = 160  # characters


@dataclass(frozen=True, slots=True)
class Ranking:
    """The documents of one query after one stage, best first.

    Args:
        stage: its name.
        type: its registered type.
        documents: ids of the hits, as strings.
        scores: the scores that this stage or its fallback gave them; None if it gave none.
        seconds: the query's share of the wall time of its batch in the stage, fallback included.
        status: of the stage: "ok", "partial", "skipped" or "failed".
        reason: why it is not "ok", as a message.
        stood_in: name of the fallback that did the work of a skipped stage.
        measures: of this ranking, by ir-measures name; empty without judgements.
    """

    stage: str
    type: str
    documents: tuple[str, ...]
    scores: tuple[float | None, ...]
    seconds: float = field(compare=False)
    status: StageStatus = "ok"
    reason: str | None = None
    stood_in: str | None = None
    measures: Mapping[str, float] = field(default_factory=dict)

    @property
    def places(self) -> dict[str, int]:
        """The place of each document, from 1."""
        return {document: place for place, document in enumerate(self.documents, 1)}


class Standing(NamedTuple):
    """Where a document is in a ranking: its place, from 1, and its score; None if the stage gave it none."""

    place: int
    score: float | None


@dataclass(frozen=True, slots=True)
class Movement:
    """One query's rankings, stage by stage, from the first stage with hits.

    Args:
        system: name of the pipeline, or of the variant of it.
        query_id: the query's.
        query: its text.
        rankings: in the order of the stages.
        beginnings: the first words of each document in a ranking.
        judged: grade of every judged document, found or not; None without judgements.
        before: the stages before the first with hits; their rankings are empty.
    """

    system: str
    query_id: str
    query: str
    rankings: tuple[Ranking, ...]
    beginnings: Mapping[str, str] = field(default_factory=dict)
    judged: Mapping[str, int] | None = None
    before: tuple[Ranking, ...] = ()

    @property
    def documents(self) -> tuple[str, ...]:
        """Every document of a ranking: the last ranking in its order, then what each stage cut, the last first."""
        latest_first = (document for ranking in reversed(self.rankings) for document in ranking.documents)
        return tuple(dict.fromkeys(latest_first))

    @property
    def missed(self) -> tuple[str, ...]:
        """Relevant documents that no stage found, the most relevant first."""
        found = {document for ranking in self.rankings for document in ranking.documents}
        judged = self.judged or {}
        missed = (document for document, grade in judged.items() if grade > 0 and document not in found)
        return tuple(sorted(missed, key=lambda document: -judged[document]))

    def standings(self) -> dict[str, list[Standing | None]]:
        """Return for each document its standing after each stage, None if it is not in that ranking."""
        found: dict[str, list[Standing | None]] = {name: [None] * len(self.rankings) for name in self.documents}
        for number, ranking in enumerate(self.rankings):
            for place, (document, score) in enumerate(zip(ranking.documents, ranking.scores, strict=True), 1):
                found[document][number] = Standing(place, score)
        return found

    def cut_by(self, document: str) -> str | None:
        """Return the name of the stage that cut the document; None if it is in the last ranking."""
        last = max((place for place, ranking in enumerate(self.rankings) if document in ranking.documents), default=-1)
        return self.rankings[last + 1].stage if last + 1 < len(self.rankings) else None


def movement(
    system: str,
    after: Sequence[SearchResult],
    *,
    judged: Mapping[str, int] | None = None,
    measures: Sequence[Mapping[str, float]] = (),
) -> Movement:
    """Return the movement of one query's documents.

    Args:
        system: name of the pipeline.
        after: the query's result after each stage, in the order of the stages.
        judged: grade by document id.
        measures: of the ranking after each stage; empty without judgements.
    """
    before: list[Ranking] = []
    rankings: list[Ranking] = []
    beginnings: dict[str, str] = {}
    known = 0
    for number, result in enumerate(after):
        reports = result.reports[known:]
        known = len(result.reports)
        if not reports:
            break  # the query failed before this stage
        ranking = _ranking(result, reports, measures[number] if measures else {})
        if result.hits or rankings:
            rankings.append(ranking)
        else:
            before.append(ranking)
        beginnings.update({str(hit.id): (hit.text or "")[:_BEGINNING] for hit in result.hits})
    query = after[-1].query
    return Movement(system, query.id or "", query.text, tuple(rankings), beginnings, judged, tuple(before))


def _ranking(result: SearchResult, reports: Sequence[StageReport], measures: Mapping[str, float]) -> Ranking:
    """The ranking after a stage. ``reports`` has the stage's own, then those of its fallbacks."""
    own, worked = reports[0], reports[-1]
    return Ranking(
        stage=own.stage,
        type=own.type,
        documents=tuple(str(hit.id) for hit in result.hits),
        scores=tuple(hit.scores.get(worked.stage) for hit in result.hits),
        seconds=sum(report.query_seconds for report in reports),
        status=own.status,
        reason=own.reason,
        stood_in=worked.stage if worked is not own and worked.status in ("ok", "partial") else None,
        measures=measures,
    )


def explain(
    pipeline: Pipeline,
    query: str | Query,
    *,
    timeout: float | None = None,
    judged: Mapping[str, int] | None = None,
) -> Movement:
    """Answer one query, and return how its documents moved through the stages.

    Args:
        pipeline: it is opened if necessary, and stays open.
        query: its text, or a Query.
        timeout: seconds that it may take; the pipeline's own by default.
        judged: grade by document id.

    Raises:
        QueryError: the query itself is wrong.
        StageError: a stage failed whose ``on_error`` is "raise".
    """
    seconds = resolve_timeout(timeout, pipeline.timeout)
    results = unwrap(initial_results([query]), return_errors=False)
    pipeline.open(seconds)
    deadline = Deadline.after(seconds)
    after: list[SearchResult] = []
    for place in range(len(pipeline.stages)):
        left = deadline.remaining()
        results = unwrap(pipeline.run_stages(results, place, place + 1, timeout=left), return_errors=False)
        after.append(results[0])
    return movement(pipeline.name, after, judged=judged)
