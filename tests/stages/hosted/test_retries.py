"""What is repeated, when, and how often; and what bounds it."""

from __future__ import annotations

import itertools
import socket
import time
from contextlib import ExitStack

import pytest

from milvus_pipeline import DeadlineError, ServiceError
from milvus_pipeline.plugin import RerankJob
from support.hosted import (
    PATIENT,
    QUERY,
    QUICK,
    TEXTS,
    ask,
    asked_of,
    both_ways,
    each_provider,
    opened,
    scored,
    scored_at_once,
    scored_by,
    stage,
)
from support.standins import FAULTS, PROVIDERS, Reply, StandIn, closing, dripping, late, rate_limits, relevance

RIGHT = [[relevance(QUERY, text) for text in TEXTS]]
HANGS = 30.0
"""Seconds that a test would take at least if a wait had no limit."""

pytestmark = both_ways


def gaps(server: StandIn) -> list[float]:
    """Seconds between requests."""
    return [after.arrived - before.arrived for before, after in itertools.pairwise(server.requests)]


WAITS = {
    "retry_after_fraction": 0.2,
    "retry_after_0": 0.0,
    "retry_after_ms_200": 0.2,
    "retry_after_ms_wins": 0.2,
    "retry_after_past_date": 0.0,
    "retry_after_garbage": 0.0,
    "retry_after_negative": 0.0,
    "retry_after_nan": 0.0,
    "no_hint": 0.0,
    "retry_after_1": 1.0,
    "retry_after_date": 0.4,  # a date has whole seconds
}


@pytest.fixture
def servers():
    """A stand-in for each service."""
    with ExitStack() as ending:
        yield [ending.enter_context(StandIn(provider)) for provider in PROVIDERS]


def hint_first(provider):
    """A reply to the first request of each query, which is the name of a hint: that hint. Then the normal ones."""
    hints, met = rate_limits(provider), set()

    def reply(request, normal):
        name = asked_of(request)
        if name in met:
            return normal
        met.add(name)
        hint = hints[name]
        return hint(request, normal) if callable(hint) else hint

    return reply


def test_a_wait_that_is_asked_for_is_kept(way, servers):
    """For each service and each form of the header, with a query each; an unreadable header means the usual backoff."""
    for server in servers:
        server.always(hint_first(server.provider.name))
    jobs = [RerankJob(name, TEXTS) for name in WAITS]
    outcomes = scored_at_once(way, servers, jobs, retry=PATIENT, max_concurrency=len(jobs))
    for server, (provider, outcome) in zip(servers, outcomes.items(), strict=True):
        assert outcome.scores == [[score(provider, name, text) for text in TEXTS] for name in WAITS], provider
        for (name, seconds), details in zip(WAITS.items(), outcome.context.details, strict=True):
            first, second = (request.arrived for request in server.requests if asked_of(request) == name)
            assert seconds <= second - first < HANGS - 10, (provider, name)
            assert (details["usage"]["requests"], details["usage"]["retries"]) == (2, 1), (provider, name)


def score(provider: str, query: str, text: str) -> float:
    """What the stand-in gives; the default model of Jina's scores from -1 to 1."""
    return 2 * relevance(query, text) - 1 if provider == "jina" else relevance(query, text)


@each_provider
def test_a_wait_of_an_hour_ends_it(way, provider):
    """If a service asks for more than `max_wait`, there is no other attempt, and the message has the wait."""
    with StandIn(provider) as server:
        server.always(rate_limits(provider)["retry_after_3600"])
        outcome = ask(way, server, retry=PATIENT)
        assert len(server.requests) == 1
    error = outcome.error()
    assert (error.status, error.retry_after, error.attempts, error.retryable) == (429, 3600.0, 1, True)
    assert "asks for a wait of 3,600 s; set requests_per_minute" in str(error)
    assert str(error).endswith("not tried again: that is longer than retry.max_wait (60 s)")


@each_provider
def test_what_passes_is_repeated(way, provider):
    """Twice a status that passes, then the reply."""
    with StandIn(provider) as server, opened(way, server, retry={"attempts": 3, "min_wait": 0.001}) as call:
        for status in (408, 429, 500, 502, 503, 504, 529):
            server.clear()
            server.script(server.error(status), server.error(status))
            outcome = call()
            assert [request.body for request in server.requests] == [server.requests[0].body] * 3, status
            assert outcome.scores == [[score(provider, QUERY, text) for text in TEXTS]], status
            assert (outcome.usage["requests"], outcome.usage["retries"]) == (3, 2), status


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 405, 409, 413, 415, 422, 424, 498, 499, 501])
def test_what_does_not_pass_is_not_repeated(way, status):
    """A request that is refused for what it is would be refused again."""
    with StandIn("voyage") as server:
        server.always(server.error(status))
        outcome = ask(way, server, TEXTS[:1])
        assert len(server.requests) == 1
    error = outcome.error()
    assert (error.status, error.attempts, error.retryable) == (status, 1, False)
    assert "attempts" not in str(error)
    assert outcome.usage == {"requests": 1}


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(way, status):
    """Neither as a GET nor with the key to another address; the message says which setting to change."""
    with StandIn("cohere") as server, StandIn("cohere") as elsewhere:
        server.always(Reply(status, b"", {"location": f"{elsewhere.url}/v2/rerank"}))
        outcome = ask(way, server)
        assert (len(server.requests), elsewhere.connections) == (1, 0)
    assert outcome.error().status == status
    assert "redirects are not followed; set base_url" in str(outcome.error())


def test_what_never_passes_ends(way):
    """The last attempt's error has the number of attempts and the last wait."""
    with StandIn("cohere") as server:
        server.always(server.error(500, "no luck"))
        outcome = ask(way, server, retry={"attempts": 4, "min_wait": 0.05, "max_wait": 0.1})
        assert len(server.requests) == 4
    error = outcome.error()
    assert (error.status, error.attempts, error.retryable) == (500, 4, True)
    assert 0.05 <= error.waited <= 0.1
    assert str(error).endswith("(4 attempts, the last after a wait of 0.1 s)")
    assert outcome.usage == {"requests": 4, "retries": 3}


@each_provider
def test_a_connection_that_breaks_is_repeated(way, provider):
    """Before or within the reply, with a length or in chunks; the last attempt succeeds or says what happened."""
    fields = {"retry": {"attempts": 3, "min_wait": 0.001}, "breaker": None}
    with StandIn(provider) as server, opened(way, server, **fields) as call:
        for name, fault in FAULTS.items():
            server.clear()
            server.script(fault, fault)
            assert call().scores == [[score(provider, QUERY, text) for text in TEXTS]], name
            server.clear()
            server.always(fault)
            error = call().error()
            assert len(server.requests) == 3, name
            assert (error.status, error.attempts) == (None, 3), name
            assert "the connection broke" in str(error), name
            assert f"POST {server.url}{server.requests[0].path}" in str(error), name


def test_a_connection_that_the_server_closes_is_replaced(way):
    """In good order after each reply: no attempt is lost by it."""
    with StandIn("cohere") as server:
        server.always(closing())
        jobs = [RerankJob(QUERY, TEXTS)] * 5
        outcome = scored(way, server, jobs, max_concurrency=1)
        assert server.connections == 5
    assert outcome.scores == RIGHT * 5
    assert all(details["usage"]["requests"] == 1 for details in outcome.context.details)


def test_a_reply_that_takes_too_long_is_given_up(way):
    """`request_timeout` bounds an attempt from its beginning to the end of the reply, and another one is made."""
    began = time.monotonic()
    with StandIn("cohere") as server:
        server.script(late(HANGS), dripping(0.1, 200))
        # Time enough for the reply that is right, also on a machine that is busy.
        assert ask(way, server, request_timeout=0.6).scores == RIGHT
        server.always(dripping(0.1, 200))
        outcome = ask(way, server, request_timeout=0.6, retry={"attempts": 1})
        server.wait_until_idle()
        assert [request.abandoned for request in server.requests] == [True, True, False, True]
    assert "no complete reply within 0.6 s; increase request_timeout" in str(outcome.error())
    assert time.monotonic() - began < HANGS


def test_a_late_reply_is_given_up(way, servers):
    """For each service another attempt is made, and the error of the last one says which setting to increase."""
    for server in servers:
        server.always(late(HANGS))
    retry = {"attempts": 2, "min_wait": 0.001}
    outcomes = scored_at_once(way, servers, [RerankJob(QUERY, TEXTS)], request_timeout=0.2, retry=retry)
    for server, (provider, outcome) in zip(servers, outcomes.items(), strict=True):
        server.wait_until_idle()
        assert [request.abandoned for request in server.requests] == [True, True], provider
        error = outcome.error()
        assert "no complete reply within 0.2 s; increase request_timeout" in str(error), provider
        assert (error.attempts, error.status, error.retryable) == (2, None, True), provider


@each_provider
def test_nobody_listens(way, provider):
    """A port without a server is tried again, and the error has the address."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with StandIn(provider) as server:
            reranker = stage(server, base_url=url)
            error = scored_by(way, reranker, server, [RerankJob(QUERY, TEXTS)]).error()
    assert (error.attempts, error.retryable) == (3, True)
    assert str(error).startswith(f"{reranker.type}: POST {url}{reranker.path}: cannot be reached (ConnectError")
    assert "check base_url and the network" in str(error)


def test_the_deadline_bounds_a_reply_that_does_not_come(way):
    """The rest of the query's time limits an attempt, and the error says that it timed out."""
    began = time.monotonic()
    with StandIn("cohere") as server:
        server.always(late(HANGS))
        outcome = ask(way, server, timeout=0.25)
        server.always(dripping(0.1, 200))
        assert isinstance(ask(way, server, timeout=0.25).failures[0], DeadlineError)
    error = outcome.failures[0]
    assert isinstance(error, DeadlineError)
    assert isinstance(error.__cause__, ServiceError)
    assert "timed out after 0.25 s" in str(error)
    assert time.monotonic() - began < HANGS


def test_the_deadline_bounds_waits_between_attempts(way):
    """A wait that would end after it is not begun: the service's own error comes at once."""
    began = time.monotonic()
    with StandIn("cohere") as server:
        server.always(server.error(503))
        outcome = ask(way, server, timeout=5, retry={"attempts": 5, "min_wait": 60})
        assert len(server.requests) == 1
        server.always(server.error(429).but(headers={"retry-after": "40"}))
        assert ask(way, server, timeout=5, retry=PATIENT).error().retry_after == 40
        assert len(server.requests) == 2
    assert outcome.error().status == 503
    assert str(outcome.error()).endswith("not tried again: the wait would exceed the time limit of 5 s")
    assert time.monotonic() - began < 5


def test_usage_of_failed_queries_is_reported_too(way):
    """They were paid for; so is what a query of several requests got before another of them failed."""
    with StandIn("cohere") as server:
        server.script(lambda request, normal: normal, server.error(403, "no more"))
        outcome = ask(way, server, max_documents=2, max_concurrency=1)
    assert outcome.error().status == 403
    assert outcome.usage == {"requests": 2, "search_units": 1}


def test_a_query_that_fails_spoils_no_other(way):
    """Each has its own scores, its own failure and its own usage."""

    def by_query(request, normal):
        return server.error(500 if request.body["query"] == "five" else 404) if request.body["query"] in bad else normal

    bad = ("four", "five")
    with StandIn("cohere") as server:
        server.always(by_query)
        jobs = [RerankJob(query, TEXTS) for query in ("one", "four", "two", "five", "three")]
        outcome = scored(way, server, jobs, max_concurrency=2)
    assert {place: error.status for place, error in outcome.failures.items()} == {1: 404, 3: 500}
    assert [scores == [None] * 4 for scores in outcome.scores] == [False, True, False, True, False]
    usage = [details["usage"].get("requests") for details in outcome.context.details]
    assert usage == [1, 1, 1, 3, 1]


def test_a_query_stops_sending_when_it_has_failed(way):
    """Of ten requests of one query the first fails for good; those under way end, no other is sent."""
    with StandIn("cohere") as server:
        server.always(server.error(403, "no"))
        texts = [f"plum {number}" for number in range(40)]
        outcome = ask(way, server, texts, max_documents=4, max_concurrency=2)
        assert 1 <= len(server.requests) <= 4
        server.clear()
        server.always(server.error(500, "no"))
        outcome = ask(way, server, texts, max_documents=4, max_concurrency=1, retry=QUICK, breaker=None)
        assert len(server.requests) < 30
    error = outcome.error()
    assert (error.status, error.attempts) == (500, 3)
    assert "(3 attempts" in str(error)


def test_a_query_that_has_failed_does_not_wait_to_try_again(way):
    """One request has to wait for half a minute; when the other is refused, that wait ends."""

    def reply(request, normal):
        if "plum 0" in request.body["documents"]:
            return server.error(429).but(headers={"retry-after": "30"})
        return server.error(403).but(delay=0.3)

    began = time.monotonic()
    with StandIn("cohere") as server:
        server.always(reply)
        outcome = ask(way, server, [f"plum {number}" for number in range(8)], max_documents=4, retry=PATIENT)
        assert len(server.requests) == 2
    assert time.monotonic() - began < 20
    assert (outcome.error().status, outcome.error().attempts) == (403, 1)
    assert outcome.usage == {"requests": 2}
