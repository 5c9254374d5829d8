"""The places of a sweep: which field of which stage a key of it stands for, and the values to be tried there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_origin

from pydantic import AliasChoices
from pydantic.fields import FieldInfo

from milvus_pipeline.config.build import made_of, stage_of
from milvus_pipeline.config.registry import Registry
from milvus_pipeline.errors import Problem
from milvus_pipeline.problems import kind_of, known_keys, suggestion
from milvus_pipeline.stage import Fallback, Stage

SWEEP = "sweep"


@dataclass(frozen=True, eq=False)
class Place:
    """A place of a sweep, with its values.

    Args:
        key: the place as the configuration writes it.
        stage: name of the stage that it is in.
        keys: the field, and the keys within it; empty where whole stages are put in.
        values: the values as given; of whole stages the stages, None for leaving the stage out.
    """

    key: str
    stage: str
    keys: tuple[str, ...]
    values: tuple[Any, ...]

    @property
    def whole(self) -> bool:
        """Whether whole stages are put in."""
        return not self.keys

    def at(self, value: int | None = None, *rest: str | int) -> tuple[str | int, ...]:
        """Where the place, or one of its values, or a part of that, stands in the configuration."""
        return (SWEEP, self.key) if value is None else (SWEEP, self.key, value, *rest)


def places_of(
    stages: Sequence[Stage], sweep: Mapping[str, Sequence[Any]], stage_types: Registry
) -> tuple[list[Place], list[Problem]]:
    """The places of a sweep over these stages, and what is wrong with them and with the whole stages put in."""
    members = {member.name: member for stage in stages for member in stage.family()}
    whole: dict[str, Place] = {}
    within: list[tuple[str, str, tuple[str, ...]]] = []
    problems: list[Problem] = []
    for key, values in sweep.items():
        name = _stage_named(key, members)
        if name is None:
            hint = suggestion(key if key in members else key.partition(".")[0], members)
            problems.append(Problem((SWEEP, key), "no stage has this name", hint))
        elif key == name:
            made, found = _whole_stages(key, members[name], values, stage_types)
            whole[name] = Place(key, name, (), made)
            problems += found
        else:
            within.append((key, name, tuple(key.removeprefix(f"{name}.").split("."))))
    places = list(whole.values())
    taken: dict[tuple[str, tuple[str, ...]], str] = {}
    for key, name, keys in within:
        put_in = whole[name].values if name in whole else ()
        candidates = [members[name], *(stage for stage in put_in if stage is not None)]
        fitting = [stage for stage in candidates if lack(type(stage), keys) is None]
        if not fitting:
            problems.append(Problem((SWEEP, key), lack(type(members[name]), keys) or ""))
            continue
        place = Place(key, name, canonical(type(fitting[0]), keys), tuple(sweep[key]))
        other = taken.setdefault((name, place.keys), key)
        if other != key:
            problems.append(Problem((SWEEP, key), f"is the same place as {other!r}; leave one of them"))
        places.append(place)
    order = list(sweep)
    return (
        sorted(places, key=lambda place: order.index(place.key)),
        sorted(problems, key=lambda problem: order.index(str(problem.path[1]))),
    )


def _stage_named(key: str, members: Mapping[str, Stage]) -> str | None:
    """The stage whose name the place begins with: the longest, as names may have dots in them."""
    fitting = [name for name in members if key == name or key.startswith(f"{name}.")]
    return max(fitting, key=len, default=None)


def _whole_stages(
    key: str, replaced: Stage, values: Sequence[Any], stage_types: Registry
) -> tuple[tuple[Stage | None, ...], list[Problem]]:
    """The stages to put in for ``replaced``, whose name they take unless they have one of their own."""
    made: list[Stage | None] = []
    problems: list[Problem] = []
    for index, value in enumerate(values):
        place = (SWEEP, key, index)
        if value is None:
            made.append(None)
            continue
        if isinstance(value, Stage):
            own = value.name != value.type
            stage = value if own else made_of(type(value), {**fields_of(value), "name": replaced.name}, place)
        elif isinstance(value, dict):
            stage = stage_of({**value, "name": value.get("name") or replaced.name}, place, stage_types)
        else:
            hint = f"; write {{type: {value}}}" if isinstance(value, str) and value in stage_types.names() else ""
            text = f"must be a stage, such as {{type: bge, top_k: 20}}, or null for none, got {kind_of(value)}{hint}"
            stage = [Problem(place, text)]
        if isinstance(stage, Stage):
            made.append(stage)
        else:
            problems += stage
    return tuple(made), problems


def lack(cls: type[Stage], keys: tuple[str, ...]) -> str | None:
    """Why a stage of this class has no such place; None where it has."""
    name = canonical(cls, keys)[0]
    if name == "type":
        return "is not a field; put whole stages in the stage's place: STAGE: [{type: bge}, {type: cohere}]"
    if name not in cls.model_fields:
        return f"{cls.type} has no field {name!r}; {suggestion(name, known_keys(cls))}"
    if name == "on_error" and len(keys) > 1:
        return "what stands within a fallback has the name of the fallback's stage in front: NAME.FIELD"
    annotation: Any = cls.model_fields[name].annotation
    for depth in range(1, len(keys)):
        if _takes_keys(annotation):
            return None
        known = known_keys(cls, (name, *keys[1:depth]))
        if not known:
            return f"{'.'.join(keys[:depth])} of {cls.type} has no keys within it"
        if keys[depth] not in known:
            return f"unknown key; {suggestion(keys[depth], known)}"
        annotation = _within(annotation, keys[depth])
    return None


def _takes_keys(annotation: Any) -> bool:
    """Whether a field so annotated may hold a mapping with keys of any name."""
    kinds = (annotation, get_origin(annotation))
    parts = getattr(annotation, "__args__", ()) if kinds[1] not in (dict, list, tuple) else ()
    return any(kind in (Any, dict, Mapping) for kind in kinds) or any(map(_takes_keys, parts))


def _within(annotation: Any, key: str) -> Any:
    """The annotation of a field of the model that is in the annotation."""
    own = getattr(annotation, "model_fields", {}).get(key)
    if own is not None:
        return own.annotation
    found = (_within(part, key) for part in getattr(annotation, "__args__", ()))
    return next((part for part in found if part is not None), None)


def canonical(cls: type[Stage], keys: tuple[str, ...]) -> tuple[str, ...]:
    """The keys with the field's own name in the place of an alias."""
    own = next((name for name, info in cls.model_fields.items() if keys[0] in _aliases(info)), keys[0])
    return (own, *keys[1:])


def _aliases(info: FieldInfo) -> tuple[str, ...]:
    alias = info.validation_alias
    if isinstance(alias, AliasChoices):
        return tuple(map(str, alias.choices))
    return (alias,) if isinstance(alias, str) else ()


def fields_of(stage: Stage) -> dict[str, Any]:
    """What the stage was made of, by the words that its class takes."""
    return {taken_as(type(stage), name): getattr(stage, name) for name in stage.model_fields_set}


def taken_as(cls: type[Stage], name: str) -> str:
    """The word by which the class takes a field."""
    aliases = _aliases(cls.model_fields[name])
    return name if not aliases or name in aliases else aliases[0]


def as_data(value: Any) -> Any:
    """A value of a sweep as plain data: a stage as its configuration."""
    if isinstance(value, Stage):
        return value.config()
    if isinstance(value, Fallback):
        return {"fallback": value.stage.config()}
    if isinstance(value, Mapping):
        return {key: as_data(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [as_data(inner) for inner in value]
    return value
