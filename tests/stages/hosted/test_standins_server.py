"""What a stand-in's server can be made to do: the script and its catalogue, connections, concurrency, its end."""

import asyncio
import math
import threading

import httpx
import pytest

from support.standins import (
    FAULTS,
    Reply,
    StandIn,
    dripping,
    errors,
    late,
    ranking,
    rate_limits,
    standin_process,
    variants,
    wrong,
)
from support.standins.plain import QUERY, TEXTS, good, pairs, send


def test_every_scripted_error_is_sent_and_spoils_nothing(server, provider):
    """Each of the catalogue has the status of its name; the request after it is served."""
    catalogue = errors(provider)
    for name, reply in catalogue.items():
        server.script(reply)
        assert send(server, good(provider)).status_code == int(name[:3]), name
    for name, reply in rate_limits(provider).items():
        server.script(reply)
        assert send(server, good(provider)).status_code == 429, name
    assert send(server, good(provider)).status_code == 200
    assert all(request.refused is None for request in server.requests)


def test_the_errors_that_repeat_what_was_sent_do(server, provider):
    """The key in one, the documents in the others."""
    server.script(*(errors(provider)[name] for name in ("401_repeating_the_key", "422_list_repeating_the_documents")))
    assert server.key in send(server, good(provider)).text
    assert TEXTS[1] in send(server, good(provider)).text


def test_unusual_replies_still_rank_every_document(server, provider):
    """What is called right names each document once, with a finite score."""
    for name, reply in variants(provider).items():
        server.script(reply)
        found = pairs(provider, send(server, good(provider)).json())
        assert sorted(index for index, _ in found) == [0, 1, 2, 3], name
        assert all(math.isfinite(score) for _, score in found), name


def test_wrong_replies_differ_from_a_right_one(server, provider):
    """Each comes with a status of success, and none reads as the ranking of what was sent."""
    for name, reply in wrong(provider).items():
        server.script(reply)
        answer = send(server, good(provider))
        assert answer.status_code in (200, 204), name
        assert answer.content != send(server, good(provider)).content, name
    server.script(wrong(provider)["fewer"])
    assert len(pairs(provider, send(server, good(provider)).json())) == 3


def test_a_change_leaves_a_refusal_as_it_is(server, provider):
    """A script makes no wrong request right."""
    server.script(variants(provider)["tied"])
    assert send(server, {}).status_code in (400, 422)


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("closed", httpx.RemoteProtocolError),
        ("reset", httpx.ReadError),
        ("cut", httpx.RemoteProtocolError),
        ("cut_chunked", httpx.RemoteProtocolError),
    ],
)
def test_connections_break_where_they_are_told_to(name, error):
    """Before the reply or in the middle of it; the next connection is served."""
    with StandIn("cohere") as server:
        server.script(FAULTS[name])
        with pytest.raises(error):
            send(server, good("cohere"))
        assert send(server, good("cohere")).status_code == 200


def test_a_late_reply_is_given_up_by_the_client():
    """The server notices, and does not count it as in flight any longer."""
    with StandIn("cohere") as server:
        server.script(late(60), dripping(60))
        for _ in range(2):
            with pytest.raises(httpx.ReadTimeout):
                send(server, good("cohere"), timeout=0.1)
        assert send(server, good("cohere")).status_code == 200
        server.wait_until_idle()
    assert [request.abandoned for request in server.requests] == [True, True, False]


def test_a_connection_is_kept():
    """One client's requests in a row share it."""
    with StandIn("voyage") as server, httpx.Client(headers={"authorization": f"Bearer {server.key}"}) as client:
        for _ in range(3):
            client.post(f"{server.url}/v1/rerank", json=good("voyage"))
        assert (server.connections, len(server.requests)) == (1, 3)
    arrivals = [request.arrived for request in server.requests]
    assert arrivals == sorted(arrivals)


def test_two_hundred_connections_are_served_at_the_same_time():
    """All are held, counted, and then answered."""

    async def call(server):
        limits = httpx.Limits(max_connections=200)
        async with httpx.AsyncClient(limits=limits, timeout=60) as client:
            calls = [asyncio.ensure_future(client.post(f"{server.url}/rerank", json=good("vllm"))) for _ in range(200)]
            await asyncio.to_thread(server.wait_for, 200, 60)
            server.release()
            return {(await each).status_code for each in calls}

    with StandIn("vllm") as server:
        server.hold()
        assert asyncio.run(call(server)) == {200}
        assert server.most_in_flight == server.connections == 200


def test_the_end_leaves_nothing_behind():
    """With requests in flight, too: their clients see the connection end, the thread and the port are gone."""
    seen = []

    def call():
        try:
            send(server, good("tei"))
        except httpx.HTTPError as error:
            seen.append(error)

    threads = set(threading.enumerate())
    with StandIn("tei") as server:
        server.hold()
        callers = [threading.Thread(target=call) for _ in range(3)]
        for caller in callers:
            caller.start()
        server.wait_for(3)
    for caller in callers:
        caller.join(20)
    assert len(seen) == 3
    assert set(threading.enumerate()) == threads
    with pytest.raises(httpx.ConnectError):
        send(server, good("tei"))


def test_an_error_in_the_block_ends_the_server():
    """What the test raised comes out of the block."""
    threads = set(threading.enumerate())
    with pytest.raises(ZeroDivisionError), StandIn("tei"):
        raise ZeroDivisionError
    assert set(threading.enumerate()) == threads


def test_a_fault_of_the_script_comes_out_of_the_block():
    """The client only sees a closed connection; the test gets the exception."""

    def faulty(request, normal):
        return normal.but(body=normal.body["nothing"])

    with pytest.raises(KeyError, match="nothing"), StandIn("cohere") as server:
        server.script(faulty)
        with pytest.raises(httpx.RemoteProtocolError):
            send(server, good("cohere"))


def test_a_stand_in_runs_in_a_process_of_its_own():
    """It prints its address, and ends with its input."""
    with standin_process("cohere", latency=0.01) as (url, key):
        reply = httpx.post(
            f"{url}/v2/rerank", json=good("cohere"), headers={"authorization": f"Bearer {key}"}, timeout=20
        )
        assert pairs("cohere", reply.json()) == ranking(QUERY, TEXTS)
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)


def test_a_reply_is_changed_without_losing_its_headers():
    """New headers are added to those it has."""
    reply = Reply(429, headers={"a": "1"}).but(headers={"b": "2"}, status=503)
    assert (reply.status, reply.headers) == (503, {"a": "1", "b": "2"})


def test_there_is_no_stand_in_for_an_unknown_name():
    """The error lists those that there are."""
    with pytest.raises(ValueError, match="cohere, voyage"):
        StandIn("coher")
