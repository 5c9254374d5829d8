"""The benchmark of hosted concurrency runs with every contender; its times are not checked."""

import subprocess
import sys
from pathlib import Path

BENCHMARK = Path(__file__).parents[2] / "benchmarks/hosted_concurrency.py"


def test_it_runs_and_shows_every_contender():
    """A small run succeeds and prints a line for each contender, with its ratio to the ideal."""
    command = [sys.executable, BENCHMARK, "--queries", "4", "--latency", "0.01", "--concurrency", "2", "--rounds", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "ideal 0.02 s" in lines[0]
    contenders = (
        "async: arun,",
        "async: arun_batch",
        "Cohere's SDK, Async",
        "sync: run_batch",
        "sync: run,",
        "Cohere's SDK, one",
    )
    assert all(any(line.startswith(name) and "x" in line for line in lines) for name in contenders)
