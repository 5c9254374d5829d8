"""A TCP proxy for a server on this machine, with faults that are switched on and off while it runs.

    with Proxy(server_port) as proxy:       # listens on proxy.port; proxy.url is its address for http
        proxy.delay(0.2)                    # delay every chunk in both directions, or with replies=False in one
        proxy.trickle(chunk=1, pause=0.01)  # pass one byte at a time
        proxy.freeze()                      # accept connections, and pass nothing
        proxy.cut_after(100)                # pass this many more bytes of replies on each connection
        proxy.cut()                         # close all connections now (FIN); with new=True also new ones
        proxy.reset()                       # the same with RST
        proxy.refuse()                      # stop listening, and reset all connections
        proxy.heal()                        # pass everything again, on the same port

There is one fault at a time; a new one replaces it. Connections that a fault has not closed continue with the bytes
that it held back. Every method returns when its fault is in force, and may be called from any thread.
``proxy.accepted`` counts all connections, ``proxy.open`` the open ones. After the block, the proxy's thread and sockets
are gone.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, Self

from support.ports import free_ports

CHUNK = 65536
Ending = Literal["fin", "rst"]


@dataclass(frozen=True)
class _Fault:
    """What happens to passing bytes; nothing by default."""

    requests: float = 0.0  # seconds that a chunk from a client is held back
    replies: float = 0.0
    chunk: int = CHUNK
    pause: float = 0.0
    frozen: bool = False
    limit: int | None = None  # bytes of replies
    ending: Ending = "fin"
    arriving: Ending | None = None  # how new connections end


@dataclass(eq=False)
class _Connection:
    """A client's connection and the matching one to the server."""

    near: socket.socket
    far: socket.socket = field(default_factory=socket.socket)
    ending: Ending = "fin"
    replied: int = 0


class _Cut(Exception):  # noqa: N818 - not an error, a fault at work
    """The connection has passed as many bytes as it may."""


class Proxy:
    """A proxy on 127.0.0.1, used as a context manager; see the module.

    Args:
        target: port of the server.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        (self.port,) = free_ports(1)
        self.accepted = 0
        self._fault = _Fault()
        self._connections: dict[asyncio.Task[None], _Connection] = {}
        self._listener: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """The address for clients that speak HTTP or gRPC."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def open(self) -> int:
        """The number of open connections of clients."""
        return len(self._connections)

    # -- faults -------------------------------------------------------------------------------------------------

    def heal(self) -> None:
        """Pass everything, and accept connections again."""
        self._set(_Fault())

    def delay(self, seconds: float, *, requests: bool = True, replies: bool = True) -> None:
        """Hold every chunk back for some seconds: requests, replies or both."""
        self._set(_Fault(requests=seconds * requests, replies=seconds * replies))

    def trickle(self, chunk: int = 1, pause: float = 0.01) -> None:
        """Pass ``chunk`` bytes at a time, with a pause in seconds after each."""
        self._set(_Fault(chunk=chunk, pause=pause))

    def freeze(self) -> None:
        """Accept connections, and pass nothing."""
        self._set(_Fault(frozen=True))

    def cut_after(self, count: int, ending: Ending = "fin") -> None:
        """End each connection, also new ones, after ``count`` more bytes of replies."""
        self._set(_Fault(limit=count, ending=ending))

    def cut(self, *, new: bool = False) -> None:
        """Close all connections, with ``new`` also those to come."""
        self._set(_Fault(arriving="fin" if new else None), closing="fin")

    def reset(self, *, new: bool = False) -> None:
        """Reset all connections, with ``new`` also those to come."""
        self._set(_Fault(arriving="rst" if new else None), closing="rst")

    def refuse(self) -> None:
        """Stop listening and reset all connections, as a server that dies does."""
        self._set(_Fault(), closing="rst", listening=False)

    # -- life ---------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main(ready)), name=f"proxy {self.port}")
        self._thread.start()
        ready.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        if self._thread is not None:
            self._thread.join()

    async def _main(self, ready: threading.Event) -> None:
        self._loop, self._stop, self._changed = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
        try:
            self._listen()
        finally:
            ready.set()
        await self._stop.wait()
        await self._unlisten()
        await self._close_all("rst")

    def _set(self, fault: _Fault, closing: Ending | None = None, listening: bool = True) -> None:
        async def change() -> None:
            self._fault = fault
            for connection in self._connections.values():
                connection.replied = 0
            changed, self._changed = self._changed, asyncio.Event()
            changed.set()
            if listening:
                self._listen()
            else:
                await self._unlisten()
            if closing:
                await self._close_all(closing)

        asyncio.run_coroutine_threadsafe(change(), self._loop).result(10)

    def _listen(self) -> None:
        if self._listener is None:
            self._listener = socket.create_server(("127.0.0.1", self.port), backlog=512)
            self._listener.setblocking(False)
            self._accepting = self._loop.create_task(self._accept(self._listener))

    async def _unlisten(self) -> None:
        if self._listener is not None and self._accepting is not None:
            self._accepting.cancel()
            await asyncio.wait([self._accepting])
            self._listener.close()
            self._listener = None

    async def _close_all(self, ending: Ending) -> None:
        tasks = dict(self._connections)
        for task, connection in tasks.items():
            connection.ending = ending
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    # -- connections --------------------------------------------------------------------------------------------

    async def _accept(self, listener: socket.socket) -> None:
        while True:
            near, _ = await self._loop.sock_accept(listener)
            self.accepted += 1
            if self._fault.arriving:
                _close(near, self._fault.arriving)
                continue
            near.setblocking(False)
            connection = _Connection(near)
            connection.far.setblocking(False)
            task = self._loop.create_task(self._serve(connection))
            self._connections[task] = connection
            # Called even if the task is cancelled before it starts.
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        connection = self._connections.pop(task)
        _close(connection.near, connection.ending)
        _close(connection.far, "fin")
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error  # to the loop's log: a bug in this module

    async def _serve(self, connection: _Connection) -> None:
        near, far = connection.near, connection.far
        await self._thawed()
        try:
            await self._loop.sock_connect(far, ("127.0.0.1", self.target))
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(self._pump(near, far))
                pumps.create_task(self._pump(far, near, connection))
        except* _Cut:
            connection.ending = self._fault.ending
        except* OSError:
            connection.ending = "rst"  # the other side sees the reset of this one

    async def _pump(self, source: socket.socket, sink: socket.socket, replies: _Connection | None = None) -> None:
        """Pass bytes until the source ends; ``replies`` is the connection if the source is the server."""
        while data := await self._loop.sock_recv(source, CHUNK):
            await asyncio.sleep(self._fault.replies if replies else self._fault.requests)
            while data:
                await self._thawed()
                fault = self._fault
                piece = data[: fault.chunk]
                if replies and fault.limit is not None:
                    piece = piece[: max(0, fault.limit - replies.replied)]
                await self._loop.sock_sendall(sink, piece)
                data = data[len(piece) :]
                if replies:
                    replies.replied += len(piece)
                    if fault.limit is not None and replies.replied >= fault.limit:
                        raise _Cut
                await asyncio.sleep(fault.pause)
        await self._thawed()
        sink.shutdown(socket.SHUT_WR)

    async def _thawed(self) -> None:
        while self._fault.frozen:
            await self._changed.wait()


def _close(end: socket.socket, ending: Ending) -> None:
    with suppress(OSError):
        if ending == "rst":
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    end.close()
