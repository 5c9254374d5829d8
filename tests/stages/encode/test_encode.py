"""The encode stage, measured against sentence-transformers on the same weights."""

import logging

import numpy as np
import pytest
import sentence_transformers

from milvus_pipeline import DeadlineError, Pipeline, Query, SearchResult, StageError
from milvus_pipeline.plugin import Context, Deadline
from milvus_stages import Encode
from milvus_stages.local.files import locate
from support.checkpoints import SIZES, encoder, write_json
from support.fake_stages.slow_model import slowed

TEXTS = ["", "plum", "  Where is   the red plum? ", "the sky [SEP] and the sea [MASK]", "red zebra ?" * 60, "é 猫"]


def stage(model: str, **fields) -> Encode:
    """An open encoder on the CPU."""
    made = Encode(model=str(model), device="cpu", **fields)
    made.open()
    return made


def peer(model: str) -> sentence_transformers.SentenceTransformer:
    """The same model in sentence-transformers."""
    return sentence_transformers.SentenceTransformer(str(model), device="cpu")


def queries(stage: Encode, texts: list[str]) -> np.ndarray:
    """The vectors that the stage gives to queries of these texts."""
    results = stage.process([SearchResult(Query(text)) for text in texts], Context(Deadline(), len(texts)))
    return np.stack([result.query.vector for result in results])


@pytest.fixture(scope="module")
def mini(minilm):
    """An open encoder on the weights of all-MiniLM-L6-v2."""
    made = stage(minilm)
    yield made
    made.close()


def test_vectors_are_those_of_sentence_transformers(mini, minilm):
    """On the weights of all-MiniLM-L6-v2 texts of every length get the peer's vectors."""
    expected = peer(locate(minilm, wanted_by="test")).encode(TEXTS, show_progress_bar=False)
    vectors = mini.embed(TEXTS)
    assert np.abs(vectors - expected).max() < 1e-5
    assert (vectors.shape, vectors.dtype, vectors.flags.c_contiguous) == ((len(TEXTS), 384), np.float32, True)


def test_the_mission_example_is_reproduced(mini, mission_example):
    """The query and the four documents get the vectors that the example prints."""
    figures = mission_example["embedding"]
    vector = queries(mini, [mission_example["query"]])[0]
    assert vector[:2] == pytest.approx(figures["query_vector_starts"], abs=1e-6)
    assert vector[-1] == pytest.approx(figures["query_vector_ends"], abs=1e-6)
    documents = mini.embed([document["doc_text"] for document in mission_example["documents"]])
    assert np.allclose(documents[:, :2], figures["document_vectors_start"], atol=1e-6)
    assert np.allclose(documents[:, -1], figures["document_vectors_end"], atol=1e-6)


def test_a_vector_does_not_depend_on_its_batch(mini):
    """A text gets the same vector alone and among others, in any batch size."""
    together = mini.embed(TEXTS)
    assert np.allclose(together[1], mini.embed(TEXTS[1:2])[0], atol=1e-6)
    small = stage(mini.model, batch_size=1)
    assert np.allclose(together, small.embed(TEXTS), atol=1e-6)
    small.close()


@pytest.mark.parametrize(
    ("arguments", "dim"),
    [
        pytest.param({}, 32, id="no pooling named"),
        pytest.param({"pooling": {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}}, 32, id="cls"),
        pytest.param({"pooling": {"pooling_mode": "max"}}, 32, id="max, new key"),
        pytest.param({"pooling": {"pooling_mode_mean_sqrt_len_tokens": True}}, 32, id="mean_sqrt_len"),
        pytest.param({"pooling": {"pooling_mode_weightedmean_tokens": True}}, 32, id="weightedmean"),
        pytest.param({"pooling": {"pooling_mode_lasttoken": True}}, 32, id="lasttoken"),
        pytest.param({"pooling": {"pooling_mode": ["cls", "mean"]}}, 64, id="two side by side"),
        pytest.param({"modules": ["Transformer", "Pooling"]}, 32, id="not normalized"),
        pytest.param({"modules": ["Transformer", "Pooling", "Dense", "Normalize"]}, 8, id="dense layer"),
        pytest.param({"max_seq_length": 10}, 32, id="short limit"),
        pytest.param({"lower": True}, 32, id="lower case"),
        pytest.param({"prompts": {"query": "question : ", "document": "answer "}}, 32, id="prompts"),
    ],
)
def test_the_models_own_files_are_followed(arguments, dim, tmp_path):
    """Whatever its files say about pooling, further layers, limits and prompts, a model gives the peer's vectors."""
    model = encoder(tmp_path / "model", **arguments)
    mine, other = stage(model), peer(model)
    assert mine.dim == dim
    assert np.abs(mine.embed(TEXTS) - other.encode_document(TEXTS, show_progress_bar=False)).max() < 1e-5
    texts = ["plum", "the red zebra"]
    assert np.abs(queries(mine, texts) - other.encode_query(texts, show_progress_bar=False)).max() < 1e-5
    mine.close()


def test_a_model_in_a_folder_of_its_own_is_found(tmp_path):
    """Older models keep the transformer in a folder beside modules.json; it is read from there."""
    old, new = tmp_path / "old", encoder(tmp_path / "new")
    (old / "1_Pooling").mkdir(parents=True)
    (new / "1_Pooling" / "config.json").rename(old / "1_Pooling" / "config.json")
    (new / "modules.json").unlink()
    new.rename(old / "0_Transformer")
    types = {"0_Transformer": "Transformer", "1_Pooling": "Pooling"}
    write_json(
        old / "modules.json",
        [{"name": path, "path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in types.items()],
    )
    mine = stage(old)
    assert np.abs(mine.embed(TEXTS) - peer(old).encode(TEXTS, show_progress_bar=False)).max() < 1e-5
    mine.close()


def test_without_modules_the_mean_is_taken_with_a_warning(tmp_path, caplog):
    """A bare transformer gets mean pooling without normalization, as in the peer, and a warning in the log."""
    model = encoder(tmp_path / "model")
    (model / "modules.json").unlink()
    with caplog.at_level(logging.WARNING):
        mine = stage(model)
    assert "has no modules.json" in caplog.text
    assert np.abs(mine.embed(TEXTS) - peer(model).encode(TEXTS, show_progress_bar=False)).max() < 1e-5
    mine.close()


def test_normalisation_and_prompts_can_be_overridden(tmp_path):
    """The stage's own fields override the model's files."""
    plain = encoder(tmp_path / "plain", modules=["Transformer", "Pooling"], prompts={"query": "question "})
    unit = stage(plain, normalize=True, query_prompt="")
    assert np.allclose(np.linalg.norm(unit.embed(TEXTS), axis=1), 1.0, atol=1e-5)
    assert np.allclose(queries(unit, ["plum"]), unit.embed(["plum"]), atol=1e-6)
    unit.close()
    normal = encoder(tmp_path / "normal")
    long = stage(normal, normalize=False)
    assert np.linalg.norm(long.embed(["plum"])) > 1.5
    long.close()


def test_queries_of_a_batch_are_treated_one_by_one(mini):
    """Given vectors are kept, a query with neither text nor vector fails, and one that is too long is reported."""
    own = np.ones(384, dtype=np.float32)
    texts = [Query("plum"), Query("", vector=own), Query(" "), Query("plum " * 300)]
    context = Context(Deadline(), len(texts))
    results = mini.process([SearchResult(query) for query in texts], context)
    assert results[1].query.vector is own
    assert list(context.failures) == [2]
    assert "neither text nor vector" in str(context.failures[2])
    assert context.warnings[3] == ["the query is longer than 256 tokens; its end was left out"]
    assert not context.warnings[0]
    assert results[0].query.vector.shape == (384,)


def test_it_works_in_a_pipeline(mini):
    """A pipeline of the stage alone gives every query of a batch its vector."""
    with Pipeline([Encode(model=mini.model, device="cpu")]) as pipeline:
        results = pipeline.run_batch(["plum", "sky"])
    assert np.allclose(results[1].query.vector, mini.embed(["sky"])[0], atol=1e-6)


def test_no_texts_give_no_vectors(mini):
    """An empty list is not an error."""
    assert mini.embed([]).shape == (0, 384)


def test_a_closed_stage_says_so():
    """Members that need the model name the next step."""
    with pytest.raises(StageError, match=r"encode is not open; call open\(\) first"):
        _ = Encode().dim
    with pytest.raises(StageError, match="encode is not open"):
        Encode().embed(["plum"])


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("modules.json", [{"type": "sentence_transformers.models.Transformer", "path": ""}], "has no Pooling"),
        ("modules.json", {"type": "Transformer"}, "must be a list of modules"),
        ("modules.json", [{"type": "custom_st.Transformer", "path": ""}], "needs code that comes with the model"),
        (
            "modules.json",
            [{"type": "sentence_transformers.models.Transformer", "path": "../other"}],
            "leads out of the model's folder",
        ),
        (
            "modules.json",
            [
                {"type": f"sentence_transformers.models.{kind}", "path": ""}
                for kind in ("Transformer", "LSTM", "Pooling")
            ],
            "has a step 'LSTM' that is not supported there",
        ),
        (
            "1_Pooling/config.json",
            {"pooling_mode": "median"},
            "the pooling 'median', which is not supported; use a model with one of cls, max",
        ),
        ("config_sentence_transformers.json", ["prompts"], "must hold a JSON object, got a list"),
    ],
)
def test_files_that_cannot_be_followed_are_refused(file, content, message, tmp_path):
    """A model with an unknown step is refused by name, never run without it."""
    model = encoder(tmp_path / "model")
    write_json(model / file, content)
    with pytest.raises(StageError, match=message):
        stage(model)


def test_a_dense_layer_that_cannot_be_followed_is_refused(tmp_path):
    """A Dense layer with weights in a pickle, or of another kind, is refused."""
    model = encoder(tmp_path / "model", modules=["Transformer", "Pooling", "Dense"])
    (model / "2_Dense" / "model.safetensors").rename(model / "2_Dense" / "pytorch_model.bin")
    with pytest.raises(StageError, match=r"has a Dense layer without model.safetensors"):
        stage(model)
    write_json(model / "2_Dense" / "config.json", {"in_features": SIZES["hidden_size"], "use_residual": True})
    with pytest.raises(StageError, match="a Dense layer of a kind that is not supported"):
        stage(model)


def test_a_prompt_that_pooling_leaves_out_is_refused(tmp_path):
    """Models that keep the prompt out of pooling are refused with a prompt and accepted without one."""
    model = encoder(
        tmp_path / "model",
        pooling={"pooling_mode": "mean", "include_prompt": False},
        prompts={"query": "question "},
    )
    with pytest.raises(StageError, match="leaves prompts out of its pooling"):
        stage(model)
    stage(model, query_prompt="").close()


@pytest.mark.parametrize(("seconds", "done"), [(0.2, 15), (7.0, 0)])
def test_queries_that_are_not_reached_in_time_fail_alone(seconds, done, tmp_path, fake_time):
    """The first queries have their vectors, and each of the others a deadline error."""
    made = stage(encoder(tmp_path / "model"))
    expected = queries(made, ["red plum"])[0]
    context = Context(Deadline.after(6.0), 50)
    with slowed(made.loaded, seconds, fake_time.sleep):
        results = made.process([SearchResult(Query("red plum")) for _ in range(50)], context)
    made.close()
    assert sorted(context.failures) == list(range(done, 50))
    assert all(isinstance(error, DeadlineError) for error in context.failures.values())
    assert all(np.allclose(result.query.vector, expected, atol=1e-6) for result in results[:done])
    assert all(result.query.vector is None for result in results[done:])


def test_a_call_that_was_cancelled_encodes_nothing(tmp_path):
    """Work in a thread ends when nobody waits for it any more."""
    made = stage(encoder(tmp_path / "model"))
    context = Context(Deadline(), 1)
    context.cancel()
    with slowed(made.loaded) as passes, pytest.raises(DeadlineError):
        made.process([SearchResult(Query("plum"))], context)
    made.close()
    assert passes == []
