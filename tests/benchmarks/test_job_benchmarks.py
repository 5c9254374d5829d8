"""The benchmarks of jobs run on small sizes; their checks are tested, their times are not."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
QUERIES, DOCUMENTS, CANDIDATES = 3, 20, 3


def run(benchmark, *arguments):
    """Run a benchmark, which must succeed."""
    command = [sys.executable, BENCHMARKS / f"{benchmark}.py", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def vs_loop():
    """The benchmark as a module."""
    pytest.importorskip("sentence_transformers")
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return importlib.import_module("job_vs_loop")
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.mark.parametrize(
    ("options", "stages"),
    [((), "stub_search -> letter_count"), (("--lite",), "stub_encode -> milvus_search -> letter_count")],
)
def test_overhead_is_shown_beside_that_of_a_loop(options, stages):
    """It prints a line for each contender and the memory after each tenth, and checks every query's line itself."""
    lines = run("job_overhead", "--queries", 150, "--batch-size", 8, *options).stdout.splitlines()
    assert lines[0].startswith(f"150 queries through {stages}, 8 a batch")
    assert [line.split("  ")[0] for line in lines[2:5]] == [
        "run_batch in a loop, results thrown away",
        "run_batch in a loop, JSON lines written",
        "run_job",
    ]
    assert len(lines[5].partition(":")[2].split()) == 10


def test_a_job_and_a_loop_find_the_same(vs_loop, cranfield, tmp_path, capsys, minilm):
    """Results are equal on a part of Cranfield for two batch sizes, or the benchmark stops."""
    part = tmp_path / "part"
    part.mkdir()
    for name, count in (("corpus", DOCUMENTS), ("queries", QUERIES)):
        lines = (cranfield / f"{name}.jsonl").read_text().splitlines(keepends=True)[:count]
        (part / f"{name}.jsonl").write_text("".join(lines))
    seconds = vs_loop.measure(part, tmp_path, None, CANDIDATES, [1, 2], rounds=1)
    assert [(name, len(own)) for name, own in seconds.items()] == [
        ("the loop", 1),
        ("the job, 1 a batch", 1),
        ("the job, 2 a batch", 1),
    ]
    printed = capsys.readouterr().out
    assert f"{QUERIES} queries, {CANDIDATES} documents each" in printed
    assert all(any(line.startswith(name) and "x" in line for line in printed.splitlines()) for name in seconds)
    found = vs_loop.run_of(tmp_path / "round-0-the-job-2-a-batch.jsonl")
    assert [len(hits) for hits in found.values()] == [CANDIDATES] * QUERIES


@pytest.mark.parametrize(
    ("hits", "difference"),
    [
        ([("a", 3.0), ("b", 2.0), ("c", 1.99995)], None),
        ([("a", 3.00005), ("c", 2.0), ("b", 1.99996)], None),
        ([("b", 3.0), ("a", 2.0), ("c", 1.99995)], "document b has the score 3.0"),
        ([("c", 1.99995), ("b", 2.0), ("a", 3.0)], "c"),
        ([("a", 3.0), ("b", 2.0), ("d", 1.99995)], "not the same documents"),
        ([("a", 3.0), ("b", 2.1), ("c", 1.99995)], "document b has the score 2.1"),
    ],
)
def test_results_that_differ_are_reported(vs_loop, hits, difference):
    """Documents, scores and order are compared; documents within the scores' tolerance may be in either order."""
    expected = {"1": [("a", 3.0), ("b", 2.0), ("c", 1.99995)]}
    text = vs_loop.differing(expected, {"1": hits})
    assert text is None if difference is None else difference in text
    assert vs_loop.differing(expected, {}) == "not the same queries"


def test_without_the_collection_it_says_so(tmp_path):
    """Without the collection, the benchmark says so and exits with 0."""
    assert "no Cranfield collection" in run("job_vs_loop", tmp_path).stderr


def test_a_job_that_loses_a_line_ends_the_benchmark(tmp_path):
    """Missing and misplaced lines end the benchmark with an error."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        overhead = importlib.import_module("job_overhead")
    finally:
        sys.path.remove(str(BENCHMARKS))
    lines = [json.dumps({"query": {"id": str(number)}, "status": "ok", "hits": [1]}) + "\n" for number in range(3)]
    output = tmp_path / "results.jsonl"
    output.write_text("".join(lines))
    overhead.check_lines(output, 3)
    with pytest.raises(SystemExit, match="3 lines for 4 queries"):
        overhead.check_lines(output, 4)
    output.write_text(lines[0] + lines[2])
    with pytest.raises(SystemExit, match="line 2: is not the answer to query 1"):
        overhead.check_lines(output, 3)
