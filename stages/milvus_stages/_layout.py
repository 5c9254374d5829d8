"""How a model's folder is laid out: the small JSON files of transformers and sentence-transformers in it."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Any

from milvus_pipeline import StageError, told


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
        raise StageError(f"{path}: cannot be read as JSON ({told(error)}); the model's files are damaged") from error


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a model; empty where there is no such file.

    Raises:
        StageError: as ``read_json``, or the file holds something else than an object.
    """
    data = read_json(path)
    if data is not None and not isinstance(data, dict):
        raise StageError(f"{path}: must hold a JSON object, holds a {type(data).__name__}")
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
            raise StageError(f"{origin}: must be a list of modules, each with a `type` and a `path`")
        kind, path = entry["type"], PurePosixPath(str(entry.get("path", "")))
        if path.is_absolute() or ".." in path.parts:
            raise StageError(f"{origin}: the path {str(path)!r} leads out of the model's folder")
        if not kind.startswith("sentence_transformers."):
            raise StageError(f"{origin}: the module {kind!r} needs code that comes with the model, which is never run")
        found.append((kind.rpartition(".")[2], folder / path))
    if not found or found[0][0] != "Transformer":
        raise StageError(f"{origin}: the first module must be a Transformer, is {found[0][0] if found else 'missing'}")
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
