"""The stage `rerank_api` against vLLM and Infinity, and against shapes that others of their kind give."""

from __future__ import annotations

import pytest

from milvus_stages import RerankAPI
from support.hosted import HIT_TEXTS, KEY, QUERY, rerank, stage_for
from support.standins import Reply, changed, errors, ranking, relevance
from support.standins.tei import logit

KINDS = ("vllm", "infinity")


def test_the_path_of_vllm_may_have_a_version(serve, way):
    """A base that ends in /v1, or in the whole path, leads to the same."""
    server = serve("vllm", insists_on_top_n=True)
    for path in ("/v1", "/v1/", "/v2", "/v1/rerank", "/rerank", ""):
        assert rerank(stage_for(server, base_url=server.url + path), way).error is None
    assert [request.path for request in server.requests] == [
        "/v1/rerank",
        "/v1/rerank",
        "/v2/rerank",
        "/v1/rerank",
        "/rerank",
        "/rerank",
    ]


def test_the_prefix_of_infinity(serve, way):
    """What the server was started with is part of the base."""
    server = serve("infinity", prefix="/v1")
    assert rerank(stage_for(server, base_url=f"{server.url}/v1"), way).error is None
    error = rerank(stage_for(server), way).error
    assert error.status == 404
    assert "base_url" in str(error)


def test_the_options_of_vllm(serve, way):
    """Its overflow is an error unless the server's option makes it truncate."""
    server = serve("vllm", max_tokens=50)
    texts = [*HIT_TEXTS, "plum " * 100]
    error = rerank(stage_for(server), way, texts=texts).error
    assert error.status == 400
    assert "maximum context length is 50 tokens" in error.detail
    assert error.code == "BadRequestError"
    assert rerank(stage_for(server, options={"truncate_prompt_tokens": -1}), way, texts=texts).error is None
    assert server.requests[-1].body["truncate_prompt_tokens"] == -1


def test_the_options_of_infinity(serve, way):
    """Logits, and an echo that nobody reads, with the blanks round the texts taken off."""
    server = serve("infinity")
    texts = [f"  {text} " for text in HIT_TEXTS]
    answer = rerank(stage_for(server, options={"raw_scores": True, "return_documents": True}), way, texts=texts)
    assert answer.scores == pytest.approx({i: logit(relevance(QUERY, text)) for i, text in enumerate(HIT_TEXTS)})


def test_options_stand_beside_what_the_stage_says():
    """Query, documents, limit and model are the stage's own, and are refused among the options."""
    stage = RerankAPI(base_url="http://localhost:8000", options={"user": "me"}, model="m")
    body = stage.payload("q", ["a", "b"], 1)
    assert body == {"query": "q", "documents": ["a", "b"], "top_n": 1, "model": "m", "user": "me"}


def test_a_listwise_model_is_never_split(serve, way):
    """The field `listwise` says so."""
    server = serve("vllm")
    texts = [f"red plum {number}" for number in range(1001)]
    assert rerank(stage_for(server, listwise=True), way, texts=texts).error is None
    assert len(server.requests) == 1
    error = rerank(stage_for(server, listwise=True, max_documents=1000, model="m"), way, texts=texts).error
    assert "rerank_api (m) ranks the documents of a request against each other" in str(error)


def _data_and_score(body, request):
    rows = [{"index": row["index"], "score": row["relevance_score"]} for row in body["results"]]
    return {"data": rows}


SHAPES = {
    "data_and_score": changed(_data_and_score),
    "bare_list": changed(lambda body, request: _data_and_score(body, request)["data"]),
    "only_total_tokens": changed(lambda body, request: {**body, "usage": {"total_tokens": 9}}),
    "more_than_asked_for": changed(
        lambda body, request: {
            "results": [
                {"index": index, "relevance_score": score}
                for index, score in ranking(request.body["query"], request.body["documents"])
            ]
        }
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_replies_are_read_tolerantly(serve, way, kind, shape):
    """Lists and scores by either name, usage in part, and more results than were wanted."""
    server = serve(kind)
    server.always(SHAPES[shape])
    answer = rerank(stage_for(server, top_k=3), way)
    assert answer.error is None
    assert answer.order == [index for index, _ in ranking(QUERY, HIT_TEXTS, 3)]
    if shape == "only_total_tokens":
        assert answer.usage == {"requests": 1, "total_tokens": 9}


@pytest.mark.parametrize(
    ("body", "says", "code"),
    [
        ({"error": "Unauthorized"}, "Unauthorized", None),
        ({"error": {"message": "too long", "type": "BadRequestError", "code": 400}}, "too long", "BadRequestError"),
        ({"message": "too long", "type": "BadRequestError"}, "too long", "BadRequestError"),
        ({"detail": "Unauthorized"}, "Unauthorized", None),
        ({"detail": {"message": "too long"}}, "too long", None),
        ({"detail": [{"loc": ["body", "top_n"], "msg": "is not positive", "input": "the blue sky"}]}, "top_n", None),
    ],
)
def test_errors_are_read_tolerantly(serve, way, body, says, code):
    """Text and code, from wherever the server puts them."""
    server = serve("vllm")
    server.always(Reply(400, body))
    error = rerank(stage_for(server), way).error
    assert says in error.detail
    assert error.code == code
    assert "the blue sky" not in str(error)


@pytest.mark.parametrize("kind", KINDS)
def test_a_locked_server(serve, way, kind):
    """Without a key 401, in the server's own shape; with it, an answer."""
    server = serve(kind, locked=True)
    error = rerank(stage_for(server), way).error
    assert error.status == 401
    assert "Unauthorized" in error.detail
    assert rerank(stage_for(server, api_key_env=KEY), way).error is None


def test_a_model_that_cannot_rerank(serve, way):
    """The error has vLLM's code, and the request is not retried."""
    server = serve("vllm")
    server.always(errors("vllm")["501_no_reranker"])
    error = rerank(stage_for(server, retry={"attempts": 3, "min_wait": 0.001}), way).error
    assert error.code == "NotImplementedError"
    assert len(server.requests) == 1
