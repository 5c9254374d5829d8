"""Any YAML file gives plain data or a ConfigError, soon, and has no other effect."""

from __future__ import annotations

import os
import sys
import tracemalloc
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milvus_pipeline import ConfigError
from milvus_pipeline.config.file import build, parse_config, read_config, to_yaml
from milvus_pipeline.config.yaml import MAX_CHARACTERS, MAX_DEPTH, parse_yaml

MUCH_MEMORY = 200_000_000


GOOD = "name: words\nstages:\n  - {type: truncate, top_k: 3}\n"

PIECES = (
    *("a: ", "- ", "? ", ": ", "{", "}", "[", "]", ", ", "\n", "\n  ", "\n    ", "\n- ", "|\n", ">-\n", "#", "'", '"'),
    *("&a ", "*a", "&b ", "*b", "<<: ", "<<", "=", "---\n", "...\n", "%YAML 1.2\n", "%TAG ! tag:x,1:\n", "\t", "\\"),
    *("!!python/object:os.system ", "!!int ", "!!float ", "!!bool x", "!!timestamp x", "!!binary ", "!!set ", "!x "),
    *("!!null ", "!!merge ", "!!str ", "!<tag:yaml.org,2002:python/name:os.system> ", "!!omap [a: 1]", '"\\U00110000"'),
    *("${V}", "${", "}", "$$", "${V:-x}", "${1}", "\0", "\ufeff", "\x85", "\u2028", "\ud800", "\x1b[2J", "1:1:1.5"),
    *("1", "0x1f", "1e400", ".inf", ".nan", "2024-13-45", "2024-01-01 00:00:00 +99:99", "~", "true", "9" * 200),
    *("stages: ", "type: truncate", "name: ", "timeout: ", "collection: ", "top_k: "),
)

scalars = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text()
trees = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20)
signs = st.sampled_from([": ", "- ", "\n", "#", "{", "}", "[", "'", '"', "&a", "*a", "!!int", "${V}", "$$", "<<", "|"])
values = st.text() | st.lists(signs | st.text(max_size=3), max_size=8).map("".join)


def plain(data: Any) -> bool:
    """Whether this is what JSON can hold, or a date."""
    if type(data) is dict:
        return all(type(key) is str and plain(value) for key, value in data.items())
    if type(data) is list:
        return all(map(plain, data))
    return data is None or isinstance(data, date) or type(data) in (str, int, float, bool)


def read_or_none(read: Callable[[], Any]) -> Any:
    """Return what is read; None if it is refused with a ConfigError."""
    try:
        return read()
    except ConfigError as error:
        assert str(error)
        return None


@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=25).map("".join))
def test_any_text(text: str) -> None:
    """Pieces of YAML in any order, alone and in a valid document, give plain data or a ConfigError."""
    for document in (text, f"{GOOD}x: {text}", GOOD.replace("3", text)):
        source = read_or_none(lambda document=document: parse_yaml(document, environ={"V": "a: [b"}))
        assert source is None or plain(source.data)
        if source is not None:
            read_or_none(lambda source=source: build(source))


@given(st.binary(max_size=40), st.sampled_from(["utf-8", "utf-16", "latin-1"]), st.integers(0, len(GOOD)))
def test_any_bytes(tmp_path_factory: pytest.TempPathFactory, junk: bytes, encoding: str, place: int) -> None:
    """A file in another encoding, or with any bytes in the middle, is read or refused."""
    path = tmp_path_factory.getbasetemp() / "any_bytes.yaml"
    good = GOOD.encode(encoding)
    path.write_bytes(good[:place] + junk + good[place:])
    read_or_none(lambda: read_config(path))


@given(trees)
def test_any_plain_data(tree: Any) -> None:
    """Data of any shape is written and read back unchanged, and gives a pipeline or a ConfigError."""
    for data in ({"a": tree}, {"name": tree, "stages": tree}, {"stages": [{"type": "truncate", "top_k": tree}]}):
        text = to_yaml(data)
        assert parse_yaml(text, environ={}).data == data
        read_or_none(lambda text=text: parse_config(text))


@given(values)
def test_a_variable_is_one_text(value: str) -> None:
    """A variable's value never changes the shape of the document, and is substituted once."""
    text = (
        "a: ${V}\nb: '${V}'\nc: \"x${V}y\"\nd: [1, '${V}']\ne: |\n  ${V}\nf: &f {g: '${V:-z}'}\n"
        "h: {<<: *f, i: '$${V}'}\nj: ${N:-${V}\nk: '${E:-}'\n'${V}': 2\n"
    )
    environ = {"V": value, "E": "", "W": "never"}
    set_or = value or "z"
    assert parse_yaml(text, environ=environ).data == {
        "a": value,
        "b": value,
        "c": f"x{value}y",
        "d": [1, value],
        "e": f"{value}\n",
        "f": {"g": set_or},
        "h": {"g": set_or, "i": "${V}"},
        "j": "${V",
        "k": "",
        "${V}": 2,
    }


@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:os.system [touch {file}]",
        "!!python/object/apply:canary_code.run ['{file}']",
        "!!python/object/new:canary_code.Thing [1]",
        "!!python/object:canary_code.Thing {{}}",
        "!!python/name:canary_code.run ''",
        "!!python/module:canary_code ''",
        "!<tag:yaml.org,2002:python/module:canary_code> ''",
        "!!binary aGk=",
        "!!set {{a}}",
        "!!int 'x'",
        "!!bool x",
        "!!timestamp x",
        "!!float ''",
    ],
)
def test_tags_are_never_constructed(value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tag runs no command, imports no module and makes no object."""
    ran = tmp_path / "ran"
    (tmp_path / "canary_code.py").write_text(f"open({str(ran)!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(tmp_path)
    for place in ("name: {}", "stages: [{{type: {}}}]", "stages: [{{type: truncate, top_k: {}}}]", "{}: x"):
        with pytest.raises(ConfigError):
            parse_config(place.format(value.format(file=ran)))
    assert not ran.exists()
    assert "canary_code" not in sys.modules


def multiplied(kind: str, levels: int = 12) -> str:
    """Return aliases of aliases, ten times as many on each level."""
    each = {"list": "[{}]", "mapping": "{{{}}}", "merge": "{{<<: [{}]}}"}[kind]
    item = "k{0}: *a{1}" if kind == "mapping" else "*a{1}"
    anchors = [
        f"&a{n} " + each.format(", ".join(item.format(number, n - 1) for number in range(10))) for n in range(1, levels)
    ]
    return f"[&a0 {{k: 1}}, {', '.join(anchors)}]"


BOMBS = {
    "aliases of lists": f"stages: {multiplied('list')}",
    "aliases of mappings": f"stages: {multiplied('mapping')}",
    "merges": f"stages: {multiplied('merge')}",
    "merges in a merge": f"stages:\n- <<: {multiplied('merge')}",
    "endless alias": "a: &x [*x, *x]",
    "endless merge": "a: &x {<<: *x, b: 1}",
    "deep lists": "a: " + "[" * 50_000,
    "deep mappings": "a: " + "{a: " * 50_000,
    "deep blocks": "".join(f"{' ' * depth}a:\n" for depth in range(1_000)),
    "deep aliases": "a0: &a0 1\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 1_000)),
    "deep keys": "? " * 5_000,
    "many keys": "".join(f"k{n}: 1\n" for n in range(10_000)),
    "many stages": "stages:\n" + "- {type: truncate, top_k: x}\n" * 2_000,
    "many values": f"a: [{'a,' * 110_000}]",
    "a long number": "stages: 0x" + "f" * 900_000,
    "a number to the base of 60": "stages: 1" + ":1" * 400_000,
    "a large float": "stages: 1" + ":1" * 200 + ".5",
    "a long text": "name: " + "x " * 400_000,
    "a long key": "? " + "k" * 900_000,
    "open variables": "name: '" + "${" * 400_000 + "'",
    "too long": "name: " + "x" * MAX_CHARACTERS,
}


@pytest.mark.parametrize("kind", BOMBS)
def test_no_document_takes_long(kind: str) -> None:
    """A document that multiplies, is deep or is long is refused; without bounds each would take hours or all memory."""
    with pytest.raises(ConfigError):
        parse_config(BOMBS[kind])


@pytest.mark.parametrize("kind", ["aliases of mappings", "merges", "merges in a merge"])
def test_no_document_takes_much_memory(kind: str) -> None:
    """A document that multiplies is refused before its values are made."""
    tracemalloc.start()
    try:
        with pytest.raises(ConfigError):
            parse_config(BOMBS[kind])
        assert tracemalloc.get_traced_memory()[1] < MUCH_MEMORY
    finally:
        tracemalloc.stop()


def test_depth_is_bounded() -> None:
    """The greatest depth that is allowed can be read, and more is refused."""
    deep = "a: " + "[" * (MAX_DEPTH - 2) + "]" * (MAX_DEPTH - 2)
    assert isinstance(parse_yaml(deep).data, dict)
    with pytest.raises(ConfigError, match=f"nested more than {MAX_DEPTH} deep"):
        parse_yaml(deep.replace("[", "[[[", 1).replace("]", "]]]", 1))


@pytest.mark.parametrize("path", ["a\0b", "\ud800", "x" * 5_000, os.devnull, "/dev/zero", "."])
def test_names_that_are_not_files(path: str) -> None:
    """Names that no file can have, and files without an end, are refused."""
    with pytest.raises(ConfigError):
        read_config(path)


def test_merges_are_those_of_yaml() -> None:
    """Own keys override merged ones, earlier mappings later ones, and overridden values are not checked."""
    text = """
    a: &a {x: 1, y: 1, z: "${NOT_SET}"}
    b: &b {<<: *a, y: 2, z: 2}
    c: {<<: [*b, *a], x: 3}
    d: {<<: *a, <<: *b}
    """
    source = parse_yaml(text, environ={})
    assert source.data["c"] == {"x": 3, "y": 2, "z": 2}
    assert source.data["d"] == {"x": 1, "y": 2, "z": 2}
    assert [problem.path for problem in source.problems] == [("a", "z")]
    for wrong in ("{<<: 1}", "{<<: [1]}"):
        with pytest.raises(ConfigError, match=r"a: `<<` takes a mapping, or a list of mappings \(line 1\)"):
            parse_yaml(f"a: {wrong}")
