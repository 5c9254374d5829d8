"""What is told of a job: how far it is, what became of it, and that it has stopped at a failure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from milvus_pipeline.errors import PipelineError
from milvus_pipeline.jobs.figures import Figures


class JobProgress(NamedTuple):
    """How far a job is.

    Args:
        queries: number of queries done, in all runs of the job.
        before: how many of them were done before this run.
        failed: how many of them failed.
        opened_in: seconds that the pipeline took to open.
    """

    queries: int
    before: int
    failed: int
    opened_in: float


@dataclass(frozen=True, slots=True)
class JobReport:
    """What became of a job.

    Args:
        output: the file of results.
        manifest: the file that tells about the job, beside the output.
        queries: number of queries, each with one line in a JSONL output, and failed ones without a line in a TREC run.
        before: how many of them were done before this run; all of them where nothing was left to do.
        figures: counts by status and reason, usage and seconds by stage, of all runs together.
    """

    output: Path
    manifest: Path
    queries: int
    before: int
    figures: Figures

    @property
    def failed(self) -> int:
        """Number of queries that failed, or whose result could not be written."""
        return self.figures.failed


class StoppedError(PipelineError):
    """A job has stopped at a query that failed in a stage, as it was asked to."""
