"""The cross_encoder stage, measured against sentence-transformers on the same weights."""

import itertools
import json
import logging
import shutil

import numpy as np
import pytest
import sentence_transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from milvus_pipeline import ConfigError, QueryError, StageError
from milvus_pipeline.plugin import Context, Deadline, RerankJob
from milvus_stages import CrossEncoder
from milvus_stages.rerank.cross_encoder import longest_first
from support.checkpoints import bert_classifier, encoder, with_config, write_json

TORCH = "torch.nn.modules.activation"


def stage(model: str, **fields) -> CrossEncoder:
    """An open cross-encoder on the CPU."""
    made = CrossEncoder(model=str(model), device="cpu", **fields)
    made.open()
    return made


def peer_scores(model: str, query: str, documents: list[str], **arguments) -> np.ndarray:
    """What sentence-transformers gives for the same pairs."""
    peer = sentence_transformers.CrossEncoder(str(model), device="cpu", **arguments)
    return peer.predict([(query, document) for document in documents], show_progress_bar=False)


@pytest.fixture(scope="session")
def three_labels(tmp_path_factory):
    """Folder of a BERT with three labels."""
    labels = ["no", "perhaps", "yes"]
    return bert_classifier(tmp_path_factory.mktemp("models") / "three", labels=labels)


@pytest.mark.parametrize("architecture", ["bert", "xlm_roberta"])
def test_scores_are_those_of_sentence_transformers(architecture, request, queries, documents):
    """Texts of every length, empty and over-long ones too, get the peer's scores on both architectures."""
    model = request.getfixturevalue(architecture)
    mine = stage(model)
    jobs = [RerankJob(query, documents) for query in queries]
    scores = mine.score_batch(jobs, Context(Deadline(), len(jobs)))
    mine.close()
    peer = sentence_transformers.CrossEncoder(model, device="cpu")
    expected = peer.predict([(query, document) for query in queries for document in documents])
    assert np.abs(np.ravel(scores) - expected).max() < 1e-5
    assert np.ptp(expected) > 0.1


def test_a_shorter_max_length_cuts_as_the_peer_does(bert, queries, documents):
    """The pair is cut to max_length from its longer side, as the peer cuts it."""
    mine = stage(bert, max_length=41)
    for query in queries:
        expected = peer_scores(bert, query, documents, max_length=41)
        assert np.abs(np.array(mine.score(query, documents)) - expected).max() < 1e-5
    mine.close()


def test_longest_first_is_that_of_the_tokenizers():
    """For all pairs of lengths, each side keeps as many tokens as the tokenizers library leaves it."""
    tokenizer = Tokenizer(WordLevel({"a": 0, "b": 1}))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    for limit in (7, 8):
        tokenizer.enable_truncation(limit, strategy="longest_first")
        for first, second in itertools.product(range(13), range(13)):
            ids = tokenizer.encode("a " * first, "b " * second).ids
            assert longest_first(first, second, limit) == (ids.count(0), ids.count(1))


@pytest.mark.parametrize(
    "config",
    [
        pytest.param({}, id="no key"),
        pytest.param({"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"}, id="old key"),
        pytest.param({"sentence_transformers": {"activation_fn": f"{TORCH}.Tanh"}}, id="new key"),
        pytest.param(
            {
                "sentence_transformers": {"activation_fn": f"{TORCH}.ReLU"},
                "sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity",
            },
            id="new key before old key",
        ),
        pytest.param(
            {
                "sentence_transformers": {"activation_fn": None},
                "sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity",
            },
            id="new key without a value",
        ),
        pytest.param({"sentence_transformers": {"activation_fn": "somewhere.else.Function"}}, id="not of torch"),
    ],
)
def test_the_activation_is_the_one_that_the_peer_reads(config, bert, tmp_path):
    """Every way in which a config.json names an activation gives the peer's scores."""
    model = with_config(shutil.copytree(bert, tmp_path / "model"), config)
    documents = ["red plum jam", "the sky", "", "pressure"]
    mine = stage(model)
    assert np.abs(np.array(mine.score("plum", documents)) - peer_scores(model, "plum", documents)).max() < 1e-5
    mine.close()


def test_a_model_saved_by_the_peer_keeps_its_activation_and_length(bert, tmp_path):
    """The files of the peer's own save, with their activation_fn and max_length, are read as the peer reads them."""
    import torch

    saved = tmp_path / "saved"
    peer = sentence_transformers.CrossEncoder(bert, device="cpu", activation_fn=torch.nn.Tanh(), max_length=40)
    peer.save(str(saved))
    documents = ["red plum jam", "the sky " * 100, "", "pressure"]
    mine = stage(saved)
    assert np.abs(np.array(mine.score("plum", documents)) - peer_scores(saved, "plum", documents)).max() < 1e-5
    mine.close()


def test_an_activation_from_outside_of_torch_is_reported(bert, tmp_path, caplog):
    """A dotted name that is not torch's is never imported: the default is used, with a warning in the log."""
    path = {"sentence_transformers": {"activation_fn": "os.system"}}
    model = with_config(shutil.copytree(bert, tmp_path / "model"), path)
    with caplog.at_level(logging.WARNING):
        stage(model).close()
    assert "'os.system' of the model is not part of torch" in caplog.text


def test_an_unknown_activation_of_torch_is_refused(bert, tmp_path):
    """A torch class that is not a plain activation is an error that lists the supported ones."""
    path = {"sentence_transformers": {"activation_fn": "torch.hub.load"}}
    model = with_config(shutil.copytree(bert, tmp_path / "model"), path)
    with pytest.raises(StageError, match=r"activation 'torch.hub.load' is not supported; set `activation` to one of"):
        stage(model)


def test_the_activation_can_be_chosen(bert):
    """The field `activation` overrides the model's files: a sigmoid of the identity's scores is the default."""
    plain, default = stage(bert, activation="identity"), stage(bert)
    logits = np.array(plain.score("plum", ["red plum", "sky"]))
    assert np.allclose(1 / (1 + np.exp(-logits)), default.score("plum", ["red plum", "sky"]), atol=1e-6)
    plain.close()
    default.close()


@pytest.mark.parametrize(("label", "column"), [(2, 2), ("yes", 2), ("no", 0), (0, 0)])
def test_one_of_several_labels_is_scored(three_labels, label, column):
    """The label, by number or by name, picks the column of the peer's scores."""
    mine = stage(three_labels, label=label)
    documents = ["red plum", "sky", ""]
    expected = peer_scores(three_labels, "plum", documents)[:, column]
    assert np.abs(np.array(mine.score("plum", documents)) - expected).max() < 1e-5
    mine.close()


def test_several_labels_need_a_label(three_labels):
    """Without `label` a model with several is refused, and the message lists them."""
    with pytest.raises(StageError, match=r"label: the model has 3 labels, 0 \(no\), 1 \(perhaps\), 2 \(yes\)"):
        stage(three_labels)
    with pytest.raises(StageError, match=r"no label 'maybe'; use one of 0 \(no\)"):
        stage(three_labels, label="maybe")


def test_a_score_does_not_depend_on_its_batch(bert, queries, documents):
    """A pair gets the same score alone, among others, and in any batch size."""
    mine, small = stage(bert), stage(bert, batch_size=3)
    together = mine.score_batch([RerankJob(query, documents) for query in queries], Context(Deadline(), len(queries)))
    for query, scores in zip(queries, together, strict=True):
        assert np.allclose(scores, small.score(query, documents), atol=1e-5)
        assert np.allclose(scores[4], mine.score(query, documents[4:5]), atol=1e-5)
    mine.close()
    small.close()


def test_what_was_cut_is_reported_for_its_query_alone(bert):
    """An over-long document and an over-long query are named in the report of the query that they belong to."""
    mine = stage(bert, max_length=32)
    context = Context(Deadline(), 2)
    mine.score_batch([RerankJob("plum", ["sky", "sky " * 99]), RerankJob("red " * 40, ["sky " * 40])], context)
    mine.close()
    assert context.warnings[0] == ["1 of 2 documents are longer than the model reads; their ends were left out"]
    assert context.details[0] == {"documents_cut": 1}
    assert context.warnings[1][0] == "the query is longer than the model reads; its end was left out"


def test_equal_scores_keep_their_order(bert):
    """Documents of equal score keep their order; passes of one text give equal texts equal scores to the last bit."""
    mine = stage(bert, batch_size=1)
    ranked = mine("plum", ["sky", "red plum", "sky", "red plum", "sky"])
    mine.close()
    assert [result.index for result in ranked] in ([0, 2, 4, 1, 3], [1, 3, 0, 2, 4])


def test_a_roberta_without_limit_in_its_tokenizer_does_not_crash(xlm_roberta, tmp_path):
    """Positions of RoBERTa models begin after the padding's, so that two fewer tokens fit than there are positions."""
    model = shutil.copytree(xlm_roberta, tmp_path / "model")
    settings = json.loads((model / "tokenizer_config.json").read_text())
    write_json(model / "tokenizer_config.json", {**settings, "model_max_length": 10**30})
    unlimited, limited = stage(model), stage(xlm_roberta)
    assert unlimited.loaded.limit == 512
    assert list(unlimited.score("plum", ["plum " * 2000])) == list(limited.score("plum", ["plum " * 2000]))
    unlimited.close()
    limited.close()


def test_text_that_is_not_unicode_is_scored(bert):
    """A lone surrogate, as broken JSON brings it, counts as an unknown character."""
    mine = stage(bert)
    broken, replaced = mine.score("plum \ud800", ["sky \udfff"]), mine.score("plum \ufffd", ["sky \ufffd"])
    mine.close()
    assert list(broken) == list(replaced)


def test_very_long_documents_are_scored(bert):
    """A hundred thousand words cost no more in the model than its limit, and are reported as cut."""
    mine = stage(bert)
    ranked = mine("plum", ["plum " * 100_000, "sky"])
    mine.close()
    assert len(ranked) == 2


@pytest.mark.parametrize(
    ("query", "documents", "message"),
    [
        ("  ", ["plum"], "query is empty"),
        ("plum", ["sky", None], r"documents\[1\] must be a string, got NoneType"),
        ("plum", "sky", "must be a list"),
        (7, ["sky"], "query must be a string"),
    ],
)
def test_bad_texts_are_refused(bert, query, documents, message):
    """A blank query and documents that are not strings are errors that name them."""
    with pytest.raises(QueryError, match=message):
        CrossEncoder(model=bert, device="cpu")(query, documents)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_length": 513}, "max_length: the model takes 512 tokens at most, got 513"),
        ({"max_length": 3}, "max_length: must be above 3, the number of special tokens"),
    ],
)
def test_lengths_that_the_model_cannot_take_are_refused(bert, fields, message):
    """A max_length beyond the model's positions, or without room for a text, is refused when the stage opens."""
    with pytest.raises(StageError, match=message):
        stage(bert, **fields)


def test_wrong_fields_are_refused():
    """Values that no model could make sense of are configuration errors."""
    with pytest.raises(ConfigError, match="activation: must be 'identity', 'sigmoid'"):
        CrossEncoder(activation="sigmoyd")
    with pytest.raises(ConfigError, match="batch_size: must be at least 1, got 0"):
        CrossEncoder(batch_size=0)


def test_an_encoder_is_not_a_cross_encoder(tmp_path):
    """An encoder, whose classifier would be random numbers, is refused by its architecture."""
    with pytest.raises(StageError, match=r"not a sequence-classification checkpoint, its architecture is BertModel"):
        stage(encoder(tmp_path / "encoder"))


def test_weights_without_classifier_are_refused(tmp_path):
    """A checkpoint that calls itself a classifier but has no weights of one is refused, too."""
    model = with_config(encoder(tmp_path / "encoder", modules=["Transformer"]), {"architectures": None})
    with pytest.raises(StageError, match=r"not a sequence-classification checkpoint, .*one without 'classifier"):
        stage(model)


def test_modules_after_the_transformer_are_refused(bert, tmp_path):
    """A model whose scores pass through further modules is refused, not scored without them."""
    model = shutil.copytree(bert, tmp_path / "model")
    types = ["sentence_transformers.base.modules.transformer.Transformer", "sentence_transformers.models.Dense"]
    write_json(model / "modules.json", [{"type": kind, "path": ""} for kind in types])
    with pytest.raises(StageError, match="has a module 'Dense' after the transformer"):
        stage(model)
