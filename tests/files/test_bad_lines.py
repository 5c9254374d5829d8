"""Lines that are not queries: reported in their place, left out, or fatal, each named by file and number."""

import io
import json
import string
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from milvus_pipeline import Query, QueryError, SearchResult
from milvus_pipeline.errors import InputError
from milvus_pipeline.files.queries import BadLines, InputFormat, count_queries, read_queries

MIXED = '{"_id": "a", "text": "red"}\n\nnot JSON\n{"_id": "b", "text": 7}\n{"text": "sky"}\n'
NOTHING_RUN = "nothing was run; fix the file, or have its bad lines skipped or reported"


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("q.txt", b"pl\xfcm", "is not UTF-8 text (invalid start byte at byte 2)"),
        ("q.txt", b"p\0l\0", "is not UTF-8 text (a NUL at byte 1); is it UTF-16?"),
        ("q.jsonl", b'{"text": "a"', "is not valid JSON: Expecting ',' delimiter at column 13"),
        ("q.jsonl", b'{"text": "\xff"}', "is not UTF-8 text (invalid start byte at byte 10)"),
        ("q.jsonl", b"[" * 100_000, "is not valid JSON: "),
        ("q.jsonl", b'{"text": ' + b"7" * 5000 + b"}", "is not valid JSON: "),
        ("q.jsonl", b"null", "must be a JSON object, {...}, on one line, got nothing"),
        ("q.jsonl", b'{"_id": "x"}', "has neither `text` nor `vector`; give the query one of them"),
        ("q.jsonl", b'{"text": "a", "params": [1]}', "params: must be a mapping of keys to values, got a list"),
        ("q.tsv", b"red", "must be two columns, id<TAB>text, neither empty, got 1"),
        ("q.tsv", b"7\tred\tsky", "must be two columns, id<TAB>text, neither empty, got 3"),
        ("q.tsv", b"7\t ", "must be two columns, id<TAB>text, neither empty, got 1"),
        ("q.tsv", b"\tred", "must be two columns, id<TAB>text, neither empty, got 1"),
        ("q.tsv", b"7\tr\xe9d", "is not UTF-8 text (invalid continuation byte at byte 3)"),
    ],
)
def test_a_bad_line_is_named_by_its_number(make, name, line, message):
    """A reported line leaves the others alone, a skipped one gives a warning, a fatal one ends the reading."""
    good = {"q.txt": b"red", "q.jsonl": b'{"text": "red"}', "q.tsv": b"1\tred"}[name]
    path = make(name, b"\n".join([good, b"", line, good, b""]))
    first, failed, last = read_queries(path)
    assert (first.text, last.text) == ("red", "red")
    assert isinstance(failed.error, QueryError)
    assert str(failed.error).startswith(f"{path}:3: {message}")
    messages = []
    assert [query.text for query in read_queries(path, bad_lines="skip", warn=messages.append)] == ["red", "red"]
    assert messages == [f"{failed.error}; the line is left out"]
    with pytest.raises(InputError) as fatal:
        next(read_queries(path, bad_lines="fatal"))
    assert str(fatal.value).splitlines() == [str(failed.error), NOTHING_RUN]


def test_reported_lines_have_ids(make):
    """A bad line keeps its own id if that can be read, else it gets one by its number that no other line has."""
    items = list(read_queries(make("q.jsonl", MIXED)))
    assert [item.query.id if isinstance(item, SearchResult) else item.id for item in items] == ["a", "line-3", "b", "4"]
    items = list(read_queries(make("q.tsv", b"a\tred\nb\tsky\tsea\nred\n\tsea\n")))
    assert [getattr(item, "query", item).id for item in items] == ["a", "line-2", "line-3", "line-4"]


def test_a_place_depends_on_the_file_alone(make):
    """A query's id does not depend on what is done about bad lines before it."""
    path = make("q.jsonl", MIXED)
    reported = [item.id for item in read_queries(path) if isinstance(item, Query)]
    assert reported == [item.id for item in read_queries(path, bad_lines=BadLines.SKIP)] == ["a", "4"]


def test_the_count_is_of_what_will_be_read(make):
    """Reported lines count as queries, and skipped ones do not."""
    path = make("q.jsonl", MIXED)
    assert count_queries(path) == 4
    assert count_queries(path, bad_lines="skip") == 2
    with pytest.raises(InputError):
        count_queries(path, bad_lines="fatal")


def test_only_the_first_bad_lines_are_listed(make):
    """Five bad lines are listed; of others that are skipped the number is given."""
    path = make("q.jsonl", '{"text": "red"}\n' + "oops\n" * 12 + '{"text": "sky"}\n')
    messages = []
    assert len(list(read_queries(path, bad_lines="skip", warn=messages.append))) == 2
    assert [message.split(": ")[0] for message in messages] == [
        *(f"{path}:{number}" for number in range(2, 7)),
        str(path),
    ]
    assert messages[-1] == f"{path}: 7 lines more left out"
    with pytest.raises(InputError) as fatal:
        count_queries(path, bad_lines="fatal")
    lines = str(fatal.value).splitlines()
    assert [line.split(": ")[0] for line in lines[:-1]] == [f"{path}:{number}" for number in range(2, 7)]
    assert lines[-1] == NOTHING_RUN


def test_a_fatal_line_of_stdin_ends_it_when_it_comes(monkeypatch):
    """Stdin cannot be read twice, so the queries before a bad line are read."""
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(MIXED.encode())))
    queries = read_queries(Path("-"), InputFormat.JSONL, bad_lines="fatal")
    assert next(queries).id == "a"
    with pytest.raises(InputError, match=r"^<stdin>:3: is not valid JSON"):
        next(queries)


def test_an_unknown_treatment_is_refused(make):
    """bad_lines must be one of its three values."""
    with pytest.raises(ValueError, match="ignore"):
        read_queries(make("q.txt", "red\n"), bad_lines="ignore")


def test_an_id_may_stand_twice(make):
    """Repeated ids are read; whether they can be written is for the output to say."""
    path = make("q.jsonl", '{"_id": "a", "text": "red"}\n{"_id": "a", "text": "sky"}\n{"text": "sea"}\n')
    assert [item.id for item in read_queries(path, bad_lines="fatal")] == ["a", "a", "3"]


LINES = st.one_of(
    st.binary(max_size=20),
    st.text(max_size=20).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.sampled_from(
        [b"\xef\xbb\xbf", b"query-id\ttext", b"a\tb", b"\r", b"\0", b'{"_id": "a", "text": "b"}', b"{}", b""]
    ),
    st.dictionaries(
        st.sampled_from(["_id", "id", "text", "query", "vector", "filter", "filter_params", "params", "other"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(string.printable, max_size=5),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
            max_leaves=5,
        ),
    ).map(lambda data: json.dumps(data).encode()),
)


def outcome(path, input_format, bad_lines):
    """Return the queries, bad lines and warnings of a file, and the error that ended it."""
    messages, items = [], []
    try:
        items.extend(read_queries(path, input_format, bad_lines=bad_lines, warn=messages.append))
    except InputError as error:
        messages.append(str(error))
    return [repr((item, getattr(item, "error", ""), getattr(item, "vector", ""))) for item in items], messages


@settings(max_examples=300)
@given(
    st.lists(LINES, max_size=8).map(b"\n".join),
    st.sampled_from(InputFormat),
    st.sampled_from(["q", "q.gz"]),
)
@example(b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03", InputFormat.LINES, "q.gz")
def test_whatever_a_file_holds(content, input_format, name):
    """Any content gives queries, bad lines or an InputError, the same twice, and as many as counted."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        for bad_lines in BadLines:
            read = outcome(path, input_format, bad_lines)
            assert read == outcome(path, input_format, bad_lines)
            try:
                count = count_queries(path, input_format, bad_lines=bad_lines)
            except InputError as error:
                assert read[1][-1] == str(error)
                assert bad_lines is not BadLines.FATAL or not read[0]
            else:
                assert count == len(read[0])
