"""The stage `voyage` and its service."""

from __future__ import annotations

import asyncio

import pytest
import voyageai

from milvus_stages import Voyage
from support.hosted import HIT_TEXTS, QUERY, rerank, stage_for
from support.standins import ranking


def test_too_long_without_truncation_is_the_services_error(serve, way):
    """The detail of the error says what was too long."""
    server = serve("voyage", max_pair_tokens=20)
    answer = rerank(stage_for(server, truncation=False), way, texts=[*HIT_TEXTS, "plum " * 50])
    assert answer.error.status == 400
    assert "more than 20 tokens" in answer.error.detail
    assert rerank(stage_for(server), way, texts=[*HIT_TEXTS, "plum " * 50]).error is None


@pytest.mark.parametrize(
    ("model", "tokens", "pair"),
    [
        ("rerank-3", 600_000, 32_000),
        ("rerank-3-lite", 600_000, 32_000),
        ("rerank-2.5", 600_000, 32_000),
        ("rerank-2.5-lite", 600_000, 32_000),
        ("rerank-2", 600_000, 16_000),
        ("rerank-2-lite", 600_000, 8_000),
        ("rerank-1", 300_000, 8_000),
        ("rerank-lite-1", 300_000, 4_000),
        ("rerank-4-of-2028", 600_000, 32_000),
    ],
)
def test_the_limits_of_each_model(model, tokens, pair):
    """The total of a request, and the length of a document; an unknown model has those of the newest."""
    limits = Voyage(model=model).limits()
    assert (limits.documents, limits.tokens, limits.document_tokens) == (1000, tokens, pair)
    assert Voyage(model=model, truncation=False).limits().document_tokens is None


def test_the_total_of_tokens_bounds_a_request(serve, way):
    """A long query counts once a document, so that few documents fit; the service never has to refuse."""
    server = serve("voyage")
    query = "plum " * 4_000
    texts = [f"red plum {number}" for number in range(200)]
    answer = rerank(stage_for(server), way, query, texts)
    assert answer.error is None
    assert all(request.refused is None for request in server.requests)
    assert len(server.requests) == 3
    assert answer.usage["requests"] == 3
    assert answer.order == [index for index, _ in ranking(query, texts)]


def test_long_documents_bound_a_request(serve, way):
    """A document counts up to the length at which the service truncates it, which decides how many fit in a request."""
    server = serve("voyage")
    texts = [f"{number} red plum " + "plum " * 20_000 for number in range(20)]
    answer = rerank(stage_for(server), way, texts=texts)
    assert answer.error is None
    assert sorted(len(request.body["documents"]) for request in server.requests) == [2, 18]
    assert all(request.refused is None for request in server.requests)


def test_a_total_that_was_estimated_too_low_is_halved(serve, way):
    """If the service counts more tokens than were estimated, halves are sent until they fit."""
    server = serve("voyage", max_total_tokens=60)
    answer = rerank(stage_for(server), way)
    assert answer.error is None
    assert answer.order == [index for index, _ in ranking(QUERY, HIT_TEXTS)]
    assert any(request.refused for request in server.requests)
    server.clear()
    assert rerank(stage_for(server, truncation=False), way).error.status == 400
    assert len(server.requests) == 1


def test_the_official_sdk_gives_the_same(serve, way):
    """Voyage's own client finds the same order and the same scores."""
    server = serve("voyage")
    arguments = {"query": QUERY, "documents": list(HIT_TEXTS), "model": "rerank-2.5", "top_k": 4}
    client = {"api_key": server.key, "base_url": f"{server.url}/v1"}
    if way == "async":
        theirs = asyncio.run(voyageai.AsyncClient(**client).rerank(**arguments))
    else:
        theirs = voyageai.Client(**client).rerank(**arguments)
    ours = rerank(stage_for(server, top_k=4), way)
    assert [(item.index, item.relevance_score) for item in theirs.results] == ours.ranked
    assert theirs.total_tokens == ours.usage["total_tokens"]
    assert server.requests[0].body == server.requests[1].body
