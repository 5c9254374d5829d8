"""The open connections of this process: one a server (or Lite database), token and database, however many use it."""

from __future__ import annotations

import threading

from milvus_stages.retrieve.connection import Connection, is_lite
from milvus_stages.retrieve.lite import LiteConnection, lite_path


class Shared:
    """Connections with the number of their users."""

    def __init__(self) -> None:
        # Held while connecting and closing: a Lite database that is being closed must not be opened at once.
        self._lock = threading.RLock()
        self._open: dict[tuple[str, str, str], tuple[Connection, int]] = {}

    def acquire(self, uri: str, token: str, db_name: str, timeout: float) -> Connection:
        """The connection, made if need be, in at most ``timeout`` seconds. Every ``acquire`` wants its ``release``.

        Raises:
            StageError: a Lite database cannot be opened.
            Exception: whatever pymilvus raises where it cannot connect.
        """
        lite = is_lite(uri)
        key = (lite_path(uri), "", "") if lite else (uri, token, db_name)
        with self._lock:
            connection, users = self._open.get(key, (None, 0))
            if connection is None:
                connection = (LiteConnection if lite else Connection).open(uri, token, db_name, timeout)
            self._open[key] = (connection, users + 1)
            return connection

    def users(self, connection: Connection) -> int:
        """How many use the connection."""
        with self._lock:
            return next((users for held, users in self._open.values() if held is connection), 0)

    def release(self, connection: Connection) -> None:
        """Count one user less; the last one's release closes the connection."""
        with self._lock:
            for key, (held, users) in self._open.items():
                if held is connection:
                    if users > 1:
                        self._open[key] = (held, users - 1)
                    else:
                        del self._open[key]
                        connection.close()
                    return


shared = Shared()
