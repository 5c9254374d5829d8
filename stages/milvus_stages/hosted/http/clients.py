"""httpx clients, each lent to one request at a time.

Each client has one connection: httpx's pool compares all connections with each other at every request, which for
dozens of them takes longer than everything else together. A client whose request did not finish is not used again: if a
task is cancelled at the wrong moment, the pool considers the connection busy for ever.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, Final, Generic, NamedTuple, TypeVar

from milvus_pipeline import StageError
from milvus_stages.hosted.http.watchdog import Line, SeverableLine

if TYPE_CHECKING:
    import httpx

KEPT_SECONDS: Final = 60.0
"""Seconds that an idle connection is kept, so that a backend with few queries need not reconnect for each."""


def closed_error() -> StageError:
    """Return the error of a request that found its transport closed."""
    return StageError("the pipeline was closed while a query was running", "wait for running queries before closing it")


_Client = TypeVar("_Client")
_Line = TypeVar("_Line", bound=Line)


class _Idle(NamedTuple, Generic[_Client, _Line]):
    client: _Client
    line: _Line
    since: float


class Clients:
    """Clients for blocking callers.

    Args:
        make: makes a client.
        tls: whether the connections are encrypted.
    """

    def __init__(self, make: Callable[[], httpx.Client], *, tls: bool) -> None:
        self._make = make
        self._tls = tls
        self._lock = threading.Lock()
        self._closed = False
        self._idle: deque[_Idle[httpx.Client, SeverableLine]] = deque()

    @contextmanager
    def lend(self) -> Iterator[tuple[httpx.Client, SeverableLine]]:
        """Lend an unused client: the one that was used last, whose connection is most likely still open."""
        with self._lock:
            if self._closed:
                raise closed_error()
            found, stale = _take_idle(self._idle)
        client, line = (found.client, found.line) if found else (self._make(), SeverableLine(tls=self._tls))
        try:
            for old in stale:
                old.client.close()
            yield client, line
        except BaseException:
            client.close()
            raise
        with self._lock:
            if kept := not self._closed:
                self._idle.append(_Idle(client, line, time.monotonic()))
        if not kept:
            client.close()

    def close(self) -> None:
        """Close the idle clients now, and those in use when they are returned."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, deque()
        for each in idle:
            each.client.close()


class AsyncClients:
    """Clients for the tasks of any number of event loops; a client belongs to one event loop.

    Args:
        make: makes a client.
        tls: whether the connections are encrypted.
    """

    def __init__(self, make: Callable[[], httpx.AsyncClient], *, tls: bool) -> None:
        self._make = make
        self._tls = tls
        self._lock = threading.Lock()
        self._closed = False
        self._idle: dict[asyncio.AbstractEventLoop, deque[_Idle[httpx.AsyncClient, Line]]] = {}
        self._ends: dict[asyncio.AbstractEventLoop, AsyncGenerator[None, None]] = {}

    @asynccontextmanager
    async def lend(self) -> AsyncIterator[tuple[httpx.AsyncClient, Line]]:
        """Lend an unused client of this event loop: the one that was used last."""
        loop = asyncio.get_running_loop()
        with self._lock:
            if self._closed:
                raise closed_error()
            for ended in [each for each in self._ends if each.is_closed()]:
                del self._ends[ended]
                self._idle.pop(ended, None)  # its clients can no longer be used or closed
            if new := loop not in self._ends:
                self._ends[loop] = self._end_of_loop()
            idle = self._idle.setdefault(loop, deque())
            found, stale = _take_idle(idle)
        if stale:
            _begin_to_close(loop, stale)  # not awaited: a cancellation meanwhile would lose them
        client, line = (found.client, found.line) if found else (self._make(), Line(tls=self._tls))
        try:
            if new:
                await anext(self._ends[loop])
            yield client, line
        except BaseException:
            await client.aclose()
            raise
        with self._lock:
            # Another queue if this loop's clients were closed meanwhile.
            if kept := self._idle.get(loop) is idle:
                idle.append(_Idle(client, line, time.monotonic()))
        if not kept:
            await client.aclose()

    async def _end_of_loop(self) -> AsyncGenerator[None, None]:
        """Close the clients of an event loop when it ends: it closes the generators that were started in it."""
        try:
            yield
        finally:
            await self.aclose_here()

    async def aclose_here(self) -> None:
        """Close the clients of this event loop. Later requests get new ones."""
        with self._lock:
            idle = self._idle.pop(asyncio.get_running_loop(), deque())
        await _aclose(idle)

    def close(self) -> None:
        """Let event loops close their idle clients, and those in use when they are returned."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, {}
        for loop, clients in idle.items():
            with suppress(RuntimeError):  # it has ended
                loop.call_soon_threadsafe(_begin_to_close, loop, clients)


def _take_idle(
    idle: deque[_Idle[_Client, _Line]],
) -> tuple[_Idle[_Client, _Line] | None, list[_Idle[_Client, _Line]]]:
    """Remove and return the idle client that was used last, and all that have been idle for too long."""
    found = idle.pop() if idle else None
    before = time.monotonic() - KEPT_SECONDS
    stale = []
    while idle and idle[0].since <= before:
        stale.append(idle.popleft())
    return found, stale


_closing: set[asyncio.Task[None]] = set()
"""Event loops hold their tasks only weakly."""


def _begin_to_close(loop: asyncio.AbstractEventLoop, clients: Iterable[_Idle[httpx.AsyncClient, Line]]) -> None:
    task = loop.create_task(_aclose(clients))
    _closing.add(task)
    task.add_done_callback(_closing.discard)


async def _aclose(clients: Iterable[_Idle[httpx.AsyncClient, Line]]) -> None:
    for each in clients:
        await each.client.aclose()
