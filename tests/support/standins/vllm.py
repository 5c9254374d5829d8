"""vLLM: POST /rerank, /v1/rerank, /v2/rerank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from support.standins.messages import Reply, Request, Scripted
from support.standins.provider import Body, Provider, refuse
from support.standins.relevance import ranking, tokens

_KINDS = {400: "BadRequestError", 404: "NotFoundError", 501: "NotImplementedError"}


@dataclass
class VLLM(Provider):
    """Settings.

    ``models`` that are served (empty: any); ``max_tokens`` of a pair: more is an error unless `truncate_prompt_tokens`
    is sent; ``insists_on_top_n``: as some hosted clones do.
    """

    name = "vllm"
    stage = "rerank_api"
    paths = ("/rerank", "/v1/rerank", "/v2/rerank")
    needs_key = False

    models: tuple[str, ...] = ()
    max_tokens: int = 8_192
    insists_on_top_n: bool = False

    def error(self, status: int, message: str, kind: str = "") -> Reply:
        """An object under ``error``."""
        kind = kind or _KINDS.get(status, "InternalServerError")
        return Reply(status, {"error": {"message": message, "type": kind, "param": None, "code": status}})

    def wrong_key(self) -> Reply:
        """The one error that is a string."""
        return Reply(401, {"error": "Unauthorized"})

    def check(self, body: Body) -> None:
        """Unknown members are let pass."""
        body.keys(("query", "documents", *(("top_n",) if self.insists_on_top_n else ())), (), others=True)
        if body.members.get("model") is not None:
            body.text("model")
            if self.models and body.members["model"] not in self.models:
                refuse(self.error(404, f"The model `{body.members['model']}` does not exist."), "model: not found")
        body.text("query")
        if not isinstance(body.members["documents"], str):
            body.texts("documents", at_most=None)
        body.whole("top_n", 0)
        body.whole("truncate_prompt_tokens", -1, null=True)
        body.whole("max_tokens_per_query", 0)
        body.whole("max_tokens_per_doc", 0)
        body.flag("use_activation", null=True)
        body.one_of("truncation_side", ("left", "right", None))
        longest = tokens(body.members["query"]) + max(map(tokens, _texts(body.members)))
        if body.members.get("truncate_prompt_tokens") is None and longest > self.max_tokens:
            body.refuse("documents", f"maximum context length is {self.max_tokens} tokens, you sent {longest}")

    def reply(self, body: dict[str, Any]) -> Reply:
        """Results, best first; the documents always come back."""
        query, texts = body["query"], _texts(body)
        results = [
            {"index": index, "document": {"text": texts[index], "multi_modal": None}, "relevance_score": score}
            for index, score in ranking(query, texts, body.get("top_n") or None)
        ]
        count = tokens(query) * len(texts) + sum(map(tokens, texts))
        usage = {"prompt_tokens": count, "total_tokens": count}
        return Reply(200, {"id": "score-7c", "model": body.get("model") or "m", "usage": usage, "results": results})

    def stamped(self, reply: Reply, request: Request) -> Reply:
        """An id for each reply."""
        return reply.but(body={**reply.body, "id": f"score-{request.number:06}"}) if reply.status == 200 else reply

    def get(self, request: Request) -> Reply | None:
        """Health needs no key."""
        return Reply(200, b"") if request.path == "/health" else None

    def errors(self) -> dict[str, Scripted]:
        """Today's shape, the old flat one, and the refused key's."""
        return {
            "400_overflow": self.error(400, "This model's maximum context length is 512 tokens."),
            "400_old_shape": Reply(400, {"object": "error", "message": "too long", "type": "BadRequestError"}),
            "401_wrong_key": self.wrong_key(),
            "404_unknown_model": self.error(404, "The model `x` does not exist."),
            "500_internal": self.error(500, "Internal server error"),
            "501_no_reranker": self.error(501, "The model does not support the rerank API"),
        }


def _texts(body: dict[str, Any]) -> list[str]:
    documents = body["documents"]
    return [documents] if isinstance(documents, str) else documents
