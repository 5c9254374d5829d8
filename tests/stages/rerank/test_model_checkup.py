"""The doctor's checks of local models: lengths, dimension, missing files."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from milvus_pipeline import Hit, Query, SearchResult
from milvus_pipeline.plugin import CheckContext, Context, Deadline, Finding
from milvus_stages import BGE, CrossEncoder, Encode, LateInteraction, PymilvusModel, Truncate
from milvus_stages.doctors.local import QUERY_TOKENS
from support.checkpoints import bert_classifier, encoder

QUERY = " ".join(["plum"] * QUERY_TOKENS)


def findings(stage: Any, **context: Any) -> tuple[dict[str, Finding], CheckContext]:
    """The findings by topic, and the context that the check leaves."""
    checked = CheckContext(Deadline.after(60), **context)
    found = {one.topic: one for one in stage.check(checked)}
    assert not stage.is_open
    assert all(one.next_step or one.level == "ok" for one in found.values())
    return found, checked


def in_python(code: str, *arguments: str, **environment: str) -> str:
    """What a program prints in another process."""
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, **environment})
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (BGE, {"max_length": 128, "query_max_length": 20}),
        (BGE, {}),
        (CrossEncoder, {}),
        (CrossEncoder, {"max_length": 100}),
        (LateInteraction, {}),
        (LateInteraction, {"max_length": 100}),
    ],
)
def test_documents_that_are_too_long_are_counted_as_a_run_counts_them(
    kind, fields, bert, xlm_roberta, small_encoder, documents
):
    """The number found is the number of documents whose ends the open reranker leaves unread."""
    model = {BGE: xlm_roberta, CrossEncoder: bert, LateInteraction: small_encoder}[kind]
    stage = kind(model=model, device="cpu", **fields)
    found, _ = findings(stage, texts=documents, documents=1000)
    context = Context(Deadline.after(120), 1)
    with stage:
        stage.process([SearchResult(Query(QUERY), [Hit(i, text, 0.0) for i, text in enumerate(documents)])], context)
    cut = context.details[0]["documents_cut"]
    assert found["documents"].message.startswith(f"{cut} of {len(documents)} sampled documents (")
    assert f"about {round(1000 * cut / len(documents))} in all)" in found["documents"].message
    assert ("raise max_length" in found["documents"].next_step) == (kind is LateInteraction or bool(fields))


def test_short_documents_are_fine(bert):
    """The message gives median and maximum."""
    found, _ = findings(CrossEncoder(model=bert), texts=["red plum", "red plum jam", "a"])
    assert {one.level for one in found.values()} == {"ok"}
    assert "the median has 2 tokens, the longest 3" in found["documents"].message


@pytest.mark.parametrize(
    ("shape", "dim"),
    [
        ({}, 32),
        ({"modules": ("Transformer", "Pooling", "Dense", "Normalize")}, 8),
        ({"pooling": {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}}, 64),
    ],
)
def test_the_dimension_is_that_of_the_open_encoder(tmp_path, shape, dim):
    """It is read from small files, and left in the context for the search."""
    stage = Encode(model=str(encoder(tmp_path / "model", **shape)), device="cpu")
    found, context = findings(stage)
    assert {one.level for one in found.values()} == {"ok"}
    assert f"vectors of {dim}, from the first 62 tokens of a text" in found["model"].message
    assert context.dim == dim
    assert stage.model in context.dim_of
    with stage:
        assert stage.dim == dim


def test_a_check_of_a_model_reads_no_weights_and_imports_no_torch(small_encoder, xlm_roberta, tmp_path):
    """Damaged weights go unseen; in a fresh process neither torch nor transformers nor pymilvus is imported."""
    copies = []
    for number, model in enumerate((small_encoder, xlm_roberta)):
        copies.append(str(shutil.copytree(model, tmp_path / str(number))))
        Path(copies[-1], "model.safetensors").write_bytes(b"damaged")
    code = (
        "import sys; from milvus_pipeline.plugin import CheckContext, Deadline; from milvus_stages import *\n"
        "stages = [Encode(model=sys.argv[1]), BGE(model=sys.argv[2]), LateInteraction(model=sys.argv[1]),\n"
        "          Truncate(max_tokens=9, tokenizer=sys.argv[1])]\n"
        "context = CheckContext(Deadline(), texts=['red plum'])\n"
        "print({one.level for stage in stages for one in stage.check(context)})\n"
        "print(sorted({'torch', 'transformers', 'pymilvus', 'sentence_transformers'} & set(sys.modules)))"
    )
    assert in_python(code, *copies).splitlines() == ["{'ok'}", "[]"]


def test_a_model_that_is_not_here_is_not_fetched(monkeypatch, tmp_path):
    """It is a warning, or an error if the hub is offline; the hub's cache stays empty."""
    code = (
        "from milvus_pipeline.plugin import CheckContext, Deadline; from milvus_stages import *\n"
        "for stage in Encode(), BGE(), Truncate(max_tokens=9, tokenizer='some/model'):\n"
        "    for one in stage.check(CheckContext(Deadline())):\n"
        "        print(one.level, one.topic, one.message, one.next_step)"
    )
    lines = in_python(code, HF_HUB_CACHE=str(tmp_path), HF_HUB_OFFLINE="0").splitlines()
    assert [line.split()[:2] for line in lines] == [["warning", "model"]] * 2 + [["warning", "tokenizer"]]
    assert all("not on this machine, so it is downloaded when the stage opens" in line for line in lines)
    lines = in_python(code, HF_HUB_CACHE=str(tmp_path), HF_HUB_OFFLINE="1").splitlines()
    assert [line.split()[0] for line in lines] == ["error"] * 3
    assert list(tmp_path.rglob("*.json")) == []


def test_models_that_cannot_be_used_are_reported(tmp_path, small_encoder, bert):
    """Missing folders and weights, an encoder instead of a classifier, lengths and devices that do not fit."""

    def fault(stage: Any, topic: str = "model") -> str:
        found, _ = findings(stage)
        assert found[topic].level == "error"
        return found[topic].message

    assert "no such folder" in fault(Encode(model="./no/such/folder"))
    assert "is not a sequence-classification checkpoint" in fault(CrossEncoder(model=small_encoder))
    bare = bert_classifier(tmp_path / "bare")
    (bare / "model.safetensors").unlink()
    assert "holds no model.safetensors" in fault(CrossEncoder(model=str(bare)))
    assert "the model takes 512 tokens at most" in fault(CrossEncoder(model=bert, max_length=4000), "max_length")
    three = bert_classifier(tmp_path / "three", labels=("a", "b", "c"))
    assert "has 3 labels" in fault(BGE(model=str(three)))
    assert "float16 is for GPUs" in fault(Encode(model=small_encoder, device="cpu", dtype="float16"), "dtype")
    assert "cuda devices: " in fault(Encode(model=small_encoder, device="cuda:63"), "device")


def test_a_budget_is_compared_with_the_documents(small_encoder):
    """The finding gives the average number of documents; less than a median document is a warning."""
    texts = ["plum"] * 3 + ["plum " * 10] * 4 + ["plum " * 30] * 3
    found, _ = findings(Truncate(max_tokens=66, reserve=6, per_hit=1, tokenizer=small_encoder), texts=texts)
    assert found["tokenizer"].level == found["budget"].level == "ok"
    assert found["budget"].message.startswith("60 tokens hold 4.2 documents on average (median of 10 sampled 11")
    found, _ = findings(Truncate(max_tokens=10, tokenizer=small_encoder), texts=["plum " * 12] * 5)
    assert found["budget"].level == "warning"
    assert "the median of 5 sampled has 12" in found["budget"].message
    found, _ = findings(Truncate(max_chars=100, top_k=50), texts=["plum " * 10] * 5)
    assert found["budget"].message.startswith("100 characters hold 2.0 documents on average of the 50 of top_k")
    assert findings(Truncate(top_k=3), texts=texts)[0] == {}


def test_a_tokenizer_that_is_missing_or_damaged_is_reported(tmp_path):
    """The finding's topic is the tokenizer."""
    found, _ = findings(Truncate(max_tokens=9, tokenizer=str(tmp_path)))
    assert "holds no tokenizer.json" in found["tokenizer"].message
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": 3}))
    found, _ = findings(Truncate(max_tokens=9, tokenizer=str(tmp_path)))
    assert (found["tokenizer"].level, "cannot be read" in found["tokenizer"].message) == ("error", True)


def test_a_function_of_the_library_is_checked_without_creating_it():
    """Its name and its arguments; no model is loaded and nothing is sent."""
    arguments = {"model_name": "no/such-model"}
    found, _ = findings(PymilvusModel(function="BGERerankFunction", arguments=arguments))
    assert found["function"].level == "ok"
    found, _ = findings(PymilvusModel(function="BGERerankFunktion"))
    assert (found["function"].level, found["function"].next_step) == ("error", "did you mean 'BGERerankFunction'?")
    found, _ = findings(PymilvusModel(function="VoyageRerankFunction", arguments={"model_nam": "x"}))
    assert found["arguments"].message == "got an unexpected keyword argument 'model_nam'"
    found, _ = findings(PymilvusModel(function="JinaRerankFunction"), hits=100)
    assert found["requests"].message == "a query with 100 hits is 1 request"
