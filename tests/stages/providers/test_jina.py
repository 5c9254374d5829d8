"""The stage `jina` and its service."""

from __future__ import annotations

import pytest

from milvus_pipeline import ConfigError, StageError
from milvus_stages import Jina
from support.hosted import HIT_TEXTS, QUERY, rerank, stage_for
from support.standins import ranking, relevance
from support.standins.jina import MODELS

PAIRWISE = "jina-reranker-v2-base-multilingual"


@pytest.mark.parametrize("length", [0, 8193])
def test_a_length_beyond_the_services_range_is_refused_here(length):
    """The service takes 1 to 8,192."""
    with pytest.raises(ConfigError, match="max_doc_length"):
        Jina(max_doc_length=length)


@pytest.mark.parametrize("model", MODELS)
def test_the_documented_models(serve, model):
    """Each documented model is accepted, and named in the docstring; those of version 3 score from -1 to 1."""
    server = serve("jina")
    answer = rerank(stage_for(server, model=model))
    v3 = model.startswith("jina-reranker-v3")
    expected = {i: relevance(QUERY, text) for i, text in enumerate(HIT_TEXTS)}
    assert answer.scores == pytest.approx({i: 2 * score - 1 if v3 else score for i, score in expected.items()})
    assert (min(answer.scores.values()) < 0) == v3
    assert f"``{model}``" in Jina.__doc__
    assert Jina(model=model).limits().listwise == v3


@pytest.mark.parametrize(
    "model", ["jina-reranker-v4", "jina-reranker-v3.5-nano", "jinaai/jina-reranker-v3", "an-alias", "reranker-v2"]
)
def test_a_model_that_is_not_known_for_pairs_is_held_for_listwise(model):
    """Merging scores that cannot be compared would look like a ranking; a list that is not split is right anyway."""
    assert Jina(model=model).limits().listwise
    assert Jina(model=model).limits().document_tokens == (2048 if model == "jinaai/jina-reranker-v3" else 8192)


@pytest.mark.parametrize(
    "model",
    [
        "jina-reranker-v1-tiny-en",
        "jina-reranker-v2-base-multilingual",
        "jina-reranker-m0",
        "jina-colbert-v2",
        "jinaai/jina-reranker-v2-base-multilingual",
        "jinaai/jina-colbert-v1-en",
    ],
)
def test_a_model_of_pairs_is_known_by_its_name(model):
    """Even if the name begins with its publisher."""
    assert not Jina(model=model).limits().listwise


def test_a_listwise_model_gets_the_list_in_one_request(serve, way):
    """However many there are, and its scores, which depend on the others, are taken as they are."""
    server = serve("jina", listwise=True)
    texts = [f"red plum {number}" for number in range(1500)]
    answer = rerank(stage_for(server), way, texts=texts)
    (request,) = server.requests
    assert request.body["documents"] == texts
    assert answer.error is None
    server.clear()
    alone = rerank(stage_for(server), way, texts=texts[:1])
    assert alone.scores[0] != answer.scores[0]


def test_a_listwise_model_refuses_to_be_split(serve, way):
    """A lower `max_documents` would make scores that cannot be compared: an error, and nothing is sent."""
    server = serve("jina")
    answer = rerank(stage_for(server, max_documents=5), way)
    assert isinstance(answer.error, StageError)
    assert "jina (jina-reranker-v3.5) ranks the documents of a request against each other, so 7" in str(answer.error)
    assert server.requests == []
    assert rerank(stage_for(server, max_documents=7), way).error is None


def test_a_list_longer_than_the_model_reads_is_flagged(serve, way):
    """It is sent in one piece, with a warning."""
    server = serve("jina")
    texts = [f"{number} " + "red plum " * 2_700 for number in range(20)]
    answer = rerank(stage_for(server), way, texts=texts)
    assert answer.error is None
    assert len(server.requests) == 1
    assert "not split" in answer.warnings[0]
    short = rerank(stage_for(server, max_doc_length=500), way, texts=texts)
    assert short.warnings == []


def test_a_listwise_list_is_never_halved(serve, way):
    """A list that the service finds too large is an error, not two lists."""
    server = serve("jina")
    server.always(server.error(413))
    assert rerank(stage_for(server), way).error.status == 413
    assert len(server.requests) == 1


def test_a_document_too_long_for_a_model_of_pairs_is_left_unscored(serve, way):
    """It costs the others nothing but a few requests; with `truncation` the service cuts it."""
    server = serve("jina")
    texts = [*HIT_TEXTS, "plum " * 1_000]
    answer = rerank(stage_for(server, model=PAIRWISE), way, texts=texts)
    assert answer.error is None
    assert answer.order == [*(index for index, _ in ranking(QUERY, HIT_TEXTS)), len(HIT_TEXTS)]
    assert answer.scores[len(HIT_TEXTS)] is None
    assert answer.warnings == ["1 of 8 documents are larger than the service accepts; ranked last, without a score"]
    assert rerank(stage_for(server, model=PAIRWISE, truncation=True), way, texts=texts).warnings == []


def test_a_model_of_pairs_is_split_where_wanted(serve, way):
    """No limit of documents is documented, so there is none unless one is set."""
    server = serve("jina")
    answer = rerank(stage_for(server, model=PAIRWISE, max_documents=3), way)
    assert sorted(len(request.body["documents"]) for request in server.requests) == [2, 2, 3]
    assert answer.order == [index for index, _ in ranking(QUERY, HIT_TEXTS)]
    server.clear()
    rerank(stage_for(server, model=PAIRWISE), way, texts=[f"plum {number}" for number in range(2000)])
    assert len(server.requests) == 1
