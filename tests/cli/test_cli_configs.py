"""The files in `configs/` run as they stand."""

import json
from pathlib import Path

import pytest

from milvus_pipeline import Pipeline
from support.checkpoints import bert_classifier, xlm_roberta_classifier

CONFIGS = Path(__file__).parents[2] / "configs"
DOCUMENTS = CONFIGS / "data" / "dartmouth.jsonl"


@pytest.fixture(autouse=True)
def in_folder(tmp_path, monkeypatch):
    """Collections are made in the test's own folder, and no variable of the caller's counts."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MILVUS_URI", raising=False)
    monkeypatch.delenv("MILVUS_TOKEN", raising=False)


def answers(invoke, config, query):
    """The one result of a query, after filling the collection."""
    filled = invoke("ingest", config, DOCUMENTS)
    assert filled.exit_code == 0, filled.stderr
    assert "4 rows in the collection 'dartmouth'" in filled.stderr
    done = invoke("run", config, "--query", query)
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


def check_example(result, example):
    """Documents, inner products and texts are those of the example, and the reranker has scored them all."""
    expected = {hit["doc_id"]: hit["distance"] for hit in example["search_limit_3"]}
    texts = {document["doc_id"]: document["doc_text"] for document in example["documents"]}
    assert result["status"] == "ok"
    assert [hit["id"] for hit in result["hits"]] == list(expected)
    for rank, hit in enumerate(result["hits"], start=1):
        assert hit["scores"]["milvus_search"] == pytest.approx(expected[hit["id"]], abs=1e-4)
        assert hit["ranks"] == {"milvus_search": rank, "late_interaction": rank}
        assert hit["score"] == hit["scores"]["late_interaction"]
        assert hit["text"] == texts[hit["id"]]


def test_the_documents_are_those_of_the_example(mission_example):
    """Four documents, word for word."""
    lines = DOCUMENTS.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == mission_example["documents"]


def test_the_example_on_milvus_lite(invoke, minilm, mission_example):
    """`ingest` and `run` find documents 1, 0 and 3 with the inner products of the example."""
    check_example(answers(invoke, CONFIGS / "dartmouth.yaml", mission_example["query"]), mission_example)


@pytest.mark.server
def test_the_example_on_a_server(invoke, minilm, mission_example, milvus_server, monkeypatch):
    """The same on the standalone server, whose address comes from the environment; again with --overwrite."""
    monkeypatch.setenv("MILVUS_URI", milvus_server)
    config = CONFIGS / "milvus_server.yaml"
    check_example(answers(invoke, config, mission_example["query"]), mission_example)
    assert invoke("ingest", config, DOCUMENTS).exit_code == 1
    assert invoke("ingest", config, DOCUMENTS, "--overwrite").exit_code == 0
    check_example(json.loads(invoke("run", config, "-q", mission_example["query"]).stdout), mission_example)


@pytest.mark.parametrize(
    ("name", "hub_model", "make_model"),
    [
        ("cross_encoder", "cross-encoder/ms-marco-MiniLM-L-6-v2", bert_classifier),
        ("bge", "BAAI/bge-reranker-v2-m3", xlm_roberta_classifier),
    ],
)
def test_the_rerankers_of_the_hub(invoke, minilm, mission_example, make, tmp_path, name, hub_model, make_model):
    """The configuration runs with another checkpoint in the place of the weights that only the hub has."""
    text = (CONFIGS / f"{name}.yaml").read_text(encoding="utf-8")
    assert f"model: {hub_model}\n" in text
    checkpoint = make_model(tmp_path / "checkpoint")
    config = make(f"{name}.yaml", text.replace(f"model: {hub_model}\n", f"model: {checkpoint}\n"))
    result = answers(invoke, config, mission_example["query"])
    assert result["status"] == "ok"
    assert result["reports"][2]["hits_out"] == 4
    assert result["hits"]
    scores = [hit["scores"][name] for hit in result["hits"]]
    assert scores == sorted(scores, reverse=True)


def test_every_configuration_is_valid_and_written_back_the_same(monkeypatch):
    """Each survives the way to YAML and back."""
    monkeypatch.setenv("MILVUS_URI", "http://localhost:19530")
    paths = sorted(CONFIGS.glob("*.yaml"))
    assert {"dartmouth", "bge", "cross_encoder", "milvus_server"} <= {path.stem for path in paths}
    for path in paths:
        pipeline = Pipeline.from_yaml(path)
        assert Pipeline.from_yaml(pipeline.to_yaml()) == pipeline
        assert pipeline.collection is not None
