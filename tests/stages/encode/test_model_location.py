"""Where models are found, and the errors if they are not there or cannot be used."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch

from milvus_pipeline import ConfigError, StageError
from milvus_stages import BGE, CrossEncoder, Encode, LateInteraction
from milvus_stages.local.files import locate
from support.checkpoints import encoder, with_config


def opened(model: str, **fields) -> None:
    """Open and close an encoder."""
    stage = Encode(model=str(model), **{"device": "cpu", **fields})
    stage.open()
    stage.close()


def in_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program in another process."""
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env={**os.environ, **environment}
    )


def test_a_folder_of_a_package_is_found_without_importing_it(tmp_path, monkeypatch):
    """`package:` finds the files of an installed package; the package itself, which may do anything, is not run."""
    folder = tmp_path / "carrier" / "weights"
    folder.mkdir(parents=True)
    (tmp_path / "carrier" / "__init__.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert locate("package:carrier/weights", wanted_by="test") == folder.resolve()
    assert "carrier" not in sys.modules


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("package:no_such_package_here/model", "no Python package named 'no_such_package_here' is installed"),
        ("package:json/../secrets", r"must be package:NAME/PATH, with PATH inside the package"),
        ("package:json//etc", "must be package:NAME/PATH"),
        ("package:json/nowhere", "the package 'json' has no folder 'nowhere'; see what"),
        ("package:os.path/x", "must be package:NAME/PATH"),
        ("./no/such/folder", "no such folder: './no/such/folder'; .*relative paths start at"),
        ("a/b/c", "no such folder: 'a/b/c'"),
        ("~/no-such-folder-at-all", "no such folder"),
        ("", "model: "),
    ],
)
def test_places_without_a_model_are_named(model, message):
    """A missing folder, package or path is named, and a path never leads out of its package."""
    with pytest.raises((StageError, ConfigError), match=message):
        opened(model)


def test_a_file_is_not_a_model(tmp_path):
    """The path of a file instead of its folder has its own message."""
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(StageError, match="is a file; name the folder"):
        opened(tmp_path / "model.safetensors")


def test_a_revision_belongs_to_the_hub(tmp_path):
    """A folder has no revisions, so giving one is a mistake."""
    with pytest.raises(StageError, match="revision: applies to models of the hub"):
        opened(tmp_path, revision="main")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "holds no config.json, so it is not the folder of a model"),
        (["config.json"], "holds no model.safetensors; use a model that is published"),
        (["config.json", "pytorch_model.bin"], r"holds its weights as a pickle .*; convert it"),
    ],
)
def test_folders_without_safetensors_are_refused(files, message, tmp_path):
    """A folder without a model, without weights, or with a pickle is refused with what to do."""
    for name in files:
        (tmp_path / name).write_text("{}")
    with pytest.raises(StageError, match=message):
        opened(tmp_path)


def test_damaged_files_are_named(tmp_path):
    """Weights that are cut short, or do not match the configuration, are a StageError."""
    model = encoder(tmp_path / "model")
    weights = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(weights[:1000])
    with pytest.raises(StageError, match="cannot be loaded from"):
        opened(model)
    (model / "model.safetensors").write_bytes(weights)
    with_config(model, {"num_hidden_layers": 3})
    with pytest.raises(StageError, match=r"do not match its configuration, first at 'encoder\.layer\.2"):
        opened(model)
    (model / "config.json").write_text("{")
    with pytest.raises(StageError, match="cannot be read as JSON"):
        opened(model)


def test_code_of_a_model_is_never_run(tmp_path):
    """A model that brings Python code is refused, and the code stays unread."""
    model = encoder(tmp_path / "model")
    (model / "modeling_own.py").write_text("raise SystemExit('run')")
    with_config(model, {"model_type": "own", "auto_map": {"AutoModel": "modeling_own.Own"}})
    with pytest.raises(StageError, match="needs Python code that comes with its files, which is never run"):
        opened(model)


def test_a_model_without_tokenizer_is_refused(tmp_path):
    """Weights alone are not enough to read text."""
    model = encoder(tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (model / name).unlink()
    with pytest.raises(StageError, match=r"holds no tokenizer \(tokenizer.json\); copy or download the model again"):
        opened(model)


@pytest.mark.parametrize("device", ["cuda:99", "mps"])
def test_a_device_that_is_not_there_is_refused(device, tmp_path):
    """A device that torch does not see is refused with the alternatives."""
    if device == "mps" and torch.backends.mps.is_available():
        pytest.skip("this machine has an mps device")
    with pytest.raises(StageError, match=rf"device: '{device}' is not available.*; use 'cpu' or 'auto'"):
        opened(tmp_path, device=device)


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "CPU", ""])
def test_a_misspelt_device_is_refused_at_once(device):
    """It is found when the configuration is read."""
    with pytest.raises(ConfigError, match="device"):
        Encode(device=device)


def test_half_precision_is_for_gpus(tmp_path):
    """float16 on a CPU is refused with the alternatives."""
    with pytest.raises(StageError, match="dtype: float16 is for GPUs; on a CPU use float32, or bfloat16"):
        opened(tmp_path, dtype="float16")


@pytest.mark.parametrize(("stored", "wanted"), [("float16", torch.float32), ("bfloat16", torch.bfloat16)])
def test_auto_uses_the_precision_of_the_files(stored, wanted, tmp_path):
    """The dtype auto is what the checkpoint was saved in, except that a CPU gets 32 bit for 16 bit floats."""
    import transformers

    model = encoder(tmp_path / "model")
    transformers.AutoModel.from_pretrained(model, dtype=getattr(torch, stored)).save_pretrained(model)
    stage = Encode(model=str(model), device="cpu", dtype="auto")
    stage.open()
    assert stage.loaded.network.dtype == wanted
    assert stage.embed(["plum"]).dtype == "float32"
    stage.close()


@pytest.mark.parametrize("kind", [Encode, CrossEncoder, BGE, LateInteraction])
def test_a_missing_extra_is_named(kind):
    """Without torch each local stage gives the pip command that installs it."""
    run = in_python(
        "import sys\n"
        "class Blocked:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torch':\n"
        "            raise ModuleNotFoundError('No module named torch', name='torch')\n"
        "sys.meta_path.insert(0, Blocked())\n"
        f"from milvus_stages import {kind.__name__}\n"
        "try:\n"
        f"    {kind.__name__}(model='.').open()\n"
        "except Exception as error:\n"
        "    print(type(error).__name__, error)\n"
    )
    assert run.stdout.startswith(f"StageError {kind.type} needs the package 'torch'"), run.stderr
    assert 'pip install "milvus-search-pipeline[local]"' in run.stdout


LOCATE = (
    "from milvus_stages.local.files import locate\n"
    "try:\n"
    "    print(locate('some-org/some-model', wanted_by='test'))\n"
    "except Exception as error:\n"
    "    print(type(error).__name__, error)\n"
)


@pytest.mark.parametrize("setting", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}])
def test_a_hub_that_cannot_be_reached_is_reported(setting, tmp_path):
    """A model that is not on this machine is named, with the ways to get one."""
    run = in_python(LOCATE, **{"HF_HUB_OFFLINE": "0", **setting, "HF_HOME": str(tmp_path)})
    assert re.match(
        "StageError model: 'some-org/some-model' is not on this machine, and the Hugging Face hub cannot be reached; "
        "connect and try again, or name a local folder or package:NAME/PATH",
        run.stdout,
    ), run.stdout + run.stderr


def test_what_the_cache_of_the_hub_holds_is_used_offline(tmp_path):
    """A model that transformers has put into the cache is found without the hub."""
    cache = tmp_path / "hub" / "models--some-org--some-model"
    snapshot = cache / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("a" * 40)
    (snapshot / "config.json").write_text(json.dumps({}))
    run = in_python(LOCATE, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path))
    assert run.stdout.strip() == str(snapshot), run.stderr
