"""A plain client for the stand-ins: right bodies, one request at a time, what a reply says."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from typing import Any

import httpx

from support.standins.providers import PROVIDERS
from support.standins.server import StandIn

QUERY = "red plum"
TEXTS = ("a blue sky", "one red plum", "a red apple", "nothing")
_MODELS = {"cohere": "rerank-v3.5", "voyage": "rerank-2.5", "jina": "jina-reranker-v2-base-multilingual"}
_TLS = ssl.create_default_context()  # made once: httpx would read the certificates again for each request


def good(provider: str, query: str = QUERY, texts: Sequence[str] = TEXTS, **more: Any) -> dict[str, Any]:
    """A body that the provider accepts, with further members perhaps."""
    texts = list(texts)
    if provider == "tei":
        return {"query": query, "texts": texts, **more}
    if provider == "jev":
        questions = {
            f"d{index}": {"type": "noul", "instructions": {"task": "is it relevant?", "document": text}}
            for index, text in enumerate(texts)
        }
        return {"model": "jev-latest", "state": {"query": query}, "questions": questions, **more}
    if provider == "mixedbread":
        return {"query": query, "input": texts, **more}
    body = {"model": _MODELS.get(provider, "m"), "query": query, "documents": texts}
    return body | ({"return_documents": False} if provider == "jina" else {}) | more


def send(
    server: StandIn, body: Any, *, key: str | None = None, path: str | None = None, **options: Any
) -> httpx.Response:
    """Send a body once, on a new connection.

    Args:
        server: where to.
        body: what, as JSON.
        key: another than the right one.
        path: another than the service's first.
        options: further arguments of `httpx.post`; ``headers`` take the place of the key.
    """
    options.setdefault("headers", {"authorization": f"Bearer {key or server.key}"})
    options.setdefault("timeout", 20)
    return httpx.post(server.url + (path or server.provider.paths[0]), json=body, verify=_TLS, **options)


def pairs(provider: str, data: Any) -> list[tuple[int, float]]:
    """Index and score of each result, in the order of the reply (Jev's, which has none: best first)."""
    service = PROVIDERS[provider]
    if provider == "jev":
        found = [(int(name[1:]), answer["noul"]) for name, answer in data["answers"].items()]
        return sorted(found, key=lambda pair: -pair[1])
    return [(row["index"], row[service.score_key]) for row in (data[service.list_key] if service.list_key else data)]
