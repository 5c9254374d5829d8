"""The stage `mixedbread` and its service."""

from __future__ import annotations

from milvus_stages import Mixedbread
from support.hosted import QUERY, TEXTS, ask, stage_for
from support.standins.mixedbread import MODEL


def test_the_request(serve, way):
    """The documents go by the name of `input`, and the limit by `top_k`."""
    server = serve("mixedbread", models=(MODEL,))
    ask(stage_for(server, top_k=3), way)
    (request,) = server.requests
    assert request.refused is None
    assert request.path == "/v1/reranking"
    assert request.body == {
        "model": MODEL,
        "query": QUERY,
        "input": list(TEXTS),
        "top_k": 3,
        "return_input": False,
    }
    assert f"``{MODEL}``" in Mixedbread.__doc__


def test_the_options(serve, way):
    """A rewritten query is requested only if it is wanted."""
    server = serve("mixedbread")
    ask(stage_for(server, model="mixedbread-ai/mxbai-rerank-base-v2", rewrite_query=True), way)
    body = server.requests[0].body
    assert server.requests[0].refused is None
    assert (body["model"], body["rewrite_query"]) == ("mixedbread-ai/mxbai-rerank-base-v2", True)


def test_usage_has_the_services_words(serve, way):
    """Prompt, completion and total tokens."""
    server = serve("mixedbread")
    assert set(ask(stage_for(server), way).usage) == {
        "requests",
        "prompt_tokens",
        "completion_tokens",
        "total_tokens",
    }


def test_the_services_word_on_repetition_counts(serve, way):
    """`x-should-retry` overrides the status, either way."""
    server = serve("mixedbread")
    retry = {"attempts": 2, "min_wait": 0.001, "max_wait": 0.001}
    server.script(server.error(503).but(headers={"x-should-retry": "false"}))
    assert ask(stage_for(server, retry=retry), way).error.status == 503
    assert len(server.requests) == 1
    server.script(server.error(409).but(headers={"x-should-retry": "true"}))
    answer = ask(stage_for(server, retry=retry), way)
    assert answer.error is None
    assert answer.usage["retries"] == 1
    server.script(server.error(503).but(headers={"x-should-retry": "perhaps"}))
    assert ask(stage_for(server, retry=retry), way).error is None


def test_a_refused_member_is_named(serve, way):
    """FastAPI's list gives place and message."""
    server = serve("mixedbread")
    answer = ask(stage_for(server), way, query="plum " * 7_000)
    assert answer.error.status == 422
    assert answer.error.detail == "body.query: must have at most 32000 characters"
