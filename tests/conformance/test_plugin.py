"""The plugin of docs/plugins.md, taken from its text: installed by its entry point, it passes the conformance suite."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from milvus_pipeline import Hit, Pipeline, Query, SearchResult
from milvus_pipeline.plugin import Context, Deadline
from support.readme import README, blocks, conformance, installed_plugin

DOCUMENT = README.parent / "docs" / "plugins.md"
HEADING = "Write your own reranker"


@pytest.fixture(scope="module")
def plugin(tmp_path_factory) -> Path:
    """Return a folder into which the package of the document is installed."""
    return installed_plugin(tmp_path_factory.mktemp("plugin"), "exact_words", HEADING, DOCUMENT)


def test_the_plugin_of_the_document_is_short():
    """Fifteen lines are enough for a reranker."""
    (code,) = blocks("python", HEADING, DOCUMENT)
    assert len([line for line in code.splitlines() if line.strip()]) <= 15


def test_the_installed_plugin_works_from_yaml(plugin):
    """After pip install its name is known, and no import names it."""
    (yaml,) = blocks("yaml", HEADING, DOCUMENT)
    code = (
        "import sys; from milvus_pipeline import Pipeline\n"
        "pipeline = Pipeline.from_yaml(sys.argv[1])\n"
        "print(pipeline, pipeline.stage('exact_words')('red plum', ['a pear', 'the red plum'], top_k=1))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, yaml],
        env={**os.environ, "PYTHONPATH": str(plugin)},
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    assert "exact_words" in done.stdout
    assert "RerankResult(text='the red plum', score=2.0, index=1)" in done.stdout


def test_the_installed_plugin_passes_the_conformance_suite(plugin):
    """The suite finds the plugin by its entry point and holds it to the same as the project's own stages."""
    assert conformance("exact_words", plugin) > 20


def test_the_plugin_works_without_being_installed():
    """In a notebook the decorated class is enough; the object goes straight into a pipeline."""
    (code,) = blocks("python", HEADING, DOCUMENT)
    names: dict = {"__name__": "notebook"}
    exec(code, names)  # noqa: S102 - the document's own text
    stage = names["ExactWords"](case_sensitive=True)
    search = {"type": "milvus_search", "collection": "x"}
    assert Pipeline.from_config({"stages": [search, stage.config()]}).stages[-1] == stage
    hits = [Hit(1, "Red", 0.5), Hit(2, "red", 0.4)]
    (result,) = stage.process([SearchResult(Query("red"), hits)], Context(Deadline(), 1))
    assert [hit.id for hit in result] == [2, 1]
