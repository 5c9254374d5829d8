"""The stage `tei` and its server."""

from __future__ import annotations

import pytest

from support.hosted import HIT_TEXTS, QUERY, rerank, stage_for
from support.standins import changed, ranking, relevance
from support.standins.tei import logit

MANY = [f"red plum {number}" for number in range(70)]


def test_the_options(serve, way):
    """Truncation, its direction, and logits."""
    server = serve("tei")
    answer = rerank(stage_for(server, truncate=False, truncation_direction="left", raw_scores=True), way)
    body = server.requests[0].body
    assert (body["truncate"], body["truncation_direction"], body["raw_scores"]) == (False, "left", True)
    assert answer.scores == pytest.approx({i: logit(relevance(QUERY, text)) for i, text in enumerate(HIT_TEXTS)})
    assert min(answer.scores.values()) < 0


def test_more_than_32_texts_are_split(serve, way):
    """70 become three requests, each within the server's limit, and the ranking is that of the whole."""
    server = serve("tei")
    assert rerank(stage_for(server), way, texts=MANY[:33]).order == [index for index, _ in ranking(QUERY, MANY[:33])]
    assert sorted(len(request.body["texts"]) for request in server.requests) == [16, 17]
    server.clear()
    answer = rerank(stage_for(server, top_k=10), way, texts=MANY)
    assert sorted(len(request.body["texts"]) for request in server.requests) == [23, 23, 24]
    assert all(request.refused is None for request in server.requests)
    assert answer.order == [index for index, _ in ranking(QUERY, MANY, 10)]


def test_a_server_that_takes_more_is_sent_more(serve, way):
    """`max_documents` is set to what the server was started with."""
    server = serve("tei", max_texts=128)
    assert rerank(stage_for(server, max_documents=128), way, texts=MANY).error is None
    assert len(server.requests) == 1


def test_a_text_that_the_server_does_not_take_is_left_unscored(serve, way):
    """Without truncation, one that is too long ranks last and is flagged; the others are scored."""
    server = serve("tei", max_tokens=50)
    texts = [*HIT_TEXTS, "plum " * 100]
    answer = rerank(stage_for(server, truncate=False), way, texts=texts)
    assert answer.error is None
    assert answer.order == [*(index for index, _ in ranking(QUERY, HIT_TEXTS)), len(HIT_TEXTS)]
    assert answer.scores[len(HIT_TEXTS)] is None
    assert answer.warnings == [
        "1 of 8 documents are larger than the service accepts; ranked last, without a score",
    ]
    assert answer.details["documents_too_large"] == 1
    assert rerank(stage_for(server), way, texts=texts).warnings == []


def test_few_slots_are_enough_one_request_at_a_time(serve, way):
    """Each text takes a slot of the server's; `max_concurrency` keeps within them."""
    server = serve("tei", slots=32, latency=0.02)
    answer = rerank(stage_for(server, max_concurrency=1), way, texts=MANY)
    assert answer.error is None
    assert answer.usage["requests"] == 3


def test_equal_scores_keep_the_order_of_the_search(serve, way):
    """The server lists them backwards."""
    server = serve("tei")
    assert rerank(stage_for(server), way, texts=["red plum"] * 5).order == [0, 1, 2, 3, 4]


def test_usage_comes_from_a_header(serve, way):
    """Tokens are added over the requests; a header that is not a number is not counted."""
    server = serve("tei")
    one = rerank(stage_for(server), way).usage
    assert set(one) == {"requests", "total_tokens"}
    assert rerank(stage_for(server, max_documents=4), way).usage == {**one, "requests": 2}
    for value in ("many", "-3", "1.5", ""):
        server.always(lambda request, normal, value=value: normal.but(headers={"x-compute-tokens": value}))
        answer = rerank(stage_for(server), way)
        assert answer.error is None
        assert answer.usage == {"requests": 1}


def test_an_object_in_place_of_the_list_is_refused(serve, way):
    """A server of another kind at the address gives an error."""
    server = serve("tei")
    server.always(changed(lambda body, request: {"results": body}))
    assert "answered wrongly" in str(rerank(stage_for(server), way).error)
