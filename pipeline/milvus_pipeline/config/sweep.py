"""The variants that the ``sweep`` of a configuration describes: every combination of its places' values.

A variant is built as a configuration is, from data: that of the pipeline's stages, with the values put in at their
places. Nothing is opened.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any, TypeAlias

from milvus_pipeline.config.build import check_stages, paths_of, stage_of
from milvus_pipeline.config.registry import registry
from milvus_pipeline.config.yaml import KeyPath
from milvus_pipeline.errors import Problem
from milvus_pipeline.files.plain import json_text, plain
from milvus_pipeline.problems import suggestion
from milvus_pipeline.stage import Fallback, Stage

MAX_VARIANTS = 1_000
"""Combinations that a sweep may have. One place more is easily a factor of ten, which nobody wants to wait for."""

_SWEEP = "sweep"
_LONGEST_VALUE = 40  # characters of a value in a name


@dataclass(frozen=True)
class Variation:
    """One combination of a sweep.

    Args:
        name: what it has at each place, in short: ``limit=20 nprobe=8``.
        varies: place and value, as plain data, without the places that do not apply to this combination.
        stages: its stages. Stages that are equal in several combinations are one object.
    """

    name: str
    varies: Mapping[str, Any]
    stages: tuple[Stage, ...]


@dataclass(frozen=True, eq=False)
class _Place:
    """A key of a sweep.

    Args:
        key: as the configuration has it: ``rerank.retry.attempts``.
        base: the stage that it leads to.
        at: where that stage is in the data: ``(1,)``, or ``(1, "on_error", "fallback")``.
        keys: the field, and keys within it; empty if whole stages are put in.
        values: to try; whole stages are built, and None leaves the stage out.
    """

    key: str
    base: Stage
    at: KeyPath
    keys: tuple[str, ...]
    values: Sequence[Any]

    @property
    def path(self) -> KeyPath:
        return (*self.at, *self.keys)

    def removes(self, index: int) -> bool:
        return not self.keys and self.values[index] is None

    def hides(self, index: int, other: _Place) -> bool:
        """Whether this place's value leaves nothing of what the other place leads to."""
        if self.removes(index) and len(self.at) > 1:
            return other.at == self.at  # without a fallback its stage gets the fallback's own `on_error`
        inside = other.at[: len(self.path)] == self.path
        return inside and (self.removes(index) or len(other.at) > len(self.path))


Choice: TypeAlias = Sequence[tuple[_Place, int]]
"""The places that apply to a combination, each with the position of its value."""


def expand(stages: Sequence[Stage], sweep: Mapping[str, Sequence[Any]]) -> tuple[list[Variation], list[Problem]]:
    """Return every combination of a sweep's values over these stages, in order, and what is wrong with the sweep.

    A place within a stage applies if the combination has the stage and the stage has the field. Combinations that
    differ only in places that do not apply are one variant. The last place varies fastest.

    Args:
        stages: of the pipeline.
        sweep: values by place, as in a configuration; from Python they may contain stages.
    """
    count = prod(len(values) for values in sweep.values())
    if count > MAX_VARIANTS:
        sizes = " x ".join(str(len(values)) for values in sweep.values())
        what = f"has {count:,} combinations ({sizes}), the most are {MAX_VARIANTS:,}"
        return [], [Problem((_SWEEP,), what, "try fewer values")]
    places, problems = _places(stages, sweep)
    return ([], problems) if problems else _Grid(stages, places).expand()


def as_data(value: Any) -> Any:
    """Return a value of a sweep as plain data, a stage as its configuration."""
    return plain(value, _config_of)


def _config_of(value: Any) -> Any:
    if isinstance(value, Fallback):
        return {"fallback": value.stage.config()}
    return value.config() if isinstance(value, Stage) else value


def _places(stages: Sequence[Stage], sweep: Mapping[str, Sequence[Any]]) -> tuple[list[_Place], list[Problem]]:
    """Return the places of a sweep, and what is wrong with its keys and its whole stages."""
    members = {stage.name: (path[1:], stage) for path, stage in paths_of(stages)}
    places: dict[KeyPath, _Place] = {}
    problems = []
    for key, values in sweep.items():
        # Names may have dots in them, so the longest that fits is meant.
        name = max((name for name in members if f"{key}.".startswith(f"{name}.")), key=len, default=None)
        if name is None:
            next_step = suggestion(key.partition(".")[0], members)
            problems.append(Problem((_SWEEP, key), "no stage has this name", next_step))
            continue
        path, base = members[name]
        keys = tuple(key.removeprefix(name).split(".")[1:])
        if not keys:
            values, found = _whole_stages(key, values)
            problems += found
        elif keys[0] == "type":
            next_step = f"put whole stages in the stage's place: {name}: [{{type: bge}}, {{type: cohere}}]"
            problems.append(Problem((_SWEEP, key), "is not a field", next_step))
        else:
            keys = (_field(type(base), keys[0]) or keys[0], *keys[1:])
        place = _Place(key, base, path, keys, values)
        other = places.setdefault(place.path, place)
        if other is not place:
            problems.append(Problem((_SWEEP, key), f"is the same place as {other.key!r}", "remove one of them"))
    return list(places.values()), problems


def _whole_stages(name: str, values: Sequence[Any]) -> tuple[list[Stage | None], list[Problem]]:
    """Build the stages to put in. They take the name of the one that they replace, unless they have their own."""
    stages: list[Stage | None] = []
    problems: list[Problem] = []
    for index, value in enumerate(values):
        built: Stage | list[Problem] | None = value
        if isinstance(value, Stage) and value.name == value.type:
            built = type(value)(**{**dict(value), "name": name})
        elif value is not None and not isinstance(value, Stage):
            unnamed = isinstance(value, dict) and not value.get("name")
            built = stage_of({**value, "name": name} if unnamed else value, (_SWEEP, name, index))
        if isinstance(built, list):
            problems += built
        else:
            stages.append(built)
    return stages, problems


def _field(cls: type[Stage], word: str) -> str | None:
    """Return the name of the field that the class takes by this word; None if there is none."""
    for name, info in cls.model_fields.items():
        if word == name or word in getattr(info.validation_alias, "choices", ()):
            return name
    return None


def _full_data(stage: Stage) -> dict[str, Any]:
    """Return all fields of a stage, those at their default included, so that a key can be put into any mapping."""
    data = {"type": stage.type, **stage.model_dump()}
    return data if stage.fallback is None else {**data, "on_error": {"fallback": _full_data(stage.fallback)}}


class _Grid:
    """Builds the stages of every combination, each of them only once."""

    def __init__(self, stages: Sequence[Stage], places: Sequence[_Place]) -> None:
        self._places = places
        self._data = [_full_data(stage) for stage in stages]
        put_in = [stage for place in places if not place.keys for stage in place.values if stage is not None]
        members = [member for stage in (*stages, *put_in) for member in stage.family()]
        self._classes = {stage.type: type(stage) for stage in members}  # those made in Python need not be registered
        self._interned = {_sort_key(stage.config()): stage for stage in stages}
        self._built: dict[str, Stage | list[Problem]] = {}
        self._problems: dict[Problem, None] = {}

    def expand(self) -> tuple[list[Variation], list[Problem]]:
        """Build every combination; see the function ``expand``."""
        chosen: dict[tuple[int, ...], tuple[tuple[Stage, ...], Choice]] = {}
        for indices in product(*(range(len(place.values)) for place in self._places)):
            data, choice = self._vary(list(zip(self._places, indices, strict=True)))
            stages = self._build(data, choice)
            chosen.setdefault(tuple(map(id, stages)), (stages, choice))
        if self._problems:
            return [], _merge(self._problems, self._places)
        choices = [choice for _, choice in chosen.values()]
        variations = [
            Variation(name, {place.key: as_data(place.values[index]) for place, index in choice}, stages)
            for name, (stages, choice) in zip(_names(self._places, choices), chosen.values(), strict=True)
        ]
        problems = _misfits(variations)
        return ([] if problems else variations), problems

    def _vary(self, choice: Choice) -> tuple[list[Any], Choice]:
        """Return the stages' data with the values of a combination put in, and the places that apply."""
        data: list[Any] = deepcopy(self._data)
        applied: list[tuple[_Place, int]] = []
        # A whole stage or mapping comes before what is put into it.
        for place, index in sorted(choice, key=lambda pair: len(pair[0].path)):
            stage = self._stage_at(place, applied)
            if stage is None:
                continue
            applied.append((place, index))
            value = place.values[index]
            if place.keys:
                _inner(data, place.path[:-1])[place.keys[-1]] = as_data(value)
            elif value is not None:
                _inner(data, place.at[:-1])[place.at[-1]] = _full_data(value)
        for place, index in reversed(applied):
            if place.removes(index):
                _remove(data, place.at)
        return data, [pair for pair in choice if pair in applied]

    def _stage_at(self, place: _Place, applied: Choice) -> Stage | None:
        """Return the stage that the place leads to; None if the combination has none there, or it has no such field."""
        if any(other.hides(index, place) for other, index in applied):
            return None
        here = [other.values[index] for other, index in applied if other.path == place.at]
        stage: Stage = here[0] if here else place.base
        if not place.keys or _field(type(stage), place.keys[0]):
            return stage
        # If no stage at this place has the field, building one says so.
        others = [one for other in self._places if other.path == place.at for one in other.values if one is not None]
        return None if any(_field(type(one), place.keys[0]) for one in (place.base, *others)) else stage

    def _build(self, data: Sequence[Any], choice: Choice) -> tuple[Stage, ...]:
        """Return the stages of a combination. What is wrong with them is added to the problems."""
        stages = []
        for position, one in enumerate(data):
            if one is None:
                continue
            key = _sort_key(one)
            if key not in self._built:
                built = stage_of(one, (), lambda kind: self._classes.get(kind) or registry.get(kind))
                if isinstance(built, Stage):
                    built = self._interned.setdefault(_sort_key(built.config()), built)
                self._built[key] = built
            built = self._built[key]
            if isinstance(built, Stage):
                stages.append(built)
            else:
                blamed = (_blame(problem.under((position,)), choice) for problem in built)
                self._problems |= dict.fromkeys(blamed)
        return tuple(stages)


def _sort_key(data: Any) -> str:
    return json.dumps(data, sort_keys=True, default=repr)


def _inner(data: Any, path: Sequence[str | int]) -> Any:
    """Return what the path leads to. On the way, what is no mapping becomes one."""
    for part in path:
        if isinstance(part, str) and not isinstance(data.get(part), dict):
            data[part] = {}
        data = data[part]
    return data


def _remove(data: list[Any], at: KeyPath) -> None:
    """Leave out a stage. The stage of a fallback gets the fallback's own ``on_error``."""
    if len(at) == 1:
        data[int(at[0])] = None
    else:
        parent = _inner(data, at[:-2])
        parent["on_error"] = parent["on_error"]["fallback"]["on_error"]


def _blame(problem: Problem, choice: Choice) -> Problem:
    """Return a problem of a combination's stage as one of the value that causes it."""
    path = problem.path
    around = [pair for pair in choice if path[: len(pair[0].path)] == pair[0].path]
    if around:
        place, index = max(around, key=lambda pair: len(pair[0].path))
        return problem._replace(path=(_SWEEP, place.key, index, *path[len(place.path) :]))
    # Several fields do not go together, or a key does not fit into its mapping.
    within = [pair for pair in choice if pair[0].path[: len(path)] == path]
    place, index = (within or [pair for pair in choice if pair[0].at[0] == path[0]])[-1]
    return problem._replace(path=(_SWEEP, place.key, index))


def _merge(problems: Iterable[Problem], places: Sequence[_Place]) -> list[Problem]:
    """Return the problems, with those that all values of a place have in common as one of the place."""
    sizes = {place.key: len(place.values) for place in places}
    keyed = [problem._replace(path=problem.path[:2]) if len(problem.path) == 3 else problem for problem in problems]
    count = Counter(keyed)
    pairs = zip(problems, keyed, strict=True)
    return list(dict.fromkeys(one if count[one] == sizes[str(one.path[1])] else each for each, one in pairs))


def _misfits(variations: Sequence[Variation]) -> list[Problem]:
    """Return what is wrong with the order of stages: each problem once, with the first variant that has it."""
    found: dict[Problem, str] = {}
    for variation in variations:
        for problem in check_stages(variation.stages) if variation.stages else [Problem((), "no stage is left")]:
            found.setdefault(problem._replace(path=(_SWEEP,)), variation.name)
    return [
        problem._replace(what=f"the variant {name!r} does not fit: {problem.what}") for problem, name in found.items()
    ]


def _names(places: Sequence[_Place], choices: Sequence[Choice]) -> list[str]:
    """Return a name for each combination: what it has at its places, and a number if that is not unique."""
    labels = {place: [f"{_short_key(place, places)}={text}" for text in _value_texts(place)] for place in places}
    names = [" ".join(labels[place][index] for place, index in choice) for choice in choices]
    return [
        f"{name} #{names[: index + 1].count(name)}" if names.count(name) > 1 else name
        for index, name in enumerate(names)
    ]


def _short_key(place: _Place, places: Sequence[_Place]) -> str:
    """Return the last words of a place's key, as many as no other place ends with."""
    words = place.key.split(".")
    tails = (".".join(words[-count:]) for count in range(1, len(words)))
    others = [f".{other.key}" for other in places if other is not place]
    return next((tail for tail in tails if not any(other.endswith(f".{tail}") for other in others)), place.key)


def _value_texts(place: _Place) -> list[str]:
    """Return a text for each value: of a stage its own name or its type, with its fields if that is not unique."""
    if place.keys:
        return [_value_text(as_data(value)) for value in place.values]
    configs = [{"type": "none"} if stage is None else stage.config() for stage in place.values]
    bases = [config["type"] if config.get("name") in (None, place.key) else config["name"] for config in configs]
    return [
        " ".join([base, *(f"{key}={_value_text(own)}" for key, own in config.items() if key not in ("type", "name"))])
        if bases.count(base) > 1
        else base
        for base, config in zip(bases, configs, strict=True)
    ]


def _value_text(value: Any) -> str:
    text = value if isinstance(value, str) and value and not any(map(str.isspace, value)) else json_text(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 1]}…"
