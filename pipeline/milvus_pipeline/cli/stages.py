"""``milvus-pipeline stages``: the registered stages with their fields and defaults."""

from __future__ import annotations

import inspect
import sys
import types
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic import AliasChoices, BaseModel
from pydantic.fields import FieldInfo
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from milvus_pipeline.cli.exit_codes import FAILED, command, print_error
from milvus_pipeline.cli.options import Debug
from milvus_pipeline.cli.tables import console_on
from milvus_pipeline.config.registry import registry
from milvus_pipeline.errors import ConfigError
from milvus_pipeline.files.plain import json_text
from milvus_pipeline.stage import Fallback, Stage

Fields = Mapping[str, Mapping[str, Any]]


@command
def stages(
    kind: Annotated[str | None, typer.Argument(metavar="[TYPE]", help="Only this stage; all by default.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    debug: Debug = False,
) -> int:
    """List the stages that a configuration can name, with their fields and defaults."""
    described = {}
    code = 0
    for name in [kind] if kind else registry.names():
        try:
            described[name] = describe_stage(registry.get(name))
        except ConfigError as error:
            if kind:
                raise
            print_error(error)  # a plugin that cannot be imported must not hide the others
            code = FAILED
    if as_json:
        typer.echo(json_text(described, indent=2))
    else:
        _print(console_on(sys.stdout), described)
    return code


def describe_stage(cls: type[Stage]) -> dict[str, Any]:
    """Return the description of a stage class as plain data, for ``stages --json`` and for the documentation.

    Returns:
        A dict with ``type``, ``package`` (with its version, or the module that registered the class), ``class``,
        ``summary`` (the first line of its docstring), ``needs``, ``gives``, ``about`` and ``fields``. A field has
        ``type``, ``required``, ``default`` (unless it is required), ``description``, ``aliases`` (if it has any) and
        ``fields`` (if it is a mapping with described keys).
    """
    return {
        "type": cls.type,
        "package": " ".join(registry.package_of(cls) or [cls.__module__]),
        "class": f"{cls.__module__}:{cls.__qualname__}",
        "summary": (inspect.cleandoc(cls.__doc__ or "").splitlines() or [""])[0],
        "needs": sorted(cls.needs),
        "gives": sorted(cls.gives),
        "about": dict(cls.about()),
        "fields": describe_fields(cls.model_fields),
    }


def describe_fields(fields: Mapping[str, FieldInfo]) -> dict[str, dict[str, Any]]:
    """Return the description of each field as plain data; ``describe_stage`` lists the keys."""
    return {name: _describe_field(name, info) for name, info in fields.items()}


def _describe_field(name: str, info: FieldInfo) -> dict[str, Any]:
    data: dict[str, Any] = {"type": type_text(info.annotation), "required": info.is_required()}
    if not info.is_required():
        value = info.get_default(call_default_factory=True, validated_data={})
        data["default"] = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    data["description"] = info.description or ""
    if isinstance(info.validation_alias, AliasChoices):
        data["aliases"] = [alias for alias in info.validation_alias.choices if alias != name]
    if inner := _inner_fields(info.annotation):
        data["fields"] = describe_fields(inner)
    return data


def _inner_fields(annotation: Any) -> dict[str, FieldInfo]:
    """Return the fields of a mapping with described keys; empty for any other type."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation.model_fields
    if get_origin(annotation) in (Annotated, Union, types.UnionType):
        return next(filter(None, map(_inner_fields, get_args(annotation))), {})
    return {}


def type_text(annotation: Any) -> str:
    """Return an annotation as a user writes it: ``int | none``, ``drop | cut``, ``{env: str}``."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is None and (inner := _inner_fields(annotation)):
        if not all(info.is_required() for info in inner.values()):
            return "mapping"
        return f"{{{', '.join(f'{name}: {type_text(info.annotation)}' for name, info in inner.items())}}}"
    if origin is Annotated:
        return type_text(arguments[0])
    if origin is Literal:
        return " | ".join("none" if value is None else str(value) for value in arguments)
    if origin in (Union, types.UnionType):
        return " | ".join(dict.fromkeys(map(type_text, arguments)))
    if origin is not None:
        return f"{origin.__name__}[{', '.join(map(type_text, arguments))}]"
    if annotation is Fallback:
        return "{fallback: STAGE}"
    words: dict[Any, str] = {None: "none", type(None): "none", Ellipsis: "..."}
    return words.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _print(console: Console, described: Mapping[str, Mapping[str, Any]]) -> None:
    for name, stage in described.items():
        console.print(Text.assemble((name, "bold"), (f"  {stage['package']}", "dim")))
        console.print(Text(f"  {stage['summary']}"))
        for word, text in stage["about"].items():
            console.print(Text(f"  {word}: {text}"))
        alone = len(described) == 1
        own = {key: field for key, field in stage["fields"].items() if alone or key not in Stage.model_fields}
        if own:
            console.print(_fields_table(own))
        console.print()
    if len(described) > 1:
        console.print(Text("fields of every stage", style="bold"))
        console.print(_fields_table(describe_fields(Stage.model_fields)))


def _fields_table(fields: Fields) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    table.add_column("field", no_wrap=True)
    table.add_column("default", max_width=24)
    table.add_column("type and meaning", ratio=1)
    for name, field in _flatten(fields):
        default = Text("required", style="bold") if field["required"] else Text(_default_text(field))
        table.add_row(Text(name), default, Text.assemble((f"{field['type']} · ", "dim"), field["description"]))
    return table


def _flatten(fields: Fields, prefix: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield each field, followed by its inner fields under dotted names: ``retry.attempts``."""
    for name, field in fields.items():
        yield prefix + name, field
        yield from _flatten(field.get("fields", {}), f"{prefix}{name}.")


def _default_text(field: Mapping[str, Any]) -> str:
    if field["default"] is None:
        return "none"
    return "" if "fields" in field else json_text(field["default"])  # defaults of inner fields have their own rows
