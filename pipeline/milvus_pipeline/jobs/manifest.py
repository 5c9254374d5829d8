"""The manifest of a job: what it was asked to do, with what, how far it is, and what became of the queries."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from milvus_pipeline.errors import InputError
from milvus_pipeline.jobs.figures import Figures
from milvus_pipeline.jobs.formats import json_text
from milvus_pipeline.problems import describe

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
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        return Manifest.model_validate_json(text, strict=True)
    except ValidationError as error:
        raise InputError(
            f"{path}: is damaged, or no manifest of this version: {describe(error, Manifest)[0]}; without it the job "
            "cannot be resumed: put it back as it was, or begin anew with --overwrite"
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
