"""``milvus-pipeline stages``: what is registered, with each stage's fields and defaults."""

from __future__ import annotations

import inspect
import sys
import types
from collections.abc import Iterator
from importlib.metadata import entry_points
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from milvus_pipeline.cli.exit_codes import FAILED, Debug, reported, tell_error
from milvus_pipeline.cli.tables import console_on
from milvus_pipeline.config.registry import GROUP, registry
from milvus_pipeline.errors import ConfigError
from milvus_pipeline.files.results import json_text
from milvus_pipeline.stage import Fallback, Stage


@reported
def stages(
    kind: Annotated[str | None, typer.Argument(metavar="[TYPE]", help="One stage; all by default.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False,
    debug: Debug = False,
) -> int:
    """List the stages that a configuration may name, with their fields and defaults."""
    found: dict[str, type[Stage]] = {}
    code = 0
    for name in [kind] if kind else registry.names():
        try:
            found[name] = registry.get(name)
        except ConfigError as error:
            if kind:
                raise
            tell_error(error)  # a plugin that cannot be imported shall not hide the others
            code = FAILED
    if as_json:
        described = {name: described_stage(name, cls) for name, cls in found.items()}
        typer.echo(json_text(described, indent=2))
    else:
        _print(console_on(sys.stdout), found)
    return code


def described_stage(name: str, cls: type[Stage]) -> dict[str, Any]:
    """A stage as plain data."""
    return {
        "package": package_of(name, cls),
        "class": f"{cls.__module__}:{cls.__qualname__}",
        "summary": summary(cls),
        "needs": sorted(cls.needs),
        "gives": sorted(cls.gives),
        "about": cls.about(),
        "fields": {field: described_field(info) for field, info in cls.model_fields.items()},
    }


def described_field(info: FieldInfo) -> dict[str, Any]:
    """A field as plain data; a required one has no default, and one that is a mapping has fields of its own."""
    data: dict[str, Any] = {"type": said_type(info.annotation), "required": info.is_required()}
    if not info.is_required():
        data["default"] = _default(info)
    data["description"] = info.description or ""
    if inner := fields_within(info.annotation):
        data["fields"] = {name: described_field(own) for name, own in inner.items()}
    return data


def package_of(name: str, cls: type[Stage]) -> str:
    """The distribution that brings a stage, with its version; the module where it registered itself in code."""
    for point in entry_points(group=GROUP, name=name):
        if point.dist is not None:
            return f"{point.dist.name} {point.dist.version}"
    return cls.__module__


def summary(cls: type[Stage]) -> str:
    """The first line of the class's own docstring."""
    return (inspect.cleandoc(cls.__doc__ or "").splitlines() or [""])[0]


def fields_within(annotation: Any) -> dict[str, FieldInfo]:
    """The fields of what is written as a mapping with keys of its own; empty where there are none."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation.model_fields
    if get_origin(annotation) in (Annotated, Union, types.UnionType):
        return next(filter(None, map(fields_within, get_args(annotation))), {})
    return {}


def said_type(annotation: Any) -> str:
    """An annotation as one writes it: ``int | none``, ``drop | cut``, ``{env: str}``."""
    origin = get_origin(annotation)
    if origin is None and (within := fields_within(annotation)):
        if not all(info.is_required() for info in within.values()):
            return "mapping"
        return f"{{{', '.join(f'{name}: {said_type(info.annotation)}' for name, info in within.items())}}}"
    if origin is Annotated:
        return said_type(get_args(annotation)[0])
    if origin is Literal:
        return " | ".join("none" if value is None else str(value) for value in get_args(annotation))
    if origin is Union or origin is types.UnionType:
        return " | ".join(dict.fromkeys(said_type(member) for member in get_args(annotation)))
    if origin is not None:
        inner = ", ".join("..." if member is Ellipsis else said_type(member) for member in get_args(annotation))
        return f"{origin.__name__}[{inner}]"
    if annotation in (None, type(None)):
        return "none"
    if annotation is Fallback:
        return "{fallback: STAGE}"
    return getattr(annotation, "__name__", str(annotation))


def _default(info: FieldInfo) -> Any:
    value = info.get_default(call_default_factory=True, validated_data={})
    return value.model_dump(mode="json") if hasattr(value, "model_dump") else value


def _print(console: Console, found: dict[str, type[Stage]]) -> None:
    for name, cls in found.items():
        heading = Text(name, style="bold")
        heading.append(f"  {package_of(name, cls)}", style="dim not bold")
        console.print(heading)
        console.print(Text(f"  {summary(cls)}"))
        for word, said in cls.about().items():
            console.print(Text(f"  {word}: {said}"))
        alone = len(found) == 1
        own = {key: info for key, info in cls.model_fields.items() if alone or key not in Stage.model_fields}
        if own:
            console.print(_fields(own))
        console.print()
    if len(found) > 1:
        console.print(Text("fields of every stage", style="bold"))
        console.print(_fields(Stage.model_fields))


def _fields(fields: dict[str, FieldInfo]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    table.add_column("field", no_wrap=True)
    table.add_column("default", max_width=24)
    table.add_column("type and meaning", ratio=1)
    for name, info in _with_inner(fields):
        default = Text("required", style="bold") if info.is_required() else Text(_shown_default(info))
        meaning = Text(f"{said_type(info.annotation)} · ", style="dim").append(info.description or "", style="not dim")
        table.add_row(Text(name), default, meaning)
    return table


def _with_inner(fields: dict[str, FieldInfo], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """The fields, each followed by those within it, named by the way to them: ``retry.attempts``."""
    for name, info in fields.items():
        yield prefix + name, info
        yield from _with_inner(fields_within(info.annotation), f"{prefix}{name}.")


def _shown_default(info: FieldInfo) -> str:
    if fields_within(info.annotation) and info.default is not None:
        return ""  # the defaults of its fields stand below it
    value = _default(info)
    return "none" if value is None else json_text(value)
