"""The open connections of this process: one a server (or Lite file), token, database and TLS, however many use it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from milvus_pipeline import StageError
from milvus_pipeline.plugin import Deadline
from milvus_stages.milvus.client.lite import LiteConnection, lite_path
from milvus_stages.milvus.client.server import MIN_SECONDS, Connection, is_lite
from milvus_stages.milvus.client.tls import TLS

Key = tuple[str, str, str, TLS | None]


class _Place:
    """A connection that may be open, with the number of its users, and of those at work on opening or closing it."""

    def __init__(self) -> None:
        # Held while connecting and closing: a Lite database that is being closed must not be opened at once.
        self.lock = threading.Lock()
        self.connection: Connection | None = None
        self.users = 0
        self.at_work = 0


class Shared:
    """Connections with the number of their users."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Begin anew, without closing anything: after a fork the connections are the parent's."""
        # Guards the places and their numbers. Never held while a server is waited for, which one place's lock is for:
        # a server that is silent keeps nobody from the others.
        self._lock = threading.Lock()
        self._open: dict[Key, _Place] = {}

    def acquire(self, uri: str, token: str, db_name: str, timeout: float, tls: TLS | None = None) -> Connection:
        """The connection, made if need be, in at most ``timeout`` seconds. Every ``acquire`` wants its ``release``.

        Raises:
            StageError: a Lite database cannot be opened, or others have been opening or closing the connection for
                all of that time.
            Exception: whatever pymilvus raises where it cannot connect.
        """
        deadline = Deadline.after(timeout)
        lite = is_lite(uri)
        key = (lite_path(uri), "", "", None) if lite else (uri, token, db_name, tls)
        with self._at(key) as place:
            if not place.lock.acquire(timeout=timeout):
                raise StageError(
                    f"others have been connecting to it, or leaving it, for {timeout:.3g} s",
                    "check that it is well, or raise `timeout`",
                    place=str(uri),
                    reason_code="unavailable",
                )
            try:
                if place.connection is None:
                    left = max(MIN_SECONDS, deadline.remaining() or 0.0)
                    place.connection = (LiteConnection if lite else Connection).open(uri, token, db_name, left, tls)
                with self._lock:
                    place.users += 1
                return place.connection
            finally:
                place.lock.release()

    def users(self, connection: Connection) -> int:
        """How many use the connection."""
        with self._lock:
            return next((place.users for place in self._open.values() if place.connection is connection), 0)

    def release(self, connection: Connection) -> None:
        """Count one user less; the last one's release closes the connection."""
        with self._lock:
            key = next((key for key, place in self._open.items() if place.connection is connection), None)
        if key is None:
            return
        with self._at(key) as place, place.lock:
            with self._lock:
                place.users -= 1
                if place.users:
                    return
                place.connection = None
            connection.close()

    @contextmanager
    def _at(self, key: Key) -> Iterator[_Place]:
        """The place of a connection, kept while somebody is at work on it."""
        with self._lock:
            place = self._open.setdefault(key, _Place())
            place.at_work += 1
        try:
            yield place
        finally:
            with self._lock:
                place.at_work -= 1
                if not place.at_work and not place.users:
                    del self._open[key]


shared = Shared()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=shared.forget)
