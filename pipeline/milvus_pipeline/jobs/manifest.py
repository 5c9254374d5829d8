"""The manifest of a job: what it has to do, with what, how far it is, and how the queries ended."""

from __future__ import annotations

import os
import platform
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, ValidationError

from milvus_pipeline.config.registry import registry
from milvus_pipeline.errors import InputError, PipelineError
from milvus_pipeline.extras import DISTRIBUTION
from milvus_pipeline.files.plain import json_text, plain
from milvus_pipeline.files.queries import BadLines, InputFormat
from milvus_pipeline.files.results import OutputFormat
from milvus_pipeline.pipeline import Pipeline
from milvus_pipeline.problems import problems_of
from milvus_pipeline.records import SearchResult, StageReport

Rounded: TypeAlias = Annotated[float, PlainSerializer(lambda number: round(number, 6))]
"""A number that is written with six decimals."""


class StageTotals(BaseModel):
    """What one stage did in a job."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    queries: int = 0
    """Number of queries that reached the stage."""
    seconds: Rounded = 0.0
    """Seconds that the stage worked, over all batches."""
    usage: dict[str, int | float] = {}
    """What its service counted, in the provider's words, with requests and retries; empty without a service."""
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

    status: Counter[str] = Counter()
    """Number of queries by status: ok, partial, degraded, failed."""
    reasons: Counter[str] = Counter()
    """By reason code, how often a stage did not do all of its work or a query could not be run."""
    seconds: Rounded = 0.0
    """Seconds that the job worked; opening the pipeline, and work that was lost and done again, are not in it."""
    rate: Rounded = 0.0
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
        return self.status["failed"]

    def plus(
        self, results: Sequence[SearchResult], unwritten: Sequence[PipelineError | None], seconds: float
    ) -> Figures:
        """Return these figures and those of a batch added.

        Args:
            results: the batch's.
            unwritten: for each, why it could not be written, or None; such a query counts as failed.
            seconds: that the job has worked, this batch included.
        """
        sums = self.model_copy(deep=True)
        for result, error in zip(results, unwritten, strict=True):
            sums.status["failed" if error else result.status] += 1
            sums.reasons.update(reason.code for reason in result.reasons)
            if error:
                sums.reasons[error.reason_code] += 1
            for report in result.reports:
                sums.stages.setdefault(report.stage, StageTotals()).add(report)
        sums.seconds = seconds
        sums.rate = sums.queries / seconds
        return sums


_PACKAGES: Final = (
    "numpy",
    "pymilvus",
    "milvus-lite",
    "torch",
    "transformers",
    "tokenizers",
    "pymilvus.model",
    "httpx",
)


def identity_of(pipeline: Pipeline) -> dict[str, dict[str, Any]]:
    """Return what the stages of an open pipeline work with, by name, fallbacks included and empty ones left out.

    Raises:
        StageError: it could not be found out.
    """
    found = {member.name: plain(dict(member.identity())) for stage in pipeline.stages for member in stage.family()}
    return {name: identity for name, identity in found.items() if identity}


def versions_of(pipeline: Pipeline) -> dict[str, str]:
    """Return the versions of Python, of the packages that compute and search, and of those with the stages."""
    found = {"python": platform.python_version()}
    for name in (DISTRIBUTION, *_PACKAGES):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    for stage in pipeline.stages:
        for member in stage.family():
            if package := registry.package_of(type(member)):
                found.setdefault(*package)
    return found


State = Literal["running", "interrupted", "failed", "complete"]
"""running: at work, or killed; interrupted: by Ctrl-C or SIGTERM; failed: by an error; complete: all are done."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class Input(_Part):
    """Where the queries came from."""

    path: str | None
    """The file, ``-`` for stdin; null if the queries did not come from a single file."""
    format: InputFormat | None
    """How it was read: lines, jsonl or tsv; null if there is no file."""


class Output(_Part):
    """Where the results went."""

    path: str
    """The file, as it was given."""
    format: OutputFormat
    """jsonl or trec."""
    gzip: bool
    """Whether it is gzipped: one member a batch."""


class Options(_Part):
    """The options of the job besides the configuration; the same when it is resumed."""

    batch_size: int = Field(ge=1, strict=True)
    """Queries that went through the pipeline together."""
    timeout: float | None
    """Seconds that a batch may take; null for the configuration's own."""
    bad_lines: BadLines
    """What was done about lines that are not queries: report, skip or fatal."""
    figures: bool
    """Whether lines include what differs from run to run."""


class Times(_Part):
    """The times of the job, in UTC."""

    began: str
    """When the job started."""
    written: str
    """When this manifest was written."""
    ended: str | None = None
    """When the job was complete; null if it is not."""


class Change(_Part):
    """Differences that were accepted when the job was resumed."""

    queries: int
    """Number of queries that were done before."""
    differences: list[str]
    """Place by place, what was and what is."""


class Progress(_Part):
    """The commit point: what is certainly done. A resumed job goes on from here."""

    queries: int = Field(ge=0)
    """Number of queries done, bad lines included."""
    bytes: int = Field(ge=0)
    """Size of their results in the output."""
    input_sha256: str
    """Digest of the ids, texts, filters, parameters and vectors of these queries, independent of the file format."""
    output_sha256: str
    """Digest of these bytes; for a complete output it is what ``sha256sum`` prints."""


class Point(_Part):
    """A commit point with the sums up to it."""

    progress: Progress
    """As above."""
    figures: Figures
    """As above."""


class Manifest(_Part):
    """The content of OUTPUT.manifest.json."""

    manifest: Literal[1] = 1
    """Version of this layout."""
    state: State
    """running (or killed), interrupted, failed, complete."""
    input: Input
    """Where the queries came from."""
    output: Output
    """Where the results went."""
    options: Options
    """The options of the job besides the configuration."""
    times: Times
    """When it started, when this was written, and when it ended; in UTC."""
    progress: Progress
    """The commit point: how much of the output is valid."""
    figures: Figures
    """The sums up to the commit point."""
    resumptions: int = 0
    """How often the job was resumed."""
    changes: list[Change] = []
    """Differences that were accepted when it was resumed."""
    identity: dict[str, dict[str, Any]]
    """By stage: what it works with beyond its configuration, such as a model's revision or a collection's row count."""
    versions: dict[str, str]
    """Versions of Python, of the packages that compute and search, and of those with the stages."""
    config: dict[str, Any]
    """The pipeline's configuration, with the values of variables; it contains no secrets."""
    whole_batches: Point | None = None
    """For a complete job whose last batch was not full: the commit point before it. A longer input goes on there."""

    @property
    def goes_on_from(self) -> Point:
        """The point from which a resumed job goes on: behind the last batch that was full."""
        return self.whole_batches or Point(progress=self.progress, figures=self.figures)


def manifest_path(output: Path) -> Path:
    """Return the path of an output's manifest: next to it, with ``.manifest.json`` appended."""
    return output.with_name(output.name + ".manifest.json")


def fresh_path(manifest_at: Path) -> Path:
    """Return the path at which a manifest is written before it replaces the old one."""
    return manifest_at.with_name(manifest_at.name + ".new")


def now() -> str:
    """Return the time in UTC, to the second: ``2026-11-23T08:22:57Z``."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def read_manifest(path: Path) -> Manifest | None:
    """Read the manifest in a file. Return None if there is no file.

    Raises:
        InputError: it cannot be read, or is not a manifest.
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
            f"is damaged, or not a manifest of this version: {problems_of(error, Manifest)[0]}",
            "put it back as it was, or start again with --overwrite",
            place=str(path),
        ) from error


def write_manifest(path: Path, manifest: Manifest, mode: int) -> None:
    """Replace the manifest, entirely or not at all, even if the machine stops meanwhile.

    Args:
        path: of the manifest.
        manifest: to write.
        mode: permissions of the file.

    Raises:
        OSError: it cannot be written; the old one is unchanged.
    """
    fresh = fresh_path(path)
    try:
        fresh.unlink(missing_ok=True)  # left by a job that was killed here; the output's lock is held
        # A path may have bytes that are not UTF-8; nothing is compared by it.
        with fresh.open("x", encoding="utf-8", errors="replace", newline="\n") as file:
            os.fchmod(file.fileno(), mode)
            file.write(json_text(manifest.model_dump(mode="json"), indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except OSError:
        fresh.unlink(missing_ok=True)
        raise
