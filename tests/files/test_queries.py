"""Queries from files: lines, JSONL, TSV, BEIR's folder, gzip; each query as it was written."""

import gzip
import io
import json
from pathlib import Path

import pytest

from milvus_pipeline import Query
from milvus_pipeline.errors import InputError
from milvus_pipeline.files.queries import InputFormat, QueryReader, Survey, read_queries, survey

CRANFIELD = Path(__file__).parents[2] / ".." / "shared" / "data" / "cranfield"
WHOLE = {
    "_id": "q1",
    "text": "red",
    "vector": [0.5, 1],
    "filter": "year > {since}",
    "filter_params": {"since": 2020},
    "params": {"nprobe": 64},
}


@pytest.fixture
def make(tmp_path):
    """Writes bytes or text into a file of the test's folder, gzipped where its name says so."""

    def write(name, content):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data = content.encode() if isinstance(content, str) else content
        path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
        return path

    return write


def asked(source, *arguments, **options):
    """Id and text of every query."""
    return [(query.id, query.text) for query in read_queries(source, *arguments, **options)]


def test_a_query_keeps_all_that_its_line_says(make):
    """Text, vector, filter with its values, and search parameters."""
    (query,) = read_queries(make("q.jsonl", json.dumps(WHOLE)))
    given = {key: value for key, value in WHOLE.items() if key not in {"_id", "vector"}}
    assert query == Query(**given, id="q1")
    assert query.vector == [0.5, 1.0]


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("q.txt", "red plum\n\n  sky \n"),
        ("q", "red plum\r\nsky"),
        ("q.jsonl", '{"text": "red plum"}\n{"_id": 2, "query": "sky"}\n'),
        ("q.json", '{"text": "red plum"}\n \n{"text": "sky", "metadata": {}}'),
        ("q.ndjson", '\ufeff{"text": "red plum"}\n{"text": "sky"}\n'),
        ("q.TSV", "1\tred plum\n2\tsky\n"),
        ("q.tsv", "\ufeffquery-id\ttext\r\n1\tred plum\r\n\r\n 2 \t sky\r\n"),
    ],
)
def test_the_files_name_says_how_to_read_it(make, name, content, suffix):
    """Gzipped or not; blank lines, a byte order mark and line breaks of Windows are no part of a query."""
    path = make(name + suffix, content)
    assert asked(path) == [("1", "red plum"), ("2", "sky")]
    assert survey(path) == Survey(count=2, bad=0)


def test_what_is_told_goes_before_the_name(make):
    """A file of any name can be read as any format."""
    assert asked(make("a.dat", "7\tred\n"), InputFormat.TSV) == [("7", "red")]
    assert asked(make("a.tsv", "7\tred\n"), InputFormat.LINES) == [("1", "7\tred")]


@pytest.mark.parametrize(
    "header", ["query-id\ttext", "qid\tquery", "ID\tText", "_id\ttext", "query_id\tquery_text", "topic-id\tquestion"]
)
def test_a_header_of_tsv_is_no_query(make, header):
    """It is known by its words, in the first line only."""
    assert asked(make("q.tsv", f"\n{header}\n7\tred\n{header}\n"))[0] == ("7", "red")
    assert len(asked(make("q.tsv", f"{header}\n7\tred\n{header}\n"))) == 2


@pytest.mark.parametrize("first", ["1\ttext", "id\tdocument", "query\ttext", "query-id\twhat is a query id?"])
def test_a_query_is_no_header(make, first):
    """A line is taken for a header only where it plainly is one."""
    assert asked(make("q.tsv", f"{first}\n")) == [tuple(first.split("\t"))]


@pytest.mark.parametrize("name", ["queries.jsonl", "queries.jsonl.gz"])
def test_a_folder_in_beirs_shape(make, name, tmp_path):
    """It stands for its queries."""
    make(name, '{"_id": "q7", "text": "red"}\n')
    make("corpus.jsonl", "")
    reader = QueryReader(tmp_path)
    assert (reader.source, reader.input_format) == (tmp_path / name, InputFormat.JSONL)
    assert [query.id for query in reader] == ["q7"]


def test_a_folder_without_queries(tmp_path):
    """The message says what was looked for."""
    with pytest.raises(InputError, match=r"is a folder, and holds no queries\.jsonl; give the name of a file in it"):
        read_queries(tmp_path)


@pytest.mark.skipif(not CRANFIELD.is_dir(), reason="the Cranfield collection is not on this machine")
def test_cranfield(tmp_path):
    """225 queries, from the folder as from a TSV made of them."""
    queries = asked(CRANFIELD)
    assert len(queries) == len(dict(queries)) == 225
    assert survey(CRANFIELD) == Survey(225, 0)
    (tmp_path / "q.tsv").write_text("".join(f"{qid}\t{text}\n" for qid, text in queries), encoding="utf-8")
    assert asked(tmp_path / "q.tsv") == queries


def test_stdin(monkeypatch):
    """It is lines unless told, and cannot be surveyed."""

    def stdin(data):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))

    stdin(b"red\nsky\n")
    assert asked(Path("-")) == [("1", "red"), ("2", "sky")]
    stdin(b"7\tred\n")
    assert asked(Path("-"), InputFormat.TSV) == [("7", "red")]
    assert survey(Path("-")) is None


def test_queries_are_read_one_at_a_time(make):
    """What stands behind a query is not read before it is asked for: the end of this file cannot be."""
    path = make("q.txt.gz", "".join(f"query {number}\n" for number in range(100_000)))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    queries = read_queries(path)
    assert next(queries).text == "query 0"
    with pytest.raises(InputError, match=r"q\.txt\.gz: is not a whole gzip file"):
        list(queries)
    with pytest.raises(InputError, match="is not a whole gzip file"):
        survey(path)


def test_what_is_no_gzip_file(tmp_path):
    """The name promises what the file does not hold."""
    (tmp_path / "q.txt.gz").write_bytes(b"red\n")
    with pytest.raises(InputError, match="is not a whole gzip file"):
        list(read_queries(tmp_path / "q.txt.gz"))


def test_a_file_that_is_not_there(tmp_path):
    """It is said when the first query is asked for."""
    with pytest.raises(InputError, match=r"none\.txt: no such file; check the path"):
        next(read_queries(tmp_path / "none.txt"))
    assert survey(tmp_path / "none.txt") is None


def test_a_line_without_end(make):
    """A file that has no lines is not read into memory."""
    path = make("q.txt.gz", b"red\n" + b"x" * (2**26 + 10))
    queries = read_queries(path)
    assert next(queries).text == "red"
    with pytest.raises(InputError, match=r"q\.txt\.gz:2: is longer than 64 MiB; is this a file of lines\?"):
        next(queries)


def test_places_go_on_where_others_were(make):
    """Queries of the command line come before those of a file."""
    reader = QueryReader(make("q.txt", "red\nsky\n"), first=3)
    assert [query.id for query in reader] == ["3", "4"]
