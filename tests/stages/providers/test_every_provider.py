"""What every hosted reranker makes of its service, whichever it is: the same ranking of the same texts."""

from __future__ import annotations

import pytest

from support.hosted import KEY, QUERY, STAGES, TEXTS, ask, stage_for
from support.standins import ranking, relevance

PROVIDERS = sorted(STAGES)


def with_key(provider: str) -> dict[str, str]:
    """The arguments that make a stage send a key that it does not send by default."""
    return {} if STAGES[provider].key_names else {"api_key_env": KEY}


@pytest.mark.parametrize("provider", PROVIDERS)
def test_every_provider_gives_the_same_ranking(serve, way, provider):
    """For the same texts the order is the same everywhere, ties in their order, and no request is refused."""
    server = serve(provider)
    answer = ask(stage_for(server), way)
    assert answer.error is None
    assert answer.order == [index for index, _ in ranking(QUERY, TEXTS)]
    for index, score in answer.ranked:
        expected = relevance(QUERY, TEXTS[index])
        assert score == pytest.approx(2 * expected - 1 if provider == "jina" else expected, abs=1e-12)
    assert [request.refused for request in server.requests] == [None]
    assert answer.usage.pop("requests") == 1
    assert all(type(figure) in (int, float) and figure >= 0 for figure in answer.usage.values())


@pytest.mark.parametrize("provider", PROVIDERS)
def test_every_provider_is_asked_for_no_more_than_is_wanted(serve, way, provider):
    """With `top_k` the best are the same ones, and a service that can give fewer is asked for as many."""
    server = serve(provider)
    stage = stage_for(server, top_k=2)
    assert ask(stage, way).order == [index for index, _ in ranking(QUERY, TEXTS, 2)]
    (request,) = server.requests
    asked = {key: value for key, value in request.body.items() if key in ("top_n", "top_k")}
    assert list(asked.values()) == ([2] if stage.takes_top_n else [])
    server.clear()
    ask(stage_for(server, top_k=50), way)
    assert server.requests[0].refused is None


@pytest.mark.parametrize("provider", [name for name in PROVIDERS if name != "jina"])
def test_however_a_list_is_split_the_ranking_is_the_same(serve, way, provider):
    """Scores of several requests are put together by index; each is asked for no more than it was sent."""
    server = serve(provider)
    for size in (1, 3, 6):
        server.clear()
        answer = ask(stage_for(server, max_documents=size, top_k=4), way)
        assert answer.order == [index for index, _ in ranking(QUERY, TEXTS, 4)]
        assert answer.usage["requests"] == len(server.requests) == -(-len(TEXTS) // size)
        assert all(request.refused is None for request in server.requests)


@pytest.mark.parametrize("provider", ["infinity", "mixedbread", "vllm", "voyage"])
def test_more_than_a_thousand_documents_are_split(serve, way, provider):
    """1,001 become two requests, whose scores are put together."""
    server = serve(provider)
    texts = [f"plum number {number}" for number in range(1001)]
    answer = ask(stage_for(server), way, texts=texts)
    assert sorted(len(request.body[server.provider.documents_key]) for request in server.requests) == [500, 501]
    assert all(request.refused is None for request in server.requests)
    assert answer.order == [index for index, _ in ranking(QUERY, texts)]


@pytest.mark.parametrize("provider", PROVIDERS)
def test_every_provider_is_sent_what_it_reads(serve, way, provider):
    """JSON by POST with the key as a bearer, and the texts as they are: no escapes, no blanks taken off."""
    server = serve(provider, locked=True)
    texts = [" blanks around ", "line\nbreak \t tab", "梅 \N{GRAPES}", "x"]
    assert ask(stage_for(server, **with_key(provider)), way, " 梅? ", texts).error is None
    (request,) = server.requests
    assert request.method == "POST"
    assert request.headers["authorization"] == f"Bearer {server.key}"
    assert request.headers["content-type"] == "application/json"
    assert request.headers["accept"] == "application/json"
    assert request.headers["user-agent"] == "milvus-search-pipeline"
    assert "梅 \N{GRAPES}".encode() in request.raw
    if provider != "jev":
        assert request.body[server.provider.documents_key] == texts
        assert request.body["query"] == " 梅? "


@pytest.mark.parametrize("provider", PROVIDERS)
def test_blank_texts_are_never_sent(serve, way, provider):
    """They rank last without a score, and the positions of the others are right."""
    server = serve(provider)
    texts = ["", *TEXTS[:2], " \n", *TEXTS[2:]]
    answer = ask(stage_for(server), way, texts=texts)
    kept = [index for index, text in enumerate(texts) if text.strip()]
    expected = [kept[index] for index, _ in ranking(QUERY, [texts[index] for index in kept])]
    assert answer.order == [*expected, 0, 3]
    assert answer.scores[0] is answer.scores[3] is None
    assert answer.warnings == ["2 of 9 documents are blank; ranked last, without a score"]
    assert answer.details["documents_blank"] == 2
    assert server.requests[0].refused is None
