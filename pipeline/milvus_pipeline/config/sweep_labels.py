"""Names of a sweep's variants: short, telling, and each its own."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from milvus_pipeline.config.sweep_paths import Place, as_data
from milvus_pipeline.stage import Stage
from milvus_pipeline.text import short_repr

_LONGEST_VALUE = 40  # characters
_OTHERWISE = ("", "null", "true", "false")  # texts that would look like another value


def names_of(places: Sequence[Place], chosen: Sequence[Mapping[str, int]]) -> list[str]:
    """A name for each combination: what it takes at the places that apply to it.

    Args:
        places: the places of the sweep.
        chosen: for each combination the position of the value it takes, by the place's key.
    """
    labels = _labels(places)
    return _made_unique([" ".join(labels[key][at] for key, at in choice.items()) for choice in chosen])


def _labels(places: Sequence[Place]) -> dict[str, list[str]]:
    """What each value of each place is called."""
    short = _short_places(places)
    labels: dict[str, list[str]] = {}
    for place in places:
        if place.whole:
            labels[place.key] = _stage_labels(place)
        else:
            labels[place.key] = [f"{short[place.key]}={value}" for value in _value_labels(place.values)]
    # A type that stands in two places is told with its place.
    often = Counter(label for place in places if place.whole for label in set(labels[place.key]))
    for place in places:
        if place.whole and any(often[label] > 1 for label in labels[place.key]):
            labels[place.key] = [
                label if value is None else f"{place.key}={label}"
                for label, value in zip(labels[place.key], place.values, strict=True)
            ]
    return labels


def _short_places(places: Sequence[Place]) -> dict[str, str]:
    """The last parts of each place, as many as tell it from all others."""
    parts = {
        place.key: (place.stage, *(word for word in place.key.removeprefix(place.stage).split(".") if word))
        for place in places
    }
    short = {}
    for key, own in parts.items():
        lengths = range(1, len(own) + 1)
        others = [other for name, other in parts.items() if name != key]
        length = next((n for n in lengths if all(other[-n:] != own[-n:] for other in others)), len(own))
        short[key] = ".".join(own[-length:])
    return short


def _value_labels(values: Sequence[Any]) -> list[str]:
    """A text for each value; of paths and names of models the last part, where that tells them apart."""
    full = [_said(value) for value in values]
    last = [
        text.rstrip("/").rpartition("/")[2] if isinstance(value, str) else text
        for value, text in zip(values, full, strict=True)
    ]
    return [_cut(text) for text in (last if _differ(last, full) else full)]


def _differ(shortened: Sequence[str], full: Sequence[str]) -> bool:
    return len(set(shortened)) == len(set(full)) and all(shortened)


def _stage_labels(place: Place) -> list[str]:
    """The type of each stage put in, or its own name; with the fields that tell it from others of its type."""
    bases = [_base(value, place.stage) for value in place.values]
    configs = [{} if value is None else value.config() for value in place.values]
    labels = []
    for base, own in zip(bases, configs, strict=True):
        alike = [other for other, of in zip(configs, bases, strict=True) if of == base and other]
        labels.append(" ".join([base, *_telling(own, alike)]))
    return labels


def _telling(own: Mapping[str, Any], alike: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The fields of a stage, with their values, that tell it from those alike."""
    for key, value in own.items():
        others = [other[key] for other in alike if key in other and other[key] != value]
        if key != "name" and (others or any(key not in other for other in alike)):
            yield f"{key}={_value_labels([value, *others])[0]}"


def _base(value: Stage | None, replaced: str) -> str:
    if value is None:
        return f"no {replaced}"
    return value.type if value.name == replaced else value.name


def _said(value: Any) -> str:
    """A value in YAML's words, on one line."""
    if isinstance(value, str):
        plain = value not in _OTHERWISE and not any(sign.isspace() for sign in value)
        return value if plain else json.dumps(value, ensure_ascii=False)
    if value is None or isinstance(value, bool | int | float):
        return json.dumps(value)
    try:
        text = yaml.safe_dump(as_data(value), default_flow_style=True, sort_keys=False, width=10_000)
    except yaml.YAMLError:
        return short_repr(value)
    return " ".join(text.removesuffix("...\n").split())


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 1]}…"


def _made_unique(names: Sequence[str]) -> list[str]:
    """The names, a number behind those that stand more than once."""
    often, seen = Counter(names), Counter[str]()
    unique = []
    for name in names:
        seen[name] += 1
        unique.append(f"{name} #{seen[name]}" if often[name] > 1 else name)
    return unique
