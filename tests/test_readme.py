"""What the README shows is what the code does."""

import re

import yaml

from milvus_pipeline import Pipeline, Query, registry
from support.readme import README, blocks

ROOT = README.parent


def test_the_two_pipelines_of_the_readme_are_equal():
    """The YAML and the Python under "The same pipeline twice" build equal objects, and YAML survives the way back."""
    (text,) = blocks("yaml", "The same pipeline twice")
    names: dict = {}
    exec(blocks("python", "The same pipeline twice")[0], names)  # noqa: S102 - the README's own text
    assert Pipeline.from_yaml(text) == names["pipeline"]
    assert Pipeline.from_yaml(names["pipeline"].to_yaml()) == names["pipeline"]


def test_the_readmes_query_is_one():
    """The query with a filter is made as shown."""
    query = eval(blocks("python", "The same pipeline twice")[2], {"Query": Query})  # noqa: S307 - the README's own text
    assert query.filter_params == {"since": 2020}


def test_the_table_of_stages_is_complete():
    """Every stage of the project has its row, with its class."""
    text = README.read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| `(\w+)` \|", text, re.MULTILINE))
    project = {name for name in registry.names() if registry.get(name).__module__.startswith("milvus_stages.")}
    assert set(rows) == project
    assert all(registry.get(name).__name__ == cls for name, cls in rows.items())


def test_every_file_that_the_readme_names_is_there():
    """Configurations, data and documents that are named exist."""
    text = README.read_text(encoding="utf-8")
    named = set(re.findall(r"(?:configs|docs)/[\w/]+\.\w+", text))
    assert named
    assert [name for name in sorted(named) if not (ROOT / name).is_file()] == []


def test_every_configuration_is_valid(monkeypatch):
    """All files in configs/ are read without a complaint, and the README's table has them all."""
    monkeypatch.setenv("MILVUS_URI", "http://localhost:19530")
    files = sorted((ROOT / "configs").glob("*.yaml"))
    for file in files:
        pipeline = Pipeline.from_yaml(file)
        assert Pipeline.from_yaml(pipeline.to_yaml()) == pipeline
        assert isinstance(yaml.safe_load(pipeline.to_yaml()), dict)
    text = README.read_text(encoding="utf-8")
    assert [file.name for file in files if f"`{file.name}`" not in text] == []
