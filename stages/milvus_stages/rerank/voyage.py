"""Voyage AI's rerankers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final

from pydantic import Field

from milvus_pipeline import ServiceError
from milvus_stages.hosted import HostedReranker, Limits, Reply, counted, listed, members

_ATLAS: Final = "https://ai.mongodb.com"
_ATLAS_KEY: Final = "al-"

# By model: estimated tokens of a query with one document, and of a whole request. The query counts once for each
# document. Names are looked up from the longest, and what is not known has the limits of the newest.
_TOKENS: Final = {
    "rerank-3": (32_000, 600_000),
    "rerank-2.5": (32_000, 600_000),
    "rerank-2": (16_000, 600_000),
    "rerank-2-lite": (8_000, 600_000),
    "rerank-1": (8_000, 300_000),
    "rerank-lite-1": (4_000, 300_000),
}
_NEWEST: Final = (32_000, 600_000)


class Voyage(HostedReranker):
    """Scores with Voyage AI's rerank API; from 0 to 1 in all that is published, though no range is stated.

    Models: ``rerank-3``, ``rerank-3-lite``, ``rerank-2.5``, ``rerank-2.5-lite``, ``rerank-2``, ``rerank-2-lite``,
    ``rerank-1``, ``rerank-lite-1``. Keys of MongoDB Atlas (``al-...``) are sent to the address that takes them.
    """

    type: ClassVar[str] = "voyage"
    path: ClassVar[str] = "/v1/rerank"
    default_url: ClassVar[str | None] = "https://api.voyageai.com"
    key_names: ClassVar[tuple[str, ...]] = ("VOYAGE_API_KEY",)

    model: Annotated[str, Field(min_length=1, description="The service's name of the model.")] = "rerank-2.5"
    truncation: Annotated[
        bool, Field(description="Cut what is longer than the model reads; else the service refuses it.")
    ] = True

    def address(self, key: str | None) -> str | None:
        """By the kind of key."""
        return _ATLAS if (key or "").startswith(_ATLAS_KEY) else self.default_url

    def limits(self) -> Limits:
        """The tokens of a whole request are bounded even where each document is cut."""
        names = sorted(_TOKENS, key=len, reverse=True)
        pair, request = next((_TOKENS[name] for name in names if self.model.startswith(name)), _NEWEST)
        return Limits(documents=1000, tokens=request, document_tokens=pair if self.truncation else None)

    def payload(self, query: str, texts: list[str], top_n: int) -> Mapping[str, Any]:
        """The service refuses what it does not know, ``top_n`` among it."""
        return {
            "model": self.model,
            "query": query,
            "documents": texts,
            "top_k": top_n,
            "truncation": self.truncation,
        }

    def parse(self, data: Any, headers: Mapping[str, str]) -> Reply:
        """The list stands under ``data``."""
        usage = counted(members(data, "usage"), "total_tokens")
        return Reply(listed(data, ["data"], ["relevance_score"]), usage)

    def too_large(self, error: ServiceError) -> bool:
        """With ``truncation`` only the total can be too high, if it was estimated too low; the text alone says so."""
        return super().too_large(error) or (self.truncation and error.status == 400 and "tokens" in error.detail)
