"""The command as a process: streams, signals, terminals, start-up."""

import json
import os
import pty
import select
import subprocess
import sys
from pathlib import Path

import pytest

from support.processes import interrupted

HEAVY = {"torch", "transformers", "tokenizers", "pymilvus", "httpx", "sentence_transformers"}
OPENING = """\
import sys, time
from milvus_pipeline.plugin import Stage

class Opening(Stage):
    type = "opening"

    def setup(self):
        print("opening", file=sys.stderr, flush=True)
        time.sleep(60)

    def process(self, results, context):
        return results
"""


@pytest.mark.parametrize(
    "arguments", [("run", "fruit", "-q", "red", "--format", "table"), ("doctor", "fruit"), ("stages",), ("--help",)]
)
def test_no_colour_codes_into_a_pipe(command, fruit, arguments):
    """There are no colours in a pipe, even if the environment requests them."""
    given = [fruit if argument == "fruit" else argument for argument in arguments]
    colours = {"FORCE_COLOR": "1", "CLICOLOR_FORCE": "1", "TTY_COMPATIBLE": "1", "GITHUB_ACTIONS": "true"}
    code, out, err = command(*given, env=colours)
    assert code == 0
    assert out
    assert "\x1b" not in out + err
    assert max(map(len, out.splitlines())) <= 80


def test_output_is_utf8_in_any_locale(command, fruit):
    """JSON is UTF-8; what UTF-8 cannot hold stays a JSON escape."""
    query = json.dumps({"text": "plüm \ud800", "id": "ü"}).encode()
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
    code, out, _ = command("run", fruit, "--input-format", "jsonl", input_bytes=query, env=locale)
    assert code == 0
    assert '"text": "plüm \\ud800"' in out
    assert json.loads(out)["query"] == {"id": "ü", "text": "plüm \ud800"}


@pytest.mark.parametrize("output_format", ["jsonl", "table"])
def test_a_reader_that_leaves_ends_it_quietly(start, fruit, tmp_path, output_format):
    """As `| head` does: no message, and the exit code of a closed pipe."""
    queries = tmp_path / "queries.txt"
    queries.write_text("red\n" * 2000, encoding="utf-8")
    process = start("run", fruit, "--queries", queries, "--format", output_format)
    assert b"red" in process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=60) == 141
    assert process.stderr.read() == b""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_stdout_that_is_full_is_reported(start, fruit):
    """One message, and no complaint of the interpreter's about what was left to write."""
    with Path("/dev/full").open("wb") as full:
        process = start("run", fruit, "-q", "red", stdout=full)
    assert process.wait(timeout=60) == 1
    expected = b"error: stdout: cannot be written: No space left on device; its contents are incomplete\n"
    assert process.stderr.read().endswith(expected)


def test_ctrl_c_while_it_opens(start, make, tmp_path):
    """A model that takes minutes to load can be given up: one word, and the exit code of an interrupt."""
    folder = tmp_path / "site" / "opening-1.0.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: opening\nVersion: 1.0\n", encoding="utf-8")
    (folder / "entry_points.txt").write_text("[milvus_pipeline.stages]\nopening = opening:Opening\n", encoding="utf-8")
    (folder.parent / "opening.py").write_text(OPENING, encoding="utf-8")
    config = make("a.yaml", "stages:\n - {type: opening}\n")
    process = start("run", config, "-q", "red", env={"PYTHONPATH": str(folder.parent)})
    assert process.stderr.readline() == b"opening\n"
    assert interrupted(process) == 130
    assert process.stderr.read() == b"interrupted\n"
    assert process.stdout.read() == b""


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_streams_that_are_closed_are_done_without(environment, fruit, make, tmp_path, closed):
    """As some that start processes leave them: a job is done all the same, and nothing else gets into its output."""
    queries, out = make("q.txt", "red\n\n"), tmp_path / "out.jsonl"
    arguments = [sys.executable, "-m", "milvus_pipeline", "run", fruit, "--queries", queries, "--output", out]
    ends = " ".join(f"{number}{'<' if number == 0 else '>'}&-" for number in closed)
    shell = ["sh", "-c", f'exec "$@" {ends}', "sh", *map(str, arguments)]
    done = subprocess.run(shell, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    assert ("Traceback" in done.stderr, "1 query" in done.stderr) == (False, 2 not in closed)
    assert json.loads(out.read_text(encoding="utf-8"))["status"] == "ok"


def on_terminal(start, *arguments, **given):
    """Exit code of a process whose stdin, stdout and stderr are a terminal, and what the terminal showed."""
    ours, theirs = pty.openpty()
    process = start(*arguments, stdin=theirs, stdout=theirs, stderr=theirs, env={"TERM": "xterm", "COLUMNS": "100"})
    seen = b""
    # Our copy of the other end stays open until all is read: where the last copy is closed, Linux may drop what is
    # still on its way.
    while process.poll() is None or select.select([ours], [], [], 0.2)[0]:
        if select.select([ours], [], [], 0.05)[0]:
            seen += os.read(ours, 65536)
    os.close(theirs)
    os.close(ours)
    return process.wait(timeout=60), seen.decode()


def test_a_terminal_gets_a_table(start, fruit):
    """With colours, and a summary below."""
    code, seen = on_terminal(start, "run", fruit, "-q", "red plum")
    assert code == 0
    assert "moved" in seen
    assert "↑1" in seen
    assert "\x1b[" in seen
    assert "1 query in" in seen
    assert '{"query"' not in seen


def test_a_terminal_that_gives_no_queries(start, fruit):
    """Instead of waiting without a word the command says what it wants."""
    code, seen = on_terminal(start, "run", fruit)
    assert code == 2
    assert "error: no queries given; pass --query TEXT or --queries FILE, or pipe them in" in seen


def test_the_bar_is_on_the_terminal_and_the_data_in_the_file(start, fruit, tmp_path):
    """With an output file the terminal shows progress only."""
    code, seen = on_terminal(start, "run", fruit, "-q", "red", "-q", "sky", "-o", tmp_path / "out.jsonl")
    assert code == 0
    assert "2/2" in seen
    assert "blue sky" not in seen
    assert len((tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()) == 2


def test_the_bar_of_a_resumed_job_begins_where_it_was(start, invoke, fruit, make, tmp_path):
    """With all that is done of all, and the failures so far; it goes away for the summary."""
    queries = make("q.jsonl", '{"text": "red"}\n' * 32)
    arguments = ("run", fruit, "--queries", queries, "-o", tmp_path / "out.jsonl", "--resume")
    assert invoke(*arguments).exit_code == 0
    make("q.jsonl", '{"text": "red"}\n' * 32 + "oops\n" * 2)
    code, seen = on_terminal(start, *arguments)
    assert code == 1
    assert "32/34" in seen
    assert "34/34" in seen
    assert "2 failed" in seen
    assert "34 queries in total, 32 of them before, 2 failed" in seen.splitlines()[-1]


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["run", "--help"], ["validate", "{fruit}"]])
def test_start_up_loads_no_model_library(environment, fruit, arguments):
    """Help and validation answer at once: no torch, no client, no HTTP."""
    given = [argument.format(fruit=fruit) for argument in arguments]
    code = (
        "import sys\nfrom milvus_pipeline.cli import main\n"
        f"sys.argv = ['milvus-pipeline', *{given!r}]\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        f"loaded = {HEAVY!r} & set(sys.modules)\nassert not loaded, loaded\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, stdout=subprocess.DEVNULL)


def test_a_plugin_that_cannot_be_imported_does_not_hide_the_others(command, environment, tmp_path):
    """`stages` lists the rest, names the broken one, and ends with 1."""
    broken = tmp_path / "site" / "broken-1.0.dist-info"
    broken.mkdir(parents=True)
    (broken / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n", encoding="utf-8")
    (broken / "entry_points.txt").write_text("[milvus_pipeline.stages]\nbrok = no_module:X\n", encoding="utf-8")
    path = os.pathsep.join([environment["PYTHONPATH"], str(broken.parent)])
    code, out, err = command("stages", env={"PYTHONPATH": path})
    assert code == 1
    assert "truncate" in out
    assert "listed_search  fake-stages 1.0" in out
    assert "error: the stage 'brok' of no_module:X (broken) cannot be imported" in err
