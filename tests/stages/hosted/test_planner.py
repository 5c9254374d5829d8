"""What is sent for a list of documents: blank ones left out, long lists in parts, too large ones halved."""

from __future__ import annotations

import pytest

from milvus_stages.hosted import limits as throttle
from support.hosted import QUERY, TEXTS, ask, both_ways, order, scored, sent
from support.standins import StandIn, ranking, relevance

BLANK = "3 of 7 documents are blank; ranked last, without a score"
MANY = [f"plum number {number}{' red' * (number % 5)}{' where' * (number % 3)}" for number in range(23)]

pytestmark = both_ways


def test_nothing_is_sent_where_every_document_is_blank(way):
    """There is nothing to ask, so nothing is asked, and nothing fails."""
    with StandIn("cohere") as server:
        outcome = ask(way, server, ["", "  "])
        assert server.requests == []
    assert outcome.scores == [[None, None]]
    assert outcome.failures == {}
    assert outcome.details == {"documents_blank": 2}


def test_a_batch_without_documents_sends_nothing(way):
    """Neither no queries, nor a query without texts."""
    with StandIn("cohere") as server:
        assert scored(way, server, []).scores == []
        assert ask(way, server, []).scores == [[]]
        assert server.requests == []


def test_tokens_a_minute_bound_a_request(way, monkeypatch):
    """No more than a minute's tokens are in one request, but for a single document that is longer than that."""
    monkeypatch.setattr(throttle, "_WINDOW", 0.05)  # the minute
    texts = ["plum " * 20, "red " * 20, "x" * 900]
    with StandIn("cohere") as server:
        outcome = ask(way, server, texts, tokens_per_minute=100)
        assert sorted(sent(server), key=len) == [texts[2:], texts[:2]]
    assert outcome.scores == [[relevance(QUERY, text) for text in texts]]


def test_texts_that_repeat_have_a_score_each(way):
    """Three times the same text is three documents, also in separate requests."""
    texts = [TEXTS[1], TEXTS[0], TEXTS[1], TEXTS[1]]
    for most in (None, 1, 2):
        with StandIn("cohere") as server:
            outcome = ask(way, server, texts, max_documents=most)
            assert sum(map(len, sent(server))) == 4
        assert outcome.scores == [[relevance(QUERY, text) for text in texts]]


@pytest.mark.parametrize("top_k", [1, 3, 10, 23, 99])
@pytest.mark.parametrize("provider", ["cohere", "voyage", "mixedbread"])
def test_the_best_of_the_parts_are_the_best_of_all(way, provider, top_k):
    """The limit is clamped in each part, and what is ranked is what one request would have ranked."""
    with StandIn(provider) as server:
        outcome = ask(way, server, MANY, top_k=top_k, max_documents=5)
        parts = sent(server)
        limits = [request.body.get("top_n", request.body.get("top_k")) for request in server.requests]
    assert limits == [min(top_k, len(part)) for part in parts]
    whole = [place for place, _ in ranking(QUERY, MANY, top_k)]
    assert order(outcome.scores[0])[:top_k] == whole


@pytest.mark.parametrize("kind", ["plain", "validation", "Validation"])
def test_what_is_too_large_is_halved(way, kind):
    """TEI refuses in three ways, depending on its version; the list is halved until it fits, and scored completely."""
    most = {"validation_status": 413 if kind == "validation" else 422, "max_texts": 3}
    settings = {"max_bytes": 400} if kind == "plain" else most
    with StandIn("tei", **settings) as server:
        outcome = ask(way, server, MANY, max_concurrency=1)
        taken = [request.body["texts"] for request in server.requests if request.refused is None]
    assert sorted(text for part in taken for text in part) == sorted(MANY)
    assert outcome.scores == [[relevance(QUERY, text) for text in MANY]]
    assert outcome.usage["requests"] == len(server.requests) > len(taken)
    assert "retries" not in outcome.usage
    assert outcome.warnings == []


@pytest.mark.parametrize("provider", ["cohere", "jev"])
def test_halves_of_surrogate_pairs_are_sent_replaced(way, provider):
    """JSON could not carry them; the rest of the text is scored."""
    with StandIn(provider) as server:
        outcome = ask(way, server, ["plum \ud83c cut", "\udf4e"], query="plum \ud83c?")
        (request,) = server.requests
    assert request.refused is None
    assert "�" in request.raw.decode()
    assert outcome.scores == [[relevance("plum �?", "plum � cut"), relevance("plum �?", "�")]]
