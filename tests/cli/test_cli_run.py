"""`run`: queries from everywhere, results in every format, exit codes."""

import json

import pytest


def lines_of(text):
    """The JSON objects of JSONL text."""
    return [json.loads(line) for line in text.splitlines()]


def test_a_line_is_a_whole_result(invoke, fruit):
    """The JSONL line has the query, the status, hits with all scores and ranks, and a report of every stage."""
    done = invoke("run", fruit, "-q", "red plum")
    assert done.exit_code == 0
    (line,) = lines_of(done.stdout)
    assert list(line) == ["query", "status", "reasons", "hits", "reports"]
    assert line["query"] == {"id": "1", "text": "red plum"}
    assert line["status"] == "ok"
    assert line["hits"][0] == {
        "id": 1,
        "score": 2.0,
        "text": "green pear and red plum",
        "scores": {"listed_search": 0.9, "word_overlap": 2.0},
        "ranks": {"listed_search": 2, "word_overlap": 1},
        "fields": {"length": 23},
    }
    assert [report["stage"] for report in line["reports"]] == ["listed_search", "word_overlap"]
    assert [(report["hits_in"], report["hits_out"]) for report in line["reports"]] == [(0, 4), (4, 3)]


def test_only_data_is_on_stdout(invoke, fruit):
    """The summary goes to stderr."""
    done = invoke("run", fruit, "-q", "red", "-q", "blue")
    assert [line["query"]["id"] for line in lines_of(done.stdout)] == ["1", "2"]
    assert done.stderr.startswith("my fruit: opened in ")
    assert "2 queries in" in done.stderr


def test_one_failed_query_leaves_the_others_alone(invoke, fruit):
    """The failed one says why and has no hits; the command ends with 1."""
    done = invoke("run", fruit, "-q", "red", "-q", "  ", "-q", "blue")
    assert done.exit_code == 1
    first, failed, last = lines_of(done.stdout)
    assert (first["status"], last["status"]) == ("ok", "ok")
    assert (failed["status"], failed["hits"]) == ("failed", [])
    assert "is empty; give it a text" in failed["error"]
    assert "error: query 2: " in done.stderr
    assert "1 failed" in done.stderr


def test_a_skipped_stage_is_degraded_not_failed(invoke, make):
    """A result without the work of a stage is degraded, the reason is printed, and the exit code is 0."""
    config = make("a.yaml", "stages:\n - {type: listed_search}\n - {type: faulty, on_error: skip}\n")
    done = invoke("run", config, "-q", "red", "-q", "blue")
    assert done.exit_code == 0
    assert [line["status"] for line in lines_of(done.stdout)] == ["degraded", "degraded"]
    reason = "pipeline: stages[1] (faulty): ZeroDivisionError: division by zero"
    assert done.stderr.splitlines()[0] == f"warning: 2 queries: faulty was skipped (error): {reason}"
    assert "2 degraded" in done.stderr


def test_queries_from_a_file_of_lines(invoke, fruit, make):
    """One query per line; blank lines are skipped, and neither line breaks nor a byte order mark belong to a query."""
    queries = make("queries.txt", "\ufeffred plum\r\n\n   \n blue \nunfinished \u2028 line")
    done = invoke("run", fruit, "--queries", queries)
    assert [line["query"] for line in lines_of(done.stdout)] == [
        {"id": "1", "text": "red plum"},
        {"id": "2", "text": "blue"},
        {"id": "3", "text": "unfinished \u2028 line"},
    ]


def test_queries_from_stdin(invoke, fruit):
    """Stdin is read by default, and for -."""
    for arguments in ([], ["--queries", "-"]):
        done = invoke("run", fruit, *arguments, input="red\nblue\n")
        assert [line["query"]["text"] for line in lines_of(done.stdout)] == ["red", "blue"]
    done = invoke("run", fruit, "--input-format", "jsonl", input='{"_id": "x", "text": "red"}\n')
    assert lines_of(done.stdout)[0]["query"] == {"id": "x", "text": "red"}


def test_queries_from_the_command_line_and_a_file(invoke, fruit, make):
    """Both are answered, numbered through."""
    done = invoke("run", fruit, "-q", "red", "--queries", make("queries.txt", "blue\n"))
    assert [line["query"] for line in lines_of(done.stdout)] == [
        {"id": "1", "text": "red"},
        {"id": "2", "text": "blue"},
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": 5}', "text: must be a string, got 5"),
        ('{"text": "a", "vector": [1, "2"]}', "vector[1]: must be a number, got a string"),
        ('{"text": "a", "vector": [NaN]}', "is not valid JSON: NaN is not a JSON number"),
        ('{"text": "a", "filter": 3}', "filter: must be a string, got 3"),
    ],
)
def test_a_line_that_is_no_query_fails_alone(invoke, fruit, make, line, message):
    """Its result names file, line and fault; the lines around it are answered."""
    queries = make("queries.jsonl", f'{{"text": "red"}}\n\n{line}\n{{"text": "blue"}}\n')
    done = invoke("run", fruit, "--queries", queries)
    assert done.exit_code == 1
    results = lines_of(done.stdout)
    assert [result["status"] for result in results] == ["ok", "failed", "ok"]
    assert results[1]["error"] == f"{queries}:3: {message}"


@pytest.mark.parametrize(
    ("line", "query_id"),
    [
        ('{"_id": "q7", "text": 7}', "q7"),
        ('{"id": 12, "text": "a", "filter": 3}', "12"),
        ('{"_id": true, "text": "a"}', "line-3"),
        ("oops", "line-3"),
    ],
)
def test_a_line_that_is_no_query_keeps_its_id(invoke, fruit, make, line, query_id):
    """A line keeps its own id if it can be read, else gets its line number, which is no other query's id."""
    done = invoke("run", fruit, "--queries", make("q.jsonl", f'{{"text": "red"}}\n\n{line}\n{{"text": "blue"}}\n'))
    assert [result["query"]["id"] for result in lines_of(done.stdout)] == ["1", query_id, "3"]
    assert f"error: query {query_id}: " in done.stderr


def test_a_misspelt_key_is_reported_once(invoke, fruit, make):
    """A filter that is passed over in silence would give wrong answers that look right."""
    done = invoke("run", fruit, "--queries", make("q.jsonl", '{"text": "a", "filer": "x > 1"}\n' * 3))
    assert done.stderr.count("the key 'filer' is not used; did you mean 'filter'?") == 1


def test_many_failures_are_counted_not_listed(invoke, fruit, make):
    """Stderr stays readable; the results carry every error."""
    done = invoke("run", fruit, "--queries", make("q.jsonl", "x\n" * 25))
    assert done.stderr.count("error: ") == 10
    assert "15 more errors and warnings" in done.stderr


def test_the_time_given_bounds_a_batch(invoke, make):
    """A query that times out fails with a message that says so."""
    config = make("a.yaml", "stages:\n - {type: slow, seconds: 0.05}\n - {type: listed_search}\n")
    done = invoke("run", config, "-q", "red", "--timeout", "0.01")
    assert done.exit_code == 1
    assert "timed out after 0.01 s" in lines_of(done.stdout)[0]["error"]
