"""Validation problems in one voice, whether they come from Python, from YAML or from pydantic.

What stands at a wrong place may be a secret. So of a value of the wrong kind only the kind is told, and of a key only
what looks like one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from milvus_pipeline.text import short_repr

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*|[A-Za-z]+(?:-[A-Za-z]+)+", re.ASCII)
_DIGITS = 4
_LONGEST_NAME = 40
_LONGEST_NUMBER = 8
_LONGEST_WORD = 20


class Problem(NamedTuple):
    """One thing that is wrong, with the path of keys and positions that leads to it."""

    path: tuple[str | int, ...]
    message: str

    def __str__(self) -> str:
        return f"{dotted(self.path)}: {self.message}" if self.path else self.message


def dotted(path: Iterable[str | int]) -> str:
    """``("stages", 1, "limit")`` as ``stages[1].limit``, with ``…`` for what does not look like a key."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
            continue
        words = part.split(".") if text == "sweep" else [part]  # a sweep's keys are dotted paths themselves
        text += ("." if text else "") + ".".join(word if looks_like_a_key(word) else "…" for word in words)
    return text


def looks_like_a_key(text: str) -> bool:
    """Whether this is most likely the name of a field or of a header, and not what should stand in one."""
    named = _NAME.fullmatch(text) is not None and sum(map(str.isdigit, text)) <= _DIGITS
    return named and len(text) <= _LONGEST_NAME


def kind_of(value: object) -> str:
    """``a text``, ``a list``: what a value is, without the value. Truth values and short numbers are told."""
    if isinstance(value, bool | int | float) and len(repr(value)) <= _LONGEST_NUMBER:
        return repr(value)
    kinds = {str: "a text", list: "a list", tuple: "a list", dict: "a mapping", type(None): "nothing"}
    kinds |= {int: "a number", float: "a number"}
    return kinds.get(type(value), f"a {type(value).__name__}")


def suggestion(word: str, known: Iterable[str]) -> str:
    """``; did you mean 'limit'?`` for a near miss, else the list of what is known."""
    names = sorted(known)
    by_lower = {name.lower(): name for name in names}
    near = get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {by_lower[near[0]]!r}?"
    return f"; known are {', '.join(names)}" if names else ""


def problems_of(error: ValidationError, model: type[BaseModel]) -> list[Problem]:
    """Every problem that pydantic found in the fields of ``model``."""
    return [_problem(detail, model) for detail in _without_echoes(error.errors(include_url=False))]


def describe(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """``problems_of`` as lines of text."""
    return [str(problem) for problem in problems_of(error, model)]


def _without_echoes(details: list[ErrorDetails]) -> list[ErrorDetails]:
    """One problem a place: a union reports each of its members, the first of which is enough."""
    seen: set[tuple[str | int, ...]] = set()
    kept = []
    for detail in details:
        place = _place(detail)
        if place not in seen:
            seen.add(place)
            kept.append(detail)
    return kept


def _place(detail: ErrorDetails) -> tuple[str | int, ...]:
    # pydantic names the member of a union in the path ("limit.int"); readers of a config know only the keys.
    location = detail["loc"]
    if len(location) > 1 and str(location[-1]) in {"int", "float", "str", "bool", "none"}:
        location = location[:-1]
    return location


def _problem(detail: ErrorDetails, model: type[BaseModel]) -> Problem:
    path = _place(detail)
    kind = detail["type"]
    context: dict[str, Any] = detail.get("ctx", {})
    value = detail["input"]
    if kind == "extra_forbidden":
        return Problem(path, f"unknown key{suggestion(str(path[-1]), known_keys(model, path[:-1]))}")
    if kind == "missing":
        return Problem(path, "is missing, and has no default")
    if kind in {"greater_than_equal", "greater_than", "less_than_equal", "less_than"}:
        words = {"greater_than_equal": ("at least", "ge"), "greater_than": ("above", "gt")}
        words |= {"less_than_equal": ("at most", "le"), "less_than": ("below", "lt")}
        text, key = words[kind]
        bound = context[key]  # a whole number in a float field comes as 0.0
        bound = int(bound) if float(bound).is_integer() else bound
        return Problem(path, f"must be {text} {bound}, is {short_repr(value)}")
    if kind == "literal_error":
        near = suggestion(value, _literals(context)) if isinstance(value, str) else ""
        return Problem(path, f"must be {context['expected']}, is {word_of(value)}{near if 'mean' in near else ''}")
    if kind == "value_error":
        return Problem(path, str(context.get("error", detail["msg"])))
    if kind in {"too_short", "string_too_short"}:
        least = context["min_length"]
        return Problem(
            path, "must not be empty" if least == 1 else f"must have at least {least} items, is {kind_of(value)}"
        )
    if kind == "string_pattern_mismatch":
        return Problem(path, f"must fit {context['pattern']}, is {word_of(value)}")
    wanted = _WANTED.get(kind.removesuffix("_parsing").removesuffix("_type"))
    if wanted:
        return Problem(path, f"must be {wanted}, is {kind_of(value)}")
    return Problem(path, f"{detail['msg'][:1].lower()}{detail['msg'][1:]}, is {kind_of(value)}")


def word_of(value: object) -> str:
    """A value that is one of a few words, or was meant to be; else its kind."""
    short = isinstance(value, str) and len(value) <= _LONGEST_WORD and value.isidentifier() and looks_like_a_key(value)
    return short_repr(value) if short else kind_of(value)


_WANTED = {
    "int": "a whole number",
    "int_from_float": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "list": "a list",
    "dict": "a mapping of keys to values",
    "model": "a mapping of keys to values",
}


def _literals(context: dict[str, Any]) -> list[str]:
    return [part.strip(" '") for part in str(context["expected"]).replace(" or ", ",").split(",")]


def known_keys(model: type[BaseModel], path: tuple[str | int, ...] = ()) -> set[str]:
    """The keys that ``model`` takes at ``path``; empty where the path leads out of what is known."""
    current: Any = model
    for part in path:
        if isinstance(part, int):
            continue
        field = getattr(current, "model_fields", {}).get(part)
        if field is None:
            return set()
        current = _model_in(field.annotation)
        if current is None:
            return set()
    return {info.alias or name for name, info in current.model_fields.items()}


def takes_bool(annotation: Any) -> bool:
    """Whether a field so annotated has a place for true and false, itself or in a part of it."""
    if annotation is bool or annotation is Any:
        return True
    parts = getattr(annotation, "__args__", ())
    return any(takes_bool(part) for part in parts)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The pydantic model inside an annotation such as ``list[Model] | None``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        found = _model_in(inner)
        if found is not None:
            return found
    return None
