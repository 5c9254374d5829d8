"""Voyage AI: POST /v1/rerank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from support.standins.messages import Reply, Scripted
from support.standins.provider import Body, Provider
from support.standins.relevance import tokens

MODELS = (
    "rerank-3",
    "rerank-3-lite",
    "rerank-2.5",
    "rerank-2.5-lite",
    "rerank-2",
    "rerank-2-lite",
    "rerank-1",
    "rerank-lite-1",
)


@dataclass
class Voyage(Provider):
    """Settings: ``models`` (empty: any), ``max_documents``, and limits in tokens (a token is four characters).

    ``max_query_tokens``, ``max_pair_tokens`` (query and one document): cut to them, or refused without `truncation`;
    ``max_total_tokens`` (the query's, once for each document, and all documents'): refused, after the cut.
    """

    name = "voyage"
    paths = ("/v1/rerank",)
    list_key = "data"

    models: tuple[str, ...] = MODELS
    max_documents: int = 1_000
    max_query_tokens: int = 8_000
    max_pair_tokens: int = 32_000
    max_total_tokens: int = 600_000

    def error(self, status: int, message: str, kind: str = "") -> Reply:
        """``detail``, a string."""
        return Reply(status, {"detail": message})

    def wrong_key(self) -> Reply:
        """The same with and without a key."""
        return self.error(401, "Provided API key is invalid.")

    def check(self, body: Body) -> None:
        """Anything unknown is refused, `top_n` included; one empty string spoils the batch."""
        body.keys(("query", "documents", "model"), ("top_k", "return_documents", "truncation"))
        body.text("model", blank=False)
        body.text("query")
        if not body.members["query"]:
            body.refuse("query", "must not be empty")
        texts = body.texts("documents", at_most=self.max_documents, empty=False)
        body.whole("top_k", 1, len(texts), null=True)
        body.flag("return_documents")
        body.flag("truncation")
        if self.models and body.members["model"] not in self.models:
            body.refuse("model", f"{body.members['model']} is not supported")
        if not body.members.get("truncation", True):
            self._check_lengths(body)
        if (total := self._count(body.members)) > self.max_total_tokens:
            body.refuse("documents", f"the request has {total} tokens, the limit is {self.max_total_tokens}")

    def _check_lengths(self, body: Body) -> None:
        query = tokens(body.members["query"])
        if query > self.max_query_tokens:
            body.refuse("query", f"has {query} tokens, the limit is {self.max_query_tokens}")
        if any(query + tokens(text) > self.max_pair_tokens for text in body.members["documents"]):
            body.refuse("documents", f"query and document have more than {self.max_pair_tokens} tokens")

    def _count(self, body: dict[str, Any]) -> int:
        """The tokens of a request, after the cut."""
        query = min(tokens(body["query"]), self.max_query_tokens)
        room = max(self.max_pair_tokens - query, 0)
        return query * len(body["documents"]) + sum(min(tokens(text), room) for text in body["documents"])

    def reply(self, body: dict[str, Any]) -> Reply:
        """A list in ``data``, best first; the echo is a plain string."""
        data: list[dict[str, Any]] = [
            {"index": index, "relevance_score": score} for index, score in self.ranked(body, body.get("top_k"))
        ]
        if body.get("return_documents"):
            for item in data:
                item["document"] = body["documents"][item["index"]]
        usage = {"total_tokens": self._count(body)}
        return Reply(200, {"object": "list", "data": data, "model": body["model"], "usage": usage})

    def errors(self) -> dict[str, Scripted]:
        """Of the error page. Nothing is known of the bodies above 499; they are given the same shape."""
        return {
            "400_unknown_argument": self.error(400, "Argument 'top_n' is not supported by our API"),
            "400_empty_document": self.error(400, "Input cannot contain empty strings or empty lists"),
            "400_too_many_tokens": self.error(400, "the request has 700000 tokens, the limit is 600000"),
            "401_wrong_key": self.wrong_key(),
            "403_forbidden": self.error(403, "the IP address is not allowed"),
            "422_detail_text": self.error(422, "the request cannot be processed"),
            "429_rate_limit": self.error(429, "rate limit of requests per minute reached"),
            "500_internal": self.error(500, "internal server error"),
            "502_gateway": self.error(502, "bad gateway"),
            "503_overloaded": self.error(503, "the service is overloaded"),
            "504_timeout": self.error(504, "gateway timeout"),
        }
