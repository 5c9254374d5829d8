"""Cross-encoders: sequence-classification checkpoints of any architecture."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, cast

from pydantic import Field, PrivateAttr, StrictInt

from milvus_pipeline.plugin import short_repr
from milvus_stages.local.files import field_error, model_error, module_list, read_object, transformer_folder
from milvus_stages.local.models import ModelFiles, ModelName, max_length_of
from milvus_stages.local.pair_reranker import PairReranker
from milvus_stages.local.tokens import Tokens

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

_Activation = Literal["identity", "sigmoid", "softmax", "tanh", "relu", "gelu", "silu", "softplus", "logsigmoid"]

_CLASSES = ("Identity", "Sigmoid", "Softmax", "Tanh", "ReLU", "GELU", "SiLU", "Softplus", "LogSigmoid")
_CLASS_OF = {name.lower(): name for name in _CLASSES}


class CrossEncoder(PairReranker):
    """Scores with a sequence-classification model, as sentence-transformers' ``CrossEncoder`` does.

    The scale of the scores is the model's: logits, or probabilities if its files name a sigmoid. A pair that is too
    long loses tokens from its longer side first.
    """

    type: ClassVar[str] = "cross_encoder"

    model: ModelName = "cross-encoder/ms-marco-MiniLM-L-6-v2"
    max_length: Annotated[
        int | None, Field(ge=1, description="Tokens of a pair, with special tokens; the model's by default.")
    ] = None
    activation: Annotated[
        _Activation | None, Field(description="Turns logits into scores; as the model's files say by default.")
    ] = None
    label: Annotated[
        StrictInt | str | None,
        Field(description="The label whose score is used, by number or name; for models with several labels."),
    ] = None

    _tokens: int = PrivateAttr(default=0)  # of a pair, special ones not counted
    _activate: Any = PrivateAttr(default=None)
    _column: int = PrivateAttr(default=0)

    def prepare(self, files: ModelFiles) -> None:
        """Determine length, activation and label."""
        for kind, _ in (module_list(files.folder) or [])[1:]:
            raise model_error(f"{self.model!r} has a module {kind!r} after the transformer, which is not supported")
        if read_object(files.folder / "config_sentence_transformers.json").get("default_prompt_name"):
            raise model_error(f"{self.model!r} puts a prompt before its texts, which is not supported")
        specials = files.tokenizer.pair_specials
        labels = int(files.config.num_labels)
        self._tokens = max_length_of(files, self.max_length, specials) - specials
        self._activate = _activation(self.activation or _saved_activation(files.folder, labels))
        self._column = self._label(files.config.id2label, labels)

    def document_room(self, query: int) -> int:
        """Return what the query leaves of the pair's length."""
        return longest_first(query, query + self._tokens, self._tokens)[1]

    def room(self, query: Tokens, text: Tokens) -> tuple[int, int]:
        """Cut the longer side first."""
        return longest_first(query.length, text.length, self._tokens)

    def relevance(self, logits: torch.Tensor) -> list[float]:
        """Return the activated logits of the label."""
        return cast("list[float]", self._activate(logits)[:, self._column].tolist())

    def _label(self, names: dict[int, str], count: int) -> int:
        """The column of the label that is used."""
        listed = ", ".join(f"{number} ({names.get(number, '?')})" for number in range(count))
        if self.label is None:
            if count == 1:
                return 0
            raise field_error("label", f"the model has {count} labels, {listed}", "name the one to use")
        numbers = [number for number in range(count) if self.label in (number, names.get(number))]
        if not numbers:
            raise field_error("label", f"the model has no label {short_repr(self.label)}", f"use one of {listed}")
        return numbers[0]


def longest_first(first: int, second: int, limit: int) -> tuple[int, int]:
    """Return how many tokens each of two texts keeps if the longer one is cut first.

    Args:
        first: tokens of the first text.
        second: tokens of the second text.
        limit: tokens that both may have together.

    Returns:
        The same numbers as the "longest_first" truncation of the tokenizers library: texts that are both longer than
        half of the limit share it, and an odd token goes to the longer one (to the second if both are as long).
    """
    if first + second <= limit:
        return first, second
    shorter, half = min(first, second), limit // 2
    kept = (shorter, limit - shorter) if shorter <= half else (half, limit - half)
    return kept if first <= second else (kept[1], kept[0])


def _saved_activation(folder: Path, labels: int) -> str:
    """The activation that a model's files name; by default sigmoid for one label and identity for several.

    The files are read in the order of sentence-transformers: ``config_sentence_transformers.json`` (key
    ``activation_fn``), then ``config.json`` (``sentence_transformers.activation_fn``, or the older
    ``sbert_ce_default_activation_function``). A class that is not torch's is skipped with a warning.

    Raises:
        StageError: they name a class of torch that is not supported.
    """
    sentence = read_object(folder / "config_sentence_transformers.json")
    config = read_object(transformer_folder(folder) / "config.json")
    newer = config.get("sentence_transformers")
    paths = []
    if (folder / "modules.json").is_file() and sentence.get("model_type") == "CrossEncoder":
        paths.append(sentence.get("activation_fn"))
    if isinstance(newer, dict) and "activation_fn" in newer:
        paths.append(newer["activation_fn"])
    else:
        paths.append(config.get("sbert_ce_default_activation_function"))
    for path in (str(path) for path in paths if path is not None):
        if not path.startswith("torch."):
            logger.warning("the activation %r of the model is not part of torch; using the default", path)
            continue
        name = path.rpartition(".")[2]
        if name not in _CLASSES:
            raise model_error(f"the activation {path!r} is not supported", f"set `activation` to one of {[*_CLASS_OF]}")
        return name.lower()
    return "sigmoid" if labels == 1 else "identity"


def _activation(name: str) -> Any:
    """The torch module of that name, which maps ``(pairs, labels)`` to the same shape."""
    import torch

    return torch.nn.Softmax(dim=-1) if name == "softmax" else getattr(torch.nn, _CLASS_OF[name])()
