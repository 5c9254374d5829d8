"""The server behind every stand-in: its own thread, real sockets, a script of replies, a record of requests."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections import deque
from types import TracebackType
from typing import Any, Self

import h11

from support.standins.messages import Refusal, Reply, Request, Scripted
from support.standins.provider import Provider
from support.standins.providers import make
from support.standins.wire import Gone, Wire


class StandIn:
    """A stand-in for one provider's rerank service, on 127.0.0.1 and a free port. See the package's docstring.

    Args:
        provider: its name, such as ``cohere``.
        latency: seconds that every reply takes; may be changed while the server runs.
        port: 0 takes a free one.
        settings: the provider's own, such as ``max_documents``.
    """

    def __init__(self, provider: str, *, latency: float = 0.0, port: int = 0, **settings: Any) -> None:
        self.provider: Provider = make(provider, **settings)
        self.latency = latency
        self._port = port
        self._lock = threading.Condition()
        self._script: deque[Scripted] = deque()
        self._always: Scripted | None = None
        self._requests: list[Request] = []
        self._in_flight = 0
        self.most_in_flight = 0
        self.connections = 0
        self._tasks: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    @property
    def url(self) -> str:
        """The base URL, without a path and without a slash at its end."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def key(self) -> str:
        """The key that the service knows; obviously not a real one."""
        return self.provider.key

    @property
    def requests(self) -> list[Request]:
        """The requests so far, in the order of their arrival."""
        with self._lock:
            return list(self._requests)

    @property
    def open_connections(self) -> int:
        """How many connections are open now."""
        return len(self._tasks)

    def script(self, *replies: Scripted) -> None:
        """Give the next requests these replies, in order; then the normal ones again."""
        with self._lock:
            self._script.extend(replies)

    def always(self, reply: Scripted) -> None:
        """Give every request that finds no scripted reply this one, until `clear`."""
        with self._lock:
            self._always = reply

    def clear(self) -> None:
        """Forget the script, the reply of `always`, and the requests so far."""
        with self._lock:
            self._script.clear()
            self._always = None
            self._requests.clear()
            self.most_in_flight = self._in_flight

    def error(self, status: int, message: str = "the stand-in says no", kind: str = "") -> Reply:
        """An error of any status in the shape of the provider's errors."""
        return self.provider.error(status, message, kind)

    def hold(self) -> None:
        """Let every request wait for its reply until `release`."""
        self._loop.call_soon_threadsafe(self._gate.clear)

    def release(self) -> None:
        """Give the requests that wait since `hold` their replies."""
        self._loop.call_soon_threadsafe(self._gate.set)

    def wait_for(self, count: int, timeout: float = 10.0) -> list[Request]:
        """The requests, once there are at least ``count`` of them.

        Raises:
            TimeoutError: there are not, after ``timeout`` seconds.
        """
        with self._lock:
            if not self._lock.wait_for(lambda: len(self._requests) >= count, timeout):
                raise TimeoutError(f"{len(self._requests)} of {count} requests after {timeout:g} s")
            return list(self._requests)

    def wait_until_idle(self, timeout: float = 10.0) -> None:
        """Return once no request is in flight: each has its reply, or its client has left.

        Raises:
            TimeoutError: some still are, after ``timeout`` seconds.
        """
        with self._lock:
            if not self._lock.wait_for(lambda: not self._in_flight, timeout):
                raise TimeoutError(f"{self._in_flight} requests are in flight after {timeout:g} s")

    def __enter__(self) -> Self:
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready,), name=f"stand-in {self.provider.name}")
        self._thread.start()
        ready.wait()
        if self._failure is not None:
            self._thread.join()
            raise self._failure
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        if self._thread is not None:
            self._thread.join()
        if self._failure is not None and error is None:
            raise self._failure  # of a scripted function, for example: the client saw but a closed connection
        if self._failure is not None:
            error.add_note(f"and the stand-in failed: {self._failure!r}")

    def _run(self, ready: threading.Event) -> None:
        try:
            asyncio.run(self._main(ready))
        except BaseException as error:  # raised in the thread that starts the server
            self._failure = error
        finally:
            ready.set()

    async def _main(self, ready: threading.Event) -> None:
        self._loop, self._stop, self._gate = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
        self._gate.set()
        server = await asyncio.start_server(self._accept, "127.0.0.1", self._port, backlog=512)
        self._port = server.sockets[0].getsockname()[1]
        ready.set()
        await self._stop.wait()
        server.close()
        tasks = dict(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for writer in tasks.values():  # of a task that was cancelled before it began, too
            writer.transport.abort()
        await server.wait_closed()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._tasks[task] = writer
        task.add_done_callback(self._tasks.pop)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        wire = Wire(reader, writer)
        try:
            with contextlib.suppress(Gone, ConnectionError):
                while (received := await wire.receive()) is not None and await self._answer(wire, *received):
                    pass
        except h11.RemoteProtocolError as error:
            with contextlib.suppress(ConnectionError, h11.LocalProtocolError):
                await wire.send(Reply(error.error_status_hint, b"not HTTP", {"content-type": "text/plain"}))
        except Exception as error:
            self._failure = error  # raised at the end of the block
        except asyncio.CancelledError:
            writer.transport.abort()  # the server ends, with requests in flight perhaps
            raise
        finally:
            await wire.close()

    async def _answer(self, wire: Wire, head: h11.Request, raw: bytes) -> bool:
        """Answer one request; whether the connection stays."""
        request, reply = self._take(head, raw)
        slots = self.provider.occupy(request)
        try:
            if not self._gate.is_set():
                await wire.wait(self._gate.wait())
            if seconds := self.latency + reply.delay:
                await wire.wait(asyncio.sleep(seconds))
            return await wire.send(reply)
        except (Gone, ConnectionError):
            request.abandoned = True
            raise
        finally:
            self.provider.leave(slots)
            with self._lock:
                self._in_flight -= 1
                self._lock.notify_all()

    def _take(self, head: h11.Request, raw: bytes) -> tuple[Request, Reply]:
        """Record a request, and choose its reply: the scripted one, or the service's own."""
        path = head.target.decode().partition("?")[0]
        headers = {name.decode().lower(): value.decode("latin-1") for name, value in head.headers}
        body = None
        with contextlib.suppress(ValueError):
            body = json.loads(raw)
        request = Request(0, head.method.decode(), path, headers, raw, body, time.monotonic())
        try:
            normal = self.provider.answer(request)
        except Refusal as refusal:
            normal, request.refused = refusal.reply, f"{refusal.reply.status}: {refusal}"
        with self._lock:
            self._requests.append(request)
            request.number = len(self._requests)
            self._in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self._in_flight)
            scripted = self._script.popleft() if self._script else self._always
            self._lock.notify_all()
        normal = self.provider.stamped(normal, request)
        reply = scripted(request, normal) if callable(scripted) else scripted or normal
        return request, reply
