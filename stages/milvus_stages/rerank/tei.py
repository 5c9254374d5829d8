"""Rerankers behind Hugging Face's Text Embeddings Inference."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from milvus_pipeline import ServiceError
from milvus_stages.hosted import BaseURL, HostedReranker, Limits, Reply, listed
from milvus_stages.hosted.model_info import served


class TEI(HostedReranker):
    """Scores with a server of Text Embeddings Inference; from 0 to 1, or logits with ``raw_scores``.

    The model is the one that the server was started with.
    """

    type: ClassVar[str] = "tei"
    takes_top_n: ClassVar[bool] = False

    base_url: Annotated[BaseURL, Field(description="Address of the server, such as http://localhost:8080.")]
    model: Annotated[None, Field(description="Not taken: the server has one model.")] = None
    truncate: Annotated[bool, Field(description="Cut what is longer than the model reads; else it is refused.")] = True
    truncation_direction: Annotated[Literal["left", "right"], Field(description="The end that is cut off.")] = "right"
    raw_scores: Annotated[bool, Field(description="Logits in place of scores from 0 to 1.")] = False

    @field_validator("model", mode="before")
    @classmethod
    def _one_model(cls, model: Any) -> Any:
        if model is not None:
            raise ValueError("tei serves the model it was started with; leave `model` out")
        return model

    def limits(self) -> Limits:
        """32 texts, unless the server was started with another ``--max-client-batch-size``: see ``max_documents``."""
        return Limits(documents=32)

    def identity(self) -> Mapping[str, Any]:
        """The server's address, and what its ``/info`` tells of the model: id, commit and precision."""
        told = served(self, "/info", ["model_id", "model_sha", "model_dtype"])
        return {"url": super().identity()["url"], **told}

    def payload(self, query: str, texts: list[str], top_n: int) -> Mapping[str, Any]:
        """The server scores every text; there is no way to ask for fewer."""
        body = {
            "query": query,
            "texts": texts,
            "truncate": self.truncate,
            "raw_scores": self.raw_scores,
            "return_text": False,
        }
        return body | ({"truncation_direction": "left"} if self.truncation_direction == "left" else {})

    def parse(self, data: Any, headers: Mapping[str, str]) -> Reply:
        """A bare list; tokens are counted in a header."""
        tokens = headers.get("x-compute-tokens", "")
        usage = {"total_tokens": int(tokens)} if re.fullmatch("[0-9]{1,15}", tokens) else {}
        return Reply(listed(data, [], ["score"]), usage)

    def too_large(self, error: ServiceError) -> bool:
        """More texts than the server takes is a 413 up to version 1.8 and a 422 since."""
        return super().too_large(error) or (error.status == 422 and (error.code or "").lower() == "validation")
