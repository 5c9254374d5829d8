"""What a check of a hosted reranker finds, and that it sends nothing unless it may."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from milvus_pipeline.plugin import CheckContext, Deadline, Finding
from milvus_stages import TEI, Cohere, Jina, RerankAPI
from support.hosted import stage_for
from support.standins import PROVIDERS, Reply


def findings(stage: Any, **context: Any) -> dict[str, Finding]:
    """What a check finds, by topic."""
    return {one.topic: one for one in stage.check(CheckContext(Deadline.after(30), **context))}


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_check_sends_neither_key_nor_text(serve, provider):
    """One GET without a key and without a body shows that the service answers."""
    server = serve(provider)
    found = findings(stage_for(server), texts=["the red plum"], hits=40)
    assert {one.level for one in found.values()} == {"ok"}
    assert found["address"].message.endswith("without a key: it can be reached")
    assert found["requests"].message.startswith("a query with 40 hits needs ")
    (request,) = server.requests
    assert (request.method, request.raw) == ("GET", b"")
    assert server.key not in str(request.headers)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_with_leave_one_request_is_sent(serve, provider):
    """It has one short document, and the finding has its usage."""
    server = serve(provider)
    found = findings(stage_for(server, retry={"attempts": 5}), send=True)
    posts = [request for request in server.requests if request.method == "POST"]
    assert len(posts) == 1
    assert posts[0].refused is None
    assert found["request"].level == "ok"
    assert "usage: requests 1" in found["request"].message


def test_a_refused_key_is_found_only_with_send(serve, monkeypatch):
    """Without leave its presence is all that is known."""
    server = serve("cohere")
    monkeypatch.setenv("COHERE_API_KEY", "not-the-key-of-anyone")
    stage = stage_for(server)
    assert findings(stage)["key"].message == ("COHERE_API_KEY is set; use --send to check that the service accepts it")
    finding = findings(stage, send=True)["request"]
    assert finding.level == "error"
    assert "401" in finding.message
    assert "COHERE_API_KEY" in finding.next_step
    assert "not-the-key-of-anyone" not in str(finding)


def test_an_unknown_model_is_reported(serve):
    """In the service's own words, after a single attempt."""
    server = serve("cohere")
    server.always(server.error(404, "model 'rerank-v9' not found"))
    finding = findings(stage_for(server, model="rerank-v9", retry={"attempts": 5}), send=True)["request"]
    assert finding.level == "error"
    assert "404" in finding.message
    assert len([request for request in server.requests if request.method == "POST"]) == 1


def test_a_service_in_trouble_is_asked_once(serve):
    """Neither the settings of retries nor the breaker make it more."""
    server = serve("voyage")
    server.always(server.error(503))
    found = findings(stage_for(server, retry={"attempts": 5}, breaker={"failures": 1, "over": 0}), send=True)
    assert found["address"].level == "warning"
    assert found["request"].level == "error"
    assert [request.method for request in server.requests] == ["GET", "POST"]
    server.clear()
    assert findings(stage_for(server), send=True)["request"].level == "ok"  # no breaker was opened by it


def test_a_missing_key_is_reported_and_the_rest_as_well(serve, monkeypatch):
    """The names of the variables are the next step; address and plan are looked at all the same."""
    server = serve("cohere")
    for name in Cohere.key_names:
        monkeypatch.delenv(name, raising=False)
    found = findings(Cohere(base_url=server.url), send=True)
    assert found["key"].level == "error"
    assert "COHERE_API_KEY or CO_API_KEY is not set" in found["key"].message
    assert found["key"].next_step
    assert found["address"].level == found["requests"].level == "ok"
    assert "request" not in found
    assert [request.method for request in server.requests] == ["GET"]


def test_an_address_that_nobody_has_is_reported():
    """Refused, unknown, and silent: each with a next step, in the time given."""
    refused = findings(TEI(base_url="http://127.0.0.1:1"))["address"]
    assert (refused.level, refused.message.startswith("GET http://127.0.0.1:1/rerank: cannot be reached")) == (
        "error",
        True,
    )
    unknown = findings(TEI(base_url="http://no-such-host.invalid"))["address"]
    assert (unknown.level, "cannot be reached" in unknown.message) == ("error", True)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stage = TEI(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}")
        found = {one.topic: one for one in stage.check(CheckContext(Deadline.after(0.5)))}
    assert found["address"].level == "error"
    assert "no complete reply within" in found["address"].message
    assert all(one.next_step for one in (refused, unknown, found["address"]))


def test_a_wrong_path_and_a_redirect_are_reported(serve):
    """What answers is not the endpoint, or sends one elsewhere."""
    server = serve("vllm")
    lost = findings(RerankAPI(base_url=f"{server.url}/elsewhere"))["address"]
    assert (lost.level, "it may have no such path" in lost.message) == ("warning", True)
    server.always(Reply(308, b"", {"location": "https://example.com/"}))
    moved = findings(RerankAPI(base_url=server.url))["address"]
    assert (moved.level, moved.next_step) == ("warning", "set base_url to its target")


def test_what_a_query_asks_is_counted_by_the_planner(serve):
    """More documents than a request takes are several; a list that must not be split is an error."""
    server = serve("tei")
    assert findings(TEI(base_url=server.url), hits=100)["requests"].message == "a query with 100 hits needs 4 requests"
    server = serve("jina")
    listwise = findings(Jina(base_url=server.url, max_documents=10), hits=100)["requests"]
    assert (listwise.level, "cannot be split" in listwise.message) == ("error", True)
    long = findings(Jina(base_url=server.url), hits=100, texts=["word " * 4000])["requests"]
    assert (long.level, "tokens in one request" in long.message) == ("warning", True)


def test_documents_that_the_service_would_cut_are_reported(serve):
    """By an estimate from the sample, for all of a collection whose size is known; no text is repeated."""
    server = serve("cohere")
    texts = ["a short one", *["secretword " * 3000] * 3]
    finding = findings(stage_for(server, max_tokens_per_doc=512), texts=texts, documents=1000, hits=4)["documents"]
    assert finding.level == "warning"
    assert finding.message.startswith("3 of 4 sampled documents (75 %, about 750 in all) exceed the 512 tokens")
    assert "secretword" not in str(finding)
    finding = findings(stage_for(server, max_tokens_per_doc=512), texts=texts, hits=4)["documents"]
    assert finding.message.startswith("3 of 4 sampled documents (75 %) exceed the 512 tokens")


def test_an_open_stage_stays_as_it_is(serve):
    """Its connections and what it read from the environment are its own."""
    server = serve("vllm")
    with stage_for(server, options={"truncate_prompt_tokens": -1}) as stage:
        exchange = stage._sender
        assert findings(stage, send=True)["request"].level == "ok"
        assert stage._sender is exchange
        assert stage("red plum", ["a red plum"])[0].index == 0
