"""The open connections of this process: one per server (or Lite file), token, database and TLS settings."""

from __future__ import annotations

from milvus_pipeline import StageError
from milvus_pipeline.plugin import Deadline, Shared
from milvus_stages.milvus.client.lite import LiteConnection, lite_path
from milvus_stages.milvus.client.server import MIN_SECONDS, Connection, is_lite
from milvus_stages.milvus.client.tls import TLS

Key = tuple[str, str, str, TLS | None]

# A Lite database that is being closed must not be opened meanwhile, which the lock of its key prevents; and a silent
# server delays only its own users.
connections = Shared[Key, Connection](lambda connection: connection.close())


def connect(uri: str, token: str, db_name: str, timeout: float, tls: TLS | None = None) -> Connection:
    """Return the connection, made if need be, in at most ``timeout`` seconds. It must be released from ``connections``.

    Raises:
        StageError: a Lite database cannot be opened, or other threads were opening or closing the connection for all
            of that time.
        Exception: what pymilvus raises if it cannot connect.
    """
    deadline, started = Deadline.after(timeout), False

    def make() -> Connection:
        nonlocal started
        started = True
        left = max(MIN_SECONDS, deadline.remaining() or 0.0)
        return (LiteConnection if is_lite(uri) else Connection).open(uri, token, db_name, left, tls)

    key = (lite_path(uri), "", "", None) if is_lite(uri) else (uri, token, db_name, tls)
    try:
        return connections.acquire(key, make, timeout)
    except TimeoutError:
        if started:
            raise
        raise StageError(
            f"others have been opening or closing the connection for {timeout:.3g} s",
            "check that the server is healthy, or increase `timeout`",
            place=uri,
            reason_code="unavailable",
        ) from None
