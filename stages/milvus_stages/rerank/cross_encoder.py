"""Cross-encoders: sequence-classification checkpoints of any architecture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NamedTuple, cast

from pydantic import Field, PrivateAttr, StrictInt

from milvus_pipeline.plugin import short_repr
from milvus_stages.local.activation import Activation, activation_module, saved_activation
from milvus_stages.local.files import field_error, model_error, module_list, read_object
from milvus_stages.local.models import LoadedModel, max_length_of
from milvus_stages.local.pair_reranker import PairReranker
from milvus_stages.local.tokens import Tokens

if TYPE_CHECKING:
    import torch


class _Prepared(NamedTuple):
    """What follows from the model's files and the stage's fields; ``tokens`` is a pair's limit without special ones."""

    tokens: int
    activation: Any
    label: int


class CrossEncoder(PairReranker):
    """Scores with a sequence-classification model, as sentence-transformers' ``CrossEncoder`` does.

    The scale of the scores is the model's: logits, or probabilities if its files name a sigmoid. A pair that is too
    long loses tokens from its longer side first.
    """

    type: ClassVar[str] = "cross_encoder"

    model: Annotated[str, Field(min_length=1, description="Hub id, folder, or package:NAME/PATH.")] = (
        "cross-encoder/ms-marco-MiniLM-L-6-v2"
    )
    max_length: Annotated[
        int | None, Field(ge=1, description="Tokens of a pair, with special tokens; the model's by default.")
    ] = None
    activation: Annotated[
        Activation | None, Field(description="Turns logits into scores; as the model's files say by default.")
    ] = None
    label: Annotated[
        StrictInt | str | None,
        Field(description="The label whose score is used, by number or name; for models with several labels."),
    ] = None

    _prepared: _Prepared | None = PrivateAttr(default=None)

    def prepare(self, loaded: LoadedModel) -> None:
        """Determine length, activation and label."""
        modules = module_list(loaded.folder) or [("Transformer", loaded.folder)]
        if len(modules) > 1:
            raise model_error(
                f"{self.model!r} has a module {modules[1][0]!r} after the transformer, which is not supported"
            )
        if read_object(loaded.folder / "config_sentence_transformers.json").get("default_prompt_name"):
            raise model_error(f"{self.model!r} puts a prompt before its texts, which is not supported")
        specials = loaded.tokenizer.pair_specials
        labels = int(loaded.config.num_labels)
        self._prepared = _Prepared(
            max_length_of(loaded, self.max_length, specials) - specials,
            activation_module(self.activation or saved_activation(loaded.folder, labels)),
            self._label(loaded.config.id2label, labels),
        )

    def document_room(self, query: int) -> int:
        """Return what the query leaves of the pair's length."""
        limit = self._ready.tokens
        return longest_first(query, query + limit, limit)[1]

    def room(self, query: Tokens, text: Tokens) -> tuple[int, int]:
        """Cut the longer side first."""
        return longest_first(query.length, text.length, self._ready.tokens)

    def relevance(self, logits: torch.Tensor) -> list[float]:
        """Return the activated logits of the label."""
        return cast("list[float]", self._ready.activation(logits)[:, self._ready.label].tolist())

    @property
    def _ready(self) -> _Prepared:
        assert self._prepared is not None  # noqa: S101 - the setup that loads the model sets it
        return self._prepared

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
