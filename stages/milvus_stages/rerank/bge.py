"""The rerankers of the Beijing Academy of Artificial Intelligence (BAAI)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, cast

from pydantic import Field, PrivateAttr, model_validator

from milvus_pipeline import StageError
from milvus_stages.local.models import LoadedModel, max_length_of
from milvus_stages.local.pair_reranker import Check, PairReranker
from milvus_stages.local.tokens import Ids, Row, Tokens

if TYPE_CHECKING:
    import torch


class BGE(PairReranker):
    """Scores with a BGE reranker, as FlagEmbedding's ``FlagReranker`` does.

    Defaults are those of the PyMilvus model library's ``BGERerankFunction``, except that weights stay at 32 bit
    unless ``dtype`` says otherwise (its ``use_fp16`` is ``dtype: float16``). The query is cut at
    ``query_max_length``; the document gets what is left of ``max_length``.

    BGE rerankers on a generating model (Gemma, MiniCPM; "layerwise", "lightweight") are not supported.
    """

    type: ClassVar[str] = "bge"

    model: Annotated[str, Field(min_length=1, description="Hub id, folder, or package:NAME/PATH.")] = (
        "BAAI/bge-reranker-v2-m3"
    )
    normalize: Annotated[bool, Field(description="Scores from 0 to 1, by a sigmoid; else the logits.")] = True
    query_max_length: Annotated[int, Field(ge=1, description="Tokens of the query, without special tokens.")] = 256
    max_length: Annotated[int, Field(ge=1, description="Tokens of query and document, with special tokens.")] = 512

    _tokens: int = PrivateAttr(default=0)

    @model_validator(mode="after")
    def _leaves_room(self) -> BGE:
        if self.query_max_length >= self.max_length:
            raise ValueError(
                f"query_max_length must be below max_length ({self.max_length}), so that a document has room beside "
                f"the query; it is {self.query_max_length}"
            )
        return self

    def prepare(self, loaded: LoadedModel) -> None:
        """Settle how long a pair may be."""
        if loaded.config.num_labels != 1:
            raise StageError(
                f"{self.model!r} has {loaded.config.num_labels} labels, a BGE reranker has one",
                "take the stage cross_encoder, with `label`",
                reason_code="config",
            )
        specials = loaded.tokenizer.pair_specials
        self._tokens = max_length_of(loaded, self.max_length, specials) - specials
        if self.query_max_length >= self._tokens:
            raise StageError(
                (
                    f"query_max_length: {self.query_max_length} leaves no room for a document in "
                    f"max_length {self.max_length} with {specials} special tokens"
                ),
                "lower it",
                reason_code="config",
            )

    def query_tokens(self, queries: Sequence[str], check: Check) -> list[Tokens]:
        """The queries' tokens, cut to their own limit."""
        return self._read_again(self.loaded.tokenizer.tokens(queries, self.query_max_length, check), check)

    def text_tokens(self, texts: Sequence[str], check: Check) -> list[Tokens]:
        """The documents' tokens, cut to the limit of a pair."""
        return self._read_again(self.loaded.tokenizer.tokens(texts, self.max_length, check), check)

    def room(self, query: Tokens, text: Tokens) -> tuple[int, int]:
        """Leave the query as it is, and cut the document to the rest."""
        kept = min(len(query.ids), self._tokens)
        return kept, min(len(text.ids), self._tokens - kept)

    def row(self, query: Ids, text: Ids) -> Row:
        """The pair; a document without tokens leaves the query alone, as in FlagEmbedding on transformers 5."""
        return super().row(query, text) if text else self.loaded.tokenizer.row(query)

    def _read_again(self, tokens: Sequence[Tokens], check: Check) -> list[Tokens]:
        """The tokens of what the tokens read as, which is what FlagEmbedding gives the model on transformers 5.

        They differ only where a text has tokens that the model does not know, or is cut within a word.
        """
        tokenizer = self.loaded.tokenizer
        again = tokenizer.tokens(tokenizer.decoded([own.ids for own in tokens]), self.loaded.limit, check)
        return [Tokens(new.ids, new.length + old.length - len(old.ids)) for new, old in zip(again, tokens, strict=True)]

    def relevance(self, logits: torch.Tensor) -> list[float]:
        """The logit, or its sigmoid."""
        values = cast("list[float]", logits[:, 0].tolist())
        return [sigmoid(value) for value in values] if self.normalize else values


def sigmoid(value: float) -> float:
    """``1 / (1 + exp(-value))``, without overflow for any finite value."""
    if value >= 0:
        return 1 / (1 + math.exp(-value))
    power = math.exp(value)
    return power / (1 + power)
