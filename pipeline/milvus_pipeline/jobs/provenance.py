"""What a job runs with: its configuration, what the stages work with, and the versions of packages."""

from __future__ import annotations

import json
import platform
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, entry_points, version
from typing import Any, Final

from milvus_pipeline.extras import DISTRIBUTION
from milvus_pipeline.jobs.formats import json_text
from milvus_pipeline.pipeline import Pipeline
from milvus_pipeline.registry import GROUP
from milvus_pipeline.stage import Stage

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
    config: dict[str, Any] = _plain(pipeline.to_config())
    return config


def identity_of(pipeline: Pipeline) -> dict[str, dict[str, Any]]:
    """What the stages of an open pipeline work with, by their names, fallbacks included.

    A stage that says nothing of itself is left out.

    Raises:
        StageError: it could not be found out.
    """
    told = {stage.name: _plain(dict(stage.identity())) for stage in _members(pipeline)}
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


def _plain(data: Any) -> Any:
    """The data as it comes back from a manifest."""
    return json.loads(json_text(data))
