"""The rerankers of the Beijing Academy of Artificial Intelligence (BAAI)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, cast

from pydantic import Field, PrivateAttr, model_validator

from milvus_stages.local.anytime import Clock
from milvus_stages.local.files import field_error
from milvus_stages.local.models import ModelFiles, ModelName, max_length_of
from milvus_stages.local.pair_reranker import PairReranker
from milvus_stages.local.tokens import Ids, Row, Tokens

if TYPE_CHECKING:
    import torch


class BGE(PairReranker):
    """Scores with a BGE reranker, as FlagEmbedding's ``FlagReranker`` does; 0 to 1, or logits without ``normalize``.

    The defaults are those of ``BGERerankFunction`` in the PyMilvus model library, except that weights are 32 bit unless
    ``dtype`` says otherwise (its ``use_fp16`` is ``dtype: float16``). The query is cut to ``query_max_length`` tokens;
    the document gets the rest of ``max_length``.

    BGE rerankers on a generating model (Gemma, MiniCPM; "layerwise", "lightweight") are not supported.
    """

    type: ClassVar[str] = "bge"

    model: ModelName = "BAAI/bge-reranker-v2-m3"
    normalize: Annotated[bool, Field(description="Scores from 0 to 1, by a sigmoid; otherwise the logits.")] = True
    query_max_length: Annotated[int, Field(ge=1, description="Tokens of the query, without special tokens.")] = 256
    max_length: Annotated[int, Field(ge=1, description="Tokens of query and document, with special tokens.")] = 512

    _tokens: int = PrivateAttr(default=0)

    @model_validator(mode="after")
    def _leaves_room(self) -> BGE:
        if self.query_max_length >= self.max_length:
            raise ValueError(
                f"query_max_length must be below max_length ({self.max_length}) to leave room for a document, "
                f"got {self.query_max_length}"
            )
        return self

    def prepare(self, files: ModelFiles) -> None:
        """Determine how long a pair may be."""
        if files.config.num_labels != 1:
            labels = f"{self.model!r} has {files.config.num_labels} labels, but a BGE reranker has one"
            raise field_error("model", labels, "use the stage `cross_encoder` with `label`")
        specials = files.tokenizer.pair_specials
        self._tokens = max_length_of(files, self.max_length, specials) - specials
        if self.query_max_length >= self._tokens:
            room = f"no room for a document in max_length {self.max_length} with {specials} special tokens"
            raise field_error("query_max_length", f"{self.query_max_length} leaves {room}", "lower it")

    def document_room(self, query: int) -> int:
        """Return what the query leaves of the pair's length."""
        return self._tokens - min(query, self.query_max_length)

    def tokenize(self, texts: Sequence[str], clock: Clock, *, queries: bool) -> list[Tokens]:
        """Return the tokens, cut to the field's length, decoded and tokenized again.

        That is what FlagEmbedding does on transformers 5. It makes a difference only for a text that has unknown
        tokens or is cut within a word.
        """
        tokenizer = self.loaded.tokenizer
        cut = tokenizer.tokens(texts, self.query_max_length if queries else self.max_length, clock.check)
        again = tokenizer.tokens(tokenizer.decode([own.ids for own in cut]), self.loaded.limit, clock.check)
        return [Tokens(new.ids, new.length + old.length - len(old.ids)) for new, old in zip(again, cut, strict=True)]

    def room(self, query: Tokens, text: Tokens) -> tuple[int, int]:
        """Keep the query, and cut the document to the rest."""
        kept = min(len(query.ids), self._tokens)
        return kept, min(len(text.ids), self._tokens - kept)

    def row(self, query: Ids, text: Ids) -> Row:
        """Return the pair, or the query alone if the document has no tokens (FlagEmbedding on transformers 5)."""
        return super().row(query, text) if text else self.loaded.tokenizer.row(query)

    def relevance(self, logits: torch.Tensor) -> list[float]:
        """Return the logits, or their sigmoids."""
        values = logits[:, 0].cpu().double()
        return cast("list[float]", (values.sigmoid() if self.normalize else values).tolist())
