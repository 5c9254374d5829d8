"""Cohere's rerankers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field

from milvus_stages.hosted import HostedReranker, Limits, Reply, get_member, read_figures, read_scores


class Cohere(HostedReranker):
    """Scores with Cohere's Rerank API, version 2; from 0 to 1.

    Models: ``rerank-v5.0-pro``, ``rerank-v5.0-fast``, ``rerank-v4.0-pro``, ``rerank-v4.0-fast``, ``rerank-v3.5``,
    ``rerank-english-v3.0``, ``rerank-multilingual-v3.0``. The service truncates a document to
    ``max_tokens_per_doc`` tokens, and a query to half of what the model reads, without reporting it.
    """

    type: ClassVar[str] = "cohere"
    path: ClassVar[str] = "/v2/rerank"
    default_url: ClassVar[str | None] = "https://api.cohere.com"
    # Most integrations use the first name; the official SDK prefers the second.
    key_names: ClassVar[tuple[str, ...]] = ("COHERE_API_KEY", "CO_API_KEY")

    model: Annotated[str, Field(min_length=1, description="The service's name of the model.")] = "rerank-v4.0-fast"
    max_tokens_per_doc: Annotated[
        int | None, Field(ge=1, description="Tokens of a document that the service reads; 4,096 by default.")
    ] = None
    priority: Annotated[
        int | None, Field(ge=0, le=999, description="0, the service's default, is served first; 999 is dropped first.")
    ] = None

    def limits(self) -> Limits:
        """Return 1,000 documents, which the service recommends; it accepts 10,000."""
        return Limits(documents=1000, document_tokens=self.max_tokens_per_doc or 4096)

    def payload(self, query: str, texts: list[str], top_n: int) -> Mapping[str, Any]:
        """Return the body; version 2 never echoes the documents."""
        body: dict[str, Any] = {"model": self.model, "query": query, "documents": texts, "top_n": top_n}
        options = {"max_tokens_per_doc": self.max_tokens_per_doc, "priority": self.priority}
        return body | {name: value for name, value in options.items() if value is not None}

    def parse(self, data: Any, headers: Mapping[str, str]) -> Reply:
        """Read the units, which are billed by number of documents, or by token with the newest models."""
        meta = get_member(data, "meta")
        billed = read_figures(
            get_member(meta, "billed_units"), "search_units", "input_tokens", "output_tokens", "total_tokens"
        )
        given = get_member(meta, "warnings")
        warnings = given if isinstance(given, list) else []
        return Reply(read_scores(data, ["results"], ["relevance_score"]), billed, warnings)
