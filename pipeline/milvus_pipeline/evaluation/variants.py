"""The pipelines of an evaluation by name: those given, and the variants that their sweeps describe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from milvus_pipeline.config.sweep import expand
from milvus_pipeline.errors import ConfigError
from milvus_pipeline.pipeline import Pipeline


@dataclass(frozen=True)
class Variant:
    """A pipeline to evaluate, and what its sweep varied to get to it.

    Args:
        pipeline: it itself, without a sweep.
        varies: place and value of the sweep (``{"milvus_search.limit": 100}``); empty without one.
    """

    pipeline: Pipeline
    varies: Mapping[str, Any] = field(default_factory=dict)


def variants_of(pipeline: Pipeline) -> dict[str, Variant]:
    """The variants of the pipeline's sweep by name, or the pipeline itself where it has none.

    Where the pipeline as it stands is one of the combinations, it comes first, and so is the baseline; else the first
    combination is. Nothing that the sweep does not ask for is added.

    Raises:
        ConfigError: the sweep is wrong; with every problem of it.
    """
    if not pipeline.sweep:
        return {pipeline.name: Variant(pipeline)}
    variations, problems = expand(pipeline.stages, pipeline.sweep)
    if problems:
        raise ConfigError(problems=problems, place=pipeline.name)
    variations.sort(key=lambda variation: variation.stages != pipeline.stages)  # sorting keeps the others' order
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
    """The variants of several pipelines by name, led by the pipeline's name in ``pipelines`` where there are several.

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
