"""The pipelines of an evaluation by name: those given, and the variants of their sweeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from milvus_pipeline.config.sweep import expand
from milvus_pipeline.errors import ConfigError
from milvus_pipeline.pipeline import Pipeline


@dataclass(frozen=True)
class Variant:
    """A pipeline to evaluate, and the values that a sweep put into it.

    Args:
        pipeline: the pipeline, without a sweep.
        varies: path and value (``{"milvus_search.limit": 100}``); empty without a sweep.
    """

    pipeline: Pipeline
    varies: Mapping[str, Any] = field(default_factory=dict)


def variants_of(pipeline: Pipeline) -> dict[str, Variant]:
    """Return the variants of the pipeline's sweep by name, or the pipeline itself if it has no sweep.

    If the unchanged pipeline is one of the combinations, it comes first and so is the baseline. No combination is
    added to those of the sweep.

    Raises:
        ConfigError: the sweep is wrong; the message lists every problem.
    """
    if not pipeline.sweep:
        return {pipeline.name: Variant(pipeline)}
    variations, problems = expand(pipeline.stages, pipeline.sweep)
    if problems:
        raise ConfigError(problems=problems, place=pipeline.name)
    variations.sort(key=lambda variation: variation.stages != pipeline.stages)
    return {
        variation.name: Variant(
            Pipeline(
                variation.stages,
                name=f"{pipeline.name} {variation.name}",
                timeout=pipeline.timeout,
                collection=pipeline.collection,
            ),
            variation.varies,
        )
        for variation in variations
    }


def systems_of(pipelines: Mapping[str, Pipeline]) -> dict[str, Variant]:
    """Return the variants of several pipelines by name, prefixed with the name in ``pipelines`` if there are several.

    Raises:
        ConfigError: a sweep is wrong.
    """
    systems: dict[str, Variant] = {}
    for name, pipeline in pipelines.items():
        variants = variants_of(pipeline)
        if not pipeline.sweep:
            systems[name] = variants[pipeline.name]
        else:
            lead = f"{name} " if len(pipelines) > 1 else ""
            systems |= {f"{lead}{own}": variant for own, variant in variants.items()}
    return systems
