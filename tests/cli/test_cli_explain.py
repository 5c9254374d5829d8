"""`explain`: the way of each document of one query through the stages."""

import io
import json

import pytest

from milvus_pipeline.cli.explain import print_movement
from milvus_pipeline.cli.tables import console_on
from support import sample_evaluations

QRELS = "1 0 1 2\n1 0 3 0\n1 0 nowhere 1\n2 0 2 1\n"


@pytest.fixture
def wide(monkeypatch):
    """A terminal that everything fits in."""
    monkeypatch.setenv("COLUMNS", "160")


def rows_of(text):
    """The lines of a table, each as its words."""
    return [line.split() for line in text.splitlines()]


def test_places_steps_scores_and_texts_are_reported(invoke, fruit, wide):
    """There is a row per document in the final order, then those that were cut, with the stage that cut them."""
    done = invoke("explain", fruit, "-q", "red plum")
    assert done.exit_code == 0, done.stderr
    lines = rows_of(done.stdout)
    assert lines[0] == ["red", "plum"]
    assert lines[1] == ["#", "id", "listed_search", "word_overlap", "text"]
    assert lines[3] == ["1", "1", "2", "0.9000", "1", "↑1", "2.0000", "green", "pear", "and", "red", "plum"]
    assert lines[4] == ["2", "0", "1", "1.0000", "2", "↓1", "1.0000", "red", "apple"]
    assert lines[5] == ["3", "2", "3", "0.8000", "3", "=", "0.0000", "blue", "sky"]
    assert lines[6] == []
    assert lines[7] == ["3", "4", "0.7000", "cut"]
    assert lines[8][0] == "listed_search"


def test_judged_documents_bear_their_grades(invoke, fruit, make, wide):
    """Relevant documents are starred, and those that no stage found are listed with their grade."""
    qrels = make("qrels.txt", QRELS)
    done = invoke("explain", fruit, "-q", "red plum", "--qrels", qrels, "--id", "1")
    assert done.exit_code == 0, done.stderr
    lines = rows_of(done.stdout)
    assert lines[0] == ["1", "red", "plum"]
    assert lines[3][:4] == ["1", "*", "2", "1"]
    assert lines[7][:3] == ["0", "3", "4"]
    assert "judged relevant, and found by no stage: nowhere (1)" in done.stdout


def test_the_query_is_taken_from_a_file_by_its_id(invoke, fruit, make):
    """--queries and --id select the query."""
    queries = make("queries.jsonl", '{"_id": "1", "text": "red plum"}\n{"_id": "2", "text": "blue"}\n')
    done = invoke("explain", fruit, "--queries", queries, "--id", "2", "--format", "json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["query"] == "blue"


def test_json_is_the_whole_movement(invoke, fruit, make):
    """One document: rankings with documents and scores, beginnings, judgements and what was missed."""
    qrels = make("qrels.txt", QRELS)
    done = invoke("explain", fruit, "-q", "red plum", "--qrels", qrels, "--id", "1", "--format", "json")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert [ranking["stage"] for ranking in found["rankings"]] == ["listed_search", "word_overlap"]
    assert found["rankings"][1]["documents"] == ["1", "0", "2"]
    assert found["rankings"][1]["scores"] == [2.0, 1.0, 0.0]
    assert found["judged"] == {"1": 2, "3": 0, "nowhere": 1}
    assert found["missed"] == ["nowhere"]
    assert found["beginnings"]["2"] == "blue sky"


def test_what_is_not_listed_is_counted(invoke, fruit, wide):
    """--show bounds the kept and the cut each; the line below says how to see the others."""
    done = invoke("explain", fruit, "-q", "red plum", "--show", "1")
    assert "not listed: 2 kept; --show 3 lists all" in done.stdout
    assert len([line for line in rows_of(done.stdout) if line[:1] == ["1"]]) == 1


def test_relevant_documents_are_listed_wherever_they_stand():
    """Relevant documents are listed beyond --show too."""
    movement = sample_evaluations.movement(3)
    found = {document for ranking in movement.rankings for document in ranking.documents}
    relevant = [document for document, grade in movement.judged.items() if grade > 0 and document in found]
    stream = io.StringIO()
    print_movement(console_on(stream), movement, 1)
    listed = {word for line in rows_of(stream.getvalue()) for word in line}
    assert set(relevant) <= listed


@pytest.mark.parametrize("columns", [50, 80, 160])
def test_lines_are_no_wider_than_the_terminal(monkeypatch, columns):
    """Texts, headers, ids and at last the scores give way; places never do, and nothing is coloured in a pipe."""
    monkeypatch.setenv("COLUMNS", str(columns))
    stream = io.StringIO()
    print_movement(console_on(stream), sample_evaluations.movement(2), 5)
    assert max(map(len, stream.getvalue().splitlines())) <= columns
    assert "\x1b" not in stream.getvalue()
    assert ("0.9950" in stream.getvalue()) == (columns >= 80)
    assert "↑10" in stream.getvalue()


def test_texts_from_elsewhere_do_not_steer_the_terminal():
    """Control characters and those that turn the direction of writing are replaced."""
    stream = io.StringIO()
    print_movement(console_on(stream), sample_evaluations.movement(2, texts=sample_evaluations.HOSTILE), 100)
    assert not {"\x1b", "\x07", "\x00", "\u202e", "\ud800"} & set(stream.getvalue())


def test_a_skipped_stage_is_reported(invoke, make):
    """The reason is below the table, and the exit code is 0."""
    config = make("a.yaml", "stages:\n - {type: listed_search}\n - {type: faulty, on_error: skip}\n")
    done = invoke("explain", config, "-q", "red")
    assert done.exit_code == 0, done.stderr
    assert "faulty was skipped: " in done.stdout


def test_what_stood_in_is_reported(invoke, make, wide):
    """A fallback's scores are in the column of the stage that it stood in for."""
    config = make(
        "a.yaml",
        "stages:\n - {type: listed_search}\n - {type: faulty, on_error: {fallback: {type: word_overlap, top_k: 2}}}\n",
    )
    done = invoke("explain", config, "-q", "red plum")
    assert done.exit_code == 0, done.stderr
    assert "word_overlap stood in for faulty" in done.stdout
    assert rows_of(done.stdout)[3][2:7] == ["2", "0.9000", "1", "↑1", "2.0000"]


def test_nothing_found_is_reported(invoke, make):
    """A query without hits prints a message instead of a table."""
    config = make("a.yaml", "stages:\n - {type: listed_search, documents: []}\n")
    done = invoke("explain", config, "-q", "red")
    assert done.exit_code == 0
    assert "no stage found a document" in done.stdout


def test_a_failed_stage_ends_with_1(invoke, make):
    """The exit code is 1, and the message names the stage."""
    config = make("a.yaml", "stages:\n - {type: listed_search}\n - {type: faulty}\n")
    done = invoke("explain", config, "-q", "red")
    assert done.exit_code == 1
    assert done.stderr.startswith("error: pipeline: stages[1] (faulty): ")
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give one query; use --query TEXT, or --queries FILE with --id ID"),
        (["-q", "red", "--queries", "q.jsonl"], "give one query"),
        (["--queries", "q.jsonl"], "--queries: needs the id of the query; pass --id ID too"),
        (["-q", "red", "--qrels", "qrels.txt"], "--qrels: needs the id of the query; pass --id ID too"),
        (["--queries", "q.jsonl", "--id", "9"], "q.jsonl: has no query with the id 9"),
        (["-q", "red", "--qrels", "missing.txt", "--id", "1"], "missing.txt: no such file"),
    ],
)
def test_bad_usage_ends_with_2(invoke, fruit, make, monkeypatch, tmp_path, arguments, said):
    """Wrong options give exit code 2 and a next step before anything is opened."""
    monkeypatch.chdir(tmp_path)
    make("q.jsonl", '{"_id": "1", "text": "red"}\n')
    done = invoke("explain", fruit, *arguments)
    assert done.exit_code == 2
    assert said in done.stderr


def test_a_query_without_judgements_is_warned_of(invoke, fruit, make):
    """The movement is shown with a warning."""
    done = invoke("explain", fruit, "-q", "red", "--qrels", make("qrels.txt", QRELS), "--id", "7")
    assert done.exit_code == 0
    assert "has no judgements for the query 7" in done.stderr


def test_no_time_ends_with_the_stage_that_had_none(invoke, make):
    """--timeout bounds all stages together."""
    config = make("a.yaml", "stages:\n - {type: slow, seconds: 0.05}\n - {type: listed_search}\n")
    done = invoke("explain", config, "-q", "red", "--timeout", "0.01")
    assert done.exit_code == 1
    assert "stages[1] (listed_search): timed out" in done.stderr
