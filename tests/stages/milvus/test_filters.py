"""Filter expressions as text; how the engines read them is tested with the search."""

from __future__ import annotations

import numpy as np
import pytest

from milvus_pipeline import QueryError
from milvus_stages.milvus.filters import join, without_values


def test_nothing_filters() -> None:
    """No expressions, or only blank ones, make no filter."""
    assert join([None, "", "  \n"], {}) == ""


def test_expressions_are_joined_in_parentheses() -> None:
    """Parentheses keep an `or` in one expression from reaching into another; a single expression is unchanged."""
    assert join(["a == 1 or b == 2"], {}) == "a == 1 or b == 2"
    assert join(["a == 1 or b == 2", None, "c == 3"], {}) == "(a == 1 or b == 2) and (c == 3)"


@pytest.mark.parametrize(
    ("value", "literal"),
    [
        ('say "hi"', '"say \\"hi\\""'),
        ("a\\b\n\t\r", '"a\\\\b\\n\\t\\r"'),
        ("ü {x} '", '"ü {x} \'"'),
        (7, "7"),
        (-7, "-7"),
        (1e-7, "1e-07"),
        (True, "true"),
        ([1, 2.5, "x", False], '[1, 2.5, "x", false]'),
        ((), "[]"),
        (np.int64(3), "3"),
        (np.array([1, 2]), "[1, 2]"),
        (np.float32(0.5), "0.5"),
    ],
)
def test_values_become_literals(value: object, literal: str) -> None:
    """Each type of value becomes a literal of Milvus, between blanks."""
    assert join(["x == {v}"], {"v": value}) == f"x ==  {literal}"


@pytest.mark.parametrize(
    "value",
    [None, {"a": 1}, [[1]], [None], float("nan"), float("inf"), 2**63, -(2**63) - 1, "\ud800", b"x", object()],
)
def test_values_that_a_filter_cannot_hold(value: object) -> None:
    """A value that a filter cannot hold is refused with the name of its placeholder."""
    with pytest.raises(QueryError, match=r"^filter_params\.v"):
        join(["x in {v}"], {"v": value})


@pytest.mark.parametrize(
    ("expression", "error"),
    [
        ("a) or (b", "')' at character 2 closes nothing"),
        ("(a", "'(' is never closed"),
        ("a in [1, 2", "'[' is never closed"),
        ("(a]", "']' at character 3 closes nothing"),
        ('t == "open', "the quote at character 6 is never closed"),
        ("t == 'open\\'", "the quote at character 6 is never closed"),
        ('t == "{v}"', "the placeholder {v} is inside quotes"),
        ("t like '%{v}%'", "the placeholder {v} is inside quotes"),
        ("t == {w}", "no value for {w}; add it to filter_params"),
        ("t == {1}", "'{' at character 6 is not part of a placeholder"),
        ("t == {a b}", "'{' at character 6 is not part of a placeholder"),
    ],
)
def test_incomplete_expressions(expression: str, error: str) -> None:
    """Unclosed brackets and quotes, and misplaced placeholders, are refused with their position."""
    with pytest.raises(QueryError) as caught:
        join([expression, "year > 0"], {"v": 1})
    assert error in str(caught.value)


def test_brackets_and_quotes_inside_strings_are_text() -> None:
    """Brackets and quotes inside a string do not count as structure."""
    expression = """t == "a) or (b" and u == '"' and v == "\\"(" """
    assert join([expression, "c"], {}) == f"({expression.strip()}) and (c)"


def test_values_that_must_have_a_placeholder() -> None:
    """A value without a placeholder, most likely a misspelt name, is an error."""
    with pytest.raises(QueryError, match=r"no filter has a placeholder \{yaer\}; the placeholders are: year"):
        join(["year > {year}"], {"year": 1, "yaer": 2}, must_use=["yaer"])
    assert join(["year > {year}"], {"year": 1, "other": 2}) == "year >  1"


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            'cannot parse expression: t == "geheim 1" and n == 4711 oops, error: x',
            "cannot parse expression: …, error: x",
        ),
        ("no viable alternative at input 'in\"geheim 1\"'", "no viable alternative at input 'in…'"),
        ("unexpected token 'geheim 1' at column 11", "unexpected token '…' at column 11"),
        ("line 1:4711 mismatched input '4711' expecting text", "line 1:4711 mismatched input '…' expecting text"),
        ('value "geheim\\u0020" cannot be cast to Int64', "value … cannot be cast to Int64"),
        ('value "geh', "value …"),
        ("field n is Int64", "field n is Int64"),
    ],
)
def test_messages_without_the_values_of_a_filter(message: str, expected: str) -> None:
    """The engine's objection stays in the message; the values that it quotes are removed."""
    assert without_values(message, 't == "geheim 1" and n == 4711 oops') == expected
    assert without_values(message, "") == message
