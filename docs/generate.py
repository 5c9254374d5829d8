"""Write docs/stages.md and docs/api.md from the code: ``make docs``.

Both pages hold nothing written by hand. ``tests/docs/test_generated_pages.py`` compares them with the code.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import BaseModel

from milvus_pipeline.cli.stages import describe_fields, describe_stage
from milvus_pipeline.plugin import Reranker, Stage, registry

FOLDER = Path(__file__).parent
FACES = ("milvus_pipeline", "milvus_pipeline.plugin", "milvus_stages.hosted")
OURS = ("milvus_pipeline", "milvus_stages")
NOTICE = "<!-- Written by docs/generate.py: change the docstrings in the code, then run `make docs`. -->"

_PLAIN = {"classmethod", "staticmethod", "abstractmethod", "contextmanager", "asynccontextmanager"}
"""Decorators of public methods; a method with another one is no part of the interface (a validator, a property)."""


# -- stages.md ------------------------------------------------------------------------------------------------------


def stages_page() -> str:
    """Return the page of all stages of this project, their fields grouped by the class that declares them."""
    classes = sorted((cls for cls in map(registry.get, registry.names()) if _is_ours(cls)), key=_stage_order)
    bases = _shared_bases(classes)
    lines = [
        "# Stages",
        "",
        NOTICE,
        "",
        "All stages that come with the project, in the order in which a pipeline uses them. `milvus-pipeline stages`",
        "prints the same for what is installed, plugins included, and `milvus-pipeline schema` prints a JSON Schema.",
        "A field has the same name in YAML and as a keyword argument in Python.",
        "",
        "| type | class | what it does |",
        "|---|---|---|",
    ]
    lines += [
        f"| [`{cls.type}`](#{cls.type}) | `{cls.__name__}` | {_cell(describe_stage(cls)['summary'])} |"
        for cls in classes
    ]
    for base in bases:
        title = "every stage" if base is Stage else f"`{base.__name__}`"
        lines += ["", f"## Fields of {title}", "", *([] if base is Stage else [_users_text(base, classes), ""])]
        lines += _fields_table(_new_fields(base, bases))
    for cls in classes:
        lines += ["", *_stage_section(cls, bases)]
    return "\n".join(lines) + "\n"


def _is_ours(cls: type) -> bool:
    return cls.__module__.split(".")[0] in OURS


def _stage_order(cls: type[Stage]) -> tuple[int, str]:
    steps = ("vector" in cls.gives, "hits" in cls.gives, issubclass(cls, Reranker))
    return (steps.index(True) if any(steps) else len(steps), cls.type)


def _shared_bases(classes: list[type[Stage]]) -> list[type[Stage]]:
    """Return the base classes that add fields and have more than one stage below them, the most general first."""
    bases = dict.fromkeys(base for cls in classes for base in reversed(cls.__mro__[1:]) if issubclass(base, Stage))
    shared = [base for base in bases if sum(issubclass(cls, base) for cls in classes) > 1]
    return [base for base in shared if _new_fields(base, shared)]


def _users_text(base: type[Stage], classes: list[type[Stage]]) -> str:
    users = [f"[`{cls.type}`](#{cls.type})" for cls in classes if issubclass(cls, base)]
    return f"Taken by {', '.join(users)}."


def _new_fields(cls: type[Stage], bases: list[type[Stage]]) -> dict[str, dict[str, Any]]:
    """Return the described fields of a class that none of the shared bases above it has in the same form."""
    described = describe_fields(cls.model_fields)
    for base in bases:
        if base is not cls and issubclass(cls, base):
            inherited = describe_fields(base.model_fields)
            described = {name: field for name, field in described.items() if inherited.get(name) != field}
    return described


def _stage_section(cls: type[Stage], bases: list[type[Stage]]) -> list[str]:
    described = describe_stage(cls)
    package, _, name = described["class"].partition(":")
    names = {"needs": ", ".join(described["needs"]), "gives": ", ".join(described["gives"])}
    facts = {"class": f"`{package.split('.')[0]}.{name}`", **names, **described["about"]}
    lines = [f"## {cls.type}", "", _markdown(inspect.getdoc(cls) or ""), ""]
    lines += [f"- {key}: {value}" for key, value in facts.items() if value]
    if fields := _new_fields(cls, bases):
        lines += ["", *_fields_table(fields)]
    links = [
        "[every stage](#fields-of-every-stage)" if base is Stage else f"[`{base.__name__}`](#{_anchor(base)})"
        for base in reversed(bases)
        if issubclass(cls, base)
    ]
    return [*lines, "", f"{'And' if fields else 'It has'} the fields of {_listed(links)}."]


def _listed(words: list[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if words[1:] else words)


def _anchor(base: type) -> str:
    return f"fields-of-{base.__name__.lower()}"


def _fields_table(fields: Mapping[str, Mapping[str, Any]]) -> list[str]:
    lines = ["| field | type | default | description |", "|---|---|---|---|"]
    for name, field in _flat(fields):
        description = field["description"]
        if aliases := [alias for alias in field.get("aliases", ()) if alias not in description]:
            description += f" Alias: {', '.join(aliases)}."
        lines.append(f"| `{name}` | {_cell(field['type'])} | {_default_text(field)} | {_cell(description)} |")
    return lines


def _flat(fields: Mapping[str, Mapping[str, Any]], prefix: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name, field in fields.items():
        yield prefix + name, field
        yield from _flat(field.get("fields", {}), f"{prefix}{name}.")


def _default_text(field: Mapping[str, Any]) -> str:
    if field["required"]:
        return "required"
    if field["default"] is None:
        return "none"
    return "" if field.get("fields") else _cell(f"`{json.dumps(field['default'], ensure_ascii=False)}`")


# -- api.md ---------------------------------------------------------------------------------------------------------


def api_page() -> str:
    """Return the reference of the two faces, and of what plugins for hosted services build on."""
    lines = [
        "# API reference",
        "",
        NOTICE,
        "",
        "Two modules are public: `milvus_pipeline`, for users of pipelines, and `milvus_pipeline.plugin`, for",
        "authors of stages. The stages themselves are classes of `milvus_stages` ([stages](stages.md)), and",
        "`milvus_stages.hosted` is what a plugin for another service builds on",
        "([hosted rerankers](hosted_rerankers.md)). Everything else is private and may change without notice.",
    ]
    for face in FACES:
        module = importlib.import_module(face)
        summary = (inspect.getdoc(module) or "").split("\n\n")[0]
        lines += ["", f"## {face}", "", _markdown(summary), ""]
        lines += [" · ".join(f"[{name}](#{name.lower()})" for name in module.__all__)]
        for name in module.__all__:
            lines += ["", *_entry(module, name)]
    return "\n".join(lines) + "\n"


def undocumented_names() -> list[str]:
    """Return the public names, and public methods of public classes, that have no docstring."""
    missing = []
    for face in FACES:
        module = importlib.import_module(face)
        for name in module.__all__:
            value, source = getattr(module, name), _source_of(module, name)
            if not _docstring(value, source, name):
                missing.append(f"{face}.{name}")
            if inspect.isclass(value):
                methods = _methods(value).items()
                missing += [f"{face}.{name}.{key}" for key, method in methods if not ast.get_docstring(method)]
    return missing


def _entry(face: ModuleType, name: str) -> list[str]:
    """Return the section of one public name."""
    value, source = getattr(face, name), _source_of(face, name)
    text = _docstring(value, source, name)
    lines = [f"### {name}", ""]
    if inspect.isclass(value):
        code = [f"class {name}{_bases_text(value)}", *_constructor(value)]
        lines += ["```python", *code, "```", "", _markdown(text.split("\n\n")[0])]
        attributes = _attributes(value)
        if attributes:
            lines += ["", *(f"- `{key}`: {_inline(meaning)}" for key, meaning in attributes.items())]
        methods = _methods(value)
        if methods:
            lines += ["", "Methods:", ""]
            for key, node in methods.items():
                first = (ast.get_docstring(node) or "").split("\n\n")[0]
                lines.append(f"- `{_signature(key, node)}`: {_inline(first)}")
    elif inspect.isroutine(value):
        node = _methods(type(value.__self__))[name] if inspect.ismethod(value) else _definitions(source)[name]
        lines += ["```python", _signature(name, node), "```", "", _markdown(text.split("\n\n")[0])]
        if arguments := _sections(text, "Args"):
            lines += ["", *(f"- `{key}`: {_inline(meaning)}" for key, meaning in arguments.items())]
        if errors := _sections(text, "Raises"):
            lines += ["", "Raises:", "", *(f"- `{key}`: {_inline(meaning)}" for key, meaning in errors.items())]
    else:
        lines += [_markdown(text.split("\n\n")[0])]
    return lines


def _constructor(cls: type) -> list[str]:
    """Return the call that makes an object, if the class is not a base class to derive from."""
    node = next((node for node in _node(cls).body if getattr(node, "name", "") == "__init__"), None)
    if isinstance(node, ast.FunctionDef):
        return [_signature(cls.__name__, node).removesuffix(" -> None")]
    arguments: list[str] = []
    if dataclasses.is_dataclass(cls):
        for field in dataclasses.fields(cls):
            default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
            arguments += [_argument(field.name, default, field.default_factory is field.default)] * field.init
    elif issubclass(cls, BaseModel) and not issubclass(cls, Stage):
        for name, info in cls.model_fields.items():
            default = None if info.is_required() else info.get_default(call_default_factory=True, validated_data={})
            arguments.append(_argument(name, default, info.is_required()))
    return [f"{cls.__name__}({', '.join(arguments)})"] if arguments else []


def _argument(name: str, default: Any, required: bool) -> str:
    if required:
        return name
    plain = default is None or isinstance(default, bool | int | float | str | tuple | list | dict)
    return f"{name}={default!r}" if plain else f"{name}=..."


def _source_of(face: ModuleType, name: str) -> ModuleType:
    """Return the module that defines a name of a face, read from the imports of the face."""
    for node in ast.walk(_tree(face)):
        if isinstance(node, ast.ImportFrom) and any((alias.asname or alias.name) == name for alias in node.names):
            source = importlib.import_module(str(node.module))
            return _source_of(source, name) if name not in _definitions(source) else source
    return face


def _tree(module: ModuleType) -> ast.Module:
    return ast.parse(inspect.getsource(module))


def _definitions(module: ModuleType) -> dict[str, Any]:
    """Return the functions, classes and assignments of a module, by name."""
    found: dict[str, Any] = {}
    for node in _tree(module).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found[node.name] = node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found.update({target.id: node for target in targets if isinstance(target, ast.Name)})
    return found


def _docstring(value: Any, source: ModuleType, name: str) -> str:
    """Return the docstring of a class or function, or the string literal below an assignment."""
    if inspect.isclass(value) or inspect.isroutine(value):
        return inspect.cleandoc(value.__doc__ or "")
    return _attribute_docstrings(_tree(source)).get(name, "")


def _attribute_docstrings(parent: ast.Module | ast.ClassDef) -> dict[str, str]:
    found = {}
    for node, following in zip(parent.body, parent.body[1:], strict=False):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        literal = following.value if isinstance(following, ast.Expr) else None
        if isinstance(literal, ast.Constant) and isinstance(literal.value, str) and isinstance(targets[0], ast.Name):
            found[targets[0].id] = inspect.cleandoc(literal.value)
    return found


def _bases_text(cls: type) -> str:
    public = {name for face in FACES for name in importlib.import_module(face).__all__}
    bases = [base.__name__ for base in cls.__bases__ if base.__name__ in public or base.__module__ == "builtins"]
    return f"({', '.join(bases)})" if bases != ["object"] and bases else ""


def _classes(cls: type) -> list[type]:
    """Return a class and those of its bases that are ours and private: their members are documented with it."""
    public = {name for face in FACES for name in importlib.import_module(face).__all__}
    return [cls, *(base for base in cls.__mro__[1:] if _is_ours(base) and base.__name__ not in public)]


def _node(cls: type) -> ast.ClassDef:
    found = _definitions(importlib.import_module(cls.__module__))[cls.__name__]
    assert isinstance(found, ast.ClassDef)  # noqa: S101 - a class of a module is defined by a class statement
    return found


def _attributes(cls: type) -> dict[str, str]:
    """Return the documented attributes: of the docstring's sections, fields of a model, properties."""
    found: dict[str, str] = {}
    for owner in _classes(cls):
        listed = _sections(inspect.cleandoc(owner.__doc__ or ""), "Args", "Attributes", "Class attributes")
        found = {**listed, **_attribute_docstrings(_node(owner)), **found}
        for node in _node(owner).body:
            if isinstance(node, ast.FunctionDef) and "property" in _decorators(node) and not node.name.startswith("_"):
                found.setdefault(node.name, (ast.get_docstring(node) or "").split("\n\n")[0])
    own = {name for owner in _classes(cls) for name in vars(owner).get("__annotations__", {})}
    fields = getattr(cls, "model_fields", {})
    found |= {name: info.description for name, info in fields.items() if name in own and info.description}
    return {name: text for name, text in found.items() if not name.startswith("_")}


def _methods(cls: type) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for owner in _classes(cls):
        for node in _node(owner).body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                hidden = node.name.startswith("_") and node.name != "__call__"
                if not hidden and not _decorators(node) - _PLAIN:
                    found.setdefault(node.name, node)
    return found


def _decorators(node: ast.FunctionDef | ast.AsyncFunctionDef) -> set[str]:
    return {ast.unparse(decorator).split("(")[0] for decorator in node.decorator_list}


def _signature(name: str, node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    arguments = ast.unparse(node.args)
    arguments = re.sub(r"^(self|cls)(, )?", "", arguments)
    arguments = re.sub(r"^/(, )?", "", arguments)
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"{'async ' if isinstance(node, ast.AsyncFunctionDef) else ''}{name}({arguments}){returns}"


def _sections(text: str, *titles: str) -> dict[str, str]:
    """Return the entries of the named sections of a docstring in Google's style."""
    found: dict[str, str] = {}
    for title, body in re.findall(r"^([\w ]+):\n((?:[ ].*\n?|\n)+)", text, re.MULTILINE):
        for entry in re.split(r"\n(?=    \S)", "\n" + body.rstrip())[1:] if title in titles else ():
            name, _, meaning = entry.strip().partition(":")
            found.setdefault(name, meaning)
    return found


# -- text -----------------------------------------------------------------------------------------------------------


def _markdown(text: str) -> str:
    return re.sub(r"``(.+?)``", r"`\1`", text, flags=re.DOTALL)


def _inline(text: str) -> str:
    return " ".join(_markdown(text).split())


def _cell(text: str) -> str:
    return _inline(text).replace("|", "\\|")


PAGES = {"stages.md": stages_page, "api.md": api_page}

if __name__ == "__main__":
    for page, write in PAGES.items():
        (FOLDER / page).write_text(write(), encoding="utf-8")
