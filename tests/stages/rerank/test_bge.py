"""The bge stage, measured against FlagEmbedding on the same weights."""

import numpy as np
import pytest
from FlagEmbedding import FlagReranker

from milvus_pipeline import ConfigError, DeadlineError, Hit, Query, SearchResult, StageError
from milvus_pipeline.plugin import Context, Deadline, RerankJob
from milvus_stages import BGE
from support.checkpoints import bert_classifier, encoder


def stage(model: str, **fields) -> BGE:
    """An open BGE reranker on the CPU."""
    made = BGE(model=str(model), device="cpu", **fields)
    made.open()
    return made


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("architecture", ["bert", "xlm_roberta"])
def test_scores_are_those_of_flag_embedding(architecture, normalize, request, queries, documents):
    """Texts of every length, empty and over-long ones too, get the peer's scores on both architectures."""
    model = request.getfixturevalue(architecture)
    mine = stage(model, normalize=normalize)
    jobs = [RerankJob(query, documents) for query in queries]
    scores = mine.score_batch(jobs, Context(Deadline(), len(jobs)))
    mine.close()
    # FlagEmbedding's own defaults are other lengths than those of PyMilvus, which are this stage's.
    peer = FlagReranker(model, devices="cpu", query_max_length=256, max_length=512, normalize=normalize)
    expected = peer.compute_score([(query, document) for query in queries for document in documents])
    assert np.abs(np.ravel(scores) - expected).max() < 1e-5
    assert np.ptp(expected) > 0.1


def test_shorter_lengths_cut_as_the_peer_does(xlm_roberta, queries, documents):
    """Query and document are cut at their own limits, as the peer cuts them."""
    mine = stage(xlm_roberta, query_max_length=20, max_length=50)
    peer = FlagReranker(xlm_roberta, devices="cpu", query_max_length=20, max_length=50, normalize=True)
    for query in queries:
        expected = peer.compute_score([(query, document) for document in documents])
        assert np.abs(np.array(mine.score(query, documents)) - expected).max() < 1e-5
    mine.close()


def test_a_pipeline_scores_several_queries_as_it_scores_them_one_by_one(bert, queries, documents):
    """Queries that share forward passes keep the ranking and the scores that they have alone."""
    mine = stage(bert, top_k=4)
    results = [
        SearchResult(Query(query), [Hit(number, document, 0.0) for number, document in enumerate(documents[shift:])])
        for shift, query in enumerate(queries)
    ]
    together = mine.process(results, Context(Deadline(), len(results)))
    for result, shared in zip(results, together, strict=True):
        (alone,) = mine.process([result], Context(Deadline(), 1))
        assert [hit.id for hit in shared] == [hit.id for hit in alone]
        assert np.allclose([hit.score for hit in shared], [hit.score for hit in alone], atol=1e-5)
        assert len(shared) == 4
    mine.close()


def test_a_blank_query_does_not_spoil_the_others(bert):
    """In a batch with a blank query, that one fails and the other is ranked."""
    mine = stage(bert)
    results = [SearchResult(Query(text, vector=[0.0]), [Hit(1, "plum", 0.0)]) for text in (" ", "plum")]
    context = Context(Deadline(), 2)
    ranked = mine.process(results, context)
    mine.close()
    assert list(context.failures) == [0]
    assert "bge" in ranked[1].hits[0].scores


def test_time_that_is_used_up_ends_the_work(bert):
    """A query whose deadline has passed fails before a forward pass, and the message says what to change."""
    mine = stage(bert)
    context = Context(Deadline.after(0.0), 1)
    mine.score_batch([RerankJob("plum", ["sky"])], context)
    mine.close()
    with pytest.raises(DeadlineError, match=r"1 of 1 documents were not scored .*; increase `timeout`"):
        raise context.failures[0]


def test_it_is_callable_on_its_own(bert):
    """A query and documents in, the best few out, printed as the PyMilvus model library prints them."""
    reranker = BGE(model=bert, device="cpu")
    documents = ["the sky", "red plum", "plum jam"]
    ranked = reranker("plum", documents, top_k=2)
    reranker.close()
    assert len(ranked) == 2
    assert ranked[0].score >= ranked[1].score
    assert repr(ranked[0]) == (
        f"RerankResult(text={documents[ranked[0].index]!r}, score={ranked[0].score!r}, index={ranked[0].index})"
    )


def test_lengths_without_room_for_a_document_are_refused(bert):
    """A query that may fill the whole input is refused: by the fields alone, or once the special tokens are known."""
    with pytest.raises(ConfigError, match=r"query_max_length must be below max_length \(256\)"):
        BGE(query_max_length=256, max_length=256)
    with pytest.raises(StageError, match="60 leaves no room for a document in max_length 62 with 3 special tokens"):
        stage(bert, query_max_length=60, max_length=62)


def test_models_of_another_kind_are_refused(tmp_path):
    """A model with several labels, or one that is not a classifier, is refused when the stage opens."""
    with pytest.raises(StageError, match="has 2 labels, but a BGE reranker has one; use the stage `cross_encoder`"):
        stage(bert_classifier(tmp_path / "two", labels=["no", "yes"]))
    with pytest.raises(StageError, match="rerankers built on a generative model are not supported"):
        stage(encoder(tmp_path / "encoder"))
