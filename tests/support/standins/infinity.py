"""Infinity: POST <prefix>/rerank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from support.standins.messages import Reply, Request, Scripted
from support.standins.provider import Body, FastAPI, refuse
from support.standins.relevance import ranking, tokens
from support.standins.tei import logit

_MOST_CHARACTERS = 122_880


@dataclass
class Infinity(FastAPI):
    """Settings: ``prefix`` of the path, ``models`` (empty: any), ``max_documents``."""

    name = "infinity"
    stage = "rerank_api"
    paths = ("/rerank",)
    needs_key = False

    prefix: str = ""
    models: tuple[str, ...] = ()
    max_documents: int = 2_048

    def __post_init__(self) -> None:
        self.paths = (f"{self.prefix}/rerank",)  # type: ignore[misc] - of this server

    def error(self, status: int, message: str, kind: str = "") -> Reply:
        """An object under ``error``; FastAPI's own are a ``detail``."""
        if status in (404, 405):
            return Reply(status, {"detail": message})
        return Reply(status, {"error": {"message": message, "type": None, "param": None, "code": status}})

    def wrong_key(self) -> Reply:
        """FastAPI's."""
        return Reply(401, {"detail": "Unauthorized"}, {"www-authenticate": "Bearer"})

    def check(self, body: Body) -> None:
        """Unknown members and empty strings are let pass."""
        body.keys(("query", "documents"), (), others=True)
        body.text("model")
        body.text("query", at_most=_MOST_CHARACTERS)
        body.texts("documents", at_most=self.max_documents, characters=_MOST_CHARACTERS)
        body.whole("top_n", 1, null=True)
        body.flag("return_documents")
        body.flag("raw_scores")
        if self.models and body.members.get("model", "default/not-specified") not in (
            *self.models,
            "default/not-specified",
        ):
            refuse(self.error(400, "model not found"), "model: not found")

    def reply(self, body: dict[str, Any]) -> Reply:
        """Results, best first; blanks around the texts are taken off first, and so in the echo."""
        query, texts = body["query"].strip(), [text.strip() for text in body["documents"]]
        results = [
            {
                "relevance_score": logit(score) if body.get("raw_scores") else score,
                "index": index,
                "document": texts[index] if body.get("return_documents") else None,
            }
            for index, score in ranking(query, texts, body.get("top_n"))
        ]
        count = tokens(query) * len(texts) + sum(map(tokens, texts))
        content = {
            "object": "rerank",
            "id": "infinity-1",
            "created": 1764000000,
            "model": body.get("model", "m"),
            "usage": {"prompt_tokens": count, "total_tokens": count},
            "results": results,
        }
        return Reply(200, content)

    def get(self, request: Request) -> Reply | None:
        """Health needs no key."""
        return Reply(200, {"unix": 1764000000.0}) if request.path == "/health" else None

    def errors(self) -> dict[str, Scripted]:
        """Its own and FastAPI's."""
        return {
            "400_unknown_model": self.error(400, "ModelNotDeployedError: model not found"),
            "401_wrong_key": self.wrong_key(),
            "422_validation": self.invalid("top_n", "Input should be greater than 0", 0),
            "429_overloaded": self.error(429, "model overloaded"),
            "500_internal": self.error(500, "InternalServerError"),
        }
