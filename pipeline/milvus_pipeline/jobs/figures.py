"""What became of a job's queries, what they cost and how long they took: sums that do not grow with the job."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from milvus_pipeline.errors import PipelineError
from milvus_pipeline.records import SearchResult, StageReport


class StageTotals(BaseModel):
    """What one stage did in a job."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    queries: int = 0
    """Number of queries that came to the stage."""
    seconds: float = 0.0
    """Seconds that the stage worked, over all batches."""
    usage: dict[str, int | float] = {}
    """What its service counted, in the provider's words, with the requests and retries; empty where it has none."""
    cached: int = 0
    """Number of texts whose score came from the stage's score cache."""

    def add(self, report: StageReport) -> None:
        """Add what the stage did for one query."""
        self.queries += 1
        self.seconds += report.query_seconds
        for word, number in report.usage.items():
            self.usage[word] = self.usage.get(word, 0) + number
        cached = report.details.get("cached", 0)
        self.cached += cached if isinstance(cached, int) else 0


class Figures(BaseModel):
    """The sums of a job, of all its runs together."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    status: dict[str, int] = {}
    """Number of queries by status: ok, partial, degraded, failed."""
    reasons: dict[str, int] = {}
    """Number of times that a stage did not do all of its work, or a query could not be run, by reason code."""
    seconds: float = 0.0
    """Seconds that the job worked; opening the pipeline, and work that was lost and done again, are not in it."""
    rate: float = 0.0
    """Queries a second."""
    stages: dict[str, StageTotals] = {}
    """By stage: ``queries`` that came to it, ``seconds`` it worked, ``usage`` of its service, ``cached`` scores."""

    @property
    def queries(self) -> int:
        """Number of queries."""
        return sum(self.status.values())

    @property
    def failed(self) -> int:
        """Number of queries that failed, or whose result could not be written."""
        return self.status.get("failed", 0)

    def plus(self, results: Sequence[SearchResult], unwritten: Sequence[PipelineError | None]) -> Figures:
        """These figures and those of a batch.

        Args:
            results: the batch's.
            unwritten: for each, why it could not be written; such a query counts as failed.
        """
        sums = self.model_copy(deep=True)
        for result, error in zip(results, unwritten, strict=True):
            _add(sums.status, "failed" if error else result.status)
            for code in [reason.code for reason in result.reasons] + ([error.reason_code] if error else []):
                _add(sums.reasons, code)
            for report in result.reports:
                totals = sums.stages.get(report.stage)
                if totals is None:
                    totals = sums.stages[report.stage] = StageTotals()
                totals.add(report)
        return sums

    def timed(self, seconds: float) -> Figures:
        """A copy that says how long it took."""
        rate = self.queries / seconds if seconds > 0 else 0.0
        stages = {
            name: totals.model_copy(update={"seconds": round(totals.seconds, 6)})
            for name, totals in self.stages.items()
        }
        return self.model_copy(update={"seconds": round(seconds, 3), "rate": round(rate, 3), "stages": stages})


def _add(counts: dict[str, int], word: str) -> None:
    counts[word] = counts.get(word, 0) + 1
