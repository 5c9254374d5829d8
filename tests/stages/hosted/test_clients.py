"""Connections: none is used again that was cut short, none is kept for nothing, none is another process's."""

from __future__ import annotations

import asyncio
import gzip
import logging
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from milvus_pipeline import Pipeline, StageError
from milvus_pipeline.plugin import RerankJob
from milvus_stages import RerankAPI
from milvus_stages.hosted.http import clients
from support.fake_stages.basic import ListedSearch
from support.hosted import KEY_VARIABLE, QUERY, QUICK, abatch, ask, batch, both_ways, eventually, keyed, stage
from support.standins import Reply, StandIn

JOBS = [RerankJob(QUERY, ["the red plum"])]


def test_no_moment_to_cancel_spoils_the_connection():
    """After a call that was cancelled at any step of its way, the next one is answered."""

    async def main(server: StandIn) -> None:
        reranker = RerankAPI(base_url=server.url, request_timeout=5, retry={"attempts": 1})
        await reranker.aopen()
        for steps in range(60):
            task = asyncio.create_task(abatch(reranker, JOBS))
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert (await abatch(reranker, JOBS)).failures == {}, f"cancelled after {steps} steps"
        await reranker.aclose()

    with StandIn("vllm") as server:
        asyncio.run(main(server))


def test_deadlines_near_the_latency_spoil_no_connection():
    """Time that is up while a reply comes in costs its own query only."""
    moments = random.Random(1)  # noqa: S311 - varies a test, hides nothing

    async def main(server: StandIn) -> None:
        pipeline = Pipeline([ListedSearch(), RerankAPI(base_url=server.url, request_timeout=2, retry=QUICK)])
        async with pipeline:
            for _ in range(150):
                with_time = 0.008 + moments.random() * 0.01
                await pipeline.arun_batch(["red plum"], timeout=with_time, return_errors=True)
            for _ in range(3):
                assert (await pipeline.arun("red plum", timeout=20)).status == "ok"

    with StandIn("vllm", latency=0.01) as server:
        asyncio.run(main(server))


def test_idle_connections_are_closed_in_time(monkeypatch):
    """The connections of a burst are closed if one is enough afterwards."""
    monkeypatch.setattr(clients, "KEPT_SECONDS", 0.2)
    with StandIn("cohere") as server, keyed(server):
        reranker = stage(server, max_concurrency=8)
        reranker.open()
        server.hold()
        burst = threading.Thread(target=batch, args=(reranker, JOBS * 8))
        burst.start()
        server.wait_for(8)
        server.release()
        burst.join()
        server.wait_until_idle()
        assert server.open_connections == 8
        time.sleep(0.3)
        batch(reranker, JOBS)
        assert eventually(lambda: server.open_connections == 1)
        reranker.close()
        assert eventually(lambda: server.open_connections == 0)


FORK = """
import os, sys
from milvus_pipeline.plugin import RerankJob
from milvus_stages import Cohere
from support.hosted import QUERY, TEXTS, batch

JOBS = [RerankJob(QUERY, TEXTS)]
reranker = Cohere(base_url=sys.argv[1], api_key_env=sys.argv[2], request_timeout=5, retry={"attempts": 1})
reranker.open()
assert batch(reranker, JOBS).failures == {}
child = os.fork()
right = batch(reranker, JOBS).failures == {}
if child == 0:
    os._exit(0 if right else 1)
assert os.waitpid(child, 0)[1] == 0
assert right
assert batch(reranker, JOBS).failures == {}
reranker.close()
"""


def test_a_cancel_while_old_connections_are_closed_loses_none(monkeypatch):
    """Neither they nor the one that was to be used stay open without an owner."""

    async def main(server: StandIn) -> None:
        reranker = stage(server, max_concurrency=6)
        await reranker.aopen()
        server.hold()
        burst = asyncio.create_task(abatch(reranker, JOBS * 6))
        await asyncio.to_thread(server.wait_for, 6)
        server.release()
        await burst
        monkeypatch.setattr(clients, "KEPT_SECONDS", 0.0)
        task = asyncio.create_task(abatch(reranker, JOBS))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert await asyncio.to_thread(eventually, lambda: server.open_connections <= 1)
        await reranker.aclose()

    with StandIn("cohere") as server, keyed(server):
        asyncio.run(main(server))
        assert eventually(lambda: server.open_connections == 0)


def test_a_stage_that_is_closed_leaves_no_thread_to_watch_over_it():
    """A request in flight may end first."""
    before = set(threading.enumerate())
    with StandIn("cohere") as server, keyed(server):
        reranker = stage(server, retry={"attempts": 1})
        reranker.open()
        server.hold()
        call = threading.Thread(target=batch, args=(reranker, JOBS))
        call.start()
        server.wait_for(1)
        reranker.close()
        server.release()
        call.join()
        left = [each for each in threading.enumerate() if each not in before and "watchdog" in each.name]
        for each in left:
            each.join(5)
            assert not each.is_alive()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_worker_has_connections_of_its_own():
    """Parent and child ask at the same time, and each gets its own answers over its own connection."""
    with StandIn("cohere") as server, keyed(server):
        command = [sys.executable, "-c", FORK, server.url, KEY_VARIABLE]
        path = os.pathsep.join(filter(None, sys.path))
        done = subprocess.run(
            command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        assert len(server.requests) == 4
        assert server.connections == 2  # the parent goes on with its own


@both_ways
def test_a_reply_that_unpacks_to_too_much_is_refused(way):
    """A few bytes on the wire cannot take gigabytes of memory; a plainly compressed reply is read."""
    bomb = gzip.compress(gzip.compress(b" " * 2**26 * 2))
    layers = Reply(200, bomb, {"content-encoding": "gzip, gzip"})
    single = Reply(200, gzip.compress(b" " * (2**26 + 1)), {"content-encoding": "gzip"})
    plain = Reply(
        200, gzip.compress(b'{"results": [{"index": 0, "relevance_score": 0.5}]}'), {"content-encoding": "gzip"}
    )
    cut = Reply(200, plain.body[:-9], {"content-encoding": "gzip"})
    with StandIn("vllm") as server:
        for reply, says in ((layers, "compressed in a way"), (single, "larger than 64 MiB"), (cut, "incomplete")):
            server.always(reply)
            assert says in str(ask(way, server, ["the red plum"], retry={"attempts": 1}).failures[0])
        server.always(plain)
        assert ask(way, server, ["the red plum"], retry={"attempts": 1}).scores == [[0.5]]
        assert server.requests[0].headers["accept-encoding"] == "identity"


@both_ways
def test_nothing_that_a_service_says_reaches_a_log(way, caplog):
    """Reason phrases and headers may repeat a key or a text; others' requests are logged as before."""
    secret = "sk-Ab12Cd34Ef56Gh78"  # noqa: S105 - nobody's
    head = f"HTTP/1.1 401 no {secret}\r\nx-key: {secret}\r\ncontent-length: 0\r\n\r\n".encode()
    caplog.set_level(logging.DEBUG)
    with answering(head) as url:
        reranker = RerankAPI(base_url=url, retry={"attempts": 1})
        reranker.open()
        outcome = batch(reranker, JOBS) if way == "sync" else asyncio.run(abatch(reranker, JOBS))
        reranker.close()
        assert "answered 401" in str(outcome.failures[0])
        assert secret not in caplog.text
        import httpx

        httpx.post(url, json={})
    assert "HTTP Request: POST" in caplog.text


@pytest.mark.parametrize(
    ("variable", "value"),
    [("HTTP_PROXY", "socks9://user:s3cretpass@127.0.0.1:9"), ("SSL_CERT_FILE", "/no/such/file.pem")],
)
def test_what_the_environment_names_wrongly_is_found_at_opening(monkeypatch, variable, value):
    """With the variables to look at, and without the password in one of them."""
    monkeypatch.setenv(variable, value)
    with pytest.raises(StageError, match=f"no client can be made for .*{variable}") as caught:
        RerankAPI(base_url="http://127.0.0.1:9").open()
    assert "s3cretpass" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


@contextmanager
def answering(reply: bytes) -> Iterator[str]:
    """A server that gives each request the same bytes, and ends the connection."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.recv(100_000)
                connection.sendall(reply)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()
