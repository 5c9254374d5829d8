"""The identity of a hosted reranker: model and address."""

import json

import pytest

from milvus_stages import TEI, Cohere, Voyage
from support.hosted import stage_for
from support.standins import PROVIDERS, Reply


@pytest.mark.parametrize("provider", [name for name in PROVIDERS if name != "tei"])
def test_a_service_is_known_by_model_and_address(serve, provider):
    """As they are sent; nothing is asked for it."""
    server = serve(provider)
    with stage_for(server) as stage:
        identity_data = stage.identity()
    assert identity_data["model"] == stage.model
    assert identity_data["url"].startswith(server.url)
    assert server.requests == []
    assert server.key not in json.dumps(identity_data)


def test_the_address_may_follow_from_the_key(monkeypatch):
    """The kind of key may decide the address, which does not contain the key."""
    monkeypatch.setenv("VOYAGE_API_KEY", "al-0123456789")
    identity_data = Voyage().identity()
    assert identity_data == {"model": "rerank-2.5", "url": "https://ai.mongodb.com/v1/rerank"}
    monkeypatch.delenv("VOYAGE_API_KEY")
    assert Voyage().identity()["url"] == "https://api.voyageai.com/v1/rerank"
    headers = {"Authorization": {"env": "ANY"}}
    assert Cohere(headers=headers).identity()["url"] == "https://api.cohere.com/v2/rerank"


@pytest.mark.parametrize("locked", [False, True])
def test_a_server_of_tei_reports_its_model(serve, locked):
    """The server reports commit and precision, with its key if it has one."""
    server = serve("tei", locked=locked)
    for base in (server.url, f"{server.url}/rerank"):
        with TEI(base_url=base, api_key_env="SERVICE_KEY" if locked else None) as stage:
            assert stage.identity() == {
                "url": f"{server.url}/rerank",
                "model_id": "org/reranker",
                "model_sha": "0123456789abcdef0123456789abcdef01234567",
                "model_dtype": "float16",
            }


REPLIES = {
    "none": None,
    "error": Reply(500, {"error": "no"}),
    "not_json": Reply(200, b"<html>"),
    "list": Reply(200, ["model_sha"]),
    "numbers": Reply(200, {"model_sha": 7, "model_id": None}),
    "endless": Reply(200, {"model_sha": "a" * 500}),
    "deep": Reply(200, b"[" * 50_000),
    "secret": Reply(200, {"model_id": "SECRET"}),
}


@pytest.mark.parametrize("reply", REPLIES.values(), ids=REPLIES)
def test_a_server_that_does_not_tell_is_no_failure(serve, monkeypatch, reply):
    """A member that is missing, too long, not a string or repeats the key is left out."""
    server = serve("tei", locked=True, model_sha=None)
    if reply is not None:
        if reply.body == {"model_id": "SECRET"}:
            reply = Reply(200, {"model_id": f"key {server.key}"})
        monkeypatch.setattr(server.provider, "get", lambda request: reply)
    with stage_for(server, api_key_env="SERVICE_KEY") as stage:
        assert stage.identity() == {"url": f"{server.url}/rerank"}


def test_a_server_that_is_not_there_is_no_failure():
    """Its address is all that is known."""
    assert TEI(base_url="http://127.0.0.1:9").identity() == {"url": "http://127.0.0.1:9/rerank"}
