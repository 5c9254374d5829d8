"""How the documents of one query moved through the stages: the ranking after each of them, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from milvus_pipeline.pipeline import Pipeline
from milvus_pipeline.records import Query, SearchResult, StageStatus
from milvus_pipeline.running import settled, started

_BEGINNING = 160  # characters


@dataclass(frozen=True, slots=True)
class Ranking:
    """The documents of one query as they stood after one stage, best first.

    Args:
        stage: its name.
        type: its registered type.
        documents: ids of the hits, as texts.
        scores: what this stage gave each of them; None where it gave none.
        seconds: wall time of the stage, for the batch that the query was part of.
        status: what the stage did: "ok", "partial", "skipped" or "failed".
        reason: why it is not "ok", in words.
        measures: of this ranking, by ir-measures name, where judgements are at hand.
    """

    stage: str
    type: str
    documents: tuple[str, ...]
    scores: tuple[float | None, ...]
    seconds: float = field(compare=False)
    status: StageStatus = "ok"
    reason: str | None = None
    measures: Mapping[str, float] = field(default_factory=dict)

    def place(self, document: str) -> int | None:
        """The document's place, from 1; None where it is not in the ranking."""
        return self.documents.index(document) + 1 if document in self.documents else None


@dataclass(frozen=True, slots=True)
class Movement:
    """One query's rankings, stage by stage, from the first that gave hits.

    Args:
        system: name of the pipeline, or of the variant of it.
        query_id: the query's.
        query: its text.
        rankings: in the order of the stages.
        beginnings: the first words of each document that is in a ranking.
        judged: grade of every judged document, also of those that no stage found; None where there are no judgements.
    """

    system: str
    query_id: str
    query: str
    rankings: tuple[Ranking, ...]
    beginnings: Mapping[str, str] = field(default_factory=dict)
    judged: Mapping[str, int] | None = None

    @property
    def missed(self) -> tuple[str, ...]:
        """Documents judged relevant that no stage found, the most relevant first."""
        found = {document for ranking in self.rankings for document in ranking.documents}
        judged = self.judged or {}
        missed = (document for document, grade in judged.items() if grade > 0 and document not in found)
        return tuple(sorted(missed, key=lambda document: -judged[document]))


def movement(
    system: str,
    after: Sequence[SearchResult],
    *,
    judged: Mapping[str, int] | None = None,
    measures: Sequence[Mapping[str, float]] = (),
) -> Movement:
    """The movement that the results of one query show.

    Args:
        system: name of the pipeline.
        after: the query's result after each stage, in the order of the stages.
        judged: grade by document id.
        measures: of the ranking after each stage; as many as ``after``, or none.
    """
    rankings: list[Ranking] = []
    beginnings: dict[str, str] = {}
    for number, result in enumerate(after):
        report = result.reports[-1]
        if not result.hits and not rankings:
            continue
        documents = tuple(str(hit.id) for hit in result.hits)
        beginnings.update({str(hit.id): (hit.text or "")[:_BEGINNING] for hit in result.hits})
        rankings.append(
            Ranking(
                stage=report.stage,
                type=report.type,
                documents=documents,
                scores=tuple(hit.scores.get(report.stage) for hit in result.hits),
                seconds=report.seconds,
                status=report.status,
                reason=report.reason,
                measures=measures[number] if measures else {},
            )
        )
    query = after[-1].query
    return Movement(system, query.id or "", query.text, tuple(rankings), beginnings, judged)


def explain(pipeline: Pipeline, query: str | Query, *, timeout: float | None = None) -> Movement:
    """Answer one query, and show how each document moved through the stages.

    Args:
        pipeline: is opened where it is not.
        query: its text, or a Query.
        timeout: seconds that each stage may take; the pipeline's own by default.

    Raises:
        QueryError: the query itself is bad.
        StageError: a stage failed whose ``on_error`` is "raise".
    """
    after: list[SearchResult] = []
    results = settled(started([query]), return_errors=False)
    for place in range(len(pipeline.stages)):
        results = settled(pipeline.run_stages(results, place, place + 1, timeout=timeout), return_errors=False)
        after.append(results[0])
    return movement(pipeline.name, after)
