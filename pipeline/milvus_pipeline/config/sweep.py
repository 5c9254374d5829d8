"""The variants that the ``sweep`` of a configuration describes: all combinations of its places' values.

Nothing is opened: every variant's stages are made and checked as those of a configuration are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

from milvus_pipeline.config.build import check_chain, check_names, made_of, on_error_of
from milvus_pipeline.config.registry import Registry, registry
from milvus_pipeline.config.sweep_labels import names_of
from milvus_pipeline.config.sweep_paths import SWEEP, Place, as_data, canonical, fields_of, lack, places_of, taken_as
from milvus_pipeline.errors import Problem
from milvus_pipeline.stage import Fallback, Stage

MOST_VARIANTS = 1_000
"""Combinations that a sweep may have; a place more is easily a factor of ten, and nobody waits for that on purpose."""

Chosen = Mapping[str, int]
"""The position of the value that a combination takes at each place, by the place's key."""


@dataclass(frozen=True)
class Variation:
    """One combination of a sweep.

    Args:
        name: what it takes at each place, in few words: ``limit=20 nprobe=8``.
        varies: place and value, as plain data; places that do not apply to this combination are left out.
        stages: its stages; those that are equal in several combinations are one object in all of them.
    """

    name: str
    varies: Mapping[str, Any]
    stages: tuple[Stage, ...]


def expand(
    stages: Sequence[Stage], sweep: Mapping[str, Sequence[Any]], stage_types: Registry = registry
) -> tuple[list[Variation], list[Problem]]:
    """Every combination of a sweep's values over these stages, in order, and what is wrong with the sweep.

    A place within a stage applies where the combination has the stage, and the stage has the field. Combinations that
    are the same without the places that do not apply are made once. The last place varies fastest.
    """
    places, problems = places_of(stages, sweep, stage_types)
    count = prod(len(values) for values in sweep.values())
    if count > MOST_VARIANTS:
        sizes = " x ".join(str(len(values)) for values in sweep.values())
        text = f"has {count:,} combinations ({sizes}), the most are {MOST_VARIANTS:,}; try fewer values"
        problems.append(Problem((SWEEP,), text))
    return ([], problems) if problems else _Grid(stages, places, stage_types).expanded()


class _Grid:
    """Makes the stages of each combination, and each of them only once."""

    def __init__(self, stages: Sequence[Stage], places: Sequence[Place], stage_types: Registry) -> None:
        self.stages = stages
        self.places = places
        self.stage_types = stage_types
        self.problems: dict[Problem, None] = {}
        self._made: dict[tuple[str, tuple[int, ...]], tuple[Stage | None, list[Place]]] = {}
        self._interned: dict[str, Stage] = {}

    def expanded(self) -> tuple[list[Variation], list[Problem]]:
        chosen: dict[tuple[int, ...], dict[str, int]] = {}
        made: dict[tuple[int, ...], tuple[Stage, ...]] = {}
        for indices in product(*(range(len(place.values)) for place in self.places)):
            choice = dict(zip((place.key for place in self.places), indices, strict=True))
            stages, applied = self._stages(choice)
            equal = tuple(map(id, stages))
            if equal not in made:
                made[equal] = stages
                chosen[equal] = {place.key: choice[place.key] for place in self.places if place in applied}
        names = names_of(self.places, list(chosen.values()))
        by_key = {place.key: place for place in self.places}
        variations = [
            Variation(name, {key: as_data(by_key[key].values[at]) for key, at in choice.items()}, made[equal])
            for name, (equal, choice) in zip(names, chosen.items(), strict=True)
        ]
        problems = list(self.problems) or self._misfits(variations, list(chosen.values()))
        return ([] if problems else variations), problems

    def _stages(self, choice: Chosen) -> tuple[tuple[Stage, ...], list[Place]]:
        found = [self._varied(stage, choice) for stage in self.stages]
        stages = tuple(stage for stage, _ in found if stage is not None)
        return stages, [place for _, applied in found for place in applied]

    def _varied(self, base: Stage, choice: Chosen) -> tuple[Stage | None, list[Place]]:
        """The stage of a combination that stands where ``base`` does, and the places that apply to it."""
        names = {member.name for member in base.family()}
        concerned = tuple(choice[place.key] for place in self.places if place.stage in names)
        if (base.name, concerned) not in self._made:
            stage, applied = self._vary(base, choice) if concerned else (base, [])
            if stage is not None:
                stage = self._interned.setdefault(json.dumps(stage.config(), sort_keys=True, default=repr), stage)
            self._made[base.name, concerned] = stage, applied
        return self._made[base.name, concerned]

    def _vary(self, base: Stage, choice: Chosen) -> tuple[Stage | None, list[Place]]:
        stage, applied = base, []
        here = [place for place in self.places if place.stage == base.name]
        for place in here:
            if place.whole:
                stage = place.values[choice[place.key]]
                applied.append(place)
                if stage is None:
                    return None, applied
        fields = fields_of(stage)
        fitting = [place for place in here if not place.whole and lack(type(stage), place.keys) is None]
        for place in sorted(fitting, key=lambda place: len(place.keys)):  # a mapping before what is put into it
            name, *within = canonical(type(stage), place.keys)
            taken = taken_as(type(stage), name)
            value = self._value(place, choice)
            fields[taken] = _put(fields.get(taken, getattr(stage, name)), within, value) if within else value
            applied.append(place)
        if base.fallback is not None and fields.get("on_error") is base.on_error:
            fields["on_error"], more = self._varied_on_error(base, choice)
            applied += more
        if stage is base and len(applied) == 0:
            return base, applied
        made = made_of(type(stage), fields, ())
        if isinstance(made, Stage):
            return made, applied
        self._blame(made, stage, applied, choice)
        return stage, applied

    def _varied_on_error(self, base: Stage, choice: Chosen) -> tuple[Any, list[Place]]:
        """What ``base`` has in the place of its fallback; without that, what the fallback itself goes on with."""
        if base.fallback is None:
            return base.on_error, []
        stage, applied = self._vary(base.fallback, choice)
        if stage is not None:
            return Fallback(stage), applied
        below, more = self._varied_on_error(base.fallback, choice)
        return below, applied + more

    def _value(self, place: Place, choice: Chosen) -> Any:
        at = choice[place.key]
        value = place.values[at]
        if place.keys != ("on_error",):
            return value
        value, problems = on_error_of(value, place.at(at), self.stage_types)
        self.problems |= dict.fromkeys(problems)
        return value

    def _blame(self, found: list[Problem], stage: Stage, applied: Sequence[Place], choice: Chosen) -> None:
        """Tell what a stage refuses at the value that is the reason, as far as it can be told."""
        for problem in found:
            path = tuple(map(str, problem.path))
            path = canonical(type(stage), path) if path else path
            for place in applied:
                shared = min(len(place.keys), len(path))
                if shared and place.keys[:shared] == path[:shared]:
                    at = place.at(choice[place.key], *problem.path[len(place.keys) :])
                    self.problems[Problem(at, problem.message)] = None
                    break
            else:
                # What is wrong with several fields together, or with the stage as a whole.
                *others, last = applied
                together = f", together with {' and '.join(place.key for place in others)}" if others else ""
                self.problems[Problem(last.at(choice[last.key]), f"{stage.name}{together}: {problem}")] = None

    def _misfits(self, variations: Sequence[Variation], chosen: Sequence[Chosen]) -> list[Problem]:
        """What is wrong with the chains of the variants, each told once, with the value that all such variants have."""
        wrong: dict[str, list[int]] = {}
        for index, variation in enumerate(variations):
            found = [*check_names(variation.stages), *check_chain(variation.stages)]
            for message in [problem.message for problem in found] if variation.stages else ["no stage is left"]:
                wrong.setdefault(message, []).append(index)
        problems = []
        for message, indices in wrong.items():
            common = set.intersection(*({*chosen[index].items()} for index in indices))
            right = {pair for index, choice in enumerate(chosen) if index not in indices for pair in choice.items()}
            culprit = next((pair for place in self.places for pair in common - right if pair[0] == place.key), None)
            path = (SWEEP, *culprit) if culprit else (SWEEP,)
            problems.append(Problem(path, f"the variant '{variations[indices[0]].name}' does not fit: {message}"))
        return problems


def _put(value: Any, keys: Sequence[str], new: Any) -> Any:
    """The value with ``new`` put in at the keys; settings and mappings on the way are copied."""
    if not keys:
        return new
    if value is None:
        inner = {}
    elif isinstance(value, Mapping):
        inner = dict(value)
    else:
        inner = {name: getattr(value, name) for name in value.model_fields_set}
    return {**inner, keys[0]: _put(inner.get(keys[0]), keys[1:], new)}
