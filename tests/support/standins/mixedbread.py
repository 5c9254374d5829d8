"""Mixedbread: POST /v1/reranking."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from support.standins.messages import Reply, Scripted
from support.standins.provider import Body, FastAPI, refuse
from support.standins.relevance import tokens

MODEL = "mixedbread-ai/mxbai-rerank-large-v2"
_KINDS = {
    400: "bad_request_error",
    401: "authentication_error",
    402: "payment_required_error",
    403: "permission_denied_error",
    404: "not_found_error",
    409: "conflict_error",
    429: "too_many_requests_error",
    503: "service_unavailable_error",
}


@dataclass
class Mixedbread(FastAPI):
    """Settings: ``models`` (empty: any), ``max_documents``, ``max_query_characters``. Documents are strings only."""

    name = "mixedbread"
    paths = ("/v1/reranking",)
    documents_key = "input"
    list_key = "data"
    score_key = "score"
    echo_key = "input"

    models: tuple[str, ...] = ()
    max_documents: int = 1_000
    max_query_characters: int = 32_000

    def error(self, status: int, message: str, kind: str = "") -> Reply:
        """Four members; documented for 429, and assumed for the others."""
        kind = kind or _KINDS.get(status, "internal_server_error")
        return Reply(status, {"type": kind, "url": "https://example.invalid/errors", "message": message, "details": {}})

    def check(self, body: Body) -> None:
        """-1, the default of `top_k`, is not to be sent."""
        body.keys(("query", "input"), ("model", "top_k", "rank_fields", "return_input", "rewrite_query"))
        body.text("query", at_most=self.max_query_characters)
        if not body.members["query"]:
            body.refuse("query", "must have at least 1 character")
        body.text("model", at_most=500)
        if body.members.get("model") == "":
            body.refuse("model", "must have at least 1 character")
        texts = body.texts("input", at_most=self.max_documents)
        body.whole("top_k", 1, len(texts))
        if body.members.get("rank_fields") is not None:
            body.texts("rank_fields", at_most=None)
        body.flag("return_input")
        body.flag("rewrite_query")
        if self.models and body.members.get("model", MODEL) not in self.models:
            refuse(self.error(404, "model not found"), "model: not found")

    def reply(self, body: dict[str, Any]) -> Reply:
        """A list in ``data``, best first."""
        texts = body["input"]
        data = [
            {
                "object": "rank_result",
                "index": index,
                "score": score,
                "input": texts[index] if body.get("return_input") else None,
            }
            for index, score in self.ranked(body, body.get("top_k"))
        ]
        count = tokens(body["query"]) * len(texts) + sum(map(tokens, texts))
        content = {
            "object": "list",
            "model": body.get("model", MODEL),
            "top_k": body.get("top_k", -1),
            "return_input": body.get("return_input", False),
            "usage": {"prompt_tokens": count, "total_tokens": count, "completion_tokens": 0},
            "data": data,
        }
        return Reply(200, content)

    def errors(self) -> dict[str, Scripted]:
        """The documented errors; 429 asks for a wait in two headers."""
        limit = self.error(429, "rate limit exceeded")
        details = {"retry_after": 1, "limit": 240, "remaining": 0, "reset": 1764000000}
        return {
            "400_bad_request": self.error(400, "bad request"),
            "401_wrong_key": self.error(401, "invalid api key"),
            "402_no_balance": self.error(402, "insufficient balance"),
            "403_forbidden": self.error(403, "forbidden"),
            "404_not_found": self.error(404, "model not found"),
            "409_conflict": self.error(409, "conflict"),
            "422_validation": self.invalid("top_k", "must be at least 1", 0),
            "429_rate_limit": limit.but(body={**limit.body, "details": details}, headers={"retry-after": "1"}),
            "500_internal": self.error(500, "internal server error"),
            "503_unavailable": self.error(503, "service unavailable"),
        }
