"""Filter expressions: values put in where they cannot change the meaning, expressions joined so that none widens.

Values are put in on this side, because older servers and Milvus Lite know no filter templates.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from milvus_pipeline import QueryError

# In this order: a quoted string (also one that never ends), a placeholder, a bracket.
_TOKEN = re.compile(
    r"""(?P<string>"(?:[^"\\]|\\.)*(?P<d_end>"?)|'(?:[^'\\]|\\.)*(?P<s_end>'?))"""
    r"""|(?P<placeholder>\{(?P<name>[A-Za-z_]\w*)\})"""
    r"""|(?P<bracket>[()\[\]{}])""",
    re.DOTALL,
)
_PLACEHOLDER = re.compile(r"\{[A-Za-z_]\w*\}")
_CLOSES = {")": "(", "]": "["}

# Milvus Lite refuses the JSON escapes \b, \f and \uXXXX; both engines take every other character as it is.
_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"})

_INT64 = 2**63

_LITERAL = re.compile(r"""("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|(?<!\w)\d[\w.]*)""", re.DOTALL)
_POSITION = r"line \d+:\d+|column \d+"


def joined(expressions: Iterable[str | None], values: Mapping[str, Any], must_use: Iterable[str] = ()) -> str:
    """The expressions that are not blank, joined by ``and``, with the values at their ``{name}`` places.

    Each expression is checked to be whole in itself (its brackets and quotes closed) before it is put in
    parentheses, so that ``a) or (b`` cannot widen what another expression allows.

    Args:
        expressions: Milvus boolean expressions.
        values: text, numbers, truth values, or lists of these, by placeholder.
        must_use: names of the values that must have a place.

    Returns:
        The joined expression; empty where nothing filters.

    Raises:
        QueryError: a placeholder without value or inside quotes, a value without its place or of a kind that no
            filter can hold, or an expression with open brackets or quotes.
    """
    used: set[str] = set()
    parts = []
    for text in expressions:
        if not isinstance(text, str | None):
            raise QueryError(f"filter: must be text, is {type(text).__name__}")
        if text is not None and text.strip():
            parts.append(_filled(text, values, used))
    if unused := sorted(set(must_use) - used):
        there = f"the places are {', '.join(sorted(used))}" if used else "there are none"
        raise QueryError(
            f"filter_params: no filter has a place {{{unused[0]}}} for the value {unused[0]!r}", str(there)
        )
    return parts[0] if len(parts) == 1 else " and ".join(f"({part})" for part in parts)


def check(expression: str | None, values: Mapping[str, Any]) -> None:
    """Check an expression whose values may come later, and the values that are there.

    Raises:
        QueryError: as ``joined``, but for missing values.
    """
    for name, value in values.items():
        literal(value, name)
    if expression is not None:
        later = {match["name"]: "" for match in _TOKEN.finditer(expression) if match["name"]}
        joined([expression], {**later, **values})


def without_values(message: str, expression: str) -> str:
    """What an engine says about an expression, without the expression and the values in it, which may be private.

    Args:
        message: may quote the expression whole, or parts of it, with or without the blanks between them.
        expression: as ``joined`` made it; empty for none.
    """
    if not expression:
        return message
    message = message.replace(expression, "…")
    forms = sorted({form for found in _LITERAL.findall(expression) for form in _forms(found)}, reverse=True)
    # A form that begins with another one comes before it. Positions in the expression look like numbers, and stay.
    message = re.sub("|".join([f"({_POSITION})", *forms]), lambda found: found[1] or "…", message)
    # Only values stand in double quotes, maybe with other escapes than ours.
    return re.sub(r'"[^"]*(?:"|$)', "…", message)


def texts_of(expression: str) -> list[str]:
    """The expression, and the literals in it: what may be private of a filter."""
    return [expression, *(found.strip("\"'") for found in _LITERAL.findall(expression))] if expression else []


def _forms(literal: str) -> list[str]:
    """Patterns of the ways in which messages quote a literal."""
    if literal[0] not in "\"'":
        return [rf"(?<![\d.])(?<!Int){re.escape(literal)}(?![\w.])"]  # grown together with the word before it, maybe
    whole = [re.escape(literal), re.escape(repr(literal)[1:-1])]
    return [*whole, rf"(?<!\w){re.escape(literal[1:-1])}(?!\w)"] if literal[1:-1].strip() else whole


def _filled(text: str, values: Mapping[str, Any], used: set[str]) -> str:
    open_brackets: list[str] = []

    def replaced(match: re.Match[str]) -> str:
        if match["string"]:
            _check_string(match)
        elif match["placeholder"]:
            name = match["name"]
            if name not in values:
                raise QueryError(f"filter: no value for {{{name}}}", "give it in filter_params")
            used.add(name)
            # Blanks around it, so that a value never grows together with the word beside it.
            return f" {literal(values[name], name)} "
        elif match["bracket"] in "([":
            open_brackets.append(match["bracket"])
        elif match["bracket"] in ")]":
            if not open_brackets or open_brackets.pop() != _CLOSES[match["bracket"]]:
                raise QueryError(f"filter: {match['bracket']!r} at character {match.start() + 1} closes nothing")
        else:
            raise QueryError(
                (f"filter: {match['bracket']!r} at character {match.start() + 1} belongs to no placeholder"),
                "write {name}, with a name of letters, digits and underscores",
            )
        return match.group()

    filled = _TOKEN.sub(replaced, text)
    if open_brackets:
        raise QueryError(f"filter: {open_brackets[-1]!r} is never closed")
    return filled.strip()


def _check_string(match: re.Match[str]) -> None:
    if not (match["d_end"] or match["s_end"]):
        raise QueryError(f"filter: the quote at character {match.start() + 1} is never closed")
    if inner := _PLACEHOLDER.search(match.group()):
        raise QueryError(
            f"filter: the placeholder {inner.group()} stands inside quotes",
            "take the quotes away, a text is quoted when it is put in",
        )


def literal(value: Any, name: str) -> str:
    """A value as a literal of Milvus's filter language.

    Args:
        value: text, number, truth value, or a list of these.
        name: of its placeholder, for the message.

    Raises:
        QueryError: a kind of value that no filter can hold.
    """
    if isinstance(value, np.generic):
        value = value.item()
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
            raise QueryError(f"filter_params.{name}: the number does not fit into 64 bits")
        return int.__repr__(value)  # a class of the caller's own may print itself as it likes
    if isinstance(value, float):
        if not math.isfinite(value):
            raise QueryError(f"filter_params.{name}: must be a finite number, is {value}")
        return float.__repr__(value)
    if isinstance(value, str):
        try:
            str.encode(value)
        except UnicodeEncodeError:
            raise QueryError(f"filter_params.{name}: is not valid Unicode text (a lone surrogate)") from None
        return f'"{str.translate(value, _ESCAPES)}"'
    raise QueryError(
        f"filter_params.{name}: must be text, a number, true or false, or a list of these, is {type(value).__name__}"
    )
