"""`stages`, `schema`, `--version` and `--help`."""

import json
from importlib.metadata import version
from typing import Annotated, Literal

import jsonschema
import pytest
import yaml
from pydantic import BaseModel

from milvus_pipeline import RetrySettings
from milvus_pipeline.cli.stages import type_text


class FieldPair(BaseModel):
    """What is written whole or not at all."""

    name: str
    size: int | None


def test_stages_lists_what_is_registered(invoke):
    """Every stage is listed with its package, fields, defaults and descriptions; common fields once."""
    done = invoke("stages", env={"COLUMNS": "120"})
    assert done.exit_code == 0
    for kind in ("encode", "milvus_search", "cross_encoder", "bge", "late_interaction", "truncate"):
        assert f"{kind}  milvus-search-pipeline {version('milvus-search-pipeline')}" in done.stdout
    assert "word_overlap  support.fake_stages.basic" in done.stdout
    assert done.stdout.count("Name in reports and scores") == 1
    assert "IVF_FLAT" in done.stdout


def test_one_stage_with_all_its_fields(invoke):
    """A single stage is shown with the fields that every stage has."""
    done = invoke("stages", "truncate", env={"COLUMNS": "120"})
    rows = {line.split()[0]: line.split() for line in done.stdout.splitlines() if line.startswith(" ") and line.split()}
    assert rows["top_k"][1:6] == ["none", "int", "|", "none", "·"]
    assert rows["reserve"][1:3] == ["0", "int"]
    assert rows["cut"][1:5] == ['"drop"', "drop", "|", "cut"]
    assert rows["on_error"][1] == '"raise"'
    assert "bge" not in done.stdout


def test_stages_as_json(invoke):
    """--json prints the same as data."""
    described = json.loads(invoke("stages", "--json").stdout)
    truncate = described["truncate"]
    assert truncate["package"] == f"milvus-search-pipeline {version('milvus-search-pipeline')}"
    assert truncate["class"] == "milvus_stages.truncate.truncate:Truncate"
    assert truncate["needs"] == ["hits"]
    assert truncate["fields"]["cut"] == {
        "type": "drop | cut",
        "required": False,
        "default": "drop",
        "description": truncate["fields"]["cut"]["description"],
    }
    assert truncate["fields"]["top_k"]["aliases"] == ["top_n"]
    assert described["given_scores"]["fields"]["scores"]["required"] is True
    assert all(field["description"] for field in truncate["fields"].values())


def test_a_hosted_stage_says_where_it_sends(invoke):
    """The address and the variables of the key come before the fields."""
    lines = [line.strip() for line in invoke("stages", "cohere", env={"COLUMNS": "120"}).stdout.splitlines()]
    assert lines[2:4] == ["key: COHERE_API_KEY, else CO_API_KEY", "address: https://api.cohere.com/v2/rerank"]
    lines = [line.strip() for line in invoke("stages", "tei", env={"COLUMNS": "120"}).stdout.splitlines()]
    assert lines[2:4] == [
        "key: none is sent, unless api_key_env names its variable",
        "address: base_url, followed by /rerank",
    ]
    described = json.loads(invoke("stages", "--json").stdout)
    assert described["jev"]["about"]["key"] == "TYPESAFE_API_KEY"
    assert described["truncate"]["about"] == {}


def test_fields_within_a_field_are_shown(invoke):
    """Each has its own row under a dotted name, with YAML's words for types and no class names."""
    shown = invoke("stages", "cohere", env={"COLUMNS": "120"}).stdout
    rows = [line.split() for line in shown.splitlines() if line.startswith(" ")]
    first = next(number for number, row in enumerate(rows) if row[:1] == ["retry"])
    retry = [row[:3] for row in rows[first : first + 4]]
    assert retry[0] == ["retry", "mapping", "·"]
    assert retry[1:] == [
        ["retry.attempts", "4", "int"],
        ["retry.min_wait", "0.5", "float"],
        ["retry.max_wait", "60.0", "float"],
    ]
    assert "dict[str, str | {env: str}]" in shown
    assert not {name for name in ("HostedRetry", "FromEnv", "RetrySettings") if name in shown}
    described = json.loads(invoke("stages", "--json").stdout)["cohere"]["fields"]["retry"]
    assert described["type"] == "mapping"
    assert described["default"] == {"attempts": 4, "min_wait": 0.5, "max_wait": 60.0}
    assert described["fields"]["attempts"]["default"] == 4


def test_a_stage_that_is_not_there(invoke):
    """The nearest name is suggested."""
    done = invoke("stages", "truncat")
    assert (done.exit_code, done.stderr) == (2, "error: no stage is named 'truncat'; did you mean 'truncate'?\n")


@pytest.mark.parametrize(
    ("annotation", "said"),
    [
        (int | None, "int | none"),
        (Literal["a", "b"] | None, "a | b | none"),
        (dict[str, list[int]], "dict[str, list[int]]"),
        (tuple[float | None, ...], "tuple[float | none, ...]"),
        (Annotated[str, "x"], "str"),
        (RetrySettings | None, "mapping | none"),
        (dict[str, FieldPair], "dict[str, {name: str, size: int | none}]"),
    ],
)
def test_types_are_shown_as_users_write_them(annotation, said):
    """Types have no quotes, modules or metadata."""
    assert type_text(annotation) == said


def test_the_schema_accepts_what_validate_accepts(invoke, fruit, make):
    """It is a JSON Schema, and knows the registered stages and their keys."""
    done = invoke("schema")
    schema = json.loads(done.stdout)
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    assert validator.is_valid(yaml.safe_load(fruit.read_text(encoding="utf-8")))
    assert not validator.is_valid({"stages": [{"type": "word_overlap", "top_q": 3}]})


def test_the_schema_knows_what_a_hosted_stage_needs(invoke):
    """It requires an address if there is no public one, and definitions have readable titles."""
    schema = json.loads(invoke("schema").stdout)
    validator = jsonschema.Draft202012Validator(schema)

    def takes(**stage):
        return validator.is_valid({"stages": [stage]})

    assert takes(type="cohere", retry={"attempts": 2}, headers={"x-api-key": {"env": "K"}})
    assert takes(type="tei", base_url="http://localhost:8080")
    assert not takes(type="tei")
    assert not takes(type="rerank_api")
    assert not takes(type="cohere", retry={"attempts": 0})
    titles = {definition.get("title") for definition in schema["$defs"].values()}
    assert {"Retries", "A value from the environment"} <= titles


def test_the_version(invoke):
    """Name and version of the distribution."""
    assert invoke("--version").stdout == f"milvus-search-pipeline {version('milvus-search-pipeline')}\n"


@pytest.mark.parametrize("arguments", [("--help",), ("run", "-h"), ("ingest", "--help"), ("stages", "-h")])
def test_help(invoke, arguments):
    """Help is plain text."""
    done = invoke(*arguments)
    assert done.exit_code == 0
    assert done.stdout.startswith("Usage: milvus-pipeline")
