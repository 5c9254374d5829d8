"""Jina AI's rerankers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final

from pydantic import Field

from milvus_pipeline import ServiceError
from milvus_stages.hosted import HostedReranker, Limits

# Names of models that score each document separately. Any other counts as listwise: splitting a list of such a model
# would rank it wrongly without an error, while not splitting one is always correct.
_PAIRS: Final = ("jina-reranker-v1", "jina-reranker-v2", "jina-reranker-m0", "jina-colbert")
_LISTWISE_TOKENS: Final = 131_000


class Jina(HostedReranker):
    """Scores with Jina AI's rerank API; from -1 to 1 with version 3 and later, which are cosines, else from 0 to 1.

    Models: ``jina-reranker-v3.5``, ``jina-reranker-v3``, ``jina-reranker-m0``, ``jina-reranker-v2-base-multilingual``,
    ``jina-reranker-v1-base-en``, ``jina-reranker-v1-turbo-en``, ``jina-reranker-v1-tiny-en``, ``jina-colbert-v2``,
    ``jina-colbert-v1-en``. Those of version 3 are listwise: the model sees all documents of a request, so a list
    is never split. A model with any other name counts as listwise, too.
    """

    type: ClassVar[str] = "jina"
    path: ClassVar[str] = "/v1/rerank"
    default_url: ClassVar[str | None] = "https://api.jina.ai"
    key_names: ClassVar[tuple[str, ...]] = ("JINA_API_KEY", "JINAAI_API_KEY")

    model: Annotated[str, Field(min_length=1, description="The service's name of the model.")] = "jina-reranker-v3.5"
    max_concurrency: Annotated[
        int,
        Field(ge=1, le=1024, description="Maximum number of requests in flight at the same time; a free key has five."),
    ] = 5
    max_doc_length: Annotated[
        int | None,
        Field(ge=1, le=8192, description="Tokens of a document that version 3 and later read."),
    ] = None
    truncation: Annotated[
        bool | None, Field(description="Cut what is too long, with versions 1 and 2; the service's default if unset.")
    ] = None

    def limits(self) -> Limits:
        """Return the tokens of a list that version 3 reads; no number of documents is documented."""
        if any(name in self.model for name in _PAIRS):
            return Limits()
        cut = self.max_doc_length or (2048 if self.model.endswith("jina-reranker-v3") else 8192)
        return Limits(tokens=_LISTWISE_TOKENS, document_tokens=cut, query_repeats=False, listwise=True)

    def payload(self, query: str, texts: list[str], top_n: int) -> Mapping[str, Any]:
        """Return the body; without ``return_documents: false`` the service would echo the documents."""
        body: dict[str, Any] = {
            "model": self.model,
            "query": query,
            "documents": texts,
            "top_n": top_n,
            "return_documents": False,
        }
        options = {"max_doc_length": self.max_doc_length, "truncation": self.truncation}
        return body | {name: value for name, value in options.items() if value is not None}

    def too_large(self, error: ServiceError) -> bool:
        """Return whether a document was too long for a pairwise model, which then refuses the whole request."""
        return super().too_large(error) or (error.status == 400 and error.code == "INPUT_TOKEN_LIMIT_EXCEEDED")
