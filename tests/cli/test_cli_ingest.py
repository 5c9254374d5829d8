"""`ingest`: records from files into a collection that `run` then searches."""

import gzip
import json
import os
import threading

import pytest

CONFIG = """\
name: fruit
stages:
  - {type: milvus_search, uri: ./data/fruit.db, collection: fruit, anns_field: vector, limit: 2}
collection:
  fields:
    - {name: id, dtype: VARCHAR, is_primary: true}
    - {name: vector, dtype: FLOAT_VECTOR, dim: 2}
    - {name: text, dtype: VARCHAR}
"""
APPLE = {"id": "apple", "vector": [1, 0], "text": "a red apple"}
PEAR = {"id": "pear", "vector": [0, 1], "text": "a green pear"}
PLUM = {"id": "plum", "vector": [0.6, 0.8], "text": "a blue plum"}


@pytest.fixture(autouse=True)
def in_folder(tmp_path, monkeypatch):
    """Relative paths are taken from the test's own folder."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def config(make):
    """A configuration whose records bring their vectors, so that no model is needed."""
    return make("fruit.yaml", CONFIG)


def jsonl(*records):
    """The records as JSONL text."""
    return "".join(json.dumps(record) + "\n" for record in records)


def found(invoke, config):
    """The ids that a search for the vector (0, 1) finds."""
    done = invoke("run", config, "--input-format", "jsonl", input='{"vector": [0, 1]}\n')
    assert done.exit_code == 0, done.stderr
    return [hit["id"] for hit in json.loads(done.stdout)["hits"]]


def test_records_become_searchable(invoke, config, make, tmp_path):
    """Several files, plain and gzipped, go into one collection, whose folder is made; stdout stays empty."""
    with gzip.open(tmp_path / "more.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write(jsonl(PLUM))
    done = invoke("ingest", config, make("some.jsonl", jsonl(APPLE, PEAR)), "more.jsonl.gz")
    assert (done.exit_code, done.stdout) == (0, "")
    assert "fruit: 3 rows in the collection 'fruit', " in done.stderr
    assert found(invoke, config) == ["pear", "plum"]


def test_a_collection_is_not_overwritten_unasked(invoke, config, make):
    """The message says how to, and the old rows stay until then."""
    assert invoke("ingest", config, make("a.jsonl", jsonl(PEAR, PLUM))).exit_code == 0
    again = ("ingest", config, make("b.jsonl", jsonl(APPLE, PLUM)))
    refused = invoke(*again)
    assert refused.exit_code == 1
    assert "exists already; pass --overwrite" in refused.stderr
    assert found(invoke, config) == ["pear", "plum"]
    assert invoke(*again, "--overwrite").exit_code == 0
    assert found(invoke, config) == ["plum", "apple"]


def test_a_bad_line_is_found_before_anything_is_written(invoke, config, make, tmp_path):
    """The message names file and line, and no collection is created."""
    good, bad = make("good.jsonl", jsonl(APPLE)), make("bad.jsonl", jsonl(PEAR) + "\n7\n")
    done = invoke("ingest", config, good, bad)
    message = "must be a JSON object, {...}, on one line, got 7"
    assert (done.exit_code, done.stderr) == (2, f"error: {bad}:3: {message}\n")
    assert not (tmp_path / "data").exists()


def test_a_record_that_does_not_fit_is_named_by_file_and_line(invoke, config, make):
    """Blank lines count for the line and not for the record; a double is named with the one before it."""
    first = make("a.jsonl", "\n" + jsonl(APPLE) + "\n\n" + jsonl(PEAR))
    lacking = {"id": "plum", "vector": [0, 1]}
    done = invoke("ingest", config, first, make("b.jsonl", "\n" + jsonl(lacking)))
    assert done.exit_code == 1
    assert done.stderr.startswith(f"error: {first.with_name('b.jsonl')}:2: record 3: 'text': is missing")
    odd = APPLE | {"id": "record 1: x"}
    done = invoke("ingest", config, make("c.jsonl", jsonl(odd)), first, make("d.jsonl", jsonl(odd)))
    assert f"{first.with_name('d.jsonl')}:1: record 4: has the same 'id' ('record 1: x')" in done.stderr
    assert f"as record 1 ({first.with_name('c.jsonl')}:1); " in done.stderr


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.jsonl", "none.jsonl: no such file; check the path"),
        (".", "is a folder; give the name of a file in it"),
        ("-", "records cannot come from stdin, because they are read twice; put them into a file"),
        ("blank.jsonl", "blank.jsonl: there are no records; give files that are not empty"),
    ],
)
def test_a_file_that_cannot_be_used(invoke, config, make, name, message):
    """Found before the collection is touched."""
    make("blank.jsonl", "\n\n")
    done = invoke("ingest", config, name)
    assert done.exit_code == 2
    assert message in done.stderr


def test_a_pipe_is_read_once(invoke, config, tmp_path):
    """Records may come from a process; a bad line is then found when it is reached, and nothing stays."""
    pipe = tmp_path / "pipe.jsonl"
    os.mkfifo(pipe)

    def ingested(text):
        feeder = threading.Thread(target=pipe.write_text, args=(text,))
        feeder.start()
        done = invoke("ingest", config, pipe)
        feeder.join()
        return done

    bad = ingested(jsonl(APPLE) + "{\n")
    assert bad.exit_code == 2
    assert f"{pipe}:2: is not valid JSON" in bad.stderr
    assert ingested(jsonl(APPLE, PEAR)).exit_code == 0
    assert found(invoke, config) == ["pear", "apple"]
