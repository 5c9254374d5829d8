"""Queries from files: lines, JSONL, TSV, a BEIR folder, gzip; each query as it was written."""

import io
import json
from pathlib import Path

import pytest

from milvus_pipeline import Query
from milvus_pipeline.errors import InputError
from milvus_pipeline.files.queries import InputFormat, count_queries, input_format_of, read_queries, source_file

CRANFIELD = Path(__file__).parents[2] / ".." / "shared" / "data" / "cranfield"
WHOLE = {
    "_id": "q1",
    "text": "red",
    "vector": [0.5, 1],
    "filter": "year > {since}",
    "filter_params": {"since": 2020},
    "params": {"nprobe": 64},
}


def read(source, *arguments, **options):
    """Return id and text of every query."""
    return [(query.id, query.text) for query in read_queries(source, *arguments, **options)]


def test_a_query_keeps_all_fields_of_its_line(make):
    """A line may have text, vector, filter with its values, and search parameters."""
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
def test_the_file_name_gives_the_format(make, name, content, suffix):
    """Gzipped or not, a file is read by its suffix; blank lines, a byte order mark and CR are not part of a query."""
    path = make(name + suffix, content)
    assert read(path) == [("1", "red plum"), ("2", "sky")]
    assert count_queries(path) == 2


def test_a_given_format_overrides_the_name(make):
    """A file of any name can be read as any format."""
    assert read(make("a.dat", "7\tred\n"), InputFormat.TSV) == [("7", "red")]
    assert read(make("a.tsv", "7\tred\n"), InputFormat.LINES) == [("1", "7\tred")]


@pytest.mark.parametrize(
    "header", ["query-id\ttext", "qid\tquery", "ID\tText", "_id\ttext", "query_id\tquery_text", "topic-id\tquestion"]
)
def test_a_tsv_header_is_not_a_query(make, header):
    """A header is recognized by its words, in the first line only."""
    assert read(make("q.tsv", f"\n{header}\n7\tred\n{header}\n"))[0] == ("7", "red")
    assert len(read(make("q.tsv", f"{header}\n7\tred\n{header}\n"))) == 2


@pytest.mark.parametrize("first", ["1\ttext", "id\tdocument", "query\ttext", "query-id\twhat is a query id?"])
def test_a_query_is_not_a_header(make, first):
    """A line counts as a header only if both columns are words of one."""
    assert read(make("q.tsv", f"{first}\n")) == [tuple(first.split("\t"))]


@pytest.mark.parametrize("name", ["queries.jsonl", "queries.jsonl.gz"])
def test_a_folder_in_beirs_shape(make, name, tmp_path):
    """A folder in BEIR's layout is read as its queries.jsonl."""
    make(name, '{"_id": "q7", "text": "red"}\n')
    make("corpus.jsonl", "")
    assert source_file(tmp_path) == tmp_path / name
    assert input_format_of(tmp_path / name) is InputFormat.JSONL
    assert [query.id for query in read_queries(tmp_path)] == ["q7"]


def test_a_folder_without_queries(tmp_path):
    """The message names the file that is missing."""
    with pytest.raises(InputError, match=r"is a folder without queries\.jsonl; give the name of a file in it"):
        read_queries(tmp_path)


@pytest.mark.skipif(not CRANFIELD.is_dir(), reason="the Cranfield collection is not on this machine")
def test_cranfield(tmp_path):
    """The 225 queries are the same from the folder and from a TSV made of them."""
    queries = read(CRANFIELD)
    assert len(queries) == len(dict(queries)) == 225
    assert count_queries(CRANFIELD) == 225
    (tmp_path / "q.tsv").write_text("".join(f"{qid}\t{text}\n" for qid, text in queries), encoding="utf-8")
    assert read(tmp_path / "q.tsv") == queries


def test_stdin(monkeypatch):
    """Stdin is lines by default, and cannot be counted."""

    def stdin(data):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))

    stdin(b"red\nsky\n")
    assert read(Path("-")) == [("1", "red"), ("2", "sky")]
    stdin(b"7\tred\n")
    assert read(Path("-"), InputFormat.TSV) == [("7", "red")]
    assert count_queries(Path("-")) is None


def test_queries_are_read_one_at_a_time(make):
    """The first query of a truncated file is read, and the truncation is found only later."""
    path = make("q.txt.gz", "".join(f"query {number}\n" for number in range(100_000)))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    queries = read_queries(path)
    assert next(queries).text == "query 0"
    with pytest.raises(InputError, match=r"q\.txt\.gz: is not a complete gzip file"):
        list(queries)
    with pytest.raises(InputError, match="is not a complete gzip file"):
        count_queries(path)


def test_a_file_that_is_not_gzip(tmp_path):
    """A file whose name ends in .gz must be a gzip file."""
    (tmp_path / "q.txt.gz").write_bytes(b"red\n")
    with pytest.raises(InputError, match="is not a complete gzip file"):
        list(read_queries(tmp_path / "q.txt.gz"))


def test_a_missing_file(tmp_path):
    """A missing file is reported when the first query is read."""
    with pytest.raises(InputError, match=r"none\.txt: no such file; check the path"):
        next(read_queries(tmp_path / "none.txt"))
    assert count_queries(tmp_path / "none.txt") is None


def test_a_line_without_end(make):
    """A file without lines is not read into memory."""
    path = make("q.txt.gz", b"red\n" + b"x" * (2**26 + 10))
    queries = read_queries(path)
    assert next(queries).text == "red"
    with pytest.raises(InputError, match=r"q\.txt\.gz:2: is longer than 64 MiB; is this a file of lines\?"):
        next(queries)


def test_places_continue_after_other_queries(make):
    """Places count on from the queries of the command line."""
    assert [query.id for query in read_queries(make("q.txt", "red\nsky\n"), first=3)] == ["3", "4"]
