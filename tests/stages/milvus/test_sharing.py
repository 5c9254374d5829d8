"""Connections that the pipelines of a process share."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from milvus_pipeline import Pipeline, RetrySettings, SearchResult, StageError
from milvus_pipeline.plugin import Context, Deadline
from milvus_stages import MilvusSearch
from milvus_stages.milvus.client.pool import connections
from support.proxy import Proxy

from .conftest import Engine


@dataclass
class Silent:
    """A server that accepts connections and never answers, and a thread that waits for it."""

    uri: str
    waiting: threading.Thread


@pytest.fixture
def silent() -> Iterator[Silent]:
    """A silent server that another pipeline waits for until the test ends."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        uri = f"http://127.0.0.1:{listener.getsockname()[1]}"

        def wait() -> None:
            with suppress(StageError):
                MilvusSearch(uri=uri, collection="c", retry=RetrySettings(attempts=1)).open()

        waiting = threading.Thread(target=wait)
        waiting.start()
        connection, _ = listener.accept()
        with connection:
            yield Silent(uri, waiting)
    waiting.join()


def test_a_silent_server_does_not_delay_other_pipelines(silent: Silent, own: Engine) -> None:
    """While one pipeline waits for it, another opens, searches and closes, blocking and on an event loop."""
    pipeline = Pipeline([own.stage()])
    with pipeline:
        assert len(pipeline.run(own.query(0))) == 10

    async def under_a_loop() -> int:
        async with pipeline:
            return len(await pipeline.arun(own.query(0)))

    assert asyncio.run(under_a_loop()) == 10
    assert silent.waiting.is_alive()


def test_the_wait_for_a_connection_that_others_open_is_limited(silent: Silent) -> None:
    """A pipeline with less time than the one that connects gives up in time, and says what it waited for."""
    with pytest.raises(StageError, match=r"others have been opening or closing the connection for 0\.\d+ s"):
        Pipeline([MilvusSearch(uri=silent.uri, collection="c", timeout=0.2)]).open()
    assert silent.waiting.is_alive()


def test_a_failed_opening_leaves_nothing_behind(tmp_path: Path) -> None:
    """A connection that could not be opened is forgotten."""
    (tmp_path / "old.db").write_bytes(b"SQLite format 3")
    with pytest.raises(StageError):
        MilvusSearch(uri=tmp_path / "old.db", collection="c").open()
    assert not any("old.db" in key[0] for key in connections._entries)


CLOSED = "the pipeline was closed while a query was running"


def test_a_search_that_finds_a_database_closed(own: Engine) -> None:
    """Searches that wait when the database is closed, and later ones, report it; no task is cancelled."""
    stage = own.stage()
    stage.open()
    connection = stage.opened.connection
    results, contexts = [SearchResult(own.query(0))], [Context(Deadline(), 1) for _ in range(4)]
    go_on = threading.Event()
    connection._worker.submit(go_on.wait)
    with ThreadPoolExecutor(3) as threads:
        waiting = [
            threads.submit(stage.process, results, contexts[0]),
            threads.submit(lambda: asyncio.run(stage.aprocess(results, contexts[1]))),
        ]
        while connection._worker._work_queue.qsize() < 2:
            pass
        waiting.append(threads.submit(connection.close))
        while not connection.closed.is_set():
            pass
        go_on.set()
        for each in waiting:
            each.result()
    stage.process(results, contexts[2])
    asyncio.run(stage.aprocess(results, contexts[3]))
    for context in contexts:
        assert isinstance(context.failures[0], StageError)
        assert CLOSED in str(context.failures[0])
    stage.close()


async def test_a_search_that_finds_its_server_closed(lite: Engine, proxy: Proxy) -> None:
    """Searches of a server report a connection that was closed while they waited, or before."""
    stage = MilvusSearch(uri=proxy.url, collection="things")
    stage.open()
    results, contexts = [SearchResult(lite.query(0))], [Context(Deadline(), 1) for _ in range(3)]
    await stage.aprocess(results, Context(Deadline(), 1))
    proxy.freeze()
    running = asyncio.create_task(stage.aprocess(results, contexts[0]))
    await asyncio.sleep(0.1)  # until the call is made; if it is not, the outcome is the same
    stage.opened.connection.close()
    await running
    await stage.aprocess(results, contexts[1])
    stage.process(results, contexts[2])
    for context in contexts:
        assert CLOSED in str(context.failures[0])
    stage.close()
