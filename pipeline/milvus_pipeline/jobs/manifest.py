"""The manifest of a job: what it was asked to do, with what, how far it is, and what became of the queries."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from milvus_pipeline.config.registry import GROUP
from milvus_pipeline.errors import InputError, PipelineError
from milvus_pipeline.extras import DISTRIBUTION
from milvus_pipeline.files.plain import json_text, plain
from milvus_pipeline.pipeline import Pipeline
from milvus_pipeline.problems import problems_of
from milvus_pipeline.records import SearchResult, StageReport
from milvus_pipeline.stage import Stage


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


_PACKAGES: Final = (
    DISTRIBUTION,
    "numpy",
    "pymilvus",
    "milvus-lite",
    "torch",
    "transformers",
    "tokenizers",
    "pymilvus.model",
    "httpx",
)


def config_of(pipeline: Pipeline) -> dict[str, Any]:
    """The configuration as a manifest holds it."""
    config: dict[str, Any] = plain(pipeline.to_config())
    return config


def identity_of(pipeline: Pipeline) -> dict[str, dict[str, Any]]:
    """What the stages of an open pipeline work with, by their names, fallbacks included.

    A stage that says nothing of itself is left out.

    Raises:
        StageError: it could not be found out.
    """
    told = {stage.name: plain(dict(stage.identity())) for stage in _members(pipeline)}
    return {name: identity for name, identity in told.items() if identity}


def versions_of(pipeline: Pipeline) -> dict[str, str]:
    """Of Python, of the packages that compute and search, and of those that bring the stages, where installed."""
    found = {"python": platform.python_version(), **_installed()}
    brought = _brought()
    for stage in _members(pipeline):
        if stage.type in brought:
            package, its_version = brought[stage.type]
            found.setdefault(package, its_version)
    return found


@cache
def _installed() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


@cache
def _brought() -> dict[str, tuple[str, str]]:
    """By a stage's type the package that brings it, and its version."""
    points = entry_points(group=GROUP)
    return {point.name: (point.dist.name, point.dist.version) for point in points if point.dist is not None}


def _members(pipeline: Pipeline) -> list[Stage]:
    return [member for stage in pipeline.stages for member in stage.family()]


State = Literal["running", "interrupted", "failed", "complete"]
"""running: at work, or killed; interrupted: by Ctrl-C or SIGTERM; failed: by an error; complete: all queries done."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class Input(_Part):
    """Where the queries came from."""

    path: str | None
    """The file, ``-`` for stdin; null where the queries did not come from a single file."""
    format: str | None
    """How it was read: lines, jsonl or tsv; null where there is no file."""


class Output(_Part):
    """Where the results went."""

    path: str
    """The file, as it was named."""
    format: str
    """jsonl or trec."""
    gzip: bool
    """Whether it is compressed: one gzip member a batch."""


class Options(_Part):
    """What the job was told besides the configuration; the same when it is resumed."""

    batch_size: int
    """Queries that went through the pipeline together."""
    timeout: float | None
    """Seconds that a batch had; null for the configuration's own."""
    bad_lines: str
    """What was done with lines that are no queries: report, skip or fatal."""
    figures: bool
    """Whether lines hold what differs from run to run."""


class Times(_Part):
    """When, in UTC."""

    began: str
    """When the job began."""
    written: str
    """When this manifest was written."""
    ended: str | None = None
    """When the job was complete; null where it is not."""


class Change(_Part):
    """What was different when the job was resumed, and let through."""

    queries: int
    """Number of queries that were done before."""
    differences: list[str]
    """Place by place, what was and what is."""


class Progress(_Part):
    """The commit point: what is surely done. A job that is resumed goes on from here."""

    queries: int = Field(ge=0)
    """Number of queries done, bad lines included."""
    bytes: int = Field(ge=0)
    """Size of their results in the output."""
    input_sha256: str
    """Digest of these queries: of their ids, texts, filters, parameters and vectors, however they were written down."""
    output_sha256: str
    """Digest of these bytes; of a complete job's output it is what ``sha256sum`` says."""


class Point(_Part):
    """A commit point with the sums up to it."""

    progress: Progress
    """As above."""
    figures: Figures
    """As above."""


class Manifest(_Part):
    """What stands in OUTPUT.manifest.json."""

    manifest: Literal[1] = 1
    """Version of this layout."""
    state: State
    """running (or killed), interrupted, failed, complete."""
    input: Input
    """Where the queries came from."""
    output: Output
    """Where the results went."""
    options: Options
    """What the job was told besides the configuration."""
    times: Times
    """When it began, was last heard of, and ended; in UTC."""
    progress: Progress
    """The commit point: how far the output is good."""
    figures: Figures
    """The sums up to the commit point."""
    resumptions: int = 0
    """How often the job was resumed."""
    changes: list[Change] = []
    """What was different when it was resumed, and let through; empty where nothing was."""
    identity: dict[str, dict[str, Any]]
    """By stage: what it works with beyond its configuration, such as a model's revision or a collection's row count."""
    versions: dict[str, str]
    """Of Python, of the packages that compute and search, and of those that bring the stages."""
    config: dict[str, Any]
    """The pipeline's configuration, with the values that variables had; it holds no secrets."""
    whole_batches: Point | None = None
    """Of a complete job whose last batch was not full: the commit point before it. A longer input goes on there."""

    @property
    def goes_on_from(self) -> Point:
        """Where the job goes on when it is resumed: behind the last batch that was full."""
        return self.whole_batches or Point(progress=self.progress, figures=self.figures)


def manifest_path(output: Path) -> Path:
    """Where the manifest of an output stands: beside it, with ``.manifest.json`` behind its name."""
    return output.with_name(output.name + ".manifest.json")


def fresh_path(manifest_at: Path) -> Path:
    """Where a manifest is written before it takes the place of the old one."""
    return manifest_at.with_name(manifest_at.name + ".new")


def now() -> str:
    """The time in UTC, to the second: ``2026-11-23T08:22:57Z``."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def read_manifest(path: Path) -> Manifest | None:
    """The manifest in a file; None where there is no file.

    Raises:
        InputError: it cannot be read, or is no manifest.
    """
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", place=str(path)) from error
    try:
        return Manifest.model_validate_json(text, strict=True)
    except ValidationError as error:
        raise InputError(
            f"is damaged, or no manifest of this version: {problems_of(error, Manifest)[0]}",
            ("without it the job cannot be resumed: put it back as it was, or begin anew with --overwrite"),
            place=str(path),
        ) from error


def write_manifest(path: Path, manifest: Manifest, mode: int) -> None:
    """Put the manifest in the place of the old one, whole or not at all, also where the machine stops meanwhile.

    Args:
        path: where to.
        manifest: what to write.
        mode: permissions of the file.

    Raises:
        OSError: it cannot be written; the old one is as it was.
    """
    fresh = fresh_path(path)
    try:
        fresh.unlink(missing_ok=True)  # left by a job that was killed here; the output's lock is held
        # A path may have bytes that are no UTF-8; nothing is compared by it.
        with fresh.open("x", encoding="utf-8", errors="replace", newline="\n") as file:
            os.fchmod(file.fileno(), mode)
            file.write(json_text(manifest.model_dump(mode="json"), indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except OSError:
        fresh.unlink(missing_ok=True)
        raise
