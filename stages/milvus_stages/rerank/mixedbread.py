"""Mixedbread's rerankers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final

from pydantic import Field

from milvus_stages.hosted import HostedReranker, Limits, Received

_SHOULD_RETRY: Final = {"true": True, "false": False}


class Mixedbread(HostedReranker):
    """Scores with Mixedbread's reranking API; its range is not documented.

    Models: ``mixedbread-ai/mxbai-rerank-large-v2``, the service's default, and others by the service's names.
    A query of more than 32,000 characters is refused.
    """

    type: ClassVar[str] = "mixedbread"
    path: ClassVar[str] = "/v1/reranking"
    default_url: ClassVar[str | None] = "https://api.mixedbread.com"
    key_names: ClassVar[tuple[str, ...]] = ("MXBAI_API_KEY",)

    model: Annotated[str, Field(min_length=1, max_length=500, description="The service's name of the model.")] = (
        "mixedbread-ai/mxbai-rerank-large-v2"
    )
    rewrite_query: Annotated[bool, Field(description="Let the service rewrite the query first.")] = False

    def limits(self) -> Limits:
        """Return 1,000 documents; no limit of tokens is documented."""
        return Limits(documents=1000)

    def payload(self, query: str, texts: list[str], top_n: int) -> Mapping[str, Any]:
        """Return the body, in which the documents are called ``input``."""
        body = {"model": self.model, "query": query, "input": texts, "top_k": top_n, "return_input": False}
        return body | ({"rewrite_query": True} if self.rewrite_query else {})

    def passing(self, received: Received) -> bool:
        """Return what the service says in ``x-should-retry``, otherwise decide by the status."""
        return _SHOULD_RETRY.get(received.headers.get("x-should-retry", ""), super().passing(received))
