"""Where the files of a local model are: a folder, a Python package that carries them, or the Hugging Face hub."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any

from milvus_pipeline import StageError
from milvus_pipeline.plugin import error_text, require, short_repr


def read_json(path: Path) -> Any:
    """The content of a JSON file of a model; None where there is no such file.

    Raises:
        StageError: the file cannot be read or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise StageError(
            f"cannot be read as JSON ({error_text(error)})", "the model's files are damaged", place=str(path)
        ) from error


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a model; empty where there is no such file.

    Raises:
        StageError: as ``read_json``, or the file holds something else than an object.
    """
    data = read_json(path)
    if data is not None and not isinstance(data, dict):
        raise StageError(f"must hold a JSON object, holds a {type(data).__name__}", place=str(path))
    return data or {}


def module_list(folder: Path) -> list[tuple[str, Path]] | None:
    """Class name and folder of every module that ``modules.json`` lists, the transformer first; None without the file.

    Raises:
        StageError: it is not a list of modules of sentence-transformers, or one lies outside of the folder.
    """
    origin = folder / "modules.json"
    modules = read_json(origin)
    if modules is None:
        return None
    found: list[tuple[str, Path]] = []
    for entry in modules if isinstance(modules, list) else [None]:
        if not isinstance(entry, dict) or not isinstance(entry.get("type"), str):
            raise StageError("must be a list of modules, each with a `type` and a `path`", place=str(origin))
        kind, path = entry["type"], PurePosixPath(str(entry.get("path", "")))
        if path.is_absolute() or ".." in path.parts:
            raise StageError(f"the path {str(path)!r} leads out of the model's folder", place=str(origin))
        if not kind.startswith("sentence_transformers."):
            raise StageError(
                f"the module {kind!r} needs code that comes with the model, which is never run", place=str(origin)
            )
        found.append((kind.rpartition(".")[2], folder / path))
    if not found or found[0][0] != "Transformer":
        raise StageError(
            f"the first module must be a Transformer, is {(found[0][0] if found else 'missing')}", place=str(origin)
        )
    return found


def transformer_folder(folder: Path) -> Path:
    """The folder of the transformer itself, which older sentence-transformers models keep in a folder of its own."""
    modules = module_list(folder)
    return modules[0][1] if modules else folder


def sentence_config(folder: Path) -> dict[str, Any]:
    """What sentence-transformers has saved about a model's transformer, such as ``max_seq_length``; may be empty."""
    if not (folder / "modules.json").is_file():
        return {}
    inner = transformer_folder(folder)
    for path in [inner / "sentence_bert_config.json", *sorted(inner.glob("sentence_*_config.json"))]:
        if found := read_object(path):
            return found
    return {}


PACKAGE = "package:"

MODEL_FILES = ["*.json", "*.txt", "*.model", "*.safetensors"]
"""What a model is read from: configurations, tokenizer, weights."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")
_UNWANTED_FILES = ["onnx/*", "openvino/*"]
_HUB_TIMEOUT = 10.0  # seconds for the hub's first answer, before what is cached is taken
_ELSEWHERE = f"name a local folder or {PACKAGE}NAME/PATH"


def locate(model: str, revision: str | None = None, *, wanted_by: str, files: Sequence[str] | None = None) -> Path:
    """The folder that holds a model's files, downloaded to the hub's cache if need be.

    Args:
        model: a folder, ``package:NAME/PATH`` (the folder PATH inside the installed Python package NAME), or the id
            of a model on the Hugging Face hub. A folder that exists is preferred to a hub id of the same spelling.
        revision: branch, tag or commit; for the hub only.
        wanted_by: who asks, for messages.
        files: the only files to fetch from the hub, at least one, by their names in its top folder; by default all
            that a model needs, its weights among them. Whether a local folder holds them is not looked at.

    Raises:
        StageError: there is no such folder, package, model or file, or the hub cannot be reached.
    """
    folder = _in_package(model) if model.startswith(PACKAGE) else _on_disk(model)
    if folder is None:
        return _from_hub(model, revision, wanted_by, files)
    if revision is not None:
        raise StageError(f"revision: belongs to models of the hub, but {model!r} is a folder", "leave it out")
    return folder.resolve()


def locate_here(model: str, revision: str | None = None, *, wanted_by: str, file: str = "config.json") -> Path | None:
    """``locate`` without the hub: None where the hub's cache does not hold ``file`` of the model.

    Raises:
        StageError: there is no such folder, package or model.
    """
    folder = _in_package(model) if model.startswith(PACKAGE) else _on_disk(model)
    if folder is not None:
        return folder.resolve()
    hub = require("huggingface_hub", extra="local", wanted_by=wanted_by)
    cached = hub.try_to_load_from_cache(model, file, revision=revision)
    return Path(cached).parent if isinstance(cached, str) else None


def check_files(folder: Path, model: str) -> None:
    """Raise StageError unless the folder holds a model with a tokenizer, whose weights are safetensors."""
    if not (folder / "config.json").is_file():
        raise StageError(f"{folder} holds no config.json, so it is not a model's folder", place=f"{model!r}")
    if any((folder / name).is_file() for name in ("model.safetensors", "model.safetensors.index.json")):
        # transformers would make up an empty tokenizer, to which every word is unknown.
        if not any(any(folder.glob(pattern)) for pattern in _TOKENIZER_FILES):
            raise StageError(
                f"{folder} holds no tokenizer (tokenizer.json)", "copy or download it again", place=f"{model!r}"
            )
        return
    if any(folder.glob("pytorch_model*.bin")):
        raise StageError(
            "its weights are a pickle (pytorch_model.bin), which can run code when it is read",
            (
                "only safetensors are loaded. Convert it: load it with transformers where you trust "
                "it, and save it again with save_pretrained"
            ),
            place=f"{model!r}",
        )
    raise StageError(
        f"{folder} holds no model.safetensors",
        "take a model that is published as safetensors, or copy its files again",
        place=f"{model!r}",
    )


def _in_package(model: str) -> Path:
    name, _, inner = model.removeprefix(PACKAGE).partition("/")
    parts = PurePosixPath(inner).parts
    if not name.isidentifier() or ".." in parts or PurePosixPath(inner).is_absolute() or "\\" in inner:
        raise StageError(f"model: {model!r} must be {PACKAGE}NAME/PATH, with PATH inside the package NAME")
    # This only looks: a package that carries weights may import heavy things, so it is not imported itself.
    try:
        spec = find_spec(name)
    except ValueError:  # __main__, when it is a script
        spec = None
    roots = list(spec.submodule_search_locations or ()) if spec is not None else []
    if not roots:
        raise StageError(
            f"no Python package named {name!r} is installed",
            (f"install the package that carries the weights (its import name is {name!r}), or check the spelling"),
            place=f"model: {model!r}",
        )
    for root in roots:
        if (folder := Path(root, *parts)).is_dir():
            return folder
    raise StageError(
        f"the package {name!r} has no folder {inner!r}", f"see what {roots[0]} holds", place=f"model: {model!r}"
    )


def _on_disk(model: str) -> Path | None:
    """The folder of that name, or None where the name can only be a hub id."""
    try:
        path = Path(model).expanduser()
        if path.is_dir():
            return path
        if path.exists():
            raise StageError(f"model: {model!r} is a file", "name the folder that holds it")
    except (OSError, RuntimeError) as error:  # may not be read, is too long, or the home of a user that there is not
        raise StageError(
            f"model: {short_repr(model)} cannot be looked at: {error_text(error, 80)}", "check the path"
        ) from None
    if model.startswith(".") or not _HUB_ID.fullmatch(model):
        raise StageError(f"model: no such folder: {model!r} (relative paths are taken from {Path.cwd()})")
    return None


def _from_hub(model: str, revision: str | None, wanted_by: str, files: Sequence[str] | None) -> Path:
    hub = require("huggingface_hub", extra="local", wanted_by=wanted_by)
    errors = require("huggingface_hub.errors", extra="local", wanted_by=wanted_by)
    with _hub_faults_told(errors, model, revision, files):
        if files is not None:
            # One by one: each is found in the cache even where the rest of the model is missing there.
            paths = [hub.hf_hub_download(model, name, revision=revision, etag_timeout=_HUB_TIMEOUT) for name in files]
            return Path(paths[0]).parent
        try:
            return Path(
                hub.snapshot_download(
                    model,
                    revision=revision,
                    allow_patterns=MODEL_FILES,
                    ignore_patterns=_UNWANTED_FILES,
                    etag_timeout=_HUB_TIMEOUT,
                )
            )
        except errors.LocalEntryNotFoundError:
            # What transformers itself put into the cache lacks files of the repository, but none that is needed.
            cached = hub.try_to_load_from_cache(model, "config.json", revision=revision)
            if isinstance(cached, str):
                return Path(cached).parent
            raise


@contextmanager
def _hub_faults_told(errors: Any, model: str, revision: str | None, files: Sequence[str] | None) -> Iterator[None]:
    """Turns the hub's errors into StageErrors that say what to do; ``errors`` is ``huggingface_hub.errors``."""
    named = repr(model) if revision is None else f"{model!r} at revision {revision!r}"
    try:
        yield
    except errors.LocalEntryNotFoundError as error:
        raise StageError(
            f"model: {named} is not on this machine, and the Hugging Face hub cannot be reached",
            f"connect and try again, or {_ELSEWHERE}",
        ) from error
    except errors.GatedRepoError as error:
        raise StageError(
            f"model: {named} is gated: accept its terms on the Hugging Face hub and set HF_TOKEN, or {_ELSEWHERE}"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise StageError(
            f"model: {model!r} has no revision {revision!r} on the hub", "name a branch or commit"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise StageError(
            f"model: the Hugging Face hub has no model {model!r} that you may read",
            f"check the spelling, set HF_TOKEN if it is private, or {_ELSEWHERE}",
        ) from error
    except errors.RemoteEntryNotFoundError as error:
        wanted = ", ".join(files or MODEL_FILES)
        raise StageError(
            f"model: {named} lacks {wanted} on the hub", f"take one that has it, or {_ELSEWHERE}"
        ) from error
    except Exception as error:
        raise StageError(f"model: {named} could not be fetched from the hub: {error_text(error)}") from error


_COMMIT = re.compile(r"[0-9a-f]{40}")


class Origin:
    """The files that a model is read from. Make it before they are read; they are not read for that.

    Args:
        folder: the model's.
        others: patterns of more files of it, beside those that a model of safetensors has.

    Raises:
        StageError: the folder cannot be looked at.
    """

    def __init__(self, folder: Path, others: Iterable[str] = ()) -> None:
        self._folder = folder
        self._patterns = [*MODEL_FILES, *others]
        self._commit = commit_of(folder)
        self._stamps = {} if self._commit else self._stamped()
        self._lock = threading.Lock()
        self._revision: str | None = None

    def revision(self) -> str:
        """The commit of a hub's snapshot, else ``sha256:`` and a digest of the files, which are read once for it.

        Raises:
            StageError: they were changed since the model was loaded, or cannot be read.
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
            raise StageError(
                (
                    "the model's files were changed after they had been loaded, so there is no telling "
                    "which ones are in memory"
                ),
                "open the pipeline anew",
                place=str(self._folder),
            )
        return digest

    def _stamped(self) -> dict[Path, tuple[int, int]]:
        """Size and time of change of each file: configurations, tokenizer, weights, those of modules among them."""
        modules = [path for _, path in module_list(self._folder) or []]
        try:
            folders = dict.fromkeys([self._folder, *modules])
            found = {path for own in folders for pattern in self._patterns for path in own.glob(pattern)}
            states = {path: path.stat() for path in sorted(found) if path.is_file()}
        except OSError as error:
            raise self._unreadable(error) from error
        return {path: (state.st_size, state.st_mtime_ns) for path, state in states.items()}

    def _unreadable(self, error: OSError) -> StageError:
        return StageError(f"the model's files cannot be read: {error_text(error)}", place=str(self._folder))


def commit_of(folder: Path) -> str | None:
    """The commit that a folder of the hub's cache is the snapshot of; None for any other folder."""
    snapshot = folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--")
    return folder.name if snapshot and _COMMIT.fullmatch(folder.name) else None


def digest_of(folder: Path, files: Iterable[Path]) -> str:
    """``sha256:`` and the digest over names and contents of files in a folder. OSError where one cannot be read."""
    whole = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256")
        whole.update(hashlib.sha256(path.relative_to(folder).as_posix().encode()).digest() + content.digest())
    return f"sha256:{whole.hexdigest()}"
