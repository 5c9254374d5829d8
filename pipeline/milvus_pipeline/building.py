"""One stage made of its configuration as data, with every problem told at its place."""

from __future__ import annotations

from pydantic import ValidationError

from milvus_pipeline.errors import ConfigError
from milvus_pipeline.problems import Problem, kind_of, problems_of, suggestion
from milvus_pipeline.registry import Registry
from milvus_pipeline.stage import Fallback, Stage


def stage_of(data: object, place: tuple[str | int, ...], stage_types: Registry) -> Stage | list[Problem]:
    """The stage that the data describes, or what is wrong with it.

    Args:
        data: ``{"type": "truncate", "top_k": 5}``, as it was read.
        place: where it stands in the configuration; the places of problems begin with it.
        stage_types: where the type is looked up.
    """
    if not isinstance(data, dict):
        return [Problem(place, "must be a mapping with a `type`, such as {type: truncate, top_k: 5}")]
    kind = data.get("type")
    if not isinstance(kind, str):
        if kind is not None:
            return [Problem((*place, "type"), f"must be the name of a stage, is {kind_of(kind)}")]
        near = next((key for key in data if "mean 'type'" in suggestion(str(key), ["type"])), None)
        hint = f"; did you mean 'type' by {near!r}?" if near else "; `milvus-pipeline stages` lists them"
        return [Problem(place, f"has no `type`, the name of its stage{hint}")]
    try:
        cls = stage_types.get(kind)
    except ConfigError as error:
        return [Problem((*place, "type"), str(error))]
    fields = {str(key): value for key, value in data.items() if key != "type"}
    on_error, found = on_error_of(fields.get("on_error"), (*place, "on_error"), stage_types)
    if on_error is not None:
        fields["on_error"] = on_error
    made = made_of(cls, fields, place)
    return made if isinstance(made, Stage) and not found else [*(made if isinstance(made, list) else ()), *found]


def on_error_of(data: object, place: tuple[str | int, ...], stage_types: Registry) -> tuple[object, list[Problem]]:
    """What ``on_error`` says, a fallback's data made into its stage, and what is wrong with that data."""
    if not (isinstance(data, dict) and set(data) == {"fallback"}) or isinstance(data["fallback"], Stage):
        return data, []
    fallback = stage_of(data["fallback"], (*place, "fallback"), stage_types)
    return (Fallback(fallback), []) if isinstance(fallback, Stage) else ("skip", fallback)


def made_of(cls: type[Stage], fields: dict[str, object], place: tuple[str | int, ...]) -> Stage | list[Problem]:
    """A stage of this class with these fields, or what is wrong with them."""
    try:
        return cls(**fields)  # type: ignore[arg-type]
    except ConfigError as error:
        cause = error.__cause__
        if not isinstance(cause, ValidationError):
            return [Problem(place, str(error))]
        return [Problem((*place, *each.path), each.message) for each in problems_of(cause, cls)]
