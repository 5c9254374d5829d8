"""A value in a filter is one literal that means itself, and no filter widens another."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from enum import Enum
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pymilvus import MilvusClient

from milvus_pipeline import QueryError
from milvus_stages.milvus.filters import join
from support.collections import make_collection, make_index

fixed = settings(derandomize=True, deadline=None, max_examples=100)

INJECTIONS = (
    *('" or 1==1 or "', "' or 1==1 or '", '\\" or id >= 0 or "', '\\\\" or id >= 0 or "', '") or (id >= 0) or ("'),
    *('"] or id in [1, 2] or tag in ["', "{v} or true", "${V}", "true", "null", "1", "not", "and", "or", "id", "$meta"),
    *("-- all", "/* all */", "// all", "# all", "%", "_", "a%", "\\", '"', "'", '""', "\\u0022", "\\x22", "\\042"),
)
LETTERS = "\"'\\\n\r\t\0\x01\x07\x08\x0b\x0c\x1b\x7f\x85\xa0\u200b\u2028\u202e\ufeff\ufffdaé漢😀 %_(){}[]=<>!&|,;:-+*/#"

texts = (
    st.sampled_from(INJECTIONS)
    | st.text(st.sampled_from(LETTERS), max_size=12)
    | st.text(st.characters(exclude_categories=["Cs"]))
)
numbers = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
single = texts | numbers | st.booleans()
values = single | st.lists(single, max_size=4)

FRAGMENTS = (
    *('tag == "a"', "tag == 'a'", "id >= 0", "id < 0", "id in [1, 2]", "tag == {v}", "(", ")", "[", "]", "or", "and"),
    *("not", "true", "||", "&&", '"', "'", "\\", '\\"', '"a', "b'", "-- x", "// x", "/*", "*/", "#", ";", ",", "\n"),
    *('("a) or (b")', '"("', "')'", '"\\\\"', "'\\''", "tag like 'a%'", "1 == 1", "{", "}", "{w}"),
)
atoms = st.sampled_from([piece for piece in FRAGMENTS if " " in piece and piece[0] in "(ti1"])
whole = st.recursive(
    atoms,
    lambda inner: st.tuples(inner, st.sampled_from(["or", "and", "||", "or not"]), inner).map(" ".join),
    max_leaves=4,
)
CRASHES = re.compile(r"""not\s*[(\s]*["']""")
"""``not`` before a string, which crashes a Milvus server 2.3.5."""

broken = st.lists(st.sampled_from(FRAGMENTS), min_size=1, max_size=4).map(" ".join).filter(str.strip)
expressions = whole | whole.map("({})".format) | st.tuples(whole, broken).map(" ".join) | broken

# -- a reader of Milvus's literals that shares no code with what is tested -------------------------------------------


class Literal(NamedTuple):
    """A string, a number or a boolean, as the engine reads it."""

    value: Any


TOKEN = re.compile(
    r"""(?P<text>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')|(?P<number>-?\d[\w.]*(?:(?<=e)[+-]\d+)?)|\w+|\S""", re.DOTALL
)
ESCAPED = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\", '"': '"', "'": "'"}


def read(expression: str) -> list[Literal | str]:
    """Return the literals of an expression, and every other word or character."""
    found: list[Literal | str] = []
    for token in TOKEN.finditer(expression):
        if token["text"]:
            inner = token["text"][1:-1]
            found.append(Literal(re.sub(r"\\(.)", lambda sign: ESCAPED[sign[1]], inner, flags=re.DOTALL)))
        elif token["number"]:
            whole = re.fullmatch(r"-?\d+", token["number"])
            found.append(Literal(int(token["number"]) if whole else float(token["number"])))
        else:
            found.append(Literal(token[0] == "true") if token[0] in ("true", "false") else token[0])
    assert not {'"', "'"}.intersection(each for each in found if isinstance(each, str)), "a string is not closed"
    return found


# -- as text ---------------------------------------------------------------------------------------------------------


@fixed
@given(values, st.sampled_from(["x == {v}", "a < 1 or ({v} != b)", "not x in {v} and y == 'q\\'{v2'", "x=={v}or{v}"]))
def test_a_value_is_one_literal(value: Any, template: str) -> None:
    """A value reads back as one literal of its type; the rest of the template is unchanged."""
    template = template.replace("{v2", "z")
    items = value if isinstance(value, list) else [value]
    literals = [part for item in items for part in (",", Literal(item))][1:]
    inserted = ["[", *literals, "]"] if isinstance(value, list) else literals
    first, *others = (read(part) for part in template.split("{v}"))
    wanted = first + [part for other in others for part in (*inserted, *other)]
    assert repr(read(join([template], {"v": value}))) == repr(wanted)  # 1 is neither 1.0 nor true


@fixed
@given(expressions, expressions, texts)
def test_joined_expressions_stay_in_their_parentheses(one: str, other: str, value: str) -> None:
    """Each expression is refused, or lies in its own brackets, which nothing in it closes."""
    try:
        alone = [join([each], {"v": value}) for each in (one, other)]
        both = join([one, other], {"v": value})
    except QueryError:
        return
    assert both == f"({alone[0]}) and ({alone[1]})"
    found = read(both)
    depth, closings = 0, []
    for place, part in enumerate(found):
        depth += {"(": 1, "[": 1, ")": -1, "]": -1}.get(part, 0) if isinstance(part, str) else 0
        assert depth >= 0
        if depth == 0:
            closings.append(place)
    assert [found[place] for place in closings] == [")", "and", ")"]


class Choice(Enum):
    """A member whose value is a string, but which is not one."""

    TEXT = "text"


class Number(int):
    """Prints what widens a filter."""

    def __str__(self) -> str:
        return "1 or 1 == 1"

    __repr__ = __str__


class Real(float):
    """Prints what widens a filter."""

    __repr__ = Number.__str__


class Text(str):
    """Prints, and translates to, what widens a filter."""

    __slots__ = ()

    def translate(self, table: Any) -> str:
        return '" or 1 == 1 or "'

    __str__ = __repr__ = Number.__str__


def test_values_of_subclasses() -> None:
    """Subclasses of numbers and strings count by their value, not as they print."""
    assert join(["x in {v}"], {"v": [Number(3), Real(0.5), Text("t")]}) == 'x in  [3, 0.5, "t"]'
    with pytest.raises(QueryError, match=r"filter_params.v: must be a string, a number"):
        join(["x == {v}"], {"v": Choice.TEXT})


# -- in an engine ----------------------------------------------------------------------------------------------------


class Rows(NamedTuple):
    """A collection of difficult values."""

    client: MilvusClient
    tags: list[str]
    numbers: list[int]

    def found(self, expression: str) -> list[int]:
        rows = self.client.query("rows", filter=expression, output_fields=["id"], limit=1000, timeout=60)
        return sorted(row["id"] for row in rows)


# Without -2**63, which the server refuses.
INTEGERS = [0, 1, -1, 7, 2**31, -(2**31) - 1, 2**53 + 1, 2**63 - 1, -(2**63) + 1]


@pytest.fixture(scope="session", params=["lite", pytest.param("server", marks=pytest.mark.server)])
def rows(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rows]:
    """Milvus Lite, then a server, with a row for each injection, each special character, and some mixtures."""
    if request.param == "lite":
        uri = str(tmp_path_factory.mktemp("rows") / "rows.db")
    else:
        uri = request.getfixturevalue("milvus_server")
    mixed = random.Random(0)  # noqa: S311 - the same on every run
    tags = [*INJECTIONS, *LETTERS, *("".join(mixed.choices(LETTERS, k=8)) for _ in range(60))]
    tags = list(dict.fromkeys(tags))
    integers = [INTEGERS[row % len(INTEGERS)] for row in range(len(tags))]
    client = MilvusClient(uri, timeout=20, dedicated=True)
    columns = {"id": range(len(tags)), "vector": np.ones((len(tags), 2)), "tag": tags, "number": integers}
    make_collection(client, "rows", columns)
    make_index(client, "rows")
    yield Rows(client, tags, integers)
    client.close()
    if request.param == "lite":
        from milvus_lite.server_manager import server_manager_instance

        server_manager_instance.release_server(uri)


def test_an_engine_finds_the_rows_of_a_value_and_no_other(rows: Rows) -> None:
    """Every stored string and number, alone and in a list, finds exactly the rows that hold it."""
    for row, tag in enumerate(rows.tags):
        assert rows.found(join(["tag == {v}"], {"v": tag})) == [row]
        assert rows.found(join(["tag == {v}", "tag in {w}"], {"v": tag, "w": [tag, "x"]})) == [row]
        assert rows.found(join(["tag == {v}", "id < 0"], {"v": tag})) == []
    assert rows.found(join(["tag in {v}"], {"v": rows.tags})) == list(range(len(rows.tags)))
    for number in INTEGERS:
        holding = [row for row, own in enumerate(rows.numbers) if own == number]
        assert rows.found(join(["number in {v}"], {"v": [number]})) == holding
        assert rows.found(join(["number == {v}"], {"v": number})) == holding


@fixed
@given(value=texts)
def test_an_engine_finds_nothing_for_a_text_that_no_row_holds(rows: Rows, value: str) -> None:
    """No string finds a row with another tag."""
    holding = [row for row, own in enumerate(rows.tags) if own == value]
    assert rows.found(join(["tag == {v}"], {"v": value})) == holding


@fixed
@given(one=expressions, other=expressions)
def test_an_engine_never_finds_more_with_a_second_filter(rows: Rows, one: str, other: str) -> None:
    """Rows that match two filters together match each of them alone, for everything that the engine can read."""
    from pymilvus.exceptions import MilvusException

    try:
        assume(not any(CRASHES.search(each) for each in (one, other)))
        together, alone = join([one, other], {"v": "a"}), [join([each], {"v": "a"}) for each in (one, other)]
        found = set(rows.found(together))
    except QueryError:
        return
    except MilvusException as error:
        assert error.code != 2, "the server is gone"
        return
    for each in alone:
        assert found <= set(rows.found(each))
