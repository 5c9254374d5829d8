"""The function that turns a cross-encoder's logits into scores, as the model's files name it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Literal, cast

from milvus_stages.local.files import model_error, read_object, transformer_folder

logger = logging.getLogger(__name__)

Activation = Literal["identity", "sigmoid", "softmax", "tanh", "relu", "gelu", "silu", "softplus", "logsigmoid"]

_CLASSES = ("Identity", "Sigmoid", "Softmax", "Tanh", "ReLU", "GELU", "SiLU", "Softplus", "LogSigmoid")
_CLASS_OF = {name.lower(): name for name in _CLASSES}


def saved_activation(folder: Path, labels: int) -> Activation:
    """Return the activation that a model's files name; by default sigmoid for one label and identity for several.

    The files are read in the order of sentence-transformers: ``config_sentence_transformers.json`` (key
    ``activation_fn``), then ``config.json`` (``sentence_transformers.activation_fn``, or the older
    ``sbert_ce_default_activation_function``). A class that is not torch's is skipped with a warning.

    Raises:
        StageError: they name a class of torch that is not supported.
    """
    for path in _saved(folder):
        if not path.startswith("torch."):
            logger.warning("the activation %r of the model is not part of torch; using the default", path)
            continue
        name = path.rpartition(".")[2]
        if name not in _CLASSES:
            raise model_error(f"the activation {path!r} is not supported", f"set `activation` to one of {[*_CLASS_OF]}")
        return cast("Activation", name.lower())
    return "sigmoid" if labels == 1 else "identity"


def activation_module(name: Activation) -> Any:
    """Return the torch module of that name, which maps ``(pairs, labels)`` to the same shape."""
    import torch

    return torch.nn.Softmax(dim=-1) if name == "softmax" else getattr(torch.nn, _CLASS_OF[name])()


def _saved(folder: Path) -> list[str]:
    """Dotted names of classes, the most specific one first."""
    sentence = read_object(folder / "config_sentence_transformers.json")
    config = read_object(transformer_folder(folder) / "config.json")
    newer = config.get("sentence_transformers")
    found = []
    if (folder / "modules.json").is_file() and sentence.get("model_type") == "CrossEncoder":
        found.append(sentence.get("activation_fn"))
    if isinstance(newer, dict) and "activation_fn" in newer:
        found.append(newer["activation_fn"])
    else:
        found.append(config.get("sbert_ce_default_activation_function"))
    return [str(name) for name in found if name is not None]
