"""Filter expressions: values that cannot change the meaning, and joins in which no part widens another.

Values are inserted by the client, because older servers and Milvus Lite have no filter templates.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from milvus_pipeline import QueryError

# In this order: a quoted string (perhaps unterminated), a placeholder, a bracket.
_TOKEN = re.compile(
    r"""(?P<string>"(?:[^"\\]|\\.)*(?P<d_end>"?)|'(?:[^'\\]|\\.)*(?P<s_end>'?))"""
    r"""|(?P<placeholder>\{(?P<name>[A-Za-z_]\w*)\})"""
    r"""|(?P<bracket>[()\[\]{}])""",
    re.DOTALL,
)
_PLACEHOLDER = re.compile(r"\{[A-Za-z_]\w*\}")
_CLOSES = {")": "(", "]": "["}

# Milvus Lite refuses the JSON escapes \b, \f and \uXXXX; both engines accept every other character unescaped.
_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"})

_INT64 = 2**63

_LITERAL = re.compile(r"""("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|(?<!\w)\d[\w.]*)""", re.DOTALL)
_POSITION = r"line \d+:\d+|column \d+"


def join(expressions: Iterable[str | None], values: Mapping[str, Any], must_use: Iterable[str] = ()) -> str:
    """Return the expressions that are not blank, joined by ``and``, with values for their ``{name}`` placeholders.

    Each expression must have its own brackets and quotes closed before it is put in parentheses, so that
    ``a) or (b`` cannot widen what another expression allows.

    Args:
        expressions: Milvus boolean expressions.
        values: strings, numbers, booleans, or lists of these, by placeholder.
        must_use: names of the values that must have a placeholder.

    Returns:
        The joined expression; empty if there is no filter.

    Raises:
        QueryError: a placeholder has no value or is inside quotes, a value has no placeholder or a type that a filter
            cannot hold, or an expression has unclosed brackets or quotes.
    """
    used: set[str] = set()
    parts = []
    for text in expressions:
        if not isinstance(text, str | None):
            raise QueryError(f"filter: must be a string, got {type(text).__name__}")
        if text is not None and text.strip():
            parts.append(_fill(text, values, used))
    if unused := sorted(set(must_use) - used):
        names = ", ".join(sorted(used)) or "none"
        raise QueryError(
            f"filter_params: no filter has a placeholder {{{unused[0]}}}", f"the placeholders are: {names}"
        )
    return parts[0] if len(parts) == 1 else " and ".join(f"({part})" for part in parts)


def check(expression: str | None, values: Mapping[str, Any]) -> None:
    """Check an expression, and the values that are already there.

    Raises:
        QueryError: as ``join``, except for missing values.
    """
    for name, value in values.items():
        literal(value, name)
    if expression is not None:
        later = {match["name"]: "" for match in _TOKEN.finditer(expression) if match["name"]}
        join([expression], {**later, **values})


def without_values(message: str, expression: str) -> str:
    """Return an engine's message about an expression without the expression and its values, which may be private.

    Args:
        message: may quote the whole expression, or parts of it, with or without the blanks between them.
        expression: as ``join`` made it; empty for none.
    """
    if not expression:
        return message
    message = message.replace(expression, "…")
    forms = sorted({form for found in _LITERAL.findall(expression) for form in _forms(found)}, reverse=True)
    # Longer forms come before those that they begin with. Positions in the expression look like numbers, but stay.
    message = re.sub("|".join([f"({_POSITION})", *forms]), lambda found: found[1] or "…", message)
    # Only values are in double quotes, maybe with other escapes than ours.
    return re.sub(r'"[^"]*(?:"|$)', "…", message)


def private_texts(expression: str) -> list[str]:
    """Return what may be private in a filter: the expression, and the literals in it."""
    return [expression, *(found.strip("\"'") for found in _LITERAL.findall(expression))] if expression else []


def _forms(literal: str) -> list[str]:
    """Patterns for the ways in which messages quote a literal."""
    if literal[0] not in "\"'":
        return [rf"(?<![\d.])(?<!Int){re.escape(literal)}(?![\w.])"]  # maybe joined to the word before it
    whole = [re.escape(literal), re.escape(repr(literal)[1:-1])]
    return [*whole, rf"(?<!\w){re.escape(literal[1:-1])}(?!\w)"] if literal[1:-1].strip() else whole


def _fill(text: str, values: Mapping[str, Any], used: set[str]) -> str:
    open_brackets: list[str] = []

    def replace(match: re.Match[str]) -> str:
        if match["string"]:
            _check_string(match)
        elif match["placeholder"]:
            name = match["name"]
            if name not in values:
                raise QueryError(f"filter: no value for {{{name}}}", "add it to filter_params")
            used.add(name)
            # Blanks keep a value apart from the word beside it.
            return f" {literal(values[name], name)} "
        elif match["bracket"] in "([":
            open_brackets.append(match["bracket"])
        elif match["bracket"] in ")]":
            if not open_brackets or open_brackets.pop() != _CLOSES[match["bracket"]]:
                raise QueryError(f"filter: {match['bracket']!r} at character {match.start() + 1} closes nothing")
        else:
            raise QueryError(
                f"filter: {match['bracket']!r} at character {match.start() + 1} is not part of a placeholder",
                "write {name}, with letters, digits and underscores",
            )
        return match.group()

    filled = _TOKEN.sub(replace, text)
    if open_brackets:
        raise QueryError(f"filter: {open_brackets[-1]!r} is never closed")
    return filled.strip()


def _check_string(match: re.Match[str]) -> None:
    if not (match["d_end"] or match["s_end"]):
        raise QueryError(f"filter: the quote at character {match.start() + 1} is never closed")
    if inner := _PLACEHOLDER.search(match.group()):
        raise QueryError(
            f"filter: the placeholder {inner.group()} is inside quotes",
            "remove the quotes; strings are quoted when they are inserted",
        )


def literal(value: Any, name: str) -> str:
    """Return a value as a literal of Milvus's filter language.

    Args:
        value: string, number, boolean, or a list of these.
        name: of its placeholder, for the message.

    Raises:
        QueryError: a filter cannot hold values of this type.
    """
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list | tuple | set | frozenset):
        return "[" + ", ".join(_scalar(item, f"{name}[{index}]") for index, item in enumerate(value)) + "]"
    return _scalar(value, name)


def _scalar(value: Any, name: str) -> str:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        if not -_INT64 <= value < _INT64:
            raise QueryError(f"filter_params.{name}: the number does not fit in 64 bits")
        return int.__repr__(value)  # not a subclass's own representation
    if isinstance(value, float):
        if not math.isfinite(value):
            raise QueryError(f"filter_params.{name}: must be a finite number, got {value}")
        return float.__repr__(value)
    if isinstance(value, str):
        try:
            str.encode(value)
        except UnicodeEncodeError:
            raise QueryError(f"filter_params.{name}: is not valid Unicode (it has a lone surrogate)") from None
        return f'"{str.translate(value, _ESCAPES)}"'
    raise QueryError(
        f"filter_params.{name}: must be a string, a number, a boolean, or a list of these, got {type(value).__name__}"
    )
