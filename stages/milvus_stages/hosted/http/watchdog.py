"""A time limit for a whole blocking request; httpx limits only each read."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any


class Line:
    """The connection of a client.

    Args:
        tls: whether it is encrypted.

    Attributes:
        connected: whether there is a connection that a request can be sent on.
    """

    def __init__(self, *, tls: bool) -> None:
        self.connected = False
        self._last_step = ".start_tls.complete" if tls else ".connect_tcp.complete"

    def follow(self, event: str) -> None:
        """Follow a step of httpx."""
        if event.endswith(".connect_tcp.started"):
            self.connected = False
        elif event.endswith(self._last_step):
            self.connected = True

    async def atrace(self, event: str, info: dict[str, Any]) -> None:
        """Follow a step; an asynchronous client of httpx calls this with each."""
        self.follow(event)


class SeverableLine(Line):
    """The connection of a blocking client, which another thread can cut.

    Attributes:
        cut: whether it was cut.
    """

    def __init__(self, *, tls: bool) -> None:
        super().__init__(tls=tls)
        self.cut = False
        self._tls = tls
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None

    def trace(self, event: str, info: dict[str, Any]) -> None:
        """Follow the socket; a blocking client of httpx calls this with each step.

        TLS takes over the socket in the middle of the handshake, so that socket is watched through a copy.
        """
        self.follow(event)
        stream = info.get("return_value")
        if event.endswith(".connect_tcp.started"):
            self._watch(None)
        elif event.endswith(".connect_tcp.complete") and stream is not None:
            connected = stream.get_extra_info("socket")
            self._watch(connected.dup() if self._tls else connected)
        elif event.endswith(".start_tls.complete") and stream is not None:
            self._watch(stream.get_extra_info("socket"))
        elif event.endswith(".start_tls.failed"):
            self._watch(None)

    def _watch(self, connected: socket.socket | None) -> None:
        with self._lock:
            before, self._socket = self._socket, connected
            if self._tls and before is not None and not isinstance(before, ssl.SSLSocket):
                before.close()  # the copy
        if self.cut:  # the time ran out before there was a connection
            self._shut()

    def sever(self) -> None:
        """Cut the connection, which ends whatever waits for it."""
        self.cut = True
        self._shut()

    def _shut(self) -> None:
        with self._lock:
            if self._socket is not None:
                with suppress(OSError):  # it has already ended
                    # Not the method of a TLS socket, which would remove the state that the reading thread uses.
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)


class Watchdog:
    """A thread that ends overdue requests; it runs from the first request to ``close``."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._changed = threading.Condition()
        self._watched: dict[object, tuple[float, Callable[[], None]]] = {}
        self._wakes = float("inf")
        self._thread: threading.Thread | None = None
        self._closed = False

    @contextmanager
    def over(self, seconds: float, end: Callable[[], None]) -> Iterator[None]:
        """Call ``end`` if the block takes longer; it is not called after the block."""
        mark, at = object(), time.monotonic() + seconds
        with self._changed:
            self._watched[mark] = (at, end)
            if self._thread is None:  # not started, or ended
                self._thread = threading.Thread(target=self._watch, name=f"{self._name}-watchdog", daemon=True)
                self._thread.start()
            elif at < self._wakes:  # rare: most requests have the same time
                self._changed.notify()
        try:
            yield
        finally:
            with self._changed:
                self._watched.pop(mark, None)
                if self._closed and not self._watched:
                    self._changed.notify()

    def close(self) -> None:
        """End the thread once nothing is watched."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _watch(self) -> None:
        with self._changed:
            while self._watched or not self._closed:
                now = time.monotonic()
                for mark, (at, end) in list(self._watched.items()):
                    if at <= now:
                        del self._watched[mark]
                        end()
                self._wakes = min((at for at, _ in self._watched.values()), default=float("inf"))
                if self._watched or not self._closed:
                    left = self._wakes - time.monotonic()
                    self._changed.wait(None if self._wakes == float("inf") else max(0.0, left))
            self._thread = None
