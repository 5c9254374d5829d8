"""The files of a local model: a folder, a Python package that holds them, or the Hugging Face hub."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterable, Sequence
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


PACKAGE: Final = "package:"

MODEL_FILES: Final = ("*.json", "*.txt", "*.model", "*.safetensors")
"""The files that a model is read from: configurations, tokenizer, weights."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")
_UNUSED_FOLDERS = ["onnx/*", "openvino/*"]
_HUB_TIMEOUT = 10.0  # seconds for the hub's first answer; after that, the cached files are used
_ELSEWHERE = f"name a local folder or {PACKAGE}NAME/PATH"


def locate(model: str, revision: str | None = None, *, wanted_by: str, files: Sequence[str] | None = None) -> Path:
    """Return the folder of a model's files, downloading them to the hub's cache if necessary.

    Args:
        model: a folder, ``package:NAME/PATH`` (the folder PATH inside the installed Python package NAME), or the id
            of a model on the Hugging Face hub. An existing folder has priority over a hub id of the same spelling.
        revision: branch, tag or commit; for the hub only.
        wanted_by: name of the stage, for messages.
        files: the only files to fetch from the hub, at least one, by their names in its top folder; by default all
            that a model needs, its weights included. A local folder is not checked for them.

    Raises:
        StageError: there is no such folder, package, model or file, or the hub cannot be reached.
    """
    folder = _local_folder(model)
    if folder is None:
        return _from_hub(model, revision, wanted_by, files)
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
        return
    if any(folder.glob("pytorch_model*.bin")):
        raise file_error(
            folder,
            "holds its weights as a pickle (pytorch_model.bin), which can run code when it is read",
            "convert it: load it with transformers where you trust it, and save it again with save_pretrained, as "
            "safetensors",
        )
    raise file_error(
        folder, "holds no model.safetensors", "use a model that is published as safetensors, or copy its files again"
    )


def _local_folder(model: str) -> Path | None:
    """The folder of that name or in that package; None if the name can only be a hub id."""
    folder = _in_package(model) if model.startswith(PACKAGE) else _on_disk(model)
    return None if folder is None else folder.resolve()


def _in_package(model: str) -> Path:
    name, _, inner = model.removeprefix(PACKAGE).partition("/")
    parts = PurePosixPath(inner).parts
    if not name.isidentifier() or ".." in parts or PurePosixPath(inner).is_absolute() or "\\" in inner:
        raise model_error(f"{model!r} must be {PACKAGE}NAME/PATH, with PATH inside the package NAME", "check the path")
    # A package that holds weights may import heavy modules, so it is found without being imported.
    try:
        spec = find_spec(name)
    except ValueError:  # __main__, when it is a script
        spec = None
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


def _on_disk(model: str) -> Path | None:
    """The folder of that name; None if the name can only be a hub id."""
    try:
        path = Path(model).expanduser()
        if path.is_dir():
            return path
        if path.exists():
            raise model_error(f"{model!r} is a file", "name the folder that holds it")
    except (OSError, RuntimeError) as error:  # no permission, too long, or no home directory for `~user`
        raise model_error(f"{short_repr(model)} cannot be read: {error_text(error, 80)}", "check the path") from None
    if model.startswith(".") or not _HUB_ID.fullmatch(model):
        raise model_error(f"no such folder: {model!r}", f"check the path; relative paths start at {Path.cwd()}")
    return None


def _from_hub(model: str, revision: str | None, wanted_by: str, files: Sequence[str] | None) -> Path:
    hub = require("huggingface_hub", extra="local", wanted_by=wanted_by)
    errors = require("huggingface_hub.errors", extra="local", wanted_by=wanted_by)
    try:
        return _download(hub, model, revision, files)
    except Exception as error:
        raise model_error(*_hub_problem(errors, error, model, revision, files)) from error


def _download(hub: Any, model: str, revision: str | None, files: Sequence[str] | None) -> Path:
    if files is not None:
        # One by one: each is found in the cache even if the rest of the model is not there.
        paths = [hub.hf_hub_download(model, name, revision=revision, etag_timeout=_HUB_TIMEOUT) for name in files]
        return Path(paths[0]).parent
    try:
        return Path(
            hub.snapshot_download(
                model,
                revision=revision,
                allow_patterns=list(MODEL_FILES),
                ignore_patterns=_UNUSED_FOLDERS,
                etag_timeout=_HUB_TIMEOUT,
            )
        )
    except hub.errors.LocalEntryNotFoundError:
        # The cache as filled by transformers itself misses files of the repository, but none that is needed.
        cached = hub.try_to_load_from_cache(model, "config.json", revision=revision)
        if isinstance(cached, str):
            return Path(cached).parent
        raise


def _hub_problem(
    errors: Any, error: Exception, model: str, revision: str | None, files: Sequence[str] | None
) -> tuple[str, str]:
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
            wanted = ", ".join(files or MODEL_FILES)
            return f"{named} has no {wanted} on the hub", f"use a model that has it, or {_ELSEWHERE}"
    return f"{named} cannot be downloaded from the hub: {error_text(error)}", f"try again, or {_ELSEWHERE}"


_COMMIT = re.compile(r"[0-9a-f]{40}")


class Origin:
    """The files that a model is loaded from. Make it before the model is loaded; it does not read the files itself.

    Args:
        folder: the model's.
        others: patterns of files that count beside those that a model of safetensors has.

    Raises:
        StageError: the folder cannot be read.
    """

    def __init__(self, folder: Path, others: Iterable[str] = ()) -> None:
        self._folder = folder
        self._patterns = [*MODEL_FILES, *others]
        self._commit = commit_of(folder)
        self._stamps = {} if self._commit else self._stamped()
        self._lock = threading.Lock()
        self._revision: str | None = None

    def revision(self) -> str:
        """Return the commit of a hub snapshot, or ``sha256:`` and a digest of the files, which are read once for it.

        Raises:
            StageError: the files were changed since the model was loaded, or cannot be read.
        """
        with self._lock:
            if self._revision is None:
                self._revision = self._commit or self._digest()
            return self._revision

    def _digest(self) -> str:
        try:
            digest = digest_of(self._folder, self._stamps)
        except OSError as error:
            raise self._unreadable(error) from error
        if self._stamped() != self._stamps:
            changed = "was changed after the model was loaded, so it is unknown which files are in memory"
            raise file_error(self._folder, changed, "close the pipeline and open it again")
        return digest

    def _stamped(self) -> dict[Path, tuple[int, int]]:
        """Size and time of change of each file, those of the modules included."""
        modules = [path for _, path in module_list(self._folder) or []]
        try:
            folders = dict.fromkeys([self._folder, *modules])
            found = {path for own in folders for pattern in self._patterns for path in own.glob(pattern)}
            states = {path: path.stat() for path in sorted(found) if path.is_file()}
        except OSError as error:
            raise self._unreadable(error) from error
        return {path: (state.st_size, state.st_mtime_ns) for path, state in states.items()}

    def _unreadable(self, error: OSError) -> StageError:
        return file_error(self._folder, f"cannot be read: {error_text(error)}", "check its permissions")


def commit_of(folder: Path) -> str | None:
    """Return the commit of a folder that is a snapshot in the hub's cache; None for any other folder."""
    snapshot = folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--")
    return folder.name if snapshot and _COMMIT.fullmatch(folder.name) else None


def digest_of(folder: Path, files: Iterable[Path]) -> str:
    """Return ``sha256:`` and a digest of names and contents of files in a folder. Raises OSError."""
    whole = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256")
        whole.update(hashlib.sha256(path.relative_to(folder).as_posix().encode()).digest() + content.digest())
    return f"sha256:{whole.hexdigest()}"
