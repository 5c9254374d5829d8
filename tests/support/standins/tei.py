"""Hugging Face Text Embeddings Inference: POST /rerank."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from support.standins.messages import Reply, Request, Scripted
from support.standins.provider import Body, Provider, refuse
from support.standins.relevance import relevance, tokens

_KINDS = {
    400: "Empty",
    413: "Validation",
    422: "Validation",
    424: "Backend",
    429: "Overloaded",
    503: "Unhealthy",
}
_PLAIN = {"content-type": "text/plain; charset=utf-8"}


@dataclass
class TEI(Provider):
    """Settings.

    ``max_texts`` of one request; ``slots``: how many texts may be served at the same time; ``max_bytes`` of a body;
    ``model_sha``: the commit in the reply of ``/info``; None if there is no such path;
    ``max_tokens`` of a pair, ``auto_truncate``: whether it is cut to them if `truncate` is not sent;
    ``validation_status``: 413 up to version 1.8.
    """

    name = "tei"
    paths = ("/rerank",)
    documents_key = "texts"
    list_key = None
    score_key = "score"
    echo_key = "text"
    needs_key = False

    max_texts: int = 32
    slots: int = 512
    max_bytes: int = 2_000_000
    max_tokens: int = 512
    auto_truncate: bool = True
    validation_status: int = 422
    model_sha: str | None = "0123456789abcdef0123456789abcdef01234567"
    _taken: int = field(default=0, init=False)

    def error(self, status: int, message: str, kind: str = "") -> Reply:
        """``error`` and ``error_type``; the web framework's own errors are plain text."""
        if status in (404, 405, 415):
            return Reply(status, message.encode(), _PLAIN)
        return Reply(status, {"error": message, "error_type": kind or _KINDS.get(status, "Backend")})

    def wrong_key(self) -> Reply:
        """Without a body."""
        return Reply(401, b"")

    def invalid(self, where: str, message: str, value: Any) -> Reply:
        """JSON of the wrong shape."""
        return Reply(422, f"Failed to deserialize the JSON body: {where}: {message}".encode(), _PLAIN)

    def wrong_type(self, request: Request) -> Reply:
        """The web framework's."""
        return Reply(415, b"Expected request with `Content-Type: application/json`", _PLAIN)

    def not_json(self) -> Reply:
        """The web framework's."""
        return Reply(400, b"Failed to parse the request body as JSON", _PLAIN)

    def too_large(self, request: Request) -> Reply | None:
        """Plain text."""
        if len(request.raw) <= self.max_bytes:
            return None
        return Reply(413, b"Failed to buffer the request body: length limit exceeded", _PLAIN)

    def check(self, body: Body) -> None:
        """No model and no limit: both are unknown here. An empty text is let pass, if the query is not empty."""
        optional = ("truncate", "truncation_direction", "raw_scores", "return_text")
        body.keys(("query", "texts"), optional)
        body.text("query")
        body.flag("truncate", null=True)
        body.flag("raw_scores")
        body.flag("return_text")
        body.one_of("truncation_direction", ("left", "right", "Left", "Right"))
        query, texts = body.members["query"], body.members["texts"]
        if texts == []:
            refuse(self.error(400, "`texts` cannot be empty", "Empty"), "texts: empty")
        body.texts("texts", at_most=None)
        if not query and "" in texts:
            refuse(self.error(400, "`inputs` cannot be empty", "Empty"), "query and text: empty")
        if len(texts) > self.max_texts:
            self._refuse_validation(f"batch size {len(texts)} > maximum allowed batch size {self.max_texts}")
        truncate = body.members.get("truncate")
        if not (self.auto_truncate if truncate is None else truncate):
            longest = tokens(query) + max(map(tokens, texts))
            if longest > self.max_tokens:
                self._refuse_validation(f"`inputs` must have less than {self.max_tokens} tokens. Given: {longest}")

    def _refuse_validation(self, message: str) -> None:
        refuse(self.error(self.validation_status, message, "Validation"), message)

    def overloaded(self, body: dict[str, Any]) -> Reply | None:
        """Every text needs a slot, and none is waited for."""
        if self._taken + len(body["texts"]) <= self.slots:
            return None
        return self.error(429, "Model is overloaded", "Overloaded")

    def occupy(self, request: Request) -> int:
        """One for each text of a request that is served."""
        taken = 0 if request.refused or request.method != "POST" else len(request.body["texts"])
        self._taken += taken
        return taken

    def leave(self, slots: int) -> None:
        """They are free for the next request."""
        self._taken -= slots

    def reply(self, body: dict[str, Any]) -> Reply:
        """The bare list, best first; equal scores in falling order of index. Figures are in the headers."""
        query, texts = body["query"], body["texts"]
        pairs = [(index, relevance(query, text)) for index, text in enumerate(texts)]
        rows: list[dict[str, Any]] = []
        for index, score in sorted(pairs, key=lambda pair: (pair[1], pair[0]), reverse=True):
            rows.append({"index": index, "score": logit(score) if body.get("raw_scores") else score})
            if body.get("return_text"):
                rows[-1]["text"] = texts[index]
        headers = {
            "x-compute-type": "cpu",
            "x-compute-time": "3",
            "x-compute-characters": str(len(query) * len(texts) + sum(map(len, texts))),
            "x-compute-tokens": str(tokens(query) * len(texts) + sum(map(tokens, texts))),
            "x-total-time": "3",
            "x-tokenization-time": "1",
            "x-queue-time": "0",
            "x-inference-time": "2",
        }
        return Reply(200, rows, headers)

    def get(self, request: Request) -> Reply | None:
        """Health needs no key, and what the server says of its model needs that of the server."""
        if request.path == "/info" and self.model_sha is not None:
            self._check_key(request)
            model_info = {"model_id": "org/reranker", "model_sha": self.model_sha, "model_dtype": "float16"}
            return Reply(200, {**model_info, "max_client_batch_size": self.max_texts, "version": "1.9.3"})
        return Reply(200, b"") if request.path in ("/health", "/ping") else None

    def errors(self) -> dict[str, Scripted]:
        """By kind."""
        return {
            "400_empty": self.error(400, "`texts` cannot be empty", "Empty"),
            "401_wrong_key": self.wrong_key(),
            "413_too_large": Reply(413, b"Failed to buffer the request body: length limit exceeded", _PLAIN),
            "413_validation_of_1_8": self.error(413, "batch size 33 > maximum allowed batch size 32", "validation"),
            "415_content_type": Reply(415, b"Expected request with `Content-Type: application/json`", _PLAIN),
            "422_validation": self.error(422, "batch size 33 > maximum allowed batch size 32", "Validation"),
            "422_tokenizer": self.error(422, "Tokenizer error", "Tokenizer"),
            "422_plain_text": self.invalid("texts", "expected a sequence", None),
            "424_backend": self.error(424, "model is not a re-ranker model", "Backend"),
            "429_overloaded": self.error(429, "Model is overloaded", "Overloaded"),
            "503_unhealthy": self.error(503, "service unhealthy", "Unhealthy"),
        }


def logit(score: float) -> float:
    """The number whose sigmoid is the score."""
    return math.log(score / (1 - score))
