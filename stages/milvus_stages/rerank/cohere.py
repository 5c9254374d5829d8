"""Cohere's rerankers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field

from milvus_stages.hosted import HostedReranker, Limits, Reply, counted, listed, members


class Cohere(HostedReranker):
    """Scores with Cohere's Rerank API, version 2; from 0 to 1.

    Models: ``rerank-v5.0-pro``, ``rerank-v5.0-fast``, ``rerank-v4.0-pro``, ``rerank-v4.0-fast``, ``rerank-v3.5``,
    ``rerank-english-v3.0``, ``rerank-multilingual-v3.0``. The service cuts a document at ``max_tokens_per_doc``
    tokens, and a query at half of what the model reads; it does not say when it does.
    """

    type: ClassVar[str] = "cohere"
    path: ClassVar[str] = "/v2/rerank"
    default_url: ClassVar[str | None] = "https://api.cohere.com"
    # The name that most integrations use comes first; the official SDK looks for the other one before it.
    key_names: ClassVar[tuple[str, ...]] = ("COHERE_API_KEY", "CO_API_KEY")

    model: Annotated[str, Field(min_length=1, description="The service's name of the model.")] = "rerank-v4.0-fast"
    max_tokens_per_doc: Annotated[
        int | None, Field(ge=1, description="Tokens of a document that are read; the service reads 4,096 by default.")
    ] = None
    priority: Annotated[
        int | None, Field(ge=0, le=999, description="0, the service's default, is served first; 999 is shed first.")
    ] = None

    def limits(self) -> Limits:
        """10,000 documents are the most, 1,000 what the service advises."""
        return Limits(documents=1000, document_tokens=self.max_tokens_per_doc or 4096)

    def payload(self, query: str, texts: list[str], top_n: int) -> Mapping[str, Any]:
        """Without echoes: version 2 knows none."""
        body: dict[str, Any] = {"model": self.model, "query": query, "documents": texts, "top_n": top_n}
        options = {"max_tokens_per_doc": self.max_tokens_per_doc, "priority": self.priority}
        return body | {name: value for name, value in options.items() if value is not None}

    def parse(self, data: Any, headers: Mapping[str, str]) -> Reply:
        """Units are billed by number of documents, or by token with the newest models."""
        meta = members(data, "meta")
        billed = counted(members(meta, "billed_units"), "search_units", "input_tokens", "output_tokens", "total_tokens")
        told = members(meta, "warnings")
        warnings = [text for text in told if isinstance(text, str)] if isinstance(told, list) else []
        return Reply(listed(data, ["results"], ["relevance_score"]), billed, warnings)
