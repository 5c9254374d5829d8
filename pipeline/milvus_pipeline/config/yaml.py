"""Reads a YAML file so that every value keeps its line and environment variables are substituted safely.

Variables are substituted in scalars after parsing, so that a value can never change the structure of the document.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from milvus_pipeline.errors import ConfigError, Problem
from milvus_pipeline.files.lines import read_failure
from milvus_pipeline.problems import kind_of
from milvus_pipeline.text import short_repr

MAX_NODES = 100_000
"""Nodes that a document may have with its aliases expanded; a bound for the 'billion laughs' family of documents."""

MAX_DEPTH = 64
"""Levels that values may be nested, with aliases expanded, so that a file cannot exhaust the call stack."""

MAX_CHARACTERS = 1_000_000
"""Length of a document. One of this length takes some seconds to read."""

_TOO_DEEP = f"has values that are nested more than {MAX_DEPTH} deep"

_LONGEST_SCALAR = 100
"""Characters of a number or date. Long ones take time that grows with the square of their length."""

_STRING, _MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"
# A lone `=` or `<<` has a meaning in old YAML, which the parser keeps; users mean a string.
_TEXTS = (_STRING, _MERGE, "tag:yaml.org,2002:value")
_PLAIN = tuple(f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float", "timestamp"))

_QUOTE = re.compile(r"(['\"])(.*?)\1")
_SIGN = re.compile(r".{0,8}|<[a-z ]+>")
"""What a message of the parser may quote: punctuation and short pieces, no texts."""

_VARIABLE = re.compile(r"\$\$|\$\{(?P<body>[^}]*)\}")
_NAME = re.compile(r"(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>.*))?", re.DOTALL)

KeyPath: TypeAlias = tuple[str | int, ...]
"""The keys and positions that lead to a value in a document."""


@dataclass(frozen=True)
class Source:
    """The data of a YAML document, its origin, the line of each value, and the variables without a value."""

    data: Any
    origin: str
    lines: Mapping[KeyPath, int] = field(default_factory=dict)
    problems: Sequence[Problem] = ()

    def line(self, problem: Problem) -> int:
        """Return the line of a problem, or of the nearest value around it; 0 if that is unknown."""
        path = problem.path
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 0)

    def error(self, problems: list[Problem]) -> ConfigError:
        """Return all problems as one exception, each with its line."""
        located = (problem._replace(line=self.line(problem)) for problem in problems)
        return ConfigError(problems=located, place=self.origin)


def read_yaml(path: str | Path, environ: Mapping[str, str] | None = None) -> Source:
    """Read and parse a file; see ``parse_yaml``.

    Raises:
        ConfigError: also if the file cannot be read.
    """
    try:
        with Path(path).open(encoding="utf-8") as file:
            text = file.read(MAX_CHARACTERS + 1)
    except UnicodeDecodeError as error:
        raise ConfigError(f"is not UTF-8 text ({error.reason} at byte {error.start})", place=str(path)) from None
    except OSError as error:
        raise ConfigError(*read_failure(error), place=str(path)) from error
    except ValueError:  # a NUL, or characters that no file system has
        raise ConfigError("is not a path", "give the name of a YAML file", place=short_repr(str(path))) from None
    return parse_yaml(text, str(path), environ)


def parse_yaml(text: str, origin: str = "<yaml>", environ: Mapping[str, str] | None = None) -> Source:
    """Parse one YAML document, with ``${VAR}`` and ``${VAR:-default}`` substituted; ``$$`` is a single ``$``.

    Args:
        text: the document.
        origin: its name in messages.
        environ: the variables; the process environment by default.

    Returns:
        The data. A variable without a value is left as it is, and is among the ``problems``.

    Raises:
        ConfigError: it is not YAML, not a mapping, has a key twice, or too much of anything.
    """
    if len(text) > MAX_CHARACTERS:
        raise ConfigError(f"has more than {MAX_CHARACTERS} characters", "is this the right file?", place=origin)
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is None:
            raise ConfigError("is empty", "it needs at least a list of `stages`", place=origin)
        reader = _Reader(origin, os.environ if environ is None else environ)
        data = reader.read(node, ())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        what = f"is not valid YAML: {_without_quotes(str(error.problem or error.context))}{at}"
        # Without its cause, which repeats the line: a key may be in it.
        raise ConfigError(what, _flow_hint(text, mark), place=origin) from None
    except ConfigError:
        raise
    except RecursionError:
        raise ConfigError(_TOO_DEEP, place=origin) from None
    except (yaml.YAMLError, OverflowError, ValueError) as error:
        problem = next(iter(str(error).splitlines()), type(error).__name__)
        raise ConfigError(f"is not valid YAML: {_without_quotes(problem)}", place=origin) from None
    if not isinstance(data, dict):
        raise ConfigError(f"must be a mapping with a list of `stages`, got {kind_of(data)}", place=origin)
    return Source(data, origin, reader.lines, reader.problems)


def _flow_hint(text: str, mark: yaml.Mark | None) -> str:
    """Return the next step for ``{uri: ${X}}``, which YAML reads as a mapping in a mapping."""
    lines = text.splitlines()
    if mark is None or mark.line >= len(lines) or "${" not in lines[mark.line]:
        return ""
    return "within { } and [ ], put ${VARIABLE} in quotes"


def _without_quotes(problem: str) -> str:
    """Return the parser's message without what it quotes from the document."""
    return _QUOTE.sub(lambda match: match[0] if _SIGN.fullmatch(match[2]) else "'…'", problem)


class _Reader:
    """Turns nodes into plain data, and records their lines."""

    def __init__(self, origin: str, environ: Mapping[str, str]) -> None:
        self.loader = yaml.SafeLoader("")  # constructs and resolves scalars
        self.origin = origin
        self.environ = environ
        self.lines: dict[KeyPath, int] = {}
        self.problems: list[Problem] = []
        self.left = MAX_NODES

    def read(self, node: yaml.Node, path: KeyPath) -> Any:
        self._count(len(path))
        self.lines.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode) and node.tag == "tag:yaml.org,2002:map":
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode) and node.tag == "tag:yaml.org,2002:seq":
            return [self.read(item, (*path, index)) for index, item in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode) and node.tag in _TEXTS:
            return self._substitute(node.value, path)
        # The constructors rely on the value matching its tag, but a tag in the file may be wrong.
        if not isinstance(node, yaml.ScalarNode) or node.tag not in _PLAIN or node.tag != self._resolved(node):
            raise self._error(path, "begins with `!`, which makes it a tag in YAML", "put it in quotes")
        if len(node.value) > _LONGEST_SCALAR:
            raise self._error(path, f"is a number of more than {_LONGEST_SCALAR} characters", "put it in quotes")
        return self.loader.construct_object(node, deep=True)

    def _count(self, depth: int) -> None:
        self.left -= 1
        if self.left < 0:
            raise ConfigError(f"has more than {MAX_NODES} values with its aliases expanded", place=self.origin)
        if depth >= MAX_DEPTH:
            raise ConfigError(_TOO_DEEP, place=self.origin)

    def _resolved(self, node: yaml.ScalarNode) -> Any:
        """Return the tag that the same value has without a tag and quotes."""
        return self.loader.resolve(yaml.ScalarNode, node.value, (True, False))  # type: ignore[no-untyped-call]

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        data: dict[str, Any] = {}
        for name, (line, value) in self._members(node, path, len(path)).items():
            self.lines[(*path, name)] = line
            data[name] = self.read(value, (*path, name))
        return data

    def _members(self, node: yaml.MappingNode, path: KeyPath, depth: int) -> dict[str, tuple[int, yaml.Node]]:
        """Return line and node by key: the mapping's own, and those it merges in that it does not have itself."""
        merged: dict[str, tuple[int, yaml.Node]] = {}
        own: dict[str, tuple[int, yaml.Node]] = {}
        for key, value in node.value:
            self._count(depth)
            if key.tag == _MERGE:
                # Of several, an earlier one has precedence.
                for each in reversed(value.value) if isinstance(value, yaml.SequenceNode) else [value]:
                    if not isinstance(each, yaml.MappingNode):
                        raise self._error(path, "`<<` takes a mapping, or a list of mappings")
                    merged |= self._members(each, path, depth + 1)
                continue
            if not isinstance(key, yaml.ScalarNode) or key.tag not in (*_TEXTS, *_PLAIN):
                raise self._error(path, "a key must be a plain word")
            name, line = str(key.value), key.start_mark.line + 1
            if name in own:
                self.lines[(*path, name)] = line
                raise self._error((*path, name), "duplicate key", "remove one of them")
            own[name] = (line, value)
        return merged | own

    def _substitute(self, text: str, path: KeyPath) -> str:
        def value(match: re.Match[str]) -> str:
            if match.group() == "$$":
                return "$"
            parts = _NAME.fullmatch(match["body"])
            if parts is None:
                what = "the text in ${…} is not the name of a variable"
                self.problems.append(Problem(path, what, "write ${NAME} or ${NAME:-default}"))
                return match.group()
            name, default = parts["name"], parts["default"]
            # As in a shell, `:-` also replaces a variable that is set but empty.
            found = self.environ.get(name) or default
            if found is None and name not in self.environ:
                what = f"the environment variable {name} is not set"
                self.problems.append(Problem(path, what, f"set it, or give a default: ${{{name}:-value}}"))
                return match.group()
            return found or ""

        # There is no variable behind the last brace, and searching there again and again would be slow.
        end = text.rfind("}") + 1
        return _VARIABLE.sub(value, text[:end]) + text[end:].replace("$$", "$")

    def _error(self, path: KeyPath, what: str, next_step: str = "") -> ConfigError:
        return Source(None, self.origin, self.lines).error([Problem(path, what, next_step)])
