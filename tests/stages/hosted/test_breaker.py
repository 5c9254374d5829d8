"""The circuit breaker of a failing service: which calls it refuses, what that costs, and how it closes again."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from milvus_pipeline import BreakerSettings, CircuitOpenError, Pipeline, ServiceError, breaker
from milvus_pipeline.plugin import RerankJob
from milvus_stages import Cohere
from support.fake_stages.basic import ListedSearch
from support.hosted import QUERY, TEXTS, Outcome, abatch, batch, both_ways, keyed, opened, scored, stage
from support.standins import StandIn, late
from support.standins.messages import Reply

ONCE = {"attempts": 1}
SOON = {"failures": 2, "wait": 3600, "over": 0}
JOB = RerankJob(QUERY, list(TEXTS))
HANGS = 30.0


@pytest.fixture
def clock(monkeypatch):
    """The time that breakers see; it changes only when a test sets ``now``."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(breaker, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def is_refused(outcome: Outcome) -> bool:
    """Whether the first query failed without a request."""
    error = outcome.failures.get(0)
    return isinstance(error, CircuitOpenError) and outcome.usage == {}


@both_ways
def test_a_dead_service_costs_its_callers_nothing(way):
    """After five consecutive failures nothing is sent; a caller with a deadline gets an error at once."""
    with StandIn("cohere", locked=True) as server, opened(way, server, retry=ONCE, breaker={"over": 0}) as call:
        server.always(server.error(503, "down"))
        for _ in range(5):
            assert call(timeout=30).error().status == 503
        began = time.monotonic()
        outcome = call(timeout=30)
        assert time.monotonic() - began < 5
        assert len(server.requests) == 5
        error = outcome.failures[0]
        assert is_refused(outcome)
        assert error.reason_code == "circuit_open"
        assert 0 < error.retry_after <= 10
        assert str(error).startswith(
            f"POST {server.url}/v2/rerank (rerank-v4.0-fast): circuit open after 5 consecutive failures "
            "(last: unavailable, status 503); next attempt in "
        )
        assert server.key not in str(error)


@both_ways
@pytest.mark.parametrize("status", [400, 401, 403, 404, 408, 413, 422, 429, 501])
def test_an_answer_is_no_failure_of_the_service(way, status):
    """A key that is refused or has had too much, and requests that are wrong, shut nobody out."""
    with StandIn("cohere") as server, opened(way, server, retry=ONCE, breaker=SOON) as call:
        server.always(server.error(status))
        for _ in range(4):
            call(["plum"])
        assert len(server.requests) == 4


@both_ways
@pytest.mark.parametrize("fault", [500, 502, 503, 504, 529, "nobody", "hangs", "breaks"])
def test_what_a_service_fails_in_counts(way, fault):
    """Statuses of failure, no connection, a broken one, and no reply if the attempt had enough time."""
    fields = {"retry": ONCE, "breaker": SOON, "request_timeout": 0.3 if fault == "hangs" else 30}
    if fault == "nobody":
        fields["base_url"] = "http://127.0.0.1:1"
    with StandIn("cohere") as server, opened(way, server, **fields) as call:
        server.always({"hangs": late(HANGS), "breaks": Reply(200, b"", ending="reset")}.get(fault, server.error(503)))
        if isinstance(fault, int):
            server.always(server.error(fault))
        assert not is_refused(call())
        assert not is_refused(call())
        assert is_refused(call(timeout=30))


@both_ways
def test_a_caller_in_a_hurry_says_nothing_of_the_service(way):
    """However often no reply comes in a tenth of a second, others are let through."""
    with StandIn("cohere") as server, opened(way, server, retry=ONCE, breaker=SOON) as call:
        server.script(*[late(HANGS)] * 3)
        for _ in range(3):
            assert call(timeout=0.1).failures[0].reason_code == "deadline"
        assert call().failures == {}


def test_stages_threads_and_event_loops_learn_from_each_other():
    """What one has found out holds for every stage of the address and the model, and for no other."""
    with StandIn("cohere") as server, keyed(server), ThreadPoolExecutor(1) as pool:
        server.always(server.error(500))
        fields = {"retry": ONCE, "breaker": SOON}
        with stage(server, **fields) as first, stage(server, **fields) as second:
            batch(first, [JOB])
            assert pool.submit(asyncio.run, abatch(second, [JOB])).result().error().status == 500
            assert is_refused(asyncio.run(abatch(first, [JOB], 30)))
            assert is_refused(pool.submit(batch, second, [JOB], 30).result())
        with stage(server, model="rerank-v3.5", **fields) as other:
            assert batch(other, [JOB]).error().status == 500
        with stage(server, retry=ONCE, breaker=None) as never:
            for _ in range(3):
                assert batch(never, [JOB]).error().status == 500


@both_ways
def test_a_job_without_a_deadline_waits_until_the_service_is_tried_again(way):
    """The wait is a retry as any other; all queries are answered, and no refusal counts as a request."""
    with StandIn("cohere") as server:
        server.script(server.error(503), server.error(503))
        fields = {"breaker": {"failures": 2, "wait": 0.2, "over": 0}, "max_concurrency": 2}
        retry = {"attempts": 30, "min_wait": 0.01, "max_wait": 0.1}  # no wait is too long, but cut
        began = time.monotonic()
        outcome = scored(way, server, [JOB] * 4, retry=retry, **fields)
        assert time.monotonic() - began >= 0.2
        assert len(server.requests) == 6
    assert outcome.failures == {}
    assert sum(details["usage"]["requests"] for details in outcome.context.details) == 6


@both_ways
def test_the_waits_of_a_job_are_bounded_by_its_settings(way):
    """A wait is at most ``max_wait``, there are at most as many as attempts, and the error has its cause."""
    with StandIn("cohere") as server:
        server.always(server.error(503))
        outcome = scored(way, server, [JOB], breaker=SOON)
        assert len(server.requests) == 2
    error = outcome.failures[0]
    assert isinstance(error, CircuitOpenError)
    assert isinstance(error.__cause__, ServiceError)
    assert error.__cause__.status == 503


@both_ways
def test_who_has_a_deadline_does_not_wait_where_its_own_attempt_was_the_last_straw(way):
    """The service's error ends the query at once, and says why there was no other attempt."""
    with StandIn("cohere") as server:
        server.always(server.error(503))
        retry = {"attempts": 4, "min_wait": 0.01, "max_wait": 60}
        error = scored(way, server, [JOB], 30, breaker=SOON, retry=retry).error()
        assert len(server.requests) == 2
    assert (error.status, error.attempts) == (503, 2)
    assert str(error).endswith(
        "not tried again: the service keeps failing, so that calls to it have stopped for a while"
    )


@both_ways
def test_a_refused_call_takes_no_turn_of_the_rate(way, clock):
    """Two requests a minute are allowed: one opens the circuit, and the trial has the other."""
    fields = {"requests_per_minute": 2, "max_concurrency": 1, "retry": ONCE, "breaker": {"failures": 1, "over": 0}}
    with StandIn("cohere") as server, opened(way, server, **fields) as call:
        server.script(server.error(503))
        call()
        assert is_refused(call(timeout=30))
        clock.now += 10
        assert call(timeout=30).failures == {}


@both_ways
def test_a_refused_call_waits_for_no_slot(way):
    """A hanging request holds the only slot, and a circuit that another stage opened meanwhile is reported at once."""
    fields = {"retry": ONCE, "breaker": {"failures": 1, "wait": 3600, "over": 0}}
    with ThreadPoolExecutor(1) as pool, StandIn("cohere") as server, keyed(server):
        server.script(late(HANGS))
        server.always(server.error(503))
        with stage(server, max_concurrency=1, **fields) as busy, stage(server, **fields) as other:
            pool.submit(batch, busy, [JOB])
            server.wait_for(1)
            batch(other, [JOB])
            began = time.monotonic()
            outcome = batch(busy, [JOB], HANGS) if way == "sync" else asyncio.run(abatch(busy, [JOB], HANGS))
            assert is_refused(outcome)
            assert time.monotonic() - began < HANGS / 2


def test_a_trial_that_is_cancelled_is_free_for_the_next(clock):
    """The server sees it leave at once; until then all others are refused, afterwards the next caller is the trial."""

    async def main(reranker, server):
        await abatch(reranker, [JOB])
        clock.now += 10
        server.hold()
        trial = asyncio.create_task(abatch(reranker, [JOB], 60))
        await asyncio.to_thread(server.wait_for, 2)
        assert is_refused(await abatch(reranker, [JOB], 30))
        trial.cancel()
        with pytest.raises(asyncio.CancelledError):
            await trial
        await asyncio.to_thread(server.wait_until_idle)
        assert server.requests[1].abandoned
        server.release()
        assert (await abatch(reranker, [JOB], 30)).failures == {}
        assert (await abatch(reranker, [JOB] * 3, 30)).failures == {}
        await reranker.aclose()

    with StandIn("cohere") as server, keyed(server):
        server.script(server.error(503))
        reranker = stage(server, retry=ONCE, breaker={"failures": 1, "over": 0})
        reranker.open()
        asyncio.run(main(reranker, server))


@both_ways
def test_a_pipeline_goes_on_without_the_service_and_says_why(way):
    """With ``on_error: skip`` the hits stay as they were; the code is for programs."""
    with StandIn("cohere") as server, keyed(server):
        server.always(server.error(500))
        reranker = stage(server, retry=ONCE, breaker=SOON, on_error="skip")
        with Pipeline([ListedSearch(documents=TEXTS), reranker], timeout=30) as pipeline:
            codes = []
            for _ in range(3):
                result = asyncio.run(pipeline.arun(QUERY)) if way == "async" else pipeline.run(QUERY)
                codes.append(result.report("cohere").reason_code)
                assert (result.status, [hit.id for hit in result]) == ("degraded", [0, 1, 2, 3])
    assert codes == ["unavailable", "unavailable", "circuit_open"]
    assert isinstance(result.report("cohere").error.__cause__, CircuitOpenError)


def test_the_settings_are_written_as_they_are_read():
    """Null switches it off; what is at its default is not written."""
    assert "breaker" not in Cohere().config()
    assert Cohere(breaker=None).config()["breaker"] is None
    assert Cohere(breaker={"wait": 2}).breaker == BreakerSettings(wait=2.0)
