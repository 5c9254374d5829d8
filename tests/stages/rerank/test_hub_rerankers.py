"""The mission's example on weights of the Hugging Face hub, if they are on this machine."""

import pytest
from huggingface_hub import try_to_load_from_cache

from milvus_stages import BGE, CrossEncoder

pytestmark = pytest.mark.hub

CROSS_ENCODER = "cross-encoder/ms-marco-MiniLM-L-6-v2"
BGE_M3 = "BAAI/bge-reranker-v2-m3"


def cached(model: str) -> str:
    """The model's id; skips the test if its weights are not on this machine."""
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        if not isinstance(try_to_load_from_cache(model, name), str):
            pytest.skip(f"{name} of {model} is not in this machine's cache of the Hugging Face hub")
    return model


@pytest.mark.parametrize(
    ("stage", "model", "figures"),
    [
        (CrossEncoder, CROSS_ENCODER, f"{CROSS_ENCODER}, top_k 3"),
        (BGE, BGE_M3, f"{BGE_M3}, normalised"),
    ],
)
def test_the_mission_example_is_reproduced(stage, model, figures, mission_example):
    """The documents get the order and the scores that the example prints."""
    expected = mission_example[figures]
    reranker = stage(model=cached(model), device="cpu")
    documents = [document["doc_text"] for document in mission_example["documents"]]
    ranked = reranker(mission_example["query"], documents, top_k=len(expected))
    reranker.close()
    assert [result.index for result in ranked] == [line["index"] for line in expected]
    assert [result.score for result in ranked] == pytest.approx([line["score"] for line in expected], abs=5e-3)
