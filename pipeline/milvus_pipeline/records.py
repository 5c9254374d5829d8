"""The records that flow through a pipeline: Query in, SearchResult with its Hits and StageReports out.

They are slotted, frozen dataclasses rather than pydantic models: a batch makes thousands of them. A stage never
changes a record; it returns new ones, so that the input of a failed stage is still whole.
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
"""Details of a stage's report that depend on what was asked before, not on the query alone."""

Status = Literal["ok", "partial", "degraded", "failed"]
"""ok: every stage did its work; partial: a stage did part of it, since its time ran out or a score was missing;
degraded: a stage failed, and was skipped or stood in for; failed: the query has no usable result, see
``SearchResult.error``. Of several the last in this order counts."""

StageStatus = Literal["ok", "partial", "skipped", "failed"]


class Reason(NamedTuple):
    """Why a result is not what the pipeline would have made of it: which stage, in code and in words."""

    stage: str
    code: ReasonCode
    text: str


@dataclass(frozen=True, slots=True)
class Query:
    """One question to a pipeline.

    Args:
        text: what is asked. May be empty only where ``vector`` is given and no stage reads the text.
        vector: the query's embedding, ``(dim,)`` floats. An ``encode`` stage fills it where it is missing and
            leaves it alone where it is given.
        id: the caller's name for the query; written to outputs.
        filter: a Milvus boolean expression for this query alone; joined by ``and`` to the stage's own.
        filter_params: values for the ``{name}`` places of the filters; override the stage's.
        params: search parameters for this query alone, such as ``{"nprobe": 64}``; override the stage's.
    """

    text: str
    vector: Vector | None = field(default=None, compare=False, repr=False)
    id: str | None = None
    filter: str | None = None
    filter_params: Mapping[str, Any] = field(default_factory=dict, hash=False)
    params: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def with_vector(self, vector: Vector) -> Query:
        """A copy that carries this embedding."""
        return replace(self, vector=vector)


@dataclass(frozen=True, slots=True)
class Hit:
    """One document found for a query.

    Args:
        id: the primary key in the collection.
        text: the document's text, or None where the retrieval stage was told to bring none.
        score: the latest score the hit was given; ``scored_by`` names the stage that gave it.
        fields: the other output fields of the collection.
        scores: every score the hit was given, by stage name, in the order of the stages. Their scales differ
            (inner product, logit, probability), so compare within one stage only.
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
        """Name of the stage that gave ``score``; None for a hit that no stage has scored."""
        return next(reversed(self.scores), None)

    def ranked(self, stage: str, score: float | None, rank: int) -> Hit:
        """A copy with this stage's score and rank added; a score of None leaves ``score`` and ``scores`` alone."""
        ranks = {**self.ranks, stage: rank}
        if score is None:
            return Hit(self.id, self.text, self.score, self.fields, self.scores, ranks)
        return Hit(self.id, self.text, score, self.fields, {**self.scores, stage: score}, ranks)

    def with_text(self, text: str) -> Hit:
        """A copy with another text."""
        return Hit(self.id, text, self.score, self.fields, self.scores, self.ranks)

    def to_dict(self) -> dict[str, Any]:
        """The hit as plain data, in the shape of the JSONL output."""
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
        seconds: wall time of the stage, for the whole batch that the query was part of.
        hits_in: number of hits before the stage.
        hits_out: number of hits after it.
        status: "ok", "partial" (it did part of its work), "skipped" (it failed, and the pipeline went on without it,
            or with its fallback) or "failed".
        reason: why it is not "ok", in words.
        reason_code: the same for programs.
        fallback_for: name of the failed stage that this one stood in for.
        error: the exception that says so. Where a service failed, its ``__cause__`` is the ServiceError, with status,
            code and request id.
        warnings: what the reader of the result should know.
        details: figures of the stage's own, such as the tokens that a truncation cut; ``usage`` and ``planned``
            among them.
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
        """What the query cost at the stage's service, in the provider's own words; empty where it cost nothing."""
        return _figures(self.details.get("usage"))

    @property
    def planned(self) -> Mapping[str, int | float]:
        """What a dry run found that the stage would send: ``requests``, ``documents``, ``tokens``; else empty.

        Tokens are an estimate: the service counts with a tokenizer of its own, which is not at hand, and may count
        the query once for every document. Its price list and ``usage`` after a real run tell the truth.
        """
        return _figures(self.details.get("planned"))

    def to_dict(self, *, figures: bool = True) -> dict[str, Any]:
        """The report as plain data, in the shape of the JSONL output.

        Args:
            figures: with what differs from run to run though the work was the same: ``seconds``, ``batch_size``, and
                of the details ``usage`` and ``cached``.
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
    """A query with the hits found for it, best first, and a report of every stage that it went through.

    Two results are equal when query, hits, status and reports are; timings do not count.
    """

    query: Query
    hits: list[Hit] = field(default_factory=list)
    status: Status = "ok"
    reports: list[StageReport] = field(default_factory=list)
    error: PipelineError | None = field(default=None, compare=False)

    def __len__(self) -> int:
        return len(self.hits)

    def __bool__(self) -> bool:
        """True unless the query failed; a result without hits is still a result."""
        return self.status != "failed"

    def __iter__(self) -> Iterator[Hit]:
        return iter(self.hits)

    @property
    def texts(self) -> list[str]:
        """The texts of the hits, best first; hits without text are left out."""
        return [hit.text for hit in self.hits if hit.text is not None]

    @property
    def degraded(self) -> bool:
        """True where the result lacks a stage's work, or part of it: status is partial, degraded or failed."""
        return self.status != "ok"

    @property
    def reasons(self) -> list[Reason]:
        """Why the status is not "ok", stage by stage in the order they ran; empty where it is."""
        told = [
            Reason(report.stage, report.reason_code or "error", report.reason or "no reason was given")
            for report in self.reports
            if report.status != "ok"
        ]
        if self.error is not None and all(report.status != "failed" for report in self.reports):
            told.append(Reason("", self.error.reason_code, str(self.error)))  # it never came to a stage
        return told

    @property
    def warnings(self) -> list[str]:
        """The warnings of all stages, each led by its stage's name."""
        return [f"{report.stage}: {warning}" for report in self.reports for warning in report.warnings]

    @property
    def usage(self) -> dict[str, Mapping[str, int | float]]:
        """What the query cost, by stage: ``{"cohere": {"requests": 1, "search_units": 1}}``; also where it failed."""
        return {report.stage: report.usage for report in self.reports if report.usage}

    def report(self, stage: str) -> StageReport:
        """The report of the named stage. KeyError where no such stage ran."""
        for report in self.reports:
            if report.stage == stage:
                return report
        raise KeyError(f"no stage named {stage!r} reported; there are {[report.stage for report in self.reports]}")

    def with_hits(self, hits: Sequence[Hit]) -> SearchResult:
        """A copy with other hits."""
        return SearchResult(self.query, list(hits), self.status, self.reports, self.error)

    def with_query(self, query: Query) -> SearchResult:
        """A copy with another query (one that was given its vector, say)."""
        return SearchResult(query, self.hits, self.status, self.reports, self.error)

    def to_dict(self, *, figures: bool = True) -> dict[str, Any]:
        """The result as plain data: a line of the JSONL output.

        Args:
            figures: with what differs from run to run though the work was the same; see ``StageReport.to_dict``.
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
    """One document as a reranker called on its own returns it.

    Same members and same print as the PyMilvus model library's class of this name.

    Args:
        text: the document.
        score: its relevance; None where the reranker gave none.
        index: its position, from 0, in the list that was passed.
    """

    text: str
    score: float | None
    index: int

    def to_dict(self) -> dict[str, Any]:
        """The members as a dict."""
        return {"text": self.text, "score": self.score, "index": self.index}


def _figures(noted: object) -> dict[str, int | float]:
    """The finite numbers of what a stage noted. A plugin may have noted anything, and a sum must not trip over it."""
    if not isinstance(noted, Mapping):
        return {}
    return {
        str(word): number
        for word, number in noted.items()
        if isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number)
    }
