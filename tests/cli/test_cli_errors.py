"""Whatever is wrong is one readable message on stderr that says where, what and the next step."""

import pytest

SEARCH = " - {type: milvus_search, collection: c, text_field: t}\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "stages:\n - {type: encode}\n - type: milvus_search\n   collection: c\n   limt: 3\n",
            "stages[1].limt: unknown key; did you mean 'limit'? (line 5)",
        ),
        ("", "is empty; it needs at least a list of `stages`"),
        (
            f"stages:\n - {{type: encode, model: '${{NO_SUCH_VARIABLE}}'}}\n{SEARCH}",
            "stages[0].model: the environment variable NO_SUCH_VARIABLE is not set; set it, or give a default",
        ),
        (
            f"stages:\n - {{type: encode}}\n - {{type: late_interaction}}\n{SEARCH}",
            "stages[1]: late_interaction needs 'hits', which stages[2] (milvus_search) gives only later; "
            "move that stage before this one",
        ),
    ],
    ids=["key", "empty", "variable", "order"],
)
@pytest.mark.parametrize("arguments", [("validate",), ("run", "-q", "red")], ids=["validate", "run"])
def test_a_bad_configuration(invoke, make, text, message, arguments):
    """The file, the place in it, the line and what to do; the command ends with 2 and prints no data."""
    config = make("x.yaml", text)
    done = invoke(*arguments, config)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"error: {config}: {message}")
    assert "Traceback" not in done.stderr


def test_every_problem_of_a_file_is_reported(invoke, make):
    """Each problem has its own line."""
    config = make("x.yaml", "nam: x\nstages:\n - {type: truncate, top_k: 0}\n - {type: bgee}\n")
    done = invoke("validate", config)
    assert [line.split(": ")[2] for line in done.stderr.splitlines()] == ["nam", "stages[0].top_k", "stages[1].type"]


def test_validate_goes_through_all_files(invoke, fruit, make, tmp_path):
    """Good ones are listed on stdout, bad ones on stderr; one bad one is enough for a 2."""
    bad = make("bad.yaml", "stages: []\n")
    done = invoke("validate", fruit, bad, tmp_path / "none.yaml", fruit)
    assert done.exit_code == 2
    assert done.stdout == f"{fruit}: ok: listed_search -> word_overlap\n" * 2
    assert f"error: {bad}: stages: " in done.stderr
    assert f"error: {tmp_path / 'none.yaml'}: no such file; check the path" in done.stderr
    assert invoke("validate", fruit).exit_code == 0


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("blank.txt", "\n  \n", "is empty"),
        ("broken.jsonl.gz", "no gzip", "is not a complete gzip file"),
    ],
)
def test_a_file_of_queries_that_cannot_be_used(invoke, fruit, make, name, content, message):
    """Nothing is run, and the file is named."""
    path = make(name, content)
    done = invoke("run", fruit, "--queries", path)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert str(path) in done.stderr
    assert message in done.stderr


def test_no_queries_on_stdin(invoke, fruit):
    """The message names stdin."""
    done = invoke("run", fruit, input="")
    assert (done.exit_code, done.stderr) == (2, "error: no queries given; stdin is empty\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Usage: milvus-pipeline"),
        (("run",), "Missing argument 'CONFIG'"),
        (("run", "x.yaml", "--frmat", "jsonl"), "No such option: --frmat"),
        (("run", "x.yaml", "--format", "xml"), "Invalid value for '--format'"),
        (("run", "x.yaml", "--batch-size", "0"), "Invalid value for '--batch-size'"),
        (("ingest", "x.yaml"), "Missing argument"),
        (("serve",), "No such command 'serve'"),
    ],
)
def test_a_bad_command_line(invoke, arguments, message):
    """A wrong command line gives the usual message, without boxes, and exit code 2."""
    done = invoke(*arguments)
    assert done.exit_code == 2
    assert message in done.output
    assert "╭" not in done.output


def test_the_traceback_only_when_asked(invoke, make):
    """--debug prints the traceback, then the same message."""
    config = make("a.yaml", "stages:\n - {type: listed_search}\n - {type: faulty, how: setup}\n")
    plain = invoke("run", config, "-q", "red")
    debug = invoke("run", config, "-q", "red", "--debug")
    assert "Traceback" not in plain.stderr
    assert "Traceback" in debug.stderr
    assert 'raise OSError("no such device")' in debug.stderr
    assert debug.stderr.endswith(plain.stderr)


def test_the_traceback_of_a_failed_query(invoke, make):
    """--debug shows the line of the stage on which a query failed."""
    config = make("a.yaml", "stages:\n - {type: listed_search}\n - {type: faulty}\n")
    done = invoke("run", config, "-q", "red", "--debug")
    assert done.exit_code == 1
    assert 'raise ZeroDivisionError("division by zero")' in done.stderr
    assert "error: query 1: pipeline: stages[1] (faulty): ZeroDivisionError" in done.stderr
    assert "Traceback" not in invoke("run", config, "-q", "red").stderr


def test_messages_cannot_steer_the_terminal(invoke, fruit, make):
    """An id from a file of queries is printed without its control characters."""
    done = invoke("run", fruit, "--queries", make("q.jsonl", '{"_id": "a\\u001b[31m", "text": " "}\n'))
    assert "error: query a\ufffd[31m: " in done.stderr


def test_an_unforeseen_error_is_a_message_too(invoke, fruit, monkeypatch):
    """The message has the class, the text, and how to get the traceback."""
    monkeypatch.setattr("milvus_pipeline.pipeline.Pipeline.run_batches", lambda *_, **__: 1 / 0)
    done = invoke("run", fruit, "-q", "red")
    assert done.exit_code == 1
    assert done.stderr.endswith("error: ZeroDivisionError: division by zero; run with --debug for the traceback\n")
