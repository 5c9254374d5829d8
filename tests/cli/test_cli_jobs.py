"""`run --output`: a job on the command line, with what it says on stderr, its exit codes, signals and streams."""

import gzip
import json
import os
import re
import signal
import time
from pathlib import Path

import pytest

from milvus_pipeline import manifest_path, read_manifest

SLOW = """\
name: my fruit
stages:
  - {type: listed_search}
  - {type: slow, seconds: 0.02}
  - {type: faulty, how: word, word: plum}
"""


@pytest.fixture
def slow(environment, tmp_path, make):
    """A configuration that takes its time, its stages a plugin; and what to add to the environment of a process."""
    from support.fake_stages import basic

    folder = tmp_path / "slow-site" / "slow_stages-1.0.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: slow-stages\nVersion: 1.0\n", encoding="utf-8")
    point = f"[milvus_pipeline.stages]\nslow = {basic.__name__}:Slow\n"
    (folder / "entry_points.txt").write_text(point, encoding="utf-8")
    path = os.pathsep.join([environment["PYTHONPATH"], str(folder.parent)])
    return make("slow.yaml", SLOW), {"PYTHONPATH": path}


def lines_of(path):
    """The JSON objects of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def done(output):
    """How many queries are done by the manifest, once there is one."""
    manifest = read_manifest(manifest_path(output))
    return 0 if manifest is None else manifest.progress.queries


def test_a_job_shows_where_everything_is(invoke, fruit, make, tmp_path):
    """Counts, rate, the output, the manifest; nothing on stdout; lines without what differs from run to run."""
    out = tmp_path / "out.jsonl"
    ended = invoke("run", fruit, "--queries", make("q.txt", "red\nplum\n"), "-o", out)
    assert (ended.exit_code, ended.stdout) == (0, "")
    summary, about = ended.stderr.splitlines()
    assert summary.startswith("my fruit: opened in ")
    assert "2 queries in " in summary
    assert "/s; written to " in summary
    assert about == f"manifest: {manifest_path(out)}"
    assert all("seconds" not in report for line in lines_of(out) for report in line["reports"])
    assert read_manifest(manifest_path(out)).input.model_dump() == {"path": str(tmp_path / "q.txt"), "format": "lines"}


def test_figures_are_in_the_lines_where_asked_for(invoke, fruit, tmp_path):
    """On stdout they always are."""
    out = tmp_path / "out.jsonl"
    assert invoke("run", fruit, "-q", "red", "-o", out, "--figures").exit_code == 0
    printed = json.loads(invoke("run", fruit, "-q", "red").stdout)
    for line in (printed, *lines_of(out)):
        assert all({"seconds", "batch_size"} <= report.keys() for report in line["reports"])


def wait_for_results(process, output):
    """Wait until the output has the first results."""
    while not output.exists() or not output.stat().st_size:
        assert process.poll() is None
        time.sleep(0.005)


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_job_in_order(start, invoke, slow, make, tmp_path, sent):
    """At a commit point, with the exit code of the signal and the way to go on; the whole is as if nothing had been."""
    config, environment = slow
    queries = make("q.txt", "".join(f"red {number}\n" for number in range(120)))
    out, alone = tmp_path / "out.jsonl", tmp_path / "alone.jsonl"
    arguments = ("run", config, "--queries", queries, "--batch-size", "4")
    process = start(*arguments, "-o", out, env=environment)
    wait_for_results(process, out)
    process.send_signal(sent)
    said = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 128 + sent
    committed = done(out)
    assert 0 < committed < 120
    assert len(lines_of(out)) == committed
    assert f"{out}: {committed} queries done; --resume continues with the others\n" in said
    assert said.endswith("terminated\n" if sent == signal.SIGTERM else "interrupted\n")
    assert "Traceback" not in said
    ended = invoke(*arguments, "-o", out, "--resume")
    assert (ended.exit_code, ended.stdout) == (0, "")
    assert f"120 queries in total, {committed} of them before" in ended.stderr
    assert invoke(*arguments, "-o", alone).exit_code == 0
    assert out.read_bytes() == alone.read_bytes()


def test_the_exit_code_stands_for_the_whole_job(invoke, make, tmp_path):
    """A query that failed in an earlier run counts; a complete job says so, with the same exit code."""
    config = make("a.yaml", "stages:\n - {type: listed_search}\n - {type: faulty, how: word, word: plum}\n")
    queries, out = make("q.txt", "plum\nred\n"), tmp_path / "out.jsonl"
    arguments = ("run", config, "--queries", queries, "-o", out, "--batch-size", "1", "--resume")
    assert invoke(*arguments).exit_code == 1
    make("q.txt", "plum\nred\nblue\n")
    ended = invoke(*arguments)
    assert ended.exit_code == 1
    assert "1 query in" in ended.stderr
    assert "3 queries in total, 2 of them before, 1 failed" in ended.stderr
    ended = invoke(*arguments)
    assert ended.exit_code == 1
    assert ended.stderr == f"{out}: the job is complete, 3 queries, 1 failed; nothing is left to do\n"


def test_another_configuration_is_refused(invoke, fruit, make, tmp_path, monkeypatch):
    """The message lists the changed keys, with variables replaced by their values; the exit code is 2."""
    text = fruit.read_text(encoding="utf-8").replace("top_k: 3", "top_k: '${KEPT}'")
    config, out = make("b.yaml", text), tmp_path / "out.jsonl"
    monkeypatch.setenv("KEPT", "3")
    assert invoke("run", config, "-q", "red", "-o", out).exit_code == 0
    assert invoke("run", fruit, "-q", "red", "-o", out, "--resume").exit_code == 0
    monkeypatch.setenv("KEPT", "2")
    ended = invoke("run", config, "-q", "red", "-o", out, "--resume", "--batch-size", "7")
    assert ended.exit_code == 2
    assert ended.stderr.splitlines() == [
        f"error: {out}: cannot be resumed, because the job is no longer the same:",
        "error:   stages[1].top_k: was 3, is 2",
        "error:   options.batch_size: was 32, is 7",
        "error: run it as it was started, or start again with --overwrite",
    ]


def test_stdin_is_piped_again(invoke, fruit, tmp_path):
    """A job from stdin resumes with the same queries and more at the end, not with other queries."""
    out = tmp_path / "out.trec"
    assert invoke("run", fruit, "-o", out, input="red\nblue\n").exit_code == 0
    assert read_manifest(manifest_path(out)).input.path == "-"
    assert invoke("run", fruit, "-o", out, "--resume", input="red\nblue\nsky\n").exit_code == 0
    assert {line.split()[0] for line in out.read_text(encoding="utf-8").splitlines()} == {"1", "2", "3"}
    ended = invoke("run", fruit, "-o", out, "--resume", input="red\nsky\n")
    assert ended.exit_code == 2
    assert "the queries have changed: there are only 2 of the 3 that are done" in ended.stderr


def test_a_failure_stops_a_job_that_is_to_stop(invoke, make, tmp_path):
    """The error is printed with how to continue, and earlier results are kept."""
    config = make("a.yaml", "stages:\n - {type: listed_search}\n - {type: faulty, how: word, word: plum}\n")
    queries, out = make("q.txt", "red\nplum\nblue\n"), tmp_path / "out.jsonl"
    arguments = ("run", config, "--queries", queries, "-o", out, "--batch-size", "1")
    ended = invoke(*arguments, "--stop-on-failure")
    assert ended.exit_code == 1
    assert "error: query 2: pipeline: stages[1] (faulty): this word cannot be looked up\n" in ended.stderr
    assert "as requested; 1 query done. Once the cause is fixed, --resume goes on with the others\n" in ended.stderr
    assert [line["query"]["id"] for line in lines_of(out)] == ["1"]
    assert invoke(*arguments, "--resume").exit_code == 1
    assert [line["status"] for line in lines_of(out)] == ["ok", "failed", "ok"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--resume"], "--resume: applies only to a job; pass --output FILE too"),
        (["--stop-on-failure"], "--stop-on-failure: applies only to a job; pass --output FILE too"),
        (
            ["-o", "{out}", "--accept-changes"],
            "--accept-changes: applies only to a job that is resumed; pass --resume too",
        ),
        (["-o", "{out}", "--resume", "--overwrite"], "pass one of them"),
        (["-o", "{out}", "--resume", "--format", "table"], "--resume: applies only to a job"),
        (["-o", os.devnull, "--overwrite", "--resume"], "--resume: applies only to a job"),
    ],
)
def test_options_that_make_no_sense(invoke, tmp_path, arguments, message):
    """They are reported before the configuration is read, with exit code 2."""
    given = [argument.format(out=tmp_path / "out.jsonl") for argument in arguments]
    ended = invoke("run", tmp_path / "none.yaml", "-q", "red", *given)
    assert ended.exit_code == 2
    assert message in ended.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("how", "code", "count"), [("report", 1, 3), ("skip", 0, 2), ("fatal", 2, 0)])
def test_bad_lines(invoke, fruit, make, tmp_path, how, code, count):
    """Reported, skipped with their numbers, or fatal before anything is run."""
    out = tmp_path / "out.jsonl"
    queries = make("q.jsonl", '{"text": "red"}\noops\n{"text": "sky"}\n')
    ended = invoke("run", fruit, "--queries", queries, "-o", out, "--bad-lines", how)
    assert ended.exit_code == code
    assert f"{queries}:2: is not valid JSON" in ended.stderr
    assert out.exists() == (code != 2)
    assert not out.exists() or len(lines_of(out)) == count


@pytest.mark.parametrize("arguments", [("--output", "{out}"), ()], ids=["job", "stdout"])
def test_input_that_breaks_off_is_a_failure_behind_what_was_run(invoke, fruit, tmp_path, arguments):
    """The exit code is 2 only if nothing was run."""
    whole = gzip.compress("".join(f"red {number * 7919}\n" for number in range(9000)).encode())
    queries = tmp_path / "q.txt.gz"
    for length, code in ((len(whole) // 2, 1), (20, 2)):
        queries.write_bytes(whole[:length])
        given = [argument.format(out=tmp_path / f"{code}.jsonl") for argument in arguments]
        ended = invoke("run", fruit, "--queries", queries, *given)
        assert (ended.exit_code, "is not a complete gzip file" in ended.stderr) == (code, True)


def test_the_configuration_is_no_output(invoke, fruit, tmp_path):
    """Not even with --overwrite, nor through a link, nor as a table."""
    before = fruit.read_bytes()
    link = tmp_path / "link.jsonl"
    link.symlink_to(fruit)
    for arguments in ((fruit,), (link,), (fruit, "--format", "table")):
        ended = invoke("run", fruit, "-q", "red", "--overwrite", "-o", *arguments)
        assert (ended.exit_code, fruit.read_bytes()) == (2, before)
        assert "is the configuration itself; write to another file" in ended.stderr


def test_there_has_to_be_room_for_a_manifest(invoke, fruit, tmp_path):
    """A name that is too long for a manifest is reported before anything is run."""
    for length in (238, 250):
        ended = invoke("run", fruit, "-q", "red", "-o", tmp_path / ("x" * length))
        assert ended.exit_code == 2
        assert "no manifest can be written next to it: File name too long; choose another name" in ended.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["fruit.yaml"]


def test_a_table_and_a_device_are_no_jobs(invoke, fruit, tmp_path):
    """They are written as they come, without a manifest."""
    assert invoke("run", fruit, "-q", "red", "-o", tmp_path / "out.txt", "--format", "table").exit_code == 0
    assert invoke("run", fruit, "-q", "red", "-o", os.devnull, "--overwrite").exit_code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fruit.yaml", "out.txt"]


def test_the_options_that_the_documentation_names_exist(invoke):
    """All of them are options of `run`."""
    doc = Path(__file__).parent.parent.parent / "docs" / "jobs.md"
    named = set(re.findall(r"--[a-z][a-z-]+", doc.read_text(encoding="utf-8")))
    known = set(re.findall(r"--[a-z][a-z-]+", invoke("run", "--help").stdout))
    assert "--accept-changes" in named
    assert named <= known


def test_a_log_is_not_filled_with_progress(invoke, fruit, make, tmp_path):
    """If stderr is not a terminal, there is a summary at the end, and nothing before it."""
    queries = make("q.txt", "red\n" * 500)
    ended = invoke("run", fruit, "--queries", queries, "-o", tmp_path / "out.jsonl", "--batch-size", "1")
    assert len(ended.stderr.splitlines()) == 2
