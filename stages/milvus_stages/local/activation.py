"""The function that turns a cross-encoder's logits into scores, as the model's own files name it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from milvus_pipeline import StageError
from milvus_stages.local.files import read_object, transformer_folder

logger = logging.getLogger(__name__)

Activation = Literal["identity", "sigmoid", "softmax", "tanh", "relu", "gelu", "silu", "softplus", "logsigmoid"]

_CLASSES: dict[str, Activation] = {
    "Identity": "identity",
    "Sigmoid": "sigmoid",
    "Softmax": "softmax",
    "Tanh": "tanh",
    "ReLU": "relu",
    "GELU": "gelu",
    "SiLU": "silu",
    "Softplus": "softplus",
    "LogSigmoid": "logsigmoid",
}
_NAMES = {name: class_name for class_name, name in _CLASSES.items()}


def saved_activation(folder: Path, labels: int) -> Activation:
    """The activation of a model: what its files say, else sigmoid for one label and identity for several.

    The files are asked in the order of sentence-transformers: ``config_sentence_transformers.json`` (key
    ``activation_fn``), then ``config.json`` (``sentence_transformers.activation_fn``, else the older
    ``sbert_ce_default_activation_function``). A class from outside of torch is passed over with a warning.

    Raises:
        StageError: a class of torch that is not known here.
    """
    for path in _saved(folder):
        if not path.startswith("torch."):
            logger.warning("the activation %r of the model is not part of torch; taking the default", path)
            continue
        if (known := _CLASSES.get(path.rpartition(".")[2])) is None:
            raise StageError(f"the activation {path!r} is not supported", f"set `activation` to one of {list(_NAMES)}")
        return known
    return "sigmoid" if labels == 1 else "identity"


def activation_module(name: Activation) -> Any:
    """The torch module of that name; it takes and gives ``(pairs, labels)``."""
    import torch

    return torch.nn.Softmax(dim=-1) if name == "softmax" else getattr(torch.nn, _NAMES[name])()


def _saved(folder: Path) -> Iterator[str]:
    """Dotted names of classes, the one that goes first in front."""
    sentence = read_object(folder / "config_sentence_transformers.json")
    if (folder / "modules.json").is_file() and sentence.get("model_type") == "CrossEncoder":
        yield from _given(sentence.get("activation_fn"))
    config = read_object(transformer_folder(folder) / "config.json")
    newer = config.get("sentence_transformers")
    if isinstance(newer, dict) and "activation_fn" in newer:
        yield from _given(newer["activation_fn"])
    else:
        yield from _given(config.get("sbert_ce_default_activation_function"))


def _given(value: object) -> Iterator[str]:
    if value is not None:
        yield str(value)
