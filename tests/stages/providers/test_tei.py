"""The stage `tei` and its server."""

from __future__ import annotations

import pytest

from support.hosted import KEY, QUERY, TEXTS, ask, stage_for
from support.standins import changed, errors, ranking, relevance
from support.standins.tei import logit

MANY = [f"red plum {number}" for number in range(70)]


def test_the_request(serve, way):
    """Neither a model nor a limit: the server knows none. Without a key, none is sent."""
    server = serve("tei")
    answer = ask(stage_for(server, top_k=3), way)
    (request,) = server.requests
    assert request.path == "/rerank"
    assert request.body == {
        "query": QUERY,
        "texts": list(TEXTS),
        "truncate": True,
        "raw_scores": False,
        "return_text": False,
    }
    assert "authorization" not in request.headers
    assert len(answer.ranked) == 3


def test_the_options(serve, way):
    """Truncation, its direction, and logits."""
    server = serve("tei")
    answer = ask(stage_for(server, truncate=False, truncation_direction="left", raw_scores=True), way)
    body = server.requests[0].body
    assert (body["truncate"], body["truncation_direction"], body["raw_scores"]) == (False, "left", True)
    assert answer.scores == pytest.approx({i: logit(relevance(QUERY, text)) for i, text in enumerate(TEXTS)})
    assert min(answer.scores.values()) < 0


def test_more_than_32_texts_are_split(serve, way):
    """70 become three requests, each within the server's limit, and the ranking is that of the whole."""
    server = serve("tei")
    assert ask(stage_for(server), way, texts=MANY[:33]).order == [index for index, _ in ranking(QUERY, MANY[:33])]
    assert sorted(len(request.body["texts"]) for request in server.requests) == [16, 17]
    server.clear()
    answer = ask(stage_for(server, top_k=10), way, texts=MANY)
    assert sorted(len(request.body["texts"]) for request in server.requests) == [23, 23, 24]
    assert all(request.refused is None for request in server.requests)
    assert answer.order == [index for index, _ in ranking(QUERY, MANY, 10)]


def test_a_server_that_takes_more_is_sent_more(serve, way):
    """`max_documents` is set to what the server was started with."""
    server = serve("tei", max_texts=128)
    assert ask(stage_for(server, max_documents=128), way, texts=MANY).error is None
    assert len(server.requests) == 1


def test_a_text_that_the_server_does_not_take_is_left_unscored(serve, way):
    """Without truncation, one that is too long ranks last and is flagged; the others are scored."""
    server = serve("tei", max_tokens=50)
    texts = [*TEXTS, "plum " * 100]
    answer = ask(stage_for(server, truncate=False), way, texts=texts)
    assert answer.error is None
    assert answer.order == [*(index for index, _ in ranking(QUERY, TEXTS)), len(TEXTS)]
    assert answer.scores[len(TEXTS)] is None
    assert answer.warnings == [
        "1 of 8 documents are larger than the service accepts; ranked last, without a score",
    ]
    assert answer.details["documents_too_large"] == 1
    assert ask(stage_for(server), way, texts=texts).warnings == []


def test_few_slots_are_enough_one_request_at_a_time(serve, way):
    """Each text takes a slot of the server's; `max_concurrency` keeps within them."""
    server = serve("tei", slots=32, latency=0.02)
    answer = ask(stage_for(server, max_concurrency=1), way, texts=MANY)
    assert answer.error is None
    assert answer.usage["requests"] == 3


def test_equal_scores_keep_the_order_of_the_search(serve, way):
    """The server lists them backwards."""
    server = serve("tei")
    assert ask(stage_for(server), way, texts=["red plum"] * 5).order == [0, 1, 2, 3, 4]


def test_usage_comes_from_a_header(serve, way):
    """Tokens are added over the requests; a header that is not a number is not counted."""
    server = serve("tei")
    one = ask(stage_for(server), way).usage
    assert set(one) == {"requests", "total_tokens"}
    assert ask(stage_for(server, max_documents=4), way).usage == {**one, "requests": 2}
    for value in ("many", "-3", "1.5", ""):
        server.always(lambda request, normal, value=value: normal.but(headers={"x-compute-tokens": value}))
        answer = ask(stage_for(server), way)
        assert answer.error is None
        assert answer.usage == {"requests": 1}


def test_a_key_is_sent_where_one_is_named(serve, way):
    """A locked server answers 401 without a body; with the key it answers."""
    server = serve("tei", locked=True)
    error = ask(stage_for(server), way).error
    assert error.status == 401
    assert ask(stage_for(server, api_key_env=KEY), way).error is None


@pytest.mark.parametrize(
    ("name", "code", "says"),
    [
        ("400_empty", "Empty", "cannot be empty"),
        ("422_tokenizer", "Tokenizer", "Tokenizer error"),
        ("424_backend", "Backend", "not a re-ranker model"),
        ("429_overloaded", "Overloaded", "lower max_concurrency"),
        ("503_unhealthy", "Unhealthy", "unhealthy"),
        ("415_content_type", None, "Expected request with"),
        ("422_plain_text", None, "Failed to deserialize"),
    ],
)
def test_its_errors_have_their_kind(serve, way, name, code, says):
    """Those of the web framework are plain text, and their text is the detail."""
    server = serve("tei")
    server.always(errors("tei")[name])
    error = ask(stage_for(server), way).error
    assert error.code == code
    assert says in f"{error} {error.detail}"
    assert len(server.requests) == 1


def test_an_object_in_place_of_the_list_is_refused(serve, way):
    """A server of another kind at the address gives an error."""
    server = serve("tei")
    server.always(changed(lambda body, request: {"results": body}))
    assert "answered wrongly" in str(ask(stage_for(server), way).error)
