"""A blocking request has a time limit as a whole, even if a service keeps sending a little."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from milvus_pipeline.plugin import RerankJob
from milvus_stages import RerankAPI
from support.hosted import QUERY, batch

WHOLE = b'HTTP/1.1 200 OK\r\ncontent-length: 49\r\n\r\n{"results":[{"index":0,"relevance_score":0.125}]}'
JOBS = [RerankJob(QUERY, ["the red plum"])]
PAUSE = 0.1
LONG = 20.0
"""Seconds that a test would take, were the request not bounded."""


@contextmanager
def trickling(first: bytes, trickle: bytes) -> Iterator[str]:
    """A server that sends the bytes of ``first`` at once for each request, and those of ``trickle`` one by one."""
    listener = socket.create_server(("127.0.0.1", 0))
    ended = threading.Event()

    def answer(connection: socket.socket) -> None:
        with connection:
            try:
                while connection.recv(100_000):
                    connection.sendall(first)
                    for byte in trickle:
                        if ended.wait(PAUSE):
                            return
                        connection.sendall(bytes([byte]))
                    if trickle:
                        return
            except OSError:  # the other side has gone
                pass

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threads.append(threading.Thread(target=answer, args=(connection,)))
            threads[-1].start()

    threads = [threading.Thread(target=serve)]
    threads[0].start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        ended.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for thread in threads:
            thread.join()


HEADERS = b"HTTP/1.1 200 OK\r\nx-slow: " + b"a" * int(LONG / PAUSE)
BODY = b'{"results": [' + b" " * int(LONG / PAUSE)


@pytest.mark.parametrize(
    ("first", "trickle"),
    [(b"", HEADERS), (b"HTTP/1.1 200 OK\r\ncontent-length: 99999\r\n\r\n", BODY), (b"HTTP/1.1 200 OK\r\n\r\n", BODY)],
    ids=["headers", "body of known length", "body that ends with the connection"],
)
@pytest.mark.parametrize("bound", ["request_timeout", "deadline"])
def test_a_reply_that_trickles_is_cut(first, trickle, bound):
    """The request ends at its time limit, however often there is something to read."""
    with trickling(first, trickle) as url:
        fields = {"request_timeout": 0.4} if bound == "request_timeout" else {}
        stage = RerankAPI(base_url=url, retry={"attempts": 1}, **fields)
        stage.open()
        began = time.monotonic()
        outcome = batch(stage, JOBS, timeout=30 if fields else 0.4)
        took = time.monotonic() - began
        stage.close()
    assert took < LONG / 2
    assert "no complete reply within 0." in str(outcome.failures[0])


def test_a_connection_that_was_cut_is_not_used_again():
    """The next request goes over a new one."""
    with trickling(b"", HEADERS) as slow:
        stage = RerankAPI(base_url=slow, retry={"attempts": 2, "min_wait": 0.01}, request_timeout=0.3)
        stage.open()
        error = batch(stage, JOBS).error()
        stage.close()
    assert error.attempts == 2
    assert "no complete reply" in str(error)


def test_requests_in_time_leave_nothing_to_watch():
    """The thread that watches ends with the stage, and no request in time is touched by it."""
    before = set(threading.enumerate())
    with trickling(WHOLE, b"") as url:
        stage = RerankAPI(base_url=url, request_timeout=0.3)
        stage.open()
        for _ in range(3):
            assert batch(stage, JOBS).scores == [[0.125]]
        time.sleep(0.4)  # past the time of them all
        assert batch(stage, JOBS).scores == [[0.125]]
        stage.close()
        for thread in set(threading.enumerate()) - before:
            if "watchdog" in thread.name:
                thread.join(10)
                assert not thread.is_alive()
