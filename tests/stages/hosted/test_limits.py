"""Concurrency and rate: what is kept to by all threads and event loops together, and what ends a wait."""

from __future__ import annotations

import asyncio
import re
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milvus_pipeline import DeadlineError
from milvus_pipeline.plugin import Deadline, RerankJob, adrive, drive
from milvus_stages.hosted import limits as throttle
from milvus_stages.hosted.limits import Rate, Slots
from support.hosted import QUERY, TEXTS, abatch, ask, batch, both_ways, eventually, keyed, scored, stage
from support.standins import StandIn, late

JOBS = [RerankJob(QUERY, TEXTS)] * 6
HANGS = 30.0
FOREVER = Deadline()


@pytest.mark.parametrize(("threads", "loops"), [(1, 0), (0, 1), (3, 0), (0, 3), (2, 2)])
def test_the_bound_of_concurrency_holds_for_all_together(threads, loops):
    """For one batch, and for several in threads, on event loops, and both; no more than it, and no fewer."""
    with StandIn("cohere") as server, keyed(server):
        reranker = stage(server, max_concurrency=4)
        reranker.open()
        server.hold()
        with ThreadPoolExecutor(threads + loops) as pool:
            calls = [pool.submit(batch, reranker, JOBS) for _ in range(threads)]
            calls += [pool.submit(asyncio.run, here(reranker)) for _ in range(loops)]
            server.wait_for(4)
            with pytest.raises(TimeoutError):
                server.wait_for(5, timeout=0.1)
            server.release()
            outcomes = [call.result(HANGS) for call in calls]
        reranker.close()
        assert server.most_in_flight == 4
        assert len(server.requests) == 6 * len(calls)
    assert not any(outcome.failures for outcome in outcomes)
    assert all(None not in scores for outcome in outcomes for scores in outcome.scores)


async def here(reranker, jobs=JOBS):
    """Run a batch on a new event loop, whose end closes its connections."""
    await reranker.aopen()
    try:
        return await abatch(reranker, jobs)
    finally:
        await reranker.aclose()


@both_ways
def test_connections_are_kept(way):
    """As many as there are requests at a time, however many queries there are."""
    with StandIn("cohere") as server:
        scored(way, server, JOBS * 5, max_concurrency=3)
        assert server.connections <= 3
        assert len(server.requests) == 30


def take(slots, deadline):
    """Take a slot, as the blocking driver does."""
    with closing(slots.take(deadline)) as steps:
        drive(steps, lambda step: step.future.result(step.seconds))


async def atake(slots, deadline=FOREVER):
    """Take a slot, as the driver of an event loop does."""

    async def wait(step):
        async with asyncio.timeout(step.seconds):
            await asyncio.wrap_future(step.future)

    with closing(slots.take(deadline)) as steps:
        await adrive(steps, wait)


def test_slots_are_given_in_order():
    """The task that waits longest is next."""
    slots, order = Slots(1), []

    async def hold(name):
        await atake(slots)
        order.append(name)
        slots.give_back()

    async def main():
        await atake(slots)
        tasks = [asyncio.create_task(hold(name)) for name in range(5)]
        await asyncio.sleep(0)
        slots.give_back()
        await asyncio.gather(*tasks)

    asyncio.run(main())
    assert order == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("end", ["deadline", "cancel"])
def test_a_waiting_place_that_is_given_up_is_free(end):
    """Whether by a deadline or a cancellation: the slot goes to the next, and none is lost or doubled."""
    slots = Slots(1)

    async def main():
        await atake(slots)
        task = asyncio.create_task(atake(slots, Deadline.after(0.05) if end == "deadline" else FOREVER))
        await asyncio.sleep(0.01)
        if end == "cancel":
            task.cancel()
        with pytest.raises(DeadlineError if end == "deadline" else asyncio.CancelledError):
            await task
        after = asyncio.create_task(atake(slots))
        await asyncio.sleep(0.01)
        assert not after.done()
        slots.give_back()
        await after
        with pytest.raises(DeadlineError, match="`max_concurrency` others were in flight"):
            await atake(slots, Deadline.after(0.01))

    asyncio.run(main())


def test_a_thread_waits_for_a_slot_no_longer_than_its_deadline():
    """The slot is free for others afterwards."""
    slots = Slots(1)
    take(slots, FOREVER)
    with pytest.raises(DeadlineError):
        take(slots, Deadline.after(0.02))
    slots.give_back()
    take(slots, Deadline.after(1))


BOOKINGS = st.lists(st.tuples(st.sampled_from([0, 0, 0.5, 7, 25, 61, 200]), st.integers(1, 60)), max_size=40)


@given(bookings=BOOKINGS, requests=st.none() | st.integers(1, 6), tokens=st.none() | st.integers(20, 100))
def test_no_minute_has_more_than_the_limit(bookings, requests, tokens):
    """In any 61 seconds, one more than services count over; each request begins as early as may be, in its order."""
    now, begun = 1000.0, []
    rate = Rate(requests, tokens)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(throttle, "time", SimpleNamespace(monotonic=lambda: now))
        for gap, size in bookings:
            now += gap
            begun.append((now + rate.book(size, Deadline()).wait, size))
            first = max([now, *(at for at, _ in begun[:-1])])
            free = [first, *(at + 61 for at, _ in begun[:-1] if at + 61 > first)]
            assert begun[-1][0] == pytest.approx(min(at for at in free if fits(begun, at, requests, tokens)))
    for start, _ in begun:
        assert fits_window([size for at, size in begun if start <= at < start + 61 - 1e-6], requests, tokens)


def fits(begun, at, requests, tokens) -> bool:
    """Whether the last request could begin then."""
    window = [size for other, size in begun[:-1] if other > at - 61 + 1e-6] + [begun[-1][1]]
    return fits_window(window, requests, tokens)


def fits_window(sizes, requests, tokens) -> bool:
    """Whether a minute may hold these."""
    return len(sizes) <= (requests or 10**9) and (sum(sizes) <= (tokens or 10**9) or len(sizes) == 1)


def test_a_wait_that_the_deadline_forbids_books_nothing():
    """It fails at once, and the next one's turn is as if it had not been asked for."""
    rate = Rate(2, None)
    assert [rate.book(1, Deadline()).wait, rate.book(1, Deadline()).wait] == [0, 0]
    for _ in range(5):
        with pytest.raises(DeadlineError, match=r"rate limit \(2 requests per minute\) allows the next request in"):
            rate.book(1, Deadline.after(30))
    assert 60 < rate.book(1, Deadline()).wait <= 61
    assert 60 < rate.book(1, Deadline()).wait <= 61
    assert rate.book(1, Deadline()).wait > 119
    assert Rate(None, None).book(10**9, Deadline.after(0)).wait == 0.0


def test_a_turn_that_is_given_back_is_free_again():
    """Its place and its tokens go to the next; giving it back twice, or late, does no harm."""
    rate = Rate(2, 100)
    rate.book(60, Deadline())
    booking = rate.book(40, Deadline())
    rate.give_back(booking)
    rate.give_back(booking)
    assert rate.book(40, Deadline()).wait == 0
    assert rate.book(1, Deadline()).wait > 59


def test_a_turn_that_is_given_back_leaves_those_before_it():
    """What was sent counts for its minute, even if a later request gave up."""
    rate = Rate(1, None)
    rate.book(1, Deadline())
    rate.give_back(rate.book(1, Deadline()))
    assert 60 < rate.book(1, Deadline()).wait <= 61


@both_ways
@pytest.mark.parametrize("limit", [{"requests_per_minute": 2}, {"tokens_per_minute": 150}])
def test_a_batch_that_the_rate_forbids_fails_at_once(way, limit):
    """What fits in the time is sent; what does not is not waited for."""
    began = time.monotonic()
    with StandIn("cohere") as server:
        outcome = scored(way, server, JOBS, timeout=20, **limit)
        assert len(server.requests) == 2
    assert time.monotonic() - began < 10
    assert len(outcome.failures) == 4
    for error in outcome.failures.values():
        assert isinstance(error, DeadlineError)
        assert "per minute) allows the next request in" in str(error)


@both_ways
def test_the_rate_counts_repetitions(way):
    """Each attempt is a request to the service."""
    with StandIn("cohere") as server:
        server.always(server.error(503))
        outcome = ask(way, server, timeout=10, requests_per_minute=2, retry={"attempts": 5, "min_wait": 0.01})
        assert len(server.requests) == 2
    error = outcome.error()
    assert (error.status, error.attempts) == (503, 2)
    assert "not tried again: the rate limit (2 requests per minute) allows the next request in" in str(error)
    assert outcome.usage == {"requests": 2, "retries": 1}


def test_a_rate_is_shared_by_threads_and_event_loops(monkeypatch):
    """All calls of a stage are one customer of the service."""
    monkeypatch.setattr(throttle, "_WINDOW", 0.3)  # the minute
    with StandIn("cohere") as server, keyed(server):
        reranker = stage(server, requests_per_minute=4)
        reranker.open()
        with ThreadPoolExecutor(2) as pool:
            calls = [pool.submit(batch, reranker, JOBS), pool.submit(asyncio.run, here(reranker))]
            assert not any(call.result(HANGS).failures for call in calls)
        reranker.close()
        times = [request.arrived for request in server.requests]
    assert len(times) == 12
    assert times[-1] - times[0] > 0.5  # twelve in three windows


@pytest.mark.parametrize("where", ["in flight", "for a slot"])
def test_cancelling_a_call_leaves_nothing_behind(where):
    """Connection, slot and place are free, the server sees the client leave, and the next call works."""
    with StandIn("cohere") as server:
        server.script(late(HANGS))

        async def begun():
            await asyncio.to_thread(server.wait_for, 1)

        after = cancelled(server, JOBS[: 3 if where == "for a slot" else 1], begun)
        assert server.requests[0].abandoned
        assert len(server.requests) == 2
    assert None not in after.scores[0]


def test_cancelling_a_call_that_waits_between_attempts():
    """The wait ends with it, and the slot is free."""
    with StandIn("cohere") as server:
        # The client has read the reply, and waits, once its side of the connection is closed, too.
        server.script(server.error(503).but(ending="close"))

        async def waiting():
            await asyncio.to_thread(server.wait_for, 1)
            await asyncio.to_thread(eventually, lambda: server.open_connections == 0)

        after = cancelled(server, JOBS[:1], waiting, retry={"attempts": 3, "min_wait": HANGS})
        assert len(server.requests) == 2
    assert None not in after.scores[0]


def test_cancelling_a_call_that_waits_for_the_rate():
    """Its turn is free for the next, which comes a minute after the first request and not two."""
    with StandIn("cohere") as server:

        async def waiting():
            await asyncio.to_thread(server.wait_for, 1)  # the other has its turn in a minute
            await asyncio.to_thread(server.wait_until_idle)

        after = cancelled(server, JOBS[:2], waiting, max_concurrency=2, requests_per_minute=1)
        assert not server.requests[0].abandoned
        assert len(server.requests) == 1
    wait_text = re.search(r"allows the next request in ([\d.]+) s", str(after.failures[0]))
    assert 40 < float(wait_text[1]) <= 61


def cancelled(server, jobs, ready, **fields):
    """Cancel a batch when it is ready, and make another call, which has ten seconds; nothing else runs then."""

    async def main():
        await reranker.aopen()
        task = asyncio.create_task(abatch(reranker, jobs))
        await ready()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.to_thread(server.wait_until_idle)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        outcome = await abatch(reranker, JOBS[:1], 10)
        await reranker.aclose()
        return outcome

    reranker, began = stage(server, **{"max_concurrency": 1, **fields}), time.monotonic()
    with keyed(server):
        outcome = asyncio.run(main())
    assert time.monotonic() - began < HANGS - 10
    return outcome
