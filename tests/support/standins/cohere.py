"""Cohere: POST /v2/rerank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from support.standins.messages import Reply, Request, Scripted
from support.standins.provider import Body, Provider, refuse

MODELS = (
    "rerank-v5.0-pro",
    "rerank-v5.0-fast",
    "rerank-v4.0-pro",
    "rerank-v4.0-fast",
    "rerank-v3.5",
    "rerank-english-v3.0",
    "rerank-multilingual-v3.0",
)


@dataclass
class Cohere(Provider):
    """Settings: ``models`` that it knows (empty: any), ``max_documents``, ``empty_documents`` (whether "" passes)."""

    name = "cohere"
    paths = ("/v2/rerank",)

    models: tuple[str, ...] = MODELS
    max_documents: int = 10_000
    empty_documents: bool = False

    def error(self, status: int, message: str, kind: str = "") -> Reply:
        """``message`` and the error's id."""
        return Reply(status, {"id": "0e5b1c9a-error", "message": message}, {"x-debug-trace-id": "trace-of-an-error"})

    def check(self, body: Body) -> None:
        """The SDK sends null for what is given as None."""
        optional = ("top_n", "max_tokens_per_doc", "priority", "relevant_spans")
        body.keys(("model", "query", "documents"), optional)
        body.text("model", blank=False)
        body.text("query", blank=False)
        texts = body.texts("documents", at_most=self.max_documents, empty=self.empty_documents)
        body.whole("top_n", 1, len(texts), null=True)
        body.whole("max_tokens_per_doc", 1, null=True)
        body.whole("priority", 0, 999, null=True)
        self._check_spans(body)
        if self.models and body.members["model"] not in self.models:
            refuse(self.error(404, f"model '{body.members['model']}' not found"), "model: not found")

    def _check_spans(self, body: Body) -> None:
        spans = body.members.get("relevant_spans")
        if spans is None:
            return
        if not isinstance(spans, dict) or not spans.keys() <= {"mode", "threshold", "max_spans"}:
            body.refuse("relevant_spans", "must be an object of mode, threshold and max_spans")
        if spans.get("mode") not in ("enabled", "disabled"):
            body.refuse("relevant_spans", "mode must be enabled or disabled")
        if spans["mode"] == "enabled" and "v5" not in body.members["model"]:
            refuse(self.error(422, "relevant_spans needs a v5 model"), "relevant_spans: needs a v5 model")

    def reply(self, body: dict[str, Any]) -> Reply:
        """Results, best first, and the search units: one for every 100 documents begun."""
        results: list[dict[str, Any]] = [
            {"index": index, "relevance_score": score} for index, score in self.ranked(body, body.get("top_n"))
        ]
        if (body.get("relevant_spans") or {}).get("mode") == "enabled":
            for result in results:
                length = len(body["documents"][result["index"]])
                result["relevant_spans"] = [{"start": 0, "end": length, "score": result["relevance_score"]}]
        units = -(-len(body["documents"]) // 100)
        meta = {"api_version": {"version": "2"}, "billed_units": {"search_units": units}}
        return Reply(200, {"results": results, "meta": meta})

    def stamped(self, reply: Reply, request: Request) -> Reply:
        """An id in the body and one in the headers."""
        headers = {"x-debug-trace-id": f"trace-{request.number:06}"}
        if reply.status == 200:
            return reply.but(body={"id": f"reply-{request.number:06}", **reply.body}, headers=headers)
        return reply.but(headers=headers)

    def errors(self) -> dict[str, Scripted]:
        """Of the error page and the OpenAPI file."""
        return {
            "400_no_documents": self.error(400, "invalid request: list of documents must not be empty"),
            "400_too_many_documents": self.error(400, "invalid request: too many documents"),
            "401_wrong_key": self.error(401, "invalid api token"),
            "402_billing_limit": self.error(402, "billing limit reached"),
            "403_not_permitted": self.error(403, "not permitted"),
            "404_unknown_model": self.error(404, "model 'x' not found"),
            "422_fields": self.error(422, "invalid combination of fields"),
            "429_rate_limit": self.error(429, "rate limit"),
            "429_trial_month_used_up": self.error(429, "trial key: the 1000 calls of this month are used up"),
            "498_denied_token": self.error(498, "a token in the text is on the deny list"),
            "499_cancelled": self.error(499, "request cancelled"),
            "500_internal": self.error(500, "internal server error"),
            "501_not_implemented": self.error(501, "not implemented"),
            "503_unavailable": self.error(503, "service unavailable"),
            "504_timeout": self.error(504, "gateway timeout"),
        }
