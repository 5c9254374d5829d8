"""Rerankers behind Hugging Face's Text Embeddings Inference."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import closing
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import Field, field_validator

from milvus_pipeline import ConfigError, ServiceError, StageError
from milvus_stages.hosted import BaseURL, HostedReranker, Limits, Reply, get_member, read_scores
from milvus_stages.hosted.http.transport import Transport

_INFO: Final = ("model_id", "model_sha", "model_dtype")
_INFO_SECONDS: Final = 5.0
_LONGEST_INFO: Final = 300
"""Characters of a value that are kept."""


class TEI(HostedReranker):
    """Scores with a server of Text Embeddings Inference; from 0 to 1, or logits with ``raw_scores``.

    The server has one model, the one that it was started with.
    """

    type: ClassVar[str] = "tei"
    takes_top_n: ClassVar[bool] = False

    base_url: Annotated[BaseURL, Field(description="Address of the server, such as http://localhost:8080.")]
    model: Annotated[None, Field(description="Not accepted: the server has one model.")] = None
    truncate: Annotated[
        bool, Field(description="Cut what is longer than the model reads; otherwise it is refused.")
    ] = True
    truncation_direction: Annotated[Literal["left", "right"], Field(description="The end that is cut off.")] = "right"
    raw_scores: Annotated[bool, Field(description="Logits instead of scores from 0 to 1.")] = False

    @field_validator("model", mode="before")
    @classmethod
    def _one_model(cls, model: Any) -> Any:
        if model is not None:
            raise ConfigError("tei serves the model it was started with", "leave `model` out")
        return model

    def limits(self) -> Limits:
        """Return 32 texts, the default of ``--max-client-batch-size``; see ``max_documents``."""
        return Limits(documents=32)

    def identity(self) -> Mapping[str, Any]:
        """Return the server's address, and what its ``/info`` reports: id, commit and precision of the model."""
        return {"url": super().identity()["url"], **self._model_info()}

    def _model_info(self) -> dict[str, str]:
        """Return what the server reports about its model; nothing if it does not answer within 5 seconds."""
        try:
            url, headers, secrets = self.read_connection()
            seconds = self.opening.remaining(at_most=_INFO_SECONDS) or _INFO_SECONDS  # it may be long over
            with closing(Transport(url.removesuffix(self.path) + "/info", headers, self.type, "GET")) as transport:
                reply = transport.send(b"", seconds, "")
            data = json.loads(reply.content) if reply.status == 200 else None
        except (StageError, ValueError, RecursionError):
            return {}
        members = {name: get_member(data, name) for name in _INFO}
        return {
            name: value
            for name, value in members.items()
            if isinstance(value, str) and len(value) <= _LONGEST_INFO and value.isprintable()
            if not any(secret in value for secret in secrets)
        }

    def payload(self, query: str, texts: list[str], top_n: int) -> Mapping[str, Any]:
        """Return the body; the server scores every text, and cannot be asked for fewer."""
        body = {
            "query": query,
            "texts": texts,
            "truncate": self.truncate,
            "raw_scores": self.raw_scores,
            "return_text": False,
        }
        return body | ({"truncation_direction": "left"} if self.truncation_direction == "left" else {})

    def parse(self, data: Any, headers: Mapping[str, str]) -> Reply:
        """Read a bare list; a header has the number of tokens."""
        tokens = headers.get("x-compute-tokens", "")
        usage = {"total_tokens": int(tokens)} if re.fullmatch("[0-9]{1,15}", tokens) else {}
        return Reply(read_scores(data, [], ["score"]), usage)

    def too_large(self, error: ServiceError) -> bool:
        """Return whether there were too many texts: a 413 up to version 1.8, a 422 since."""
        return super().too_large(error) or (error.status == 422 and (error.code or "").lower() == "validation")
