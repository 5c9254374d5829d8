"""Servers with the rerank endpoint that vLLM, Infinity, LiteLLM and their kind share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field

from milvus_stages.hosted import HostedReranker, Limits


class RerankAPI(HostedReranker):
    """Scores with any server that has a ``/rerank`` of the usual shape; the range is that of its model.

    ``base_url`` ends before ``/rerank``: ``http://localhost:8000`` for vLLM, ``http://localhost:7997`` for Infinity,
    with ``/v1`` where the server has it. A key is sent only if ``api_key_env`` names its variable. Replies are read
    tolerantly: the list under ``results`` or ``data``, scores under ``relevance_score`` or ``score``.
    """

    type: ClassVar[str] = "rerank_api"
    may_return_more: ClassVar[bool] = True

    options: Annotated[
        dict[str, Any],
        Field(description="More members for the request, such as truncate_prompt_tokens: -1 for vLLM."),
    ] = {}

    listwise: Annotated[
        bool, Field(description="The documents of a request see each other, so that a list must not be split.")
    ] = False

    def limits(self) -> Limits:
        """A list of pairs is split where no server of this kind takes more."""
        return Limits(listwise=True) if self.listwise else Limits(documents=1000)

    def payload(self, query: str, texts: list[str], top_n: int) -> Mapping[str, Any]:
        """``top_n`` always, since some servers insist on it; no echo is asked for, and none is read."""
        body: dict[str, Any] = {"query": query, "documents": texts, "top_n": top_n}
        if self.model is not None:
            body["model"] = self.model
        return {**self.options, **body}
