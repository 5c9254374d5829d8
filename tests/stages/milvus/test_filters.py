"""Filter expressions as text; what the engines make of them is tested with the search."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from milvus_pipeline import QueryError
from milvus_stages.milvus.filters import join, without_values


def test_nothing_filters() -> None:
    """No expression, or blank ones, make no filter."""
    assert join([None, "", "  \n"], {}) == ""


def test_expressions_are_joined_in_parentheses() -> None:
    """So that an `or` of one cannot reach into the other; a single one stays as it is."""
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
    """Each kind of value in Milvus's own notation, set off by blanks."""
    assert join(["x == {v}"], {"v": value}) == f"x ==  {literal}"


@pytest.mark.parametrize(
    "value",
    [None, {"a": 1}, [[1]], [None], float("nan"), float("inf"), 2**63, -(2**63) - 1, "\ud800", b"x", object()],
)
def test_values_that_no_filter_can_hold(value: object) -> None:
    """They are refused by the name of their place."""
    with pytest.raises(QueryError, match=r"^filter_params\.v"):
        join(["x in {v}"], {"v": value})


@pytest.mark.parametrize(
    ("expression", "said"),
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
def test_expressions_that_are_not_whole(expression: str, said: str) -> None:
    """Open brackets and quotes, and placeholders where no value can stand, are refused with their place."""
    with pytest.raises(QueryError) as caught:
        join([expression, "year > 0"], {"v": 1})
    assert said in str(caught.value)


def test_brackets_and_quotes_inside_strings_are_text() -> None:
    """Nothing in a string counts as structure."""
    expression = """t == "a) or (b" and u == '"' and v == "\\"(" """
    assert join([expression, "c"], {}) == f"({expression.strip()}) and (c)"


def test_values_that_must_have_a_place() -> None:
    """A value without its place is most likely a misspelt name."""
    with pytest.raises(QueryError, match=r"no filter has a placeholder \{yaer\}; the placeholders are: year"):
        join(["year > {year}"], {"year": 1, "yaer": 2}, must_use=["yaer"])
    assert join(["year > {year}"], {"year": 1, "other": 2}) == "year >  1"


@pytest.mark.parametrize(
    ("message", "said"),
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
def test_messages_without_the_values_of_a_filter(message: str, said: str) -> None:
    """What an engine objects to stays; what it quotes of the values goes."""
    assert without_values(message, 't == "geheim 1" and n == 4711 oops') == said
    assert without_values(message, "") == message


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_a_text_can_never_end_its_literal(text: str) -> None:
    """Whatever the text, it is one string literal, and reads back as itself."""
    filled = join(["t == {v}", "year > 0"], {"v": text})
    assert filled.startswith('(t ==  "')
    assert filled.endswith('") and (year > 0)')
    assert json.loads(filled.removeprefix("(t == ").removesuffix(") and (year > 0)"), strict=False) == text
