"""The plugin of docs/hosted_rerankers.md, taken from its very text: installed, it asks its service and conforms."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from milvus_pipeline import ServiceError, StageError
from milvus_pipeline.config.file import registry
from milvus_pipeline.plugin import PASSING_STATUSES, Reranker
from milvus_stages import Cohere, hosted
from support.fake_stages.basic import ListedSearch
from support.hosted import HIT_TEXTS, QUERY, STAGES, rerank
from support.readme import README, blocks, conformance, installed_plugin
from support.standins import StandIn, changed, ranking
from support.standins.messages import Reply
from support.standins.provider import Body, Provider
from support.standins.providers import PROVIDERS

ROOT = README.parent
DOCUMENT = ROOT / "docs" / "hosted_rerankers.md"
HEADING = "A plugin for another service"
CONFIG = """\
stages:
  - {{type: encode, model: "{model}"}}
  - {{type: milvus_search, uri: {uri}, collection: fruit, anns_field: vector, text_field: text, limit: 7}}
  - {{type: sievert, base_url: "{url}", mesh: 5, top_k: 3}}
collection:
  fields:
    - {{name: id, dtype: INT64, is_primary: true}}
    - {{name: vector, dtype: FLOAT_VECTOR, dim: 384}}
    - {{name: text, dtype: VARCHAR, max_length: 100}}
  index: {{index_type: IVF_FLAT, metric_type: IP, params: {{nlist: 1}}}}
"""


class SievertService(Provider):
    """The service that the document makes up, as strict as a real one."""

    name = "sievert"
    paths = ("/v3/sift",)
    documents_key = "passages"

    def error(self, status: int, message: str, kind: str = "") -> Reply:
        return Reply(status, {"message": message})

    def check(self, body: Body) -> None:
        body.keys(("question", "passages", "best", "mesh"), ())
        body.text("question", blank=False)
        texts = body.texts("passages", at_most=100, empty=False)
        body.whole("best", 1, len(texts))
        body.whole("mesh", 1, 9)

    def reply(self, body: dict[str, Any]) -> Reply:
        scored = ranking(body["question"], body["passages"], body["best"])
        rows = [{"index": index, "score": 100 * score} for index, score in scored]
        return Reply(200, {"results": rows, "usage": {"total_tokens": 7}})


@pytest.fixture
def service(monkeypatch) -> Iterator[StandIn]:
    """The service, with its key in the environment."""
    monkeypatch.setitem(PROVIDERS, "sievert", SievertService)
    with StandIn("sievert") as server:
        monkeypatch.setenv("SIEVERT_API_KEY", server.key)
        yield server


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder into which the document's package is installed."""
    return installed_plugin(tmp_path_factory.mktemp("plugin"), "sievert", HEADING, DOCUMENT)


@pytest.fixture
def sievert() -> type[hosted.HostedReranker]:
    """The class, made by running the document's code."""
    names: dict[str, Any] = {"__name__": "sievert"}
    exec(blocks("python", HEADING, DOCUMENT)[0], names)  # noqa: S102 - the document's own text
    return names["Sievert"]


def test_it_is_short():
    """Under 30 lines, blank ones and imports included."""
    assert len(blocks("python", HEADING, DOCUMENT)[0].splitlines()) < 30


@pytest.mark.parametrize("way", ["sync", "async"])
def test_it_asks_its_service(service, sievert, way):
    """Its own path, key and payload are sent, and the reply is read by the base."""
    answer = rerank(sievert(base_url=service.url, top_k=3), way)
    (request,) = service.requests
    assert request.refused is None
    assert request.body == {"question": QUERY, "passages": list(HIT_TEXTS), "best": 3, "mesh": 3}
    assert answer.order == [index for index, _ in ranking(QUERY, HIT_TEXTS, 3)]
    assert max(answer.scores.values()) > 90
    assert answer.usage == {"requests": 1, "total_tokens": 7}


def test_the_rest_comes_with_the_base(service, sievert, monkeypatch):
    """Lists are split at its limit, failures that pass are repeated, and a key that is missing is named."""
    retry = {"attempts": 3, "min_wait": 0.001, "max_wait": 0.001}
    service.script(service.error(503), service.error(429))
    answer = rerank(sievert(base_url=service.url, retry=retry), texts=[f"plum {number}" for number in range(150)])
    assert answer.error is None
    assert sorted(len(request.body["passages"]) for request in service.requests)[-2:] == [75, 75]
    assert answer.usage["retries"] == 2
    monkeypatch.delenv("SIEVERT_API_KEY")
    with pytest.raises(StageError, match="environment variable SIEVERT_API_KEY is not set"):
        sievert(base_url=service.url).open()


@pytest.mark.parametrize("way", ["sync", "async"])
def test_a_parse_of_its_own(service, sievert, way):
    """The method of the document reads the shape that it is made for, and refuses another."""
    names: dict[str, Any] = {**vars(hosted), "Any": Any, "Mapping": Mapping}
    exec(blocks("python", HEADING, DOCUMENT)[1], names)  # noqa: S102 - the document's own text
    own = type("Own", (sievert,), {"parse": names["parse"], "__module__": "sievert"})

    def edit(body, request):
        rows = [{"passage": row["index"], "grade": row["score"]} for row in body["results"]]
        return {"sieved": rows, "cost": {"grains": 12, "since": "2027"}}

    service.always(changed(edit))
    answer = rerank(own(base_url=service.url), way)
    assert answer.order == [index for index, _ in ranking(QUERY, HIT_TEXTS)]
    assert answer.usage == {"requests": 1, "grains": 12}
    service.clear()
    assert "answered wrongly: the reply has no 'sieved'" in str(rerank(own(base_url=service.url), way).error)


def test_the_installed_plugin_runs_from_the_command_line(service, installed, tmp_path, minilm):
    """After pip install, YAML knows its name; the command reranks with it, and prints its usage."""
    config, fruit = tmp_path / "fruit.yaml", tmp_path / "fruit.jsonl"
    config.write_text(CONFIG.format(model=minilm, uri=tmp_path / "fruit.db", url=service.url), encoding="utf-8")
    fruit.write_text("".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(HIT_TEXTS)), "utf-8")

    def command(name, *arguments):
        done = subprocess.run(
            [Path(sys.executable).with_name("milvus-pipeline"), name, config, *arguments],
            env={**os.environ, "PYTHONPATH": str(installed)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done

    command("ingest", fruit)
    dry = command("run", "--query", QUERY, "--dry-run", "--format", "jsonl")
    assert json.loads(dry.stdout)["planned"]["documents"] == len(HIT_TEXTS)
    assert service.requests == []
    done = command("run", "--query", QUERY)
    hits = json.loads(done.stdout)["hits"]
    assert [hit["id"] for hit in hits] == [index for index, _ in ranking(QUERY, HIT_TEXTS, 3)]
    assert service.requests[0].body["mesh"] == 5
    assert "sievert: 1 request, 7 total tokens" in done.stderr


def test_the_installed_plugin_passes_the_conformance_suite(service, installed):
    """The suite finds it by its entry point, and gets the address of its service."""
    arguments = {"sievert": {"base_url": service.url}}
    assert conformance("sievert", installed, SPECIMENS=json.dumps(arguments)) > 20
    sent = [request for request in service.requests if request.method == "POST"]  # a check only looks who is there
    assert sent
    assert all(request.refused is None for request in sent)


def test_the_document_describes_the_base():
    """The fields of its table, with their defaults, and the words that a provider may say, are the class's own."""
    text = DOCUMENT.read_text(encoding="utf-8")
    base = hosted.HostedReranker
    own = set(base.model_fields) - set(Reranker.model_fields)
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", text.split("## What the base does")[0], re.MULTILINE))
    assert set(rows) == own
    for name in ("request_timeout", "max_concurrency"):
        assert rows[name].startswith(f"{base.model_fields[name].default:g}")
    retry = base.model_fields["retry"].default
    assert rows["retry"].strip() == f"{retry.attempts} attempts, {retry.min_wait:g} to {retry.max_wait:g} s"
    repeated = re.search(r"\*\*Repeat\.\*\* ([\d, ]+),", text)
    assert {int(status) for status in repeated[1].split(",")} == PASSING_STATUSES
    said = re.findall(r"^\| `(\w+)(?:\(\w*\))?` \|", text.split(f"## {HEADING}")[1], re.MULTILINE)
    assert said
    assert all(hasattr(base, name) for name in said)
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| [^|]+ \|$", section(text), re.MULTILINE)
    attributes = re.findall(r"`(\w+)`", " ".join(rows))
    assert set(attributes) == set(vars(ServiceError("x")))


def section(text: str) -> str:
    """What the document says of errors."""
    return text.split("## When it fails")[1].split("\n## ")[0]


def test_the_examples_in_python_run(monkeypatch, capsys):
    """As they stand, against the stand-in: they print what they say, and the way to an error is right."""
    with StandIn("cohere") as server:
        monkeypatch.setenv("COHERE_API_KEY", server.key)
        monkeypatch.setenv("GATEWAY_KEY", "of-the-gateway")
        monkeypatch.setattr(Cohere, "default_url", server.url)
        (example,) = blocks("python", "Configure", DOCUMENT)
        names: dict[str, Any] = {"retrieval": [ListedSearch(documents=HIT_TEXTS)]}
        exec(example, names)  # noqa: S102 - the document's own text
        one, _, total = capsys.readouterr().out.splitlines()
        assert f"print(result.usage)  # {one}\n" in example
        assert f"print(total_usage(results))  # {total}\n" in example
        assert server.requests[0].headers["x-gateway-key"] == "of-the-gateway"
        server.always(server.error(503))
        exec(example, names)  # noqa: S102 - the document's own text
        error = names["results"][0].report("cohere").error
        assert isinstance(error.__cause__, ServiceError)
        assert str(error) in capsys.readouterr().out
        server.clear()
        exec(blocks("python", "Alone", DOCUMENT)[0], names)  # noqa: S102 - the document's own text
        assert [result.text for result in names["best"]] == ["McCarthy did."]
        assert not names["rerank"].is_open


def test_the_document_names_every_address():
    """The table of what is sent has each provider's URL and the member that its texts go under."""
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \| (.+?) \| (.*?) ?\|$", DOCUMENT.read_text("utf-8"), re.MULTILINE)
    table = {name: (address, texts) for name, address, texts, _ in rows if name in registry.names()}
    providers = {stage.type: stage for stage in STAGES.values()}
    assert set(table) == set(providers)
    for name, stage in providers.items():
        address, texts = table[name]
        assert f"`{stage.default_url}{stage.path}`" in address or (stage.default_url is None and "base_url" in address)
        member = texts.strip("`")
        instance = stage(base_url="http://localhost:8080")
        assert member in instance.payload("q", ["a"], 1) or name == "jev"
