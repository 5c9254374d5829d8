"""The files of a local model: a folder, a Python package that holds them, or the Hugging Face hub."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any, Final

from milvus_pipeline import StageError
from milvus_pipeline.plugin import error_text, require, short_repr


def model_error(what: str, next_step: str = "use another model") -> StageError:
    """Return the error that a model is not found, damaged, or not supported."""
    return StageError(what, next_step, place="model")


def field_error(field: str, what: str, next_step: str) -> StageError:
    """Return the error that the value of a stage's field does not fit its model or this machine."""
    return StageError(what, next_step, place=field, reason_code="config")


def file_error(path: Path, what: str, next_step: str = "copy or download the model again") -> StageError:
    """Return the error that a file of a model is missing, damaged, or not supported.

    Args:
        path: the file.
        what: what is wrong with it; the path is put in front.
        next_step: what to do.
    """
    return model_error(f"{path} {what}", next_step)


def read_json(path: Path) -> Any:
    """Return the content of a JSON file of a model; None if there is no such file.

    Raises:
        StageError: the file cannot be read or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise file_error(path, f"cannot be read as JSON ({error_text(error)})") from error


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file of a model; empty if there is no such file.

    Raises:
        StageError: the file cannot be read, or does not hold a JSON object.
    """
    data = read_json(path)
    if data is not None and not isinstance(data, dict):
        raise file_error(path, f"must hold a JSON object, got a {type(data).__name__}")
    return data or {}


def module_list(folder: Path) -> list[tuple[str, Path]] | None:
    """Return class name and folder of each module in ``modules.json``, the transformer first; None without the file.

    Raises:
        StageError: it is not a list of modules of sentence-transformers, or one is outside of the folder.
    """
    origin = folder / "modules.json"
    modules = read_json(origin)
    if modules is None:
        return None
    found: list[tuple[str, Path]] = []
    for entry in modules if isinstance(modules, list) else [None]:
        if not isinstance(entry, dict) or not isinstance(entry.get("type"), str):
            raise file_error(origin, "must be a list of modules, each with a `type` and a `path`")
        kind, path = entry["type"], PurePosixPath(str(entry.get("path", "")))
        if path.is_absolute() or ".." in path.parts:
            raise file_error(origin, f"names the path {str(path)!r}, which leads out of the model's folder")
        if not kind.startswith("sentence_transformers."):
            raise file_error(
                origin,
                f"names the module {kind!r}, which needs code that comes with the model; such code is never run",
                "use a model without such code",
            )
        found.append((kind.rpartition(".")[2], folder / path))
    if not found or found[0][0] != "Transformer":
        raise file_error(origin, f"must name a Transformer first, got {found[0][0] if found else 'nothing'}")
    return found


def transformer_folder(folder: Path) -> Path:
    """Return the folder of the transformer itself; older sentence-transformers models keep it in a subfolder."""
    modules = module_list(folder)
    return modules[0][1] if modules else folder


def sentence_config(folder: Path) -> dict[str, Any]:
    """Return the settings that sentence-transformers saved for the transformer (``max_seq_length``); may be empty."""
    if not (folder / "modules.json").is_file():
        return {}
    inner = transformer_folder(folder)
    for path in [inner / "sentence_bert_config.json", *sorted(inner.glob("sentence_*_config.json"))]:
        if found := read_object(path):
            return found
    return {}


_PACKAGE: Final = "package:"

MODEL_FILES: Final = ("*.json", "*.txt", "*.model", "*.safetensors")
"""The files that a model is read from: configurations, tokenizer, weights."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")
_UNUSED_FOLDERS = ["onnx/*", "openvino/*"]
_HUB_TIMEOUT = 10.0  # seconds for the hub's first answer; after that, the cached files are used
_ELSEWHERE = f"name a local folder or {_PACKAGE}NAME/PATH"


def locate(model: str, revision: str | None = None, *, wanted_by: str, file: str | None = None) -> Path:
    """Return the folder of a model's files, downloading them to the hub's cache if necessary.

    Args:
        model: a folder, ``package:NAME/PATH`` (the folder PATH inside the installed Python package NAME), or the id
            of a model on the Hugging Face hub. An existing folder has priority over a hub id of the same spelling.
        revision: branch, tag or commit; for the hub only.
        wanted_by: name of the stage, for messages.
        file: the only file to fetch from the hub; by default all that a model needs, its weights included. A local
            folder is not checked for it.

    Raises:
        StageError: there is no such folder, package, model or file, or the hub cannot be reached.
    """
    folder = _local_folder(model)
    if folder is None:
        return _from_hub(model, revision, wanted_by, file)
    if revision is not None:
        raise field_error("revision", f"applies to models of the hub, but {model!r} is a folder", "leave it out")
    return folder


def locate_here(model: str, revision: str | None = None, *, wanted_by: str, file: str = "config.json") -> Path | None:
    """``locate`` without downloads: None if the hub's cache does not hold ``file`` of the model.

    Raises:
        StageError: there is no such folder, package or model.
    """
    if folder := _local_folder(model):
        return folder
    hub = require("huggingface_hub", extra="local", wanted_by=wanted_by)
    cached = hub.try_to_load_from_cache(model, file, revision=revision)
    return Path(cached).parent if isinstance(cached, str) else None


def check_files(folder: Path) -> None:
    """Raise StageError unless the folder holds a model with a tokenizer and with weights in safetensors."""
    if not (folder / "config.json").is_file():
        raise file_error(folder, "holds no config.json, so it is not the folder of a model", "name another folder")
    if any((folder / name).is_file() for name in ("model.safetensors", "model.safetensors.index.json")):
        # transformers would make up an empty tokenizer, to which every word is unknown.
        if not any(any(folder.glob(pattern)) for pattern in _TOKENIZER_FILES):
            raise file_error(folder, "holds no tokenizer (tokenizer.json)")
    elif any(folder.glob("pytorch_model*.bin")):
        raise file_error(
            folder,
            "holds its weights as a pickle (pytorch_model.bin), which can run code when it is read",
            "convert it: load it with transformers where you trust it, and save it again with save_pretrained, as "
            "safetensors",
        )
    else:
        step = "use a model that is published as safetensors, or copy its files again"
        raise file_error(folder, "holds no model.safetensors", step)


def _in_package(model: str) -> Path:
    name, _, inner = model.removeprefix(_PACKAGE).partition("/")
    parts = PurePosixPath(inner).parts
    if not name.isidentifier() or ".." in parts or PurePosixPath(inner).is_absolute() or "\\" in inner:
        raise model_error(f"{model!r} must be {_PACKAGE}NAME/PATH, with PATH inside the package NAME", "check the path")
    # A package that holds weights may import heavy modules, so it is found without being imported.
    spec = find_spec(name) if name != "__main__" else None
    roots = list(spec.submodule_search_locations or ()) if spec is not None else []
    if not roots:
        raise model_error(
            f"{model!r}: no Python package named {name!r} is installed",
            f"install the package that holds the weights (its import name is {name!r}), or check the spelling",
        )
    for root in roots:
        if (folder := Path(root, *parts)).is_dir():
            return folder
    raise model_error(f"the package {name!r} has no folder {inner!r}", f"see what {roots[0]} holds")


def _local_folder(model: str) -> Path | None:
    """The folder of that name or in that package; None if the name can only be a hub id."""
    if model.startswith(_PACKAGE):
        return _in_package(model).resolve()
    try:
        path = Path(model).expanduser()
        if path.is_dir():
            return path.resolve()
        if path.exists():
            raise model_error(f"{model!r} is a file", "name the folder that holds it")
    except (OSError, RuntimeError) as error:  # no permission, too long, or no home directory for `~user`
        raise model_error(f"{short_repr(model)} cannot be read: {error_text(error, 80)}", "check the path") from None
    if model.startswith(".") or not _HUB_ID.fullmatch(model):
        raise model_error(f"no such folder: {model!r}", f"check the path; relative paths start at {Path.cwd()}")
    return None


def _from_hub(model: str, revision: str | None, wanted_by: str, file: str | None) -> Path:
    hub = require("huggingface_hub", extra="local", wanted_by=wanted_by)
    try:
        if file is not None:  # found in the cache even if the rest of the model is not there
            return Path(hub.hf_hub_download(model, file, revision=revision, etag_timeout=_HUB_TIMEOUT)).parent
        return Path(
            hub.snapshot_download(
                model,
                revision=revision,
                allow_patterns=list(MODEL_FILES),
                ignore_patterns=_UNUSED_FOLDERS,
                etag_timeout=_HUB_TIMEOUT,
            )
        )
    except Exception as error:
        # The cache as filled by transformers itself misses files of the repository, but none that is needed.
        if isinstance(error, hub.errors.LocalEntryNotFoundError) and file is None:
            cached = hub.try_to_load_from_cache(model, "config.json", revision=revision)
            if isinstance(cached, str):
                return Path(cached).parent
        raise model_error(*_hub_problem(hub.errors, error, model, revision, file)) from error


def _hub_problem(errors: Any, error: Exception, model: str, revision: str | None, file: str | None) -> tuple[str, str]:
    """What is wrong and what to do, for an error of the hub's client; ``errors`` is ``huggingface_hub.errors``."""
    named = repr(model) if revision is None else f"{model!r} at revision {revision!r}"
    match error:
        case errors.LocalEntryNotFoundError():
            unreachable = f"{named} is not on this machine, and the Hugging Face hub cannot be reached"
            return unreachable, f"connect and try again, or {_ELSEWHERE}"
        case errors.GatedRepoError():
            return f"{named} is gated", f"accept its terms on the Hugging Face hub and set HF_TOKEN, or {_ELSEWHERE}"
        case errors.RevisionNotFoundError():
            return f"{model!r} has no revision {revision!r} on the hub", "name a branch, tag or commit"
        case errors.RepositoryNotFoundError():
            unknown = f"the Hugging Face hub has no model {model!r} that you may read"
            return unknown, f"check the spelling, set HF_TOKEN if it is private, or {_ELSEWHERE}"
        case errors.RemoteEntryNotFoundError():
            return f"{named} has no {file} on the hub", f"use a model that has it, or {_ELSEWHERE}"
    return f"{named} cannot be downloaded from the hub: {error_text(error)}", f"try again, or {_ELSEWHERE}"


_COMMIT = re.compile(r"[0-9a-f]{40}")


class Origin:
    """The files that a model is loaded from. Make it before the model is loaded; it does not read the files itself.

    Args:
        folder: the model's.
        patterns: of the names of the files that count, in the folder and in those of its modules.

    Raises:
        StageError: the list of modules cannot be read.
    """

    def __init__(self, folder: Path, patterns: Iterable[str] = MODEL_FILES) -> None:
        self._folder = folder
        self._patterns = tuple(patterns)
        snapshot = folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--")
        self._commit = folder.name if snapshot and _COMMIT.fullmatch(folder.name) else None
        self._stamps = {} if self._commit else self._read_stamps()

    @cached_property
    def revision(self) -> str:
        """The commit of a hub snapshot, or ``sha256:`` and a digest of the files, which are read once for it.

        Raises:
            StageError: the files were changed since the model was loaded, or cannot be read.
        """
        if self._commit is not None:
            return self._commit
        whole = hashlib.sha256()
        try:
            for path in self._stamps:
                with path.open("rb") as file:
                    content = hashlib.file_digest(file, "sha256")
                name = path.relative_to(self._folder).as_posix()
                whole.update(hashlib.sha256(name.encode()).digest() + content.digest())
        except OSError as error:
            raise file_error(self._folder, f"cannot be read: {error_text(error)}", "check its permissions") from error
        if self._read_stamps() != self._stamps:
            changed = "was changed after the model was loaded, so it is unknown which files are in memory"
            raise file_error(self._folder, changed, "close the pipeline and open it again")
        return f"sha256:{whole.hexdigest()}"

    def _read_stamps(self) -> dict[Path, tuple[int, int]]:
        """Size and time of change of each file."""
        folders = dict.fromkeys([self._folder, *(path for _, path in module_list(self._folder) or [])])
        found = {path for own in folders for pattern in self._patterns for path in own.glob(pattern)}
        states = {path: path.stat() for path in sorted(found) if path.is_file()}
        return {path: (state.st_size, state.st_mtime_ns) for path, state in states.items()}
