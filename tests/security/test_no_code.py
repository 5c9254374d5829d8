"""No value of a configuration and no file of a model imports or runs code."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import yaml

from milvus_pipeline import ConfigError, PipelineError, StageError
from milvus_pipeline.config.file import parse_config, registry
from milvus_pipeline.config.registry import GROUP
from milvus_pipeline.plugin import Stage
from support.specimens import World, specimen

NAMES = sorted({point.name for point in entry_points(group=GROUP)})
MODULE = "canary_code"
CODE_NAMES = (
    MODULE,
    f"{MODULE}:run",
    f"{MODULE}.run",
    f"{MODULE}.sub:Thing",
    f"package:{MODULE}/model",
    f"package:{MODULE}.sub/model",
    f"__import__('{MODULE}')",
    f"{{__import__('{MODULE}')}}",
    f"!!python/name:{MODULE}.run",
)


class Canary:
    """A package that creates a file when it is imported or something in it is called."""

    def __init__(self, folder: Path) -> None:
        self.ran = folder / "ran"
        self.code = f"open({str(self.ran)!r}, 'w').close()\n"
        package = folder / MODULE
        (package / "sub").mkdir(parents=True)
        (package / "model").mkdir()
        things = "def run(*args): pass\nclass Thing: pass\n"
        for file in (package / "__init__.py", package / "sub" / "__init__.py"):
            file.write_text(self.code + things)
        (package / "model" / "config.json").write_text("{}")

    def check(self) -> None:
        assert not self.ran.exists()
        assert not [name for name in sys.modules if name.partition(".")[0] == MODULE]


@pytest.fixture(scope="module")
def canary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Canary]:
    """An importable package that must not be imported."""
    folder = tmp_path_factory.mktemp("canary")
    made = Canary(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        # Some of the names could be models of the hub; nothing may be requested from it.
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        yield made
        made.check()


def attempt(kind: str, fields: dict[str, Any]) -> PipelineError | None:
    """Create, open and close a stage, and return the project's error that prevents it."""
    try:
        stage = registry.get(kind)(**fields)
        stage.open()
    except PipelineError as error:
        return error
    stage.close()
    return None


@pytest.mark.parametrize(
    "name", [*CODE_NAMES, "os.system", "milvus_stages.encode.encoder:Encode", "Encode", "builtins"]
)
def test_a_type_is_one_of_the_registered_names(canary: Canary, name: str) -> None:
    """Modules, classes and values of entry points are rejected, also inside a fallback."""
    inner = {"type": "truncate", "top_k": 1, "on_error": {"fallback": {"type": name}}}
    for stage in ({"type": name}, inner):
        with pytest.raises(ConfigError, match="no stage is named"):
            parse_config(yaml.safe_dump({"stages": [stage]}))
    canary.check()


@pytest.mark.parametrize("kind", NAMES)
def test_no_field_takes_code(
    canary: Canary, world: World, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names of modules and functions do nothing in any field, alone or inside lists and mappings."""
    monkeypatch.chdir(tmp_path)  # some fields name files, which are created
    with specimen(kind, world) as made:  # open, so that its model is loaded once
        fields = {name: value for name, value in made.config().items() if name != "type"}
        for field in type(made).model_fields:
            for text in (f"{MODULE}:run", f"{MODULE}.run", f"package:{MODULE}.sub/model"):
                for value in (text, [text], {"type": text, text: text}):
                    attempt(kind, {**fields, field: value})
    canary.check()


@pytest.mark.parametrize(
    "location",
    [
        *("package:os.path/x", "package:numpy/../..", "package:numpy/..", "package:/etc", "package:__main__/x"),
        *("package:", "package:.", "package:../x", "package:numpy/a\0b", "package:numpy/C:\\x", "package:no_such/x"),
        *("~no-such-user/x", "x" * 5_000, "a/" * 3_000, "\0", "x/..", "/etc/passwd", "../../etc", "https://host/x"),
    ],
)
def test_a_location_is_a_folder_or_nothing(canary: Canary, location: str) -> None:
    """Malformed locations, and those that lead out of a package, are errors of the stage."""
    for kind, field in (("encode", "model"), ("truncate", "tokenizer")):
        error = attempt(kind, {field: location, **({"max_tokens": 5} if kind == "truncate" else {})})
        assert isinstance(error, StageError)
    canary.check()


def test_a_package_is_searched_without_being_imported(canary: Canary) -> None:
    """A model inside a package is found, and the error names what is missing, without importing the package."""
    error = attempt("encode", {"model": f"package:{MODULE}/model"})
    assert f"{MODULE}/model holds no model.safetensors" in str(error)
    canary.check()


# -- what comes with a model -----------------------------------------------------------------------------------------


def merged(path: Path, **keys: Any) -> None:
    data = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**data, **keys}))


def with_own_architecture(folder: Path, canary: Canary) -> None:
    auto = {"AutoConfig": "evil.C", "AutoModel": "evil.M", "AutoModelForSequenceClassification": "evil.M"}
    merged(folder / "config.json", model_type="evil", auto_map=auto)


def with_own_class(folder: Path, canary: Canary) -> None:
    merged(folder / "config.json", auto_map={"AutoModel": "evil.M", "AutoModelForSequenceClassification": "evil.M"})


def with_own_tokenizer(folder: Path, canary: Canary) -> None:
    own = {"tokenizer_class": "T", "auto_map": {"AutoTokenizer": ["evil.T", "evil.T"]}}
    merged(folder / "tokenizer_config.json", **own)


def with_pickled_weights(folder: Path, canary: Canary) -> None:
    import torch

    class Evil:
        def __reduce__(self) -> Any:
            return exec, (canary.code,)

    (folder / "model.safetensors").unlink()
    torch.save({"weight": Evil()}, folder / "pytorch_model.bin")


def with_steps(*kinds: str) -> Any:
    def change(folder: Path, canary: Canary) -> None:
        steps = [{"idx": number, "name": str(number), "path": "", "type": kind} for number, kind in enumerate(kinds)]
        (folder / "modules.json").write_text(json.dumps(steps))
        merged(folder / "config_sentence_transformers.json", model_type="CrossEncoder", activation_fn=f"{MODULE}.run")

    return change


def with_activation(folder: Path, canary: Canary) -> None:
    names = {"activation_fn": f"{MODULE}.Thing"}
    merged(folder / "config.json", sentence_transformers=names, sbert_ce_default_activation_function=f"{MODULE}.Thing")


HOSTILE = {
    "a custom architecture": with_own_architecture,
    "a class for a known architecture": with_own_class,
    "a custom tokenizer": with_own_tokenizer,
    "pickled weights": with_pickled_weights,
    "a custom step": with_steps("evil.M"),
    "a step that is installed": with_steps(f"{MODULE}.Thing"),
    "a step like those known": with_steps("sentence_transformers.models.Transformer", f"{MODULE}.Pooling"),
    "a known step elsewhere": with_steps("sentence_transformers.models.Transformer", f"{MODULE}.sub.Normalize"),
    "an activation that is installed": with_activation,
}
LOCAL = ("encode", "cross_encoder", "bge", "late_interaction")


@pytest.mark.parametrize("how", HOSTILE)
def test_no_code_of_a_model_is_run(canary: Canary, world: World, tmp_path: Path, how: str) -> None:
    """No stage that reads models runs their code, whether or not it can use the rest of the model."""
    for base in (world.bert, world.xlm_roberta):
        folder = tmp_path / Path(base).name
        shutil.copytree(base, folder)
        classes = (
            "C(transformers.PretrainedConfig)",
            "M(transformers.PreTrainedModel)",
            "T(transformers.BertTokenizerFast)",
        )
        code = canary.code + "import transformers\n" + "".join(f"class {each}: pass\n" for each in classes)
        (folder / "evil.py").write_text(code)
        HOSTILE[how](folder, canary)
        for kind in LOCAL:
            error = attempt(kind, {"model": str(folder), "device": "cpu"})
            if how == "pickled weights":
                assert "its weights as a pickle" in str(error)
            if how in ("a custom architecture", "a custom step"):
                assert "is never run" in str(error)
        attempt("truncate", {"tokenizer": str(folder), "max_tokens": 5})
        for function in ("BGERerankFunction", "CrossEncoderRerankFunction"):
            arguments = {"model_name": str(folder), "device": "cpu"}
            attempt("pymilvus_model", {"function": function, "arguments": arguments})
        canary.check()


# -- the PyMilvus model library --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "function",
    ["BaseRerankFunction", "import_FlagEmbedding", "__import__", "cohere", "os.system", f"{MODULE}:run", "Any", "sys"],
)
def test_a_function_is_a_reranker_of_the_library(canary: Canary, function: str) -> None:
    """Other names of the library or of Python are rejected."""
    assert isinstance(attempt("pymilvus_model", {"function": function}), PipelineError)
    canary.check()


@pytest.mark.parametrize(
    "arguments",
    [
        {"trust_remote_code": True},
        {"model_kwargs": {"trust_remote_code": 1}},
        {"a": [{"trust_remote_code": {"env": "X"}}]},
    ],
)
def test_no_argument_asks_for_code(arguments: dict[str, Any]) -> None:
    """`trust_remote_code` is rejected on every level unless it is false."""
    with pytest.raises(ConfigError, match="code that comes with a model is never run"):
        registry.get("pymilvus_model")(function="BGERerankFunction", arguments=arguments)
    stage: Stage = registry.get("pymilvus_model")(function="BGERerankFunction", arguments={"trust_remote_code": False})
    assert stage.config()["arguments"] == {"trust_remote_code": False}


def test_the_canary_would_sing(canary: Canary, tmp_path: Path) -> None:
    """The pickle above does run its code if it is loaded without care."""
    import torch

    ran = tmp_path / "ran"
    other = Canary(tmp_path)
    (tmp_path / "model.safetensors").touch()
    with_pickled_weights(tmp_path, other)
    torch.load(tmp_path / "pytorch_model.bin", weights_only=False)
    assert ran.exists()
