"""Jina AI: POST /v1/rerank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from support.standins.messages import Reply, Request, Scripted
from support.standins.provider import Body, Provider, refuse
from support.standins.relevance import relevance, tokens

MODELS = (
    "jina-reranker-v3.5",
    "jina-reranker-v3",
    "jina-reranker-m0",
    "jina-reranker-v2-base-multilingual",
    "jina-reranker-v1-base-en",
    "jina-reranker-v1-turbo-en",
    "jina-reranker-v1-tiny-en",
    "jina-colbert-v2",
    "jina-colbert-v1-en",
)
_CODES = {
    400: "INPUT_TOKEN_LIMIT_EXCEEDED",
    401: "AUTH_INVALID_API_KEY",
    403: "AUTHZ_INSUFFICIENT_BALANCE",
    404: "RESOURCE_NOT_FOUND",
    409: "CONFLICT_RESOURCE_BUSY",
    429: "RATE_REQUEST_LIMIT_EXCEEDED",
    500: "INTERNAL_ERROR",
    503: "SERVICE_UNAVAILABLE",
    504: "SERVICE_TIMEOUT",
}


@dataclass
class Jina(Provider):
    """Settings.

    ``listwise``: scores depend on the other documents too, as those of v3 models really do; off, so that results can be
    foretold. ``no_echo``: insists on `return_documents: false`, whose default would bring every text back.
    ``max_pair_tokens``: query and one document of a v1 or v2 model. ``models``: empty for any.
    """

    name = "jina"
    paths = ("/v1/rerank",)

    models: tuple[str, ...] = MODELS
    listwise: bool = False
    no_echo: bool = True
    max_pair_tokens: int = 1_024

    def error(self, status: int, message: str, kind: str = "") -> Reply:
        """``detail``, ``code`` and the request's id."""
        code = kind or _CODES.get(status, "INTERNAL_ERROR")
        return Reply(status, {"detail": message, "code": code, "request_id": "id-of-an-error"})

    def invalid(self, where: str, message: str, value: Any) -> Reply:
        """422 repeats what was sent."""
        errors = [{"field": where, "message": message, "type": "value_error", "input": value}]
        reply = self.error(422, "validation failed", "VALIDATION_ERROR")
        return reply.but(body={**reply.body, "errors": errors})

    def missing_key(self) -> Reply:
        """Use the given code."""
        return self.error(401, "no api key", "AUTH_MISSING_API_KEY")

    def bad_header(self) -> Reply:
        """Use the given code."""
        return self.error(401, "the header is not of the form Bearer <key>", "AUTH_INVALID_FORMAT")

    def check(self, body: Body) -> None:
        """Which members there may be depends on the model."""
        for_model = {"truncation"}
        if _is_v3(body.members.get("model")):
            for_model = {"max_doc_length", "return_embeddings"}
        body.keys(("model", "query", "documents"), {"top_n", "return_documents", *for_model})
        body.text("model", blank=False)
        body.text("query")
        texts = self._check_documents(body)
        body.whole("top_n", 1, len(texts), null=True)
        for flag in ("return_documents", "truncation", "return_embeddings"):
            body.flag(flag, null=True)
        body.whole("max_doc_length", 1, 8_192, null=True)
        if self.no_echo and body.members.get("return_documents") is not False:
            body.refuse("return_documents", "must be sent as false: the default is true")
        if self.models and body.members["model"] not in self.models:
            refuse(self.error(400, "the model was not found", "INPUT_MODEL_NOT_FOUND"), "model: not found")
        self._check_lengths(body, texts)

    def _check_documents(self, body: Body) -> list[str]:
        values = body.members["documents"]
        if not isinstance(values, list) or not values:
            body.refuse("documents", "must be a list of at least one")
        texts = [_text(value) for value in values]
        if not all(isinstance(text, str) for text in texts):
            body.refuse("documents", "each must be a string or an object with a text")
        return texts

    def _check_lengths(self, body: Body, texts: list[str]) -> None:
        """What the older models do with too long a text is not established; here, an error without `truncation`."""
        if _is_v3(body.members["model"]) or body.members.get("truncation"):
            return
        query = tokens(body.members["query"])
        if any(query + tokens(text) > self.max_pair_tokens for text in texts):
            refuse(self.error(400, "the input has too many tokens"), "documents: too many tokens")

    def reply(self, body: dict[str, Any]) -> Reply:
        """Results, best first; v3 models score from -1 to 1."""
        query, texts = body["query"], [_text(value) for value in body["documents"]]
        scores = [relevance(query, text) for text in texts]
        if _is_v3(body["model"]):
            if self.listwise:
                mean = sum(scores) / len(scores)
                scores = [score * (1 - 0.3 * mean) - 1e-4 * place for place, score in enumerate(scores)]
            scores = [2 * score - 1 for score in scores]
        order = sorted(range(len(texts)), key=lambda index: -scores[index])[: body.get("top_n")]
        results: list[dict[str, Any]] = [{"index": index, "relevance_score": scores[index]} for index in order]
        if body.get("return_documents") is not False:
            for item in results:
                item["document"] = {"text": texts[item["index"]]}
        usage = {"total_tokens": tokens(query) * len(texts) + sum(map(tokens, texts))}
        return Reply(200, {"model": body["model"], "object": "list", "usage": usage, "results": results})

    def stamped(self, reply: Reply, request: Request) -> Reply:
        """Put the id into the body of an error."""
        if isinstance(reply.body, dict) and "request_id" in reply.body:
            return reply.but(body={**reply.body, "request_id": f"request-{request.number:06}"})
        return reply

    def get(self, request: Request) -> Reply | None:
        """The list of models needs no key."""
        if request.path != "/v1/models":
            return None
        return Reply(200, {"object": "list", "data": [{"id": model, "object": "model"} for model in self.models]})

    def errors(self) -> dict[str, Scripted]:
        """One for each code."""
        codes = {
            "400_unknown_model": (400, "INPUT_MODEL_NOT_FOUND"),
            "400_token_limit": (400, "INPUT_TOKEN_LIMIT_EXCEEDED"),
            "401_missing_key": (401, "AUTH_MISSING_API_KEY"),
            "401_wrong_key": (401, "AUTH_INVALID_API_KEY"),
            "401_wrong_format": (401, "AUTH_INVALID_FORMAT"),
            "403_no_balance": (403, "AUTHZ_INSUFFICIENT_BALANCE"),
            "403_resource_limit": (403, "AUTHZ_RESOURCE_LIMIT_EXCEEDED"),
            "404_not_found": (404, "RESOURCE_NOT_FOUND"),
            "409_busy": (409, "CONFLICT_RESOURCE_BUSY"),
            "429_requests": (429, "RATE_REQUEST_LIMIT_EXCEEDED"),
            "429_tokens": (429, "RATE_TOKEN_LIMIT_EXCEEDED"),
            "429_concurrency": (429, "RATE_CONCURRENCY_LIMIT_EXCEEDED"),
            "429_ip": (429, "RATE_IP_LIMIT_EXCEEDED"),
            "500_internal": (500, "INTERNAL_ERROR"),
            "503_unavailable": (503, "SERVICE_UNAVAILABLE"),
            "504_timeout": (504, "SERVICE_TIMEOUT"),
        }
        named = {name: self.error(status, f"the text of {code}", code) for name, (status, code) in codes.items()}
        return {**named, "422_validation": self.invalid("top_n", "must be at least 1", 0)}


def _is_v3(model: Any) -> bool:
    return isinstance(model, str) and model.startswith("jina-reranker-v3")


def _text(value: Any) -> Any:
    """The text of a document: itself, or the only member ``text`` of an object."""
    return value["text"] if isinstance(value, dict) and value.keys() == {"text"} else value
