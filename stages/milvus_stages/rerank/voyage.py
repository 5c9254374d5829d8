"""Voyage AI's rerankers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final

from pydantic import Field

from milvus_pipeline import ServiceError
from milvus_stages.hosted import HostedReranker, Limits

_ATLAS: Final = "https://ai.mongodb.com"
_ATLAS_KEY: Final = "al-"

# By model: maximum tokens of the query with one document, and of a request, in which the query counts once for each
# document. The longest matching name applies; an unknown model has the limits of the newest.
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
    """Scores with Voyage AI's rerank API; from 0 to 1 in all published examples, though no range is documented.

    Models: ``rerank-3``, ``rerank-3-lite``, ``rerank-2.5``, ``rerank-2.5-lite``, ``rerank-2``, ``rerank-2-lite``,
    ``rerank-1``, ``rerank-lite-1``. Keys of MongoDB Atlas (``al-...``) are sent to the address that takes them.
    """

    type: ClassVar[str] = "voyage"
    path: ClassVar[str] = "/v1/rerank"
    default_url: ClassVar[str | None] = "https://api.voyageai.com"
    key_names: ClassVar[tuple[str, ...]] = ("VOYAGE_API_KEY",)

    model: Annotated[str, Field(min_length=1, description="The service's name of the model.")] = "rerank-2.5"
    truncation: Annotated[
        bool, Field(description="Cut what is longer than the model reads; otherwise the service refuses it.")
    ] = True

    def address(self, key: str | None) -> str | None:
        """Return the address by the kind of key."""
        return _ATLAS if (key or "").startswith(_ATLAS_KEY) else self.default_url

    def limits(self) -> Limits:
        """Return the limits of the model; a request's tokens are limited even if each document is truncated."""
        names = sorted(_TOKENS, key=len, reverse=True)
        pair, request = next((_TOKENS[name] for name in names if self.model.startswith(name)), _NEWEST)
        return Limits(documents=1000, tokens=request, document_tokens=pair if self.truncation else None)

    def payload(self, query: str, texts: list[str], top_n: int) -> Mapping[str, Any]:
        """Return the body; the service refuses unknown members, such as ``top_n``."""
        return {
            "model": self.model,
            "query": query,
            "documents": texts,
            "top_k": top_n,
            "truncation": self.truncation,
        }

    def too_large(self, error: ServiceError) -> bool:
        """Return whether the total was too high, which only the text of a 400 reports."""
        return super().too_large(error) or (self.truncation and error.status == 400 and "tokens" in error.detail)
