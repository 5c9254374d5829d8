"""Validation problems in the same words, whether they come from Python, from YAML or from pydantic.

A value in the wrong place may be a secret. So a message has only the kind of a value of the wrong kind, and of a key
only what looks like one.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from milvus_pipeline.errors import ConfigError, Problem, looks_like_a_key
from milvus_pipeline.text import short_repr

_LONGEST_NUMBER = 8
_LONGEST_WORD = 20
_MOST_NAMES = 30


def kind_of(value: object) -> str:
    """Return ``a string``, ``a list``: the kind of a value; true, false and short numbers as they are."""
    if isinstance(value, bool | int | float) and len(repr(value)) <= _LONGEST_NUMBER:
        return repr(value)
    kinds = {str: "a string", list: "a list", tuple: "a list", dict: "a mapping", type(None): "nothing"}
    kinds |= {int: "a number", float: "a number"}
    return kinds.get(type(value), f"a {type(value).__name__}")


def near_miss(word: str, known: Iterable[str]) -> str:
    """Return ``did you mean 'limit'?`` if a known name is close to the word, else an empty string."""
    by_lower = {name.lower(): name for name in sorted(known)}
    near = get_close_matches(word.lower(), by_lower, n=1, cutoff=0.6)
    return f"did you mean {by_lower[near[0]]!r}?" if near else ""


def suggestion(word: str, known: Iterable[str]) -> str:
    """Return ``did you mean 'limit'?`` if a known name is close to the word, else the list of known names.

    It is a ``next_step`` of an error; empty if nothing is known. A long list is cut.
    """
    names = sorted(known)
    text = ", ".join(names[:_MOST_NAMES]) + (", …" if len(names) > _MOST_NAMES else "")
    return near_miss(word, names) or (f"known are {text}" if names else "")


def problems_of(error: ValidationError, model: type[BaseModel]) -> list[Problem]:
    """Return every problem that pydantic found in the fields of ``model``."""
    first: dict[tuple[str | int, ...], ErrorDetails] = {}  # a union reports each of its members; one is enough
    for detail in error.errors(include_url=False):
        first.setdefault(_place(detail), detail)
    return [problem for path, detail in first.items() for problem in _problems(detail, path, model)]


def _place(detail: ErrorDetails) -> tuple[str | int, ...]:
    # pydantic adds the member of a union to the path ("limit.int"); readers of a config know only the keys.
    location = detail["loc"]
    if len(location) > 1 and str(location[-1]) in {"int", "float", "str", "bool", "none"}:
        location = location[:-1]
    return location


def _problems(detail: ErrorDetails, path: tuple[str | int, ...], model: type[BaseModel]) -> list[Problem]:
    cause = detail.get("ctx", {}).get("error")
    if isinstance(cause, ConfigError):
        inner = cause.problems or (Problem((cause.place,) if cause.place else (), cause.what, cause.next_step),)
        return [problem.under(path) for problem in inner]
    return [Problem(path, *_parts(detail, path, model))]


def _parts(detail: ErrorDetails, path: tuple[str | int, ...], model: type[BaseModel]) -> tuple[str, str]:
    """What is wrong, by pydantic's code for it, and what to do."""
    kind = detail["type"]
    context: dict[str, Any] = detail.get("ctx", {})
    value = detail["input"]
    if kind == "extra_forbidden":
        return "unknown key", suggestion(str(path[-1]), known_keys(model, path[:-1]))
    if kind == "missing":
        return "is missing, and has no default", ""
    if kind == "value_error":
        return str(context.get("error", detail["msg"])), ""
    if kind in {"literal_error", "enum"}:
        near = near_miss(value, _literals(context)) if isinstance(value, str) else ""
        return f"must be {context['expected']}, got {word_of(value)}", near
    if kind in _BOUNDS:
        text, key = _BOUNDS[kind]
        bound = context[key]  # of a float field 0 comes as 0.0
        return f"must be {text} {int(bound) if float(bound).is_integer() else bound}, got {short_repr(value)}", ""
    if kind in {"too_short", "string_too_short"}:
        least = context["min_length"]
        return ("must not be empty" if least == 1 else f"must have at least {least} items, got {kind_of(value)}"), ""
    if kind == "string_pattern_mismatch":
        return f"must match {context['pattern']}, got {word_of(value)}", ""
    wanted = _WANTED.get(kind.removesuffix("_parsing").removesuffix("_type"))
    what = f"must be {wanted}" if wanted else detail["msg"][:1].lower() + detail["msg"][1:]
    return f"{what}, got {kind_of(value)}", ""


def word_of(value: object) -> str:
    """Return a value that looks like one of a few known words; else its kind."""
    short = isinstance(value, str) and len(value) <= _LONGEST_WORD and value.isidentifier() and looks_like_a_key(value)
    return short_repr(value) if short else kind_of(value)


_BOUNDS = {
    "greater_than_equal": ("at least", "ge"),
    "greater_than": ("above", "gt"),
    "less_than_equal": ("at most", "le"),
    "less_than": ("below", "lt"),
}

_WANTED = {
    "int": "a whole number",
    "int_from_float": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "a string",
    "list": "a list",
    "dict": "a mapping of keys to values",
    "model": "a mapping of keys to values",
}


def _literals(context: dict[str, Any]) -> list[str]:
    return [part.strip(" '") for part in str(context["expected"]).replace(" or ", ",").split(",")]


def known_keys(model: type[BaseModel], path: tuple[str | int, ...] = ()) -> set[str]:
    """Return the keys that ``model`` takes at ``path``; empty if the path leads out of the model."""
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
    """Whether a field with this annotation accepts true and false, itself or in a part of it."""
    if annotation is bool or annotation is Any:
        return True
    parts = getattr(annotation, "__args__", ())
    return any(takes_bool(part) for part in parts)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """Return the pydantic model inside an annotation such as ``list[Model] | None``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        found = _model_in(inner)
        if found is not None:
            return found
    return None
