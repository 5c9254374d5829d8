"""The stage `mixedbread` and its service."""

from __future__ import annotations

from support.hosted import rerank, stage_for


def test_the_services_word_on_repetition_counts(serve, way):
    """`x-should-retry` overrides the status, either way."""
    server = serve("mixedbread")
    retry = {"attempts": 2, "min_wait": 0.001, "max_wait": 0.001}
    server.script(server.error(503).but(headers={"x-should-retry": "false"}))
    assert rerank(stage_for(server, retry=retry), way).error.status == 503
    assert len(server.requests) == 1
    server.script(server.error(409).but(headers={"x-should-retry": "true"}))
    answer = rerank(stage_for(server, retry=retry), way)
    assert answer.error is None
    assert answer.usage["retries"] == 1
    server.script(server.error(503).but(headers={"x-should-retry": "perhaps"}))
    assert rerank(stage_for(server, retry=retry), way).error is None


def test_a_refused_member_is_named(serve, way):
    """FastAPI's list gives place and message."""
    server = serve("mixedbread")
    answer = rerank(stage_for(server), way, query="plum " * 7_000)
    assert answer.error.status == 422
    assert answer.error.detail == "body.query: must have at most 32000 characters"
