"""The examples and tables of docs/pipelines.md, rerankers.md, command_line.md and hosted_rerankers.md fit the code."""

import re
from typing import get_args

import pytest
import yaml
from typer.testing import CliRunner

from milvus_pipeline import Pipeline, Query
from milvus_pipeline.cli.app import app
from milvus_pipeline.config.file import registry
from milvus_pipeline.plugin import Reranker
from milvus_pipeline.records import Status
from milvus_stages.hosted import HostedReranker
from support.readme import README, blocks

ROOT = README.parent
DOCS = ROOT / "docs"
PIPELINES, RERANKERS, COMMANDS = DOCS / "pipelines.md", DOCS / "rerankers.md", DOCS / "command_line.md"


def test_the_pipelines_in_yaml_and_python_are_equal():
    """Both forms under "YAML and Python" build equal objects, and YAML survives the way back."""
    (text,) = blocks("yaml", "YAML and Python", PIPELINES)
    names: dict = {}
    exec(blocks("python", "YAML and Python", PIPELINES)[0], names)  # noqa: S102 - the document's own text
    assert Pipeline.from_yaml(text) == names["pipeline"]
    assert Pipeline.from_yaml(names["pipeline"].to_yaml()) == names["pipeline"]


def test_the_query_with_a_filter():
    """The query under "Queries" can be made as shown."""
    query = eval(blocks("python", "Queries", PIPELINES)[0], {"Query": Query})  # noqa: S307 - the document's own text
    assert query.filter_params == {"since": 2020}


def test_the_pipeline_that_may_fail_is_valid():
    """The pipeline under "Failures" can be built, and the table below it has every status."""
    (text,) = blocks("yaml", "Failures", PIPELINES)
    pipeline = Pipeline.from_yaml(text)
    assert [stage.name for stage in pipeline.stages[2].family()] == ["cohere", "bge"]
    section = PIPELINES.read_text(encoding="utf-8").split("## Failures")[1].split("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == list(get_args(Status))


def test_the_list_of_commands_is_complete():
    """docs/command_line.md lists every command, and each option in the list is one of its command's."""
    text = COMMANDS.read_text(encoding="utf-8")
    listed = re.findall(r"^```\n(.*?)^```", text, re.MULTILINE | re.DOTALL)[0].split("milvus-pipeline ")[1:]
    named = {word: line for line in listed for word in line.split("#")[0].split("|")[0].split()[:1]}
    named |= {word: "" for line in listed for word in re.findall(r"\| (\w+)", line)}
    assert set(named) == {command.name or command.callback.__name__ for command in app.registered_commands}
    for name, line in named.items():
        help_text = CliRunner().invoke(app, [name, "--help"]).output
        assert all(option in help_text for option in re.findall(r"--[\w-]+", line)), name


def rows() -> dict[str, list[str]]:
    """Return the cells of each reranker's row in docs/rerankers.md, by its type."""
    section = RERANKERS.read_text(encoding="utf-8").split("## Which one\n")[1].split("\n## ")[0]
    lines = re.findall(r"^\| (`\w+` \| `\w+` \|.*) \|$", section, re.MULTILINE)
    cells = [[cell.strip() for cell in line.split("|")] for line in lines]
    return {row[0].strip("`"): row for row in cells}


def test_the_table_of_rerankers_is_complete():
    """Every reranker of the project has a row, with its class and its default model."""
    project = {name: cls for name in registry.names() if issubclass(cls := registry.get(name), Reranker)}
    ours = {name: cls for name, cls in project.items() if cls.__module__.startswith("milvus_stages.")}
    assert set(rows()) == set(ours)
    for name, row in rows().items():
        field = ours[name].model_fields.get("model")
        default = field.default if field else None
        assert row[1] == f"`{ours[name].__name__}`"
        assert row[4] == (f"`{default}`" if default else row[4].replace("`", "")), name
        assert row[4]


def test_the_table_of_rerankers_has_keys_and_limits():
    """Variables of keys in their order, limits of documents and tokens, and whether the address is the user's."""
    hosted = {name: registry.get(name) for name in rows() if issubclass(registry.get(name), HostedReranker)}
    assert len(hosted) == 7
    for name, stage in hosted.items():
        where, keys, takes = rows()[name][2], rows()[name][3], rows()[name][5]
        assert where == ("hosted" if stage.default_url else "your server"), name
        assert keys == (", ".join(f"`{key}`" for key in stage.key_names) or "none, or `api_key_env`"), name
        limits = (stage() if stage.default_url else stage(base_url="http://localhost:8080")).limits()
        limited = [(limits.documents, "documents"), (limits.tokens, "tokens")]
        numbers = ", ".join(f"{limit:,} {noun}" for limit, noun in limited if limit)
        after = "more are sent whole, with a warning (listwise)" if limits.listwise else "more are split"
        assert takes == f"{numbers}; {after}", name


def test_each_function_of_the_library_has_its_stage():
    """The table of functions of the PyMilvus model library names a reranker of the project for each."""
    table = re.findall(r"^\| `(\w+)RerankFunction` \| `(\w+)` \|", RERANKERS.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(table) == 7
    assert {stage for _, stage in table} < set(rows())


@pytest.mark.parametrize(
    ("document", "heading", "count"),
    [("hosted_rerankers.md", "Configure", 1), ("rerankers.md", "A cache of scores", 1)],
)
def test_the_stages_that_are_shown_are_valid(document, heading, count):
    """The stages in YAML can be configured behind a search."""
    stages = [stage for text in blocks("yaml", heading, DOCS / document) for stage in yaml.safe_load(text)]
    assert len(stages) >= count
    search = {"type": "milvus_search", "collection": "papers", "text_field": "text", "anns_field": "v"}
    for stage in stages:
        Pipeline.from_config({"stages": [{"type": "encode"}, search, stage]})


def test_every_configuration_is_valid_and_listed(monkeypatch):
    """All files in configs/ are valid; docs/command_line.md lists those that are not named after a reranker."""
    monkeypatch.setenv("MILVUS_URI", "http://localhost:19530")
    files = sorted((ROOT / "configs").glob("*.yaml"))
    for file in files:
        pipeline = Pipeline.from_yaml(file)
        assert Pipeline.from_yaml(pipeline.to_yaml()) == pipeline
        assert isinstance(yaml.safe_load(pipeline.to_yaml()), dict)
    text = COMMANDS.read_text(encoding="utf-8")
    rerankers = {name for name in registry.names() if issubclass(registry.get(name), Reranker)}
    assert [file.name for file in files if file.stem not in rerankers and f"`{file.name}`" not in text] == []


def test_every_file_that_a_page_names_exists():
    """Files of the project that a page names exist, but for those of the invented reranker `acme`."""
    pattern = re.compile(r"(?<![\w/])(?:configs|docs|tests|benchmarks|pipeline|stages)/[\w/]+\.\w+")
    for document in [README, ROOT / "CONTRIBUTING.md", *DOCS.glob("*.md")]:
        names = {name for name in pattern.findall(document.read_text(encoding="utf-8")) if "acme" not in name}
        assert [name for name in sorted(names) if not (ROOT / name).exists()] == [], document.name
