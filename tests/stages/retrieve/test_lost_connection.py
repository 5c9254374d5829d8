"""A server that goes away and comes back, as a forwarder of its connections plays it."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest

from milvus_pipeline import Pipeline, StageError
from milvus_pipeline.retry import RetrySettings
from milvus_stages import MilvusSearch

from .conftest import NLIST, Engine

PATIENT = RetrySettings(attempts=100, min_wait=0.05, max_wait=0.2)
HASTY = RetrySettings(attempts=2, min_wait=0.01, max_wait=0.01)


class Forwarder:
    """Passes connections on to another port of this machine until it is stopped; can be started again."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = 0
        self.sockets: list[socket.socket] = []
        self.start()

    def start(self) -> None:
        listener = socket.create_server(("127.0.0.1", self.port))
        self.port = listener.getsockname()[1]
        self.sockets = [listener]
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def stop(self) -> None:
        for each in self.sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.create_connection(("127.0.0.1", self.target))
                self.sockets += [near, far]
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)


@pytest.fixture
def forwarder(lite: Engine) -> Iterator[Forwarder]:
    """In front of Milvus Lite, which speaks as a server does to whoever calls it by address."""
    from milvus_lite.server_manager import server_manager_instance

    forwarder = Forwarder(int(server_manager_instance.start_and_get_uri(lite.uri).rpartition(":")[2]))
    yield forwarder
    forwarder.stop()


def search(forwarder: Forwarder, retry: RetrySettings) -> Pipeline:
    uri = f"http://127.0.0.1:{forwarder.port}"
    stage = MilvusSearch(uri=uri, collection="things", params={"nprobe": NLIST}, retry=retry, timeout=20)
    return Pipeline([stage]).open()


def test_a_connection_that_comes_back(lite: Engine, forwarder: Forwarder) -> None:
    """The client that lost its server finds it again; nothing has to be opened anew."""
    with search(forwarder, PATIENT) as pipeline:
        expected = pipeline.run(lite.query(0))
        for run in (pipeline.run, lambda query: asyncio.run(pipeline.arun(query))):
            forwarder.stop()
            back = threading.Timer(0.3, forwarder.start)
            back.start()
            assert run(lite.query(0)) == expected
            back.join()


async def test_a_connection_that_comes_back_under_an_event_loop(lite: Engine, forwarder: Forwarder) -> None:
    """The same for the client of a loop that goes on."""
    async with search(forwarder, PATIENT) as pipeline:
        expected = await pipeline.arun(lite.query(0))
        forwarder.stop()
        threading.Timer(0.3, forwarder.start).start()
        assert await pipeline.arun(lite.query(0)) == expected


def test_a_connection_that_stays_lost(lite: Engine, forwarder: Forwarder) -> None:
    """After the attempts that the settings allow, the error says what to check."""
    with search(forwarder, HASTY) as pipeline:
        forwarder.stop()
        for run in (pipeline.run, lambda query: asyncio.run(pipeline.arun(query))):
            with pytest.raises(StageError, match=r"cannot be reached .* check that the server runs"):
                run(lite.query(0))
