"""The late_interaction stage, measured against MaxSim written out in numpy."""

import numpy as np
import pytest
import transformers

from milvus_pipeline import DeadlineError, Hit, Query, SearchResult, StageError
from milvus_pipeline.plugin import Context, Deadline, RerankJob
from milvus_stages import LateInteraction
from support.checkpoints import bert_classifier, encoder
from support.fake_stages.slow_model import slowed


def stage(model: str, **fields) -> LateInteraction:
    """An open late_interaction stage on the CPU."""
    made = LateInteraction(model=str(model), device="cpu", **fields)
    made.open()
    return made


class Reference:
    """Token vectors by transformers' own tokenizer and model, one text at a time; MaxSim in two loops."""

    def __init__(self, model: str, max_length: int) -> None:
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(model)
        self.model = transformers.AutoModel.from_pretrained(model).eval()
        self.max_length = max_length

    def tokens(self, text: str) -> list[np.ndarray]:
        """The vectors of a text's tokens without the first and the last, [CLS] and [SEP]."""
        inputs = self.tokenizer(text, truncation=True, max_length=self.max_length, return_tensors="pt")
        return list(self.model(**inputs).last_hidden_state[0].detach().numpy()[1:-1])

    def score(self, query: str, text: str) -> float:
        """Mean over the query's tokens of the largest cosine with a token of the text."""
        own, others = self.tokens(query), self.tokens(text)
        if not others:
            return -1.0
        return float(np.mean([max(_cosine(one, other) for other in others) for one in own]))


def _cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


def test_scores_are_maxsim(small_encoder, queries, documents):
    """Queries and documents of every length get the scores of the reference; the model's own limit of 64 cuts them."""
    mine, reference = stage(small_encoder, batch_size=4), Reference(small_encoder, 64)
    jobs = [RerankJob(query, documents) for query in queries]
    scores = mine.score_batch(jobs, Context(Deadline(), len(jobs)))
    mine.close()
    expected = [[reference.score(query, document) for document in documents] for query in queries]
    assert np.abs(np.array(scores) - expected).max() < 1e-5


def test_queries_that_share_documents_are_scored_as_if_alone(small_encoder, queries, documents):
    """Documents that several queries share, or one query has twice, are encoded once and scored for each."""
    mine = stage(small_encoder)
    jobs = [RerankJob(query, [*documents[start:], documents[-1]]) for start, query in enumerate(queries)]
    together = mine.score_batch(jobs, Context(Deadline(), len(jobs)))
    for job, scores in zip(jobs, together, strict=True):
        assert np.allclose(scores, list(mine.score(job.query, job.texts)), atol=1e-5)
        assert scores[-1] == scores[-2]
    mine.close()


def test_a_document_without_tokens_comes_last(small_encoder):
    """An empty document gets the floor of the cosine, -1, and ranks below every other."""
    mine = stage(small_encoder)
    ranked = mine("plum", ["", "sky", "  "])
    mine.close()
    assert [(result.index, result.score) for result in ranked[1:]] == [(0, -1.0), (2, -1.0)]


def test_a_text_is_most_like_itself(small_encoder):
    """A text scores 1, the highest score, for itself as the query."""
    mine = stage(small_encoder)
    assert list(mine.score("red plum jam", ["red plum jam"])) == pytest.approx([1.0], abs=1e-5)
    mine.close()


def test_a_query_without_tokens_fails_alone(small_encoder):
    """A query of signs that the model drops fails with a reason, and the rest of its batch is scored."""
    mine = stage(small_encoder)
    results = [SearchResult(Query(text), [Hit(1, "plum", 0.0)]) for text in ("\u200b", "plum")]
    context = Context(Deadline(), 2)
    ranked = mine.process(results, context)
    mine.close()
    assert "no token that the model knows" in str(context.failures[0])
    assert ranked[1].hits[0].score == pytest.approx(1.0, abs=1e-5)


def test_queries_that_are_not_encoded_in_time_fail_alone(small_encoder, fake_time):
    """Queries get half of the time; those that were encoded are answered in the rest of it."""
    mine = stage(small_encoder, batch_size=1)
    context = Context(Deadline.after(8.0), 40)
    with slowed(mine.loaded, 0.3, fake_time.sleep):
        scores = mine.score_batch([RerankJob("red plum", ["plum", "red plum"])] * 40, context)
    mine.close()
    assert sorted(context.failures) == list(range(13, 40))
    assert all(isinstance(error, DeadlineError) for error in context.failures.values())
    assert scores[0][1] == pytest.approx(1.0, abs=1e-5)


def test_lengths_can_be_set(small_encoder):
    """Query and document have separate limits, and what was cut is reported."""
    mine = stage(small_encoder, query_max_length=3, max_length=4)
    context = Context(Deadline(), 1)
    ((first, second),) = mine.score_batch([RerankJob("plum sky", ["red sea", "red sea wing"])], context)
    mine.close()
    assert first == pytest.approx(second, abs=1e-5)
    assert context.warnings[0] == [
        "the query is longer than the model reads; its end was left out",
        "1 of 2 documents are longer than the model reads; their ends were left out",
    ]


def test_lengths_that_the_model_cannot_take_are_refused(small_encoder):
    """Each of the two lengths is checked against the model's positions, and named."""
    with pytest.raises(StageError, match="query_max_length: the model takes 128 tokens at most, got 129"):
        stage(small_encoder, query_max_length=129)


def test_a_projection_after_the_transformer_is_refused(tmp_path):
    """A model whose token vectors pass through a further layer is refused, not scored without it."""
    with pytest.raises(StageError, match="has a module 'Dense' after the transformer"):
        stage(encoder(tmp_path / "colbert", modules=["Transformer", "Dense"]))


def test_a_classifier_can_serve_as_encoder(tmp_path):
    """The transformer in a checkpoint of another kind is used without its head."""
    mine = stage(bert_classifier(tmp_path / "model"))
    assert list(mine.score("plum", ["plum"])) == pytest.approx([1.0], abs=1e-5)
    mine.close()


def test_the_mission_example_is_ranked(minilm, mission_example):
    """On the weights of all-MiniLM-L6-v2 the document on the Dartmouth Conference comes first."""
    mine = stage(minilm)
    ranked = mine(mission_example["query"], [document["doc_text"] for document in mission_example["documents"]])
    mine.close()
    assert [result.index for result in ranked] == [1, 0, 3, 2]
    assert ranked[0].score == pytest.approx(0.66882, abs=1e-4)
