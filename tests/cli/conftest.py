"""The command, run within the process and as a separate process, on stages without models."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from milvus_pipeline.cli.app import app
from support.fake_stages import basic

TESTS = Path(__file__).parent.parent
FRUIT = """\
name: my fruit
stages:
  - {type: listed_search}
  - {type: word_overlap, top_k: 3}
"""


@pytest.fixture
def fruit(tmp_path):
    """A configuration that searches four texts and reranks them by the words they share with the query."""
    return write(tmp_path / "fruit.yaml", FRUIT)


def write(path, text):
    """The path, after writing the text there."""
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def make(tmp_path):
    """Writes a file into the test's folder and gives its path."""
    return lambda name, text: write(tmp_path / name, text)


@pytest.fixture
def invoke():
    """Runs the command within this process: ``invoke("run", config, "-q", "red")``."""
    return lambda *arguments, **given: CliRunner().invoke(app, [str(argument) for argument in arguments], **given)


@pytest.fixture
def environment(tmp_path_factory):
    """The environment of a process in which the fake stages are a plugin that was installed."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "fake_stages-1.0.dist-info").mkdir()
    write(folder / "fake_stages-1.0.dist-info" / "METADATA", "Metadata-Version: 2.1\nName: fake-stages\nVersion: 1.0\n")
    lines = [
        f"{cls.type} = {basic.__name__}:{cls.__name__}"
        for cls in (basic.ListedSearch, basic.WordOverlap, basic.Faulty, basic.GivenScores)
    ]
    write(
        folder / "fake_stages-1.0.dist-info" / "entry_points.txt",
        "\n".join(["[milvus_pipeline.stages]", *lines, ""]),
    )
    outside = {"COLUMNS", "FORCE_COLOR", "NO_COLOR", "PYTHONUNBUFFERED"}
    kept = {key: value for key, value in os.environ.items() if key not in outside}
    return {**kept, "PYTHONPATH": os.pathsep.join([str(TESTS), str(folder)])}


@pytest.fixture
def start(environment):
    """Starts the command as a process: ``start("run", config, stdin=...)``; ended when the test is over."""
    started = []

    def begin(*arguments, env=(), **given):
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | given
        process = subprocess.Popen(
            [sys.executable, "-m", "milvus_pipeline", *map(str, arguments)],
            env={**environment, **dict(env)},
            **streams,
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def command(start):
    """Runs the command as a process to its end; gives exit code, stdout and stderr."""

    def run(*arguments, input_bytes=b"", **given):
        process = start(*arguments, stdin=subprocess.PIPE, **given)
        out, err = process.communicate(input_bytes, timeout=120)
        return process.returncode, out.decode(), err.decode()

    return run
