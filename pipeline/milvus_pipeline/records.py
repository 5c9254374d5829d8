"""The records that flow through a pipeline: queries in, results with hits and stage reports out.

They are slotted, frozen dataclasses rather than pydantic models, as a batch makes thousands of them. A stage never
changes a record; it returns new ones, so that the input of a failed stage is still intact.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from milvus_pipeline.errors import PipelineError, ReasonCode

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Vector: TypeAlias = Sequence[float] | npt.NDArray[np.float32]

_RUN_DETAILS = frozenset({"usage", "cached"})
"""Details of a stage's report that depend on earlier queries, too."""

Status = Literal["ok", "partial", "degraded", "failed"]
"""ok: every stage did its work; partial: a stage did part of it, since its time ran out or a score was missing;
degraded: a stage failed, and was skipped or replaced by its fallback; failed: the query has no usable result, see
``SearchResult.error``. The worst of several counts."""

StageStatus = Literal["ok", "partial", "skipped", "failed"]


class Reason(NamedTuple):
    """Why a result is incomplete: the stage, a code for programs, and a message."""

    stage: str
    code: ReasonCode
    text: str


@dataclass(frozen=True, slots=True)
class Query:
    """One question to a pipeline.

    Args:
        text: the question. May be empty only if ``vector`` is given and no stage reads the text.
        vector: the query's embedding, ``(dim,)`` floats. An ``encode`` stage fills it unless it is given.
        id: the caller's name for the query; written to outputs.
        filter: a Milvus boolean expression for this query alone; combined with the stage's own by ``and``.
        filter_params: values for the ``{name}`` placeholders of the filters; override the stage's.
        params: search parameters for this query alone, such as ``{"nprobe": 64}``; override the stage's.
    """

    text: str
    vector: Vector | None = field(default=None, compare=False, repr=False)
    id: str | None = None
    filter: str | None = None
    filter_params: Mapping[str, Any] = field(default_factory=dict, hash=False)
    params: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def with_vector(self, vector: Vector) -> Query:
        """Return a copy with this embedding."""
        return replace(self, vector=vector)


@dataclass(frozen=True, slots=True)
class Hit:
    """One document found for a query.

    Args:
        id: the primary key in the collection.
        text: the document's text; None if the retrieval stage does not fetch it.
        score: the latest score; ``scored_by`` names the stage that gave it.
        fields: the other output fields of the collection.
        scores: all scores by stage name, in the order of the stages. Their scales differ (inner product, logit,
            probability), so compare within one stage only.
        ranks: the hit's place, from 1, after each stage that ranked it.
    """

    id: int | str
    text: str | None
    score: float
    fields: Mapping[str, Any] = field(default_factory=dict, hash=False)
    scores: dict[str, float] = field(default_factory=dict, hash=False)
    ranks: dict[str, int] = field(default_factory=dict, hash=False)

    @property
    def scored_by(self) -> str | None:
        """Name of the stage that gave ``score``; None if no stage has scored the hit."""
        return next(reversed(self.scores), None)

    def ranked(self, stage: str, score: float | None, rank: int) -> Hit:
        """Return a copy with this stage's score and rank; a score of None changes only the ranks."""
        ranks = {**self.ranks, stage: rank}
        if score is None:
            return Hit(self.id, self.text, self.score, self.fields, self.scores, ranks)
        return Hit(self.id, self.text, score, self.fields, {**self.scores, stage: score}, ranks)

    def with_text(self, text: str) -> Hit:
        """Return a copy with another text."""
        return Hit(self.id, text, self.score, self.fields, self.scores, self.ranks)

    def to_dict(self) -> dict[str, Any]:
        """Return the hit as plain data, as in the JSONL output."""
        return {
            "id": self.id,
            "score": self.score,
            "text": self.text,
            "scores": dict(self.scores),
            "ranks": dict(self.ranks),
            "fields": dict(self.fields),
        }


@dataclass(frozen=True, slots=True)
class StageReport:
    """What one stage did for one query.

    Args:
        stage: the stage's name in the pipeline.
        type: its registered type.
        seconds: wall time of the stage for the query's whole batch.
        hits_in: number of hits before the stage.
        hits_out: number of hits after it.
        status: "ok", "partial" (it did part of its work), "skipped" (it failed, and the pipeline went on without it
            or with its fallback) or "failed".
        reason: why it is not "ok", as a message.
        reason_code: the same, for programs.
        fallback_for: name of the failed stage that this one replaced.
        error: the exception, if the stage failed. If a service failed, its ``__cause__`` is the ServiceError, with
            status, code and request id.
        warnings: what a reader of the result should know.
        details: the stage's own figures, such as the tokens that a truncation cut; with ``usage`` and ``planned``.
        batch_size: number of queries that shared ``seconds``.
    """

    stage: str
    type: str
    seconds: float = field(compare=False)
    hits_in: int
    hits_out: int
    status: StageStatus = "ok"
    reason: str | None = None
    reason_code: ReasonCode | None = None
    fallback_for: str | None = None
    warnings: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    batch_size: int = field(default=1, compare=False)
    error: PipelineError | None = field(default=None, compare=False, repr=False)

    @property
    def query_seconds(self) -> float:
        """The query's share of ``seconds``."""
        return self.seconds / max(self.batch_size, 1)

    @property
    def usage(self) -> Mapping[str, int | float]:
        """What the query cost at the stage's service, in the provider's own words; empty if nothing."""
        return _figures(self.details.get("usage"))

    @property
    def planned(self) -> Mapping[str, int | float]:
        """What the stage would send, by a dry run: ``requests``, ``documents``, ``tokens``; else empty.

        Tokens are an estimate: the service counts with its own tokenizer, and may count the query once for each
        document. ``usage`` after a real run is exact.
        """
        return _figures(self.details.get("planned"))

    def to_dict(self, *, figures: bool = True) -> dict[str, Any]:
        """Return the report as plain data, as in the JSONL output.

        Args:
            figures: include what differs between runs of the same work: ``seconds``, ``batch_size``, and the details
                ``usage`` and ``cached``.
        """
        data: dict[str, Any] = {
            "stage": self.stage,
            "type": self.type,
            "seconds": round(self.seconds, 6),
            "hits_in": self.hits_in,
            "hits_out": self.hits_out,
            "status": self.status,
            "reason": self.reason,
            "reason_code": self.reason_code,
            "fallback_for": self.fallback_for,
            "warnings": list(self.warnings),
            "details": dict(self.details),
            "batch_size": self.batch_size,
        }
        if not figures:
            del data["seconds"], data["batch_size"]
            data["details"] = {key: value for key, value in self.details.items() if key not in _RUN_DETAILS}
        return data


@dataclass(frozen=True, slots=True)
class SearchResult:
    """A query with its hits, best first, and a report of every stage that it went through.

    Two results are equal if query, hits, status and reports are; timings do not count.
    """

    query: Query
    hits: list[Hit] = field(default_factory=list)
    status: Status = "ok"
    reports: list[StageReport] = field(default_factory=list)
    error: PipelineError | None = field(default=None, compare=False)

    def __len__(self) -> int:
        return len(self.hits)

    def __bool__(self) -> bool:
        """Whether the query succeeded; a result without hits is true."""
        return self.status != "failed"

    def __iter__(self) -> Iterator[Hit]:
        return iter(self.hits)

    @property
    def texts(self) -> list[str]:
        """The texts of the hits, best first, without hits that have no text."""
        return [hit.text for hit in self.hits if hit.text is not None]

    @property
    def degraded(self) -> bool:
        """Whether the work of a stage is missing, or part of it: status is partial, degraded or failed."""
        return self.status != "ok"

    @property
    def reasons(self) -> list[Reason]:
        """Why the status is not "ok", in the order the stages ran; empty if it is."""
        reasons = [
            Reason(report.stage, report.reason_code or "error", report.reason or "no reason was given")
            for report in self.reports
            if report.status != "ok"
        ]
        if self.error is not None and all(report.status != "failed" for report in self.reports):
            reasons.append(Reason("", self.error.reason_code, str(self.error)))  # it failed before the first stage
        return reasons

    @property
    def warnings(self) -> list[str]:
        """The warnings of all stages, each with its stage's name in front."""
        return [f"{report.stage}: {warning}" for report in self.reports for warning in report.warnings]

    @property
    def usage(self) -> dict[str, Mapping[str, int | float]]:
        """What the query cost, by stage, even if it failed: ``{"cohere": {"requests": 1, "search_units": 1}}``."""
        return {report.stage: report.usage for report in self.reports if report.usage}

    def report(self, stage: str) -> StageReport:
        """Return the report of the named stage. KeyError if no such stage ran."""
        for report in self.reports:
            if report.stage == stage:
                return report
        raise KeyError(f"no report of a stage {stage!r}; there are {[report.stage for report in self.reports]}")

    def with_hits(self, hits: Sequence[Hit]) -> SearchResult:
        """Return a copy with other hits."""
        return SearchResult(self.query, list(hits), self.status, self.reports, self.error)

    def with_query(self, query: Query) -> SearchResult:
        """Return a copy with another query, for example one that got its vector."""
        return SearchResult(query, self.hits, self.status, self.reports, self.error)

    def to_dict(self, *, figures: bool = True) -> dict[str, Any]:
        """Return the result as plain data: a line of the JSONL output.

        Args:
            figures: include what differs between runs of the same work; see ``StageReport.to_dict``.
        """
        data: dict[str, Any] = {
            "query": {"id": self.query.id, "text": self.query.text},
            "status": self.status,
            "reasons": [reason._asdict() for reason in self.reasons],
            "hits": [hit.to_dict() for hit in self.hits],
            "reports": [report.to_dict(figures=figures) for report in self.reports],
        }
        if self.error is not None:
            data["error"] = str(self.error)
        return data


class RerankJob(NamedTuple):
    """One query with the texts to score for it.

    Args:
        query: its text.
        texts: to score.
        top_k: how many of the best are wanted, so that a reranker may leave others unscored; None for all.
    """

    query: str
    texts: Sequence[str]
    top_k: int | None = None


@dataclass(frozen=True, slots=True)
class RerankResult:
    """One document of a reranker that is called without a pipeline.

    It has the members and the repr of the PyMilvus model library's class of this name.

    Args:
        text: the document.
        score: its relevance; None if the reranker left it unscored.
        index: its position, from 0, in the list that was passed.
    """

    text: str
    score: float | None
    index: int

    def to_dict(self) -> dict[str, Any]:
        """Return the members as a dict."""
        return {"text": self.text, "score": self.score, "index": self.index}


def _figures(value: object) -> dict[str, int | float]:
    """The finite numbers of a detail, which a plugin may have set to anything."""
    if not isinstance(value, Mapping):
        return {}
    return {
        str(word): number
        for word, number in value.items()
        if isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number)
    }
