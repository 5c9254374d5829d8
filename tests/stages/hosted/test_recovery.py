"""The cost and the message of a failure: nothing is sent in vain, and the message names the cause."""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
import time

import pytest

from milvus_pipeline import DeadlineError, ServiceError
from milvus_pipeline.plugin import RerankJob
from milvus_stages import RerankAPI
from milvus_stages.hosted import estimated_tokens
from support.hosted import KEY_VARIABLE, QUERY, abatch, ask, batch, both_ways, keyed, scored, stage
from support.standins import StandIn, errors, late

MANY = [f"plum number {number} of the tree" + " and its leaves" * (number % 7) for number in range(64)]


def closed_port() -> str:
    """An address that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


@both_ways
def test_a_service_that_is_not_there_takes_no_turn_of_the_rate(way):
    """With one request a minute, three attempts at a closed port are over at once, and count as no request."""
    began = time.monotonic()
    with StandIn("cohere") as server:
        outcome = scored(way, server, [RerankJob(QUERY, ["plum"])], base_url=closed_port(), requests_per_minute=1)
    assert time.monotonic() - began < 20
    assert outcome.error().attempts == 3
    assert "cannot be reached" in str(outcome.error())
    assert outcome.usage == {}


@both_ways
@pytest.mark.parametrize("kind", ["tei", "jev"])
def test_a_query_that_is_too_long_is_not_sent_with_each_document(way, kind):
    """After the first refused document the smallest is tried; if that is refused too, the query fails."""
    with StandIn(kind) as server:
        server.always(errors(kind)["422_validation" if kind == "tei" else "400_overflow"])
        outcome = scored(way, server, [RerankJob(QUERY, MANY[:30])])
        assert len(server.requests) <= math.log2(30) + 3
        body = server.requests[-1].body
        last = body.get("texts") or [one["instructions"]["document"] for one in body["questions"].values()]
    assert estimated_tokens(last[0]) == min(map(estimated_tokens, MANY[1:30]))  # the first was refused before
    assert outcome.error().status == (422 if kind == "tei" else 400)


@both_ways
def test_documents_that_are_too_large_cost_the_others_nothing(way):
    """Even if they come first, so that nothing has been scored when they are refused."""
    huge = ["leaf " * 3000, "branch " * 3000, "root " * 3000]
    with StandIn("tei", max_bytes=9_000) as server:
        outcome = scored(way, server, [RerankJob(QUERY, [*huge, *MANY[:20]])])
    assert outcome.failures == {}
    assert outcome.scores[0][:3] == [None, None, None]
    assert None not in outcome.scores[0][3:]
    assert outcome.details["documents_too_large"] == 3


@both_ways
def test_a_part_of_large_documents_does_not_fail_the_query(way):
    """However late the other parts are answered; the smallest document is found by what it weighs, not by letters."""
    huge, small = ["leaf " * 3000, "branch " * 3000], MANY[:4]
    dense = ["a" * 120, "\u6f22" * 60, *("b" * 80 for _ in range(3))]
    with StandIn("tei", max_bytes=9_000, latency=0.1) as server:
        outcome = scored(way, server, [RerankJob(QUERY, [*huge, *small])], max_documents=2)
        assert outcome.failures == {}
        assert [score is None for score in outcome.scores[0]] == [True, True, False, False, False, False]
    with StandIn("tei", max_bytes=190) as server:
        outcome = scored(way, server, [RerankJob("b", dense)])
        assert outcome.failures == {}
        assert [score is None for score in outcome.scores[0]] == [True, True, False, False, False]


@both_ways
def test_a_connection_that_is_not_made_in_time(way):
    """If the time of an attempt is up before it connects: no request, no turn of the rate, and the right cause."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        with contextlib.ExitStack() as fill:  # what nobody accepts takes the places of those who come later
            for _ in range(3):
                waiting = fill.enter_context(socket.socket())
                waiting.setblocking(False)
                waiting.connect_ex(address)
            with StandIn("cohere") as server:
                url = f"http://127.0.0.1:{address[1]}"
                fields = {"request_timeout": 0.3, "requests_per_minute": 1, "base_url": url}
                outcome = scored(way, server, [RerankJob(QUERY, ["plum"])], **fields)
    assert "no connection within 0.3 s" in str(outcome.error())
    assert outcome.error().attempts == 3
    assert outcome.usage == {}


@both_ways
@pytest.mark.parametrize(
    ("fields", "timeout", "setting"), [({"request_timeout": 0.3}, 30, "request_timeout"), ({}, 0.3, "`timeout`")]
)
def test_the_setting_that_ended_an_attempt_is_named(way, fields, timeout, setting):
    """To raise the other would change nothing."""
    with StandIn("cohere") as server:
        server.always(late(5))
        outcome = ask(way, server, timeout=timeout, retry={"attempts": 1}, **fields)
    assert f"increase {setting} or request fewer results" in str(outcome.failures[0])


@both_ways
def test_a_service_that_wants_a_key_and_one_that_refuses_it(way):
    """The message says how to send a key with a stage that needs none by default."""
    with StandIn("tei", locked=True) as server:
        reranker = RerankAPI(base_url=server.url, retry={"attempts": 1})
        reranker.open()
        jobs = [RerankJob(QUERY, ["plum"])]
        outcome = batch(reranker, jobs) if way == "sync" else asyncio.run(abatch(reranker, jobs))
        reranker.close()
    assert "no key was sent; name the environment variable that holds it in api_key_env" in str(outcome.error())


def test_a_name_that_is_found_late_leaves_no_request_behind(monkeypatch):
    """Looking up a name cannot be cut short, but what is left of the request is: nothing is sent after its time."""
    look_up = socket.getaddrinfo

    def slowly(*arguments, **named):
        time.sleep(0.6)
        return look_up(*arguments, **named)

    with StandIn("cohere") as server, keyed(server):
        reranker = stage(server, request_timeout=0.3, retry={"attempts": 1}, api_key_env=KEY_VARIABLE)
        reranker.open()
        monkeypatch.setattr(socket, "getaddrinfo", slowly)
        outcome = batch(reranker, [RerankJob(QUERY, ["plum"])])
        reranker.close()
        assert server.requests == []
    assert isinstance(outcome.failures[0], ServiceError)
    assert not isinstance(outcome.failures[0], DeadlineError)
