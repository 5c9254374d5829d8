"""What the README shows is what the code does."""

import re
from typing import get_args

import yaml
from typer.testing import CliRunner

from milvus_pipeline import Pipeline, Query, variants_of
from milvus_pipeline.cli.app import app
from milvus_pipeline.config.file import registry
from milvus_pipeline.plugin import Reranker
from milvus_pipeline.records import Status
from milvus_stages.hosted import HostedReranker
from support.readme import README, blocks

ROOT = README.parent


def test_the_two_pipelines_of_the_readme_are_equal():
    """The YAML and the Python under "The same pipeline twice" build equal objects, and YAML survives the way back."""
    (text,) = blocks("yaml", "The same pipeline twice")
    names: dict = {}
    exec(blocks("python", "The same pipeline twice")[0], names)  # noqa: S102 - the README's own text
    assert Pipeline.from_yaml(text) == names["pipeline"]
    assert Pipeline.from_yaml(names["pipeline"].to_yaml()) == names["pipeline"]


def test_the_sweep_is_one_of_that_pipeline():
    """The grid under "Measure, and tune" belongs to the pipeline that the README begins with."""
    (pipeline,) = blocks("yaml", "The same pipeline twice")
    (sweep,) = blocks("yaml", "Measure, and tune")
    variants = variants_of(Pipeline.from_yaml(pipeline + sweep))
    assert len(variants) == 2 * 3 * 3
    assert len(next(iter(variants.values())).pipeline.stages) == 4


def test_the_commands_are_those_that_there_are():
    """The list under "The command line" names every command, and each option in it is one of its command's."""
    listed = blocks("", "The command line")[0].split("milvus-pipeline ")[1:]
    named = {word: line for line in listed for word in line.split("#")[0].split("|")[0].split()[:1]}
    named |= {word: "" for line in listed for word in re.findall(r"\| (\w+)", line)}
    commands = {command.name or command.callback.__name__ for command in app.registered_commands}
    assert set(named) == commands
    for name, line in named.items():
        shown = CliRunner().invoke(app, [name, "--help"]).output
        assert all(option in shown for option in re.findall(r"--[\w-]+", line)), name


def test_the_pipeline_that_may_fail_is_valid():
    """The chain of stages under "When something fails" can be built, and its table has every status."""
    (text,) = blocks("yaml", "When something fails")
    pipeline = Pipeline.from_yaml(text)
    assert [stage.name for stage in pipeline.stages[2].family()] == ["cohere", "bge"]
    section = README.read_text(encoding="utf-8").split("## When something fails")[1].split("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == list(get_args(Status))


def test_the_readmes_query_is_one():
    """The query with a filter is made as shown."""
    query = eval(blocks("python", "The same pipeline twice")[2], {"Query": Query})  # noqa: S307 - the README's own text
    assert query.filter_params == {"since": 2020}


def rows() -> dict[str, list[str]]:
    """The cells of each stage's row, its type the first; the columns of rerankers are more."""
    lines = re.findall(r"^\| (`\w+` \| `\w+` \|.*) \|$", README.read_text(encoding="utf-8"), re.MULTILINE)
    cells = [[cell.strip() for cell in line.split("|")] for line in lines]
    return {row[0].strip("`"): row for row in cells}


def test_the_tables_of_stages_are_complete():
    """Every stage of the project has its row, with its class; rerankers have theirs in the second table."""
    table = rows()
    project = {name for name in registry.names() if registry.get(name).__module__.startswith("milvus_stages.")}
    assert set(table) == project
    assert all(registry.get(name).__name__ == row[1].strip("`") for name, row in table.items())
    rerankers = {name for name in project if issubclass(registry.get(name), Reranker)}
    assert {name for name, row in table.items() if len(row) == 7} == rerankers


def test_the_table_of_rerankers_has_their_defaults():
    """The model's name is that of the class; where there is none, it is not the stage's to choose."""
    for name, row in rows().items():
        if issubclass(registry.get(name), Reranker):
            field = registry.get(name).model_fields.get("model")
            default = field.default if field else None
            assert row[4] == (f"`{default}`" if default else row[4].replace("`", "")), name
            assert row[4]


def test_the_table_of_rerankers_has_what_services_ask_for():
    """Variables of keys in their order, limits of documents and tokens, and whether the address is one's own."""
    hosted = {name: registry.get(name) for name in rows() if issubclass(registry.get(name), HostedReranker)}
    assert len(hosted) == 7
    for name, stage in hosted.items():
        where, keys, takes = rows()[name][2], rows()[name][3], rows()[name][5]
        assert where == ("hosted" if stage.default_url else "your server"), name
        assert keys == (", ".join(f"`{key}`" for key in stage.key_names) or "none, or `api_key_env`"), name
        limits = (stage() if stage.default_url else stage(base_url="http://localhost:8080")).limits()
        limited = [(limits.documents, "documents"), (limits.tokens, "tokens")]
        said = ", ".join(f"{limit:,} {noun}" for limit, noun in limited if limit)
        after = "more are sent whole, with a warning (listwise)" if limits.listwise else "more are split"
        assert takes == f"{said}; {after}", name


def test_the_hosted_stages_that_are_shown_are_valid():
    """What stands under "Hosted rerankers", and what the document of that name shows, can be configured."""
    shown = [*blocks("yaml", "Hosted rerankers"), *blocks("yaml", "Configure", ROOT / "docs" / "hosted_rerankers.md")]
    stages = [stage for text in shown for stage in yaml.safe_load(text)]
    assert len(stages) == 3
    search = {"type": "milvus_search", "collection": "papers", "text_field": "text", "anns_field": "v"}
    for stage in stages:
        Pipeline.from_config({"stages": [{"type": "encode"}, search, stage]})


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
