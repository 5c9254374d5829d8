"""The identity of a stage: which files its model was loaded from."""

import json
import shutil
from pathlib import Path

import pytest

from milvus_pipeline import StageError
from milvus_stages import CrossEncoder, Encode, LateInteraction, PymilvusModel, Truncate
from support.checkpoints import bert_classifier

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def folder(tmp_path) -> Path:
    """The folder of a small classifier."""
    return bert_classifier(tmp_path / "model")


def identity(folder: Path, **fields) -> dict:
    """The identity of a cross-encoder on these files."""
    with CrossEncoder(model=str(folder), device="cpu", **fields) as stage:
        return dict(stage.identity())


def test_a_folder_is_known_by_its_content(folder, tmp_path):
    """A copy elsewhere has the same digest, whatever else lies in it."""
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "README.md").write_text("nothing that makes a score")
    original, other = identity(folder), identity(copy)
    assert original == {"model": str(folder), "revision": other["revision"], "dtype": "float32"}
    assert original["revision"].startswith("sha256:")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_any_file_that_makes_the_scores_counts(folder, name):
    """One changed byte is another revision."""
    before = identity(folder)["revision"]
    data = (folder / name).read_bytes()
    changed = data + b"\n" if name.endswith(".json") else data[:-1] + bytes([data[-1] ^ 1])
    (folder / name).write_bytes(changed)
    assert identity(folder)["revision"] != before


def test_the_modules_of_an_encoder_count(minilm, tmp_path):
    """Files in the folders that modules.json lists are part of the model; a checkpoint beside them is not."""
    with Encode(model=minilm, device="cpu") as stage:
        source = stage.loaded.folder
        copy = tmp_path / "copy"
        shutil.copytree(source, copy)
        (copy / "checkpoint-5").mkdir()
        (copy / "checkpoint-5" / "config.json").write_text("{}")
        with Encode(model=str(copy), device="cpu") as same:
            assert same.identity()["revision"] == stage.identity()["revision"]
        pooling = copy / "1_Pooling" / "config.json"
        pooling.write_text(json.dumps(json.loads(pooling.read_text())))
        with LateInteraction(model=str(copy), device="cpu") as other:
            assert other.identity()["revision"] != stage.identity()["revision"]


def test_a_snapshot_of_the_hub_is_known_by_its_commit(folder, tmp_path):
    """No file is read for it."""
    snapshot = tmp_path / "hub" / "models--org--name" / "snapshots" / COMMIT
    shutil.copytree(folder, snapshot)
    assert identity(snapshot)["revision"] == COMMIT
    with Truncate(max_tokens=5, tokenizer=str(snapshot)) as stage:
        assert stage.identity() == {"tokenizer": str(snapshot), "revision": COMMIT}


def test_the_files_are_read_once_for_all_stages(folder, monkeypatch):
    """The stages that share a model in memory share its digest."""
    opened = []
    original = Path.open

    def counted(self, *arguments, **options):
        opened.append(self.name)
        return original(self, *arguments, **options)

    with CrossEncoder(model=str(folder), device="cpu") as first, CrossEncoder(model=str(folder), device="cpu") as other:
        monkeypatch.setattr(Path, "open", counted)
        assert first.identity() == other.identity() == first.identity()
    assert opened.count("model.safetensors") == 1


def test_files_that_were_changed_since_are_an_error(folder):
    """What is in memory is no longer what is on the disk, so there is no digest."""
    with CrossEncoder(model=str(folder), device="cpu") as stage:
        (folder / "model.safetensors").write_bytes(b"others")
        with pytest.raises(StageError, match="changed after the model was loaded"):
            stage.identity()


def test_precision_counts_and_not_its_spelling(folder):
    """The identity holds the precision of the weights in memory."""
    assert identity(folder, dtype="auto") == identity(folder)
    assert identity(folder, dtype="bfloat16")["dtype"] == "bfloat16"


def test_a_tokenizer_is_known_by_its_file(folder):
    """Weights do not count, and without a tokenizer the identity is empty."""
    with Truncate(max_tokens=5, tokenizer=str(folder)) as stage:
        before = stage.identity()
    (folder / "model.safetensors").unlink()
    with Truncate(max_tokens=5, tokenizer=str(folder)) as stage:
        assert stage.identity() == before
    assert before["revision"].startswith("sha256:")
    with Truncate(top_k=3) as stage:
        assert stage.identity() == {}


def test_a_function_of_the_library_is_known_by_version_and_files(folder):
    """Its local models are known by their files; functions that call a service by their name alone."""
    arguments = {"model_name": str(folder), "device": "cpu"}
    with PymilvusModel(function="CrossEncoderRerankFunction", arguments=arguments) as stage:
        identity = stage.identity()
    assert identity["function"] == "CrossEncoderRerankFunction"
    assert identity["library"].startswith("pymilvus.model 0.")
    assert identity["revision"].startswith("sha256:")
    with PymilvusModel(function="TEIRerankFunction", arguments={"api_url": "http://127.0.0.1:9"}) as stage:
        assert stage.identity().keys() == {"function", "library"}


@pytest.mark.parametrize(
    "stage", [CrossEncoder(), Truncate(max_tokens=5, tokenizer="x"), PymilvusModel(function="BGERerankFunction")]
)
def test_a_closed_stage_does_not_know(stage):
    """An identity that depends on a loaded model needs an open stage."""
    with pytest.raises(StageError, match="is not open"):
        stage.identity()
