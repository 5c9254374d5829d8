"""What every hosted reranker makes of its service, whichever it is: the same ranking of the same texts."""

from __future__ import annotations

from typing import Any

import pytest

from support.hosted import HIT_TEXTS, KEY, QUERY, STAGES, rerank, stage_for
from support.standins import cohere, errors, mixedbread, ranking, relevance, voyage

PROVIDERS = sorted(STAGES)


def with_key(provider: str) -> dict[str, str]:
    """The arguments that make a stage send a key that it does not send by default."""
    return {} if STAGES[provider].key_names else {"api_key_env": KEY}


@pytest.mark.parametrize("provider", PROVIDERS)
def test_every_provider_gives_the_same_ranking(serve, way, provider):
    """For the same texts the order is the same everywhere, ties in their order, and no request is refused."""
    server = serve(provider)
    answer = rerank(stage_for(server), way)
    assert answer.error is None
    assert answer.order == [index for index, _ in ranking(QUERY, HIT_TEXTS)]
    for index, score in answer.ranked:
        expected = relevance(QUERY, HIT_TEXTS[index])
        assert score == pytest.approx(2 * expected - 1 if provider == "jina" else expected, abs=1e-12)
    assert [request.refused for request in server.requests] == [None]
    assert answer.usage.pop("requests") == 1
    assert all(type(figure) in (int, float) and figure >= 0 for figure in answer.usage.values())


@pytest.mark.parametrize("provider", PROVIDERS)
def test_every_provider_is_asked_for_no_more_than_is_wanted(serve, way, provider):
    """With `top_k` the best are the same ones, and a service that can give fewer is asked for as many."""
    server = serve(provider)
    stage = stage_for(server, top_k=2)
    assert rerank(stage, way).order == [index for index, _ in ranking(QUERY, HIT_TEXTS, 2)]
    (request,) = server.requests
    asked = {key: value for key, value in request.body.items() if key in ("top_n", "top_k")}
    assert list(asked.values()) == ([2] if stage.takes_top_n else [])
    server.clear()
    rerank(stage_for(server, top_k=50), way)
    assert server.requests[0].refused is None


@pytest.mark.parametrize("provider", [name for name in PROVIDERS if name != "jina"])
def test_however_a_list_is_split_the_ranking_is_the_same(serve, way, provider):
    """Scores of several requests are put together by index; each is asked for no more than it was sent."""
    server = serve(provider)
    for size in (1, 3, 6):
        server.clear()
        answer = rerank(stage_for(server, max_documents=size, top_k=4), way)
        assert answer.order == [index for index, _ in ranking(QUERY, HIT_TEXTS, 4)]
        assert answer.usage["requests"] == len(server.requests) == -(-len(HIT_TEXTS) // size)
        assert all(request.refused is None for request in server.requests)


@pytest.mark.parametrize("provider", ["infinity", "mixedbread", "vllm", "voyage"])
def test_more_than_a_thousand_documents_are_split(serve, way, provider):
    """1,001 become two requests, whose scores are put together."""
    server = serve(provider)
    texts = [f"plum number {number}" for number in range(1001)]
    answer = rerank(stage_for(server), way, texts=texts)
    assert sorted(len(request.body[server.provider.documents_key]) for request in server.requests) == [500, 501]
    assert all(request.refused is None for request in server.requests)
    assert answer.order == [index for index, _ in ranking(QUERY, texts)]


@pytest.mark.parametrize("provider", PROVIDERS)
def test_every_provider_is_sent_what_it_reads(serve, way, provider):
    """JSON by POST with the key as a bearer, and the texts as they are: no escapes, no blanks taken off."""
    server = serve(provider, locked=True)
    texts = [" blanks around ", "line\nbreak \t tab", "梅 \N{GRAPES}", "x"]
    assert rerank(stage_for(server, **with_key(provider)), way, " 梅? ", texts).error is None
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
    texts = ["", *HIT_TEXTS[:2], " \n", *HIT_TEXTS[2:]]
    answer = rerank(stage_for(server), way, texts=texts)
    kept = [index for index, text in enumerate(texts) if text.strip()]
    expected = [kept[index] for index, _ in ranking(QUERY, [texts[index] for index in kept])]
    assert answer.order == [*expected, 0, 3]
    assert answer.scores[0] is answer.scores[3] is None
    assert answer.warnings == ["2 of 9 documents are blank; ranked last, without a score"]
    assert answer.details["documents_blank"] == 2
    assert server.requests[0].refused is None


DOCUMENTS = list(HIT_TEXTS)
V2 = "jina-reranker-v2-base-multilingual"


def jev_body(question: str = "Is the document relevant to the query?", model: str = "jev-latest") -> dict[str, Any]:
    """Return the body for Jev: a question for each document, and the query in the state that they share."""
    questions = {
        f"d{index}": {"type": "noul", "instructions": {"task": question, "document": text}}
        for index, text in enumerate(HIT_TEXTS)
    }
    return {"model": model, "state": {"query": QUERY}, "questions": questions}


COHERE = {"model": "rerank-v4.0-fast", "query": QUERY, "documents": DOCUMENTS, "top_n": 7}
VOYAGE = {"model": "rerank-2.5", "query": QUERY, "documents": DOCUMENTS, "top_k": 7, "truncation": True}
JINA = {"model": "jina-reranker-v3.5", "query": QUERY, "documents": DOCUMENTS, "top_n": 7, "return_documents": False}
MIXEDBREAD = {
    "model": "mixedbread-ai/mxbai-rerank-large-v2",
    "query": QUERY,
    "input": DOCUMENTS,
    "top_k": 7,
    "return_input": False,
}
TEI = {"query": QUERY, "texts": DOCUMENTS, "truncate": True, "raw_scores": False, "return_text": False}
PLAIN = {"query": QUERY, "documents": DOCUMENTS, "top_n": 7}


@pytest.mark.parametrize(
    ("provider", "options", "path", "body"),
    [
        ("cohere", {"top_k": 3}, "/v2/rerank", COHERE | {"top_n": 3}),
        (
            "cohere",
            {"max_tokens_per_doc": 512, "priority": 0},
            None,
            COHERE | {"max_tokens_per_doc": 512, "priority": 0},
        ),
        ("cohere", {"model": "rerank-v3.5"}, None, COHERE | {"model": "rerank-v3.5"}),
        ("voyage", {"top_k": 3}, "/v1/rerank", VOYAGE | {"top_k": 3}),
        (
            "voyage",
            {"model": "rerank-2-lite", "truncation": False},
            None,
            VOYAGE | {"model": "rerank-2-lite", "truncation": False},
        ),
        ("jina", {"top_k": 3}, "/v1/rerank", JINA | {"top_n": 3}),
        (
            "jina",
            {"model": "jina-reranker-v3", "max_doc_length": 512},
            None,
            JINA | {"model": "jina-reranker-v3", "max_doc_length": 512},
        ),
        ("jina", {"model": V2, "truncation": True}, None, JINA | {"model": V2, "truncation": True}),
        ("jina", {"model": V2, "truncation": False}, None, JINA | {"model": V2, "truncation": False}),
        ("mixedbread", {"top_k": 3}, "/v1/reranking", MIXEDBREAD | {"top_k": 3}),
        ("mixedbread", {"model": "m", "rewrite_query": True}, None, MIXEDBREAD | {"model": "m", "rewrite_query": True}),
        ("jev", {"top_k": 1}, "/v1/systemone", jev_body()),
        ("jev", {"model": "jev-1.13.0", "question": "Where?"}, None, jev_body("Where?", "jev-1.13.0")),
        ("tei", {"top_k": 3}, "/rerank", TEI),
        ("vllm", {}, "/rerank", PLAIN),
        ("infinity", {"top_k": 3, "model": "m"}, "/rerank", PLAIN | {"top_n": 3, "model": "m"}),
    ],
)
def test_the_request_is_what_the_service_documents(serve, way, provider, options, path, body):
    """The path and exactly these members: options are sent under the service's names, and only if they are set."""
    server = serve(provider)
    rerank(stage_for(server, **options), way)
    (request,) = server.requests
    assert request.refused is None
    assert path in (None, request.path)
    assert request.body == body
    if not STAGES[provider].key_names:
        assert request.key is None


@pytest.mark.parametrize(
    ("provider", "models"), [("cohere", cohere.MODELS), ("voyage", voyage.MODELS), ("mixedbread", [mixedbread.MODEL])]
)
def test_the_documented_models(serve, provider, models):
    """Each documented model is accepted, and named in the docstring."""
    server = serve(provider)
    for model in models:
        assert rerank(stage_for(server, model=model)).error is None
        assert f"``{model}``" in STAGES[provider].__doc__


@pytest.mark.parametrize(
    ("provider", "usage"),
    [
        ("cohere", {"search_units"}),
        ("voyage", {"total_tokens"}),
        ("jina", {"total_tokens"}),
        ("mixedbread", {"prompt_tokens", "completion_tokens", "total_tokens"}),
        ("vllm", {"prompt_tokens", "total_tokens"}),
    ],
)
def test_usage_has_the_services_words_and_adds_up(serve, way, provider, usage):
    """The figures of several requests are added."""
    server = serve(provider)
    fields = {"model": V2} if provider == "jina" else {}
    once = rerank(stage_for(server, **fields), way).usage
    assert set(once) == {"requests", *usage}
    several = rerank(stage_for(server, max_documents=2, **fields), way).usage
    assert several == {"requests": 4, **{word: once[word] * (4 if word == "search_units" else 1) for word in usage}}


@pytest.mark.parametrize(
    ("provider", "name", "code", "text"),
    [
        ("cohere", "401_wrong_key", None, "check the API key in COHERE_API_KEY or CO_API_KEY"),
        ("cohere", "402_billing_limit", None, "billing limit reached"),
        ("cohere", "404_unknown_model", None, "check model and base_url"),
        ("cohere", "429_rate_limit", None, "set requests_per_minute"),
        ("cohere", "498_denied_token", None, "deny list"),
        ("voyage", "400_too_many_tokens", None, "the request has 700000 tokens"),
        ("jina", "400_unknown_model", "INPUT_MODEL_NOT_FOUND", "check the model"),
        ("jina", "401_missing_key", "AUTH_MISSING_API_KEY", "check the API key in JINA_API_KEY or JINAAI_API_KEY"),
        ("jina", "401_wrong_key", "AUTH_INVALID_API_KEY", "check the API key"),
        ("jina", "403_no_balance", "AUTHZ_INSUFFICIENT_BALANCE", "balance and permissions"),
        ("jina", "429_tokens", "RATE_TOKEN_LIMIT_EXCEEDED", "tokens_per_minute"),
        ("jina", "422_validation", "VALIDATION_ERROR", "check the model"),
        ("jina", "503_unavailable", "SERVICE_UNAVAILABLE", "try again later"),
        ("mixedbread", "402_no_balance", "payment_required_error", "balance and billing"),
        ("vllm", "404_unknown_model", "NotFoundError", "The model `x` does not exist."),
        ("tei", "400_empty", "Empty", "cannot be empty"),
        ("tei", "422_tokenizer", "Tokenizer", "Tokenizer error"),
        ("tei", "424_backend", "Backend", "not a re-ranker model"),
        ("tei", "429_overloaded", "Overloaded", "lower max_concurrency"),
        ("tei", "503_unhealthy", "Unhealthy", "unhealthy"),
        ("tei", "415_content_type", None, "Expected request with"),
        ("tei", "422_plain_text", None, "Failed to deserialize"),
        ("jev", "400_unknown_model", "api_usage_error", "unknown model"),
        ("jev", "400_text", None, "too many options"),
        ("jev", "401_wrong_key", "authentication_error", "check the API key in TYPESAFE_API_KEY"),
        ("jev", "403_missing_key", "authentication_error", "check the API key in TYPESAFE_API_KEY"),
        ("jev", "422_validation", None, "body.questions: must have at least one entry"),
        ("jev", "529_overloaded", "overloaded_error", "overloaded"),
    ],
)
def test_documented_errors_are_understood(serve, way, provider, name, code, text):
    """The service's code and the id of the request, wherever it puts them, its text, and the next step."""
    server = serve(provider)
    reply = errors(provider)[name]
    server.always(lambda request, normal: server.provider.stamped(reply, request))
    error = rerank(stage_for(server), way).error
    assert error.code == code
    assert code is None or code in str(error)
    assert text in f"{error} {error.detail}"
    expected = {"cohere": "trace-000001", "jina": "request-000001", "jev": "request-000001"}.get(provider)
    assert error.request_id == expected
    assert expected is None or f"(request {expected})" in str(error)
