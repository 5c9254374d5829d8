"""Milvus Lite: a database in a folder whose name ends in ``.db``, served by threads of this process."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self
from urllib.parse import urlsplit

from milvus_pipeline import StageError
from milvus_pipeline.plugin import Deadline, error_text, require
from milvus_stages.milvus.client.server import (
    INTERNALS_DIFFER,
    Arguments,
    Connection,
    closed_error,
    connection_manager,
    pymilvus_for,
)
from milvus_stages.milvus.client.tls import TLS

_SEARCH_SECONDS = 600.0
# pymilvus pings every 10 s. The database, which is in the same process, takes pings that no call goes with for an
# abuse, and ends the connection with a message that gRPC prints to the terminal.
_GRPC_OPTIONS = {"grpc.keepalive_time_ms": 2**31 - 1}
_MANAGER_LOG = "milvus_lite.server_manager"


def lite_path(uri: str) -> str:
    """The absolute path of a Lite database, its links followed where the name still ends in ``.db``."""
    path = Path(uri).expanduser().absolute()
    # A database is locked under its real name: two names of one database must become one.
    real = path.resolve()
    return str(real if real.name.endswith(".db") else path)


def check_present(uri: str) -> None:
    """Raise StageError where there is no database, which Milvus Lite would otherwise make, empty."""
    path = Path(lite_path(uri))
    # It would also make one of any folder, in among what is there.
    if not path.exists() or (path.is_dir() and not (path / "collections").is_dir()):
        raise StageError(
            f"there is no Milvus Lite database {uri} (looked for {path})",
            "check `uri`, or make it with `milvus-pipeline ingest`",
            reason_code="not_found",
        )


class LiteConnection(Connection):
    """An open connection to a Lite database.

    Its searches go one after the other through a thread of its own: searches with different ``nprobe`` that run at
    once corrupt each other's answers, and a search that a caller no longer waits for cannot be stopped.
    """

    is_lite: ClassVar[bool] = True

    def __init__(self, client: Any, options: Arguments, path: str) -> None:
        super().__init__(client, options)
        self._path = path
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="milvus-lite-search")

    @classmethod
    def open(cls, uri: str, token: str, db_name: str, timeout: float, tls: TLS | None = None) -> Self:
        """Serve the database and connect to it.

        Raises:
            StageError: milvus-lite is not installed, or the database cannot be opened.
        """
        pymilvus = pymilvus_for("milvus_search")
        manager = require("milvus_lite.server_manager", extra="lite", wanted_by=f"milvus_search with uri {uri}")
        path = lite_path(uri)
        if not Path(path).parent.is_dir():
            raise StageError(
                f"the folder of {uri} does not exist (looked for {Path(path).parent})",
                "check `uri`",
                reason_code="not_found",
            )
        with _reasons.kept() as reasons:
            address = manager.server_manager_instance.start_and_get_uri(path)
        if address is None:
            cause = reasons[-1] if reasons else None
            raise StageError(str(_why(reasons)), place=str(uri), reason_code="unavailable") from cause
        options = {"uri": address, "dedicated": True, "grpc_options": _GRPC_OPTIONS}
        return cls(pymilvus.MilvusClient(**options, timeout=timeout), options, path)

    def search(self, arguments: Arguments, deadline: Deadline) -> Any:
        """``MilvusClient.search`` with these arguments, after those that came before it."""
        deadline.check()
        future = self._submitted(arguments)
        try:
            return future.result(deadline.remaining())
        except TimeoutError:
            future.cancel()
            deadline.check()
            raise

    async def asearch(self, arguments: Arguments, deadline: Deadline) -> Any:
        """``search`` without blocking the event loop, which an asynchronous client of a Lite database does."""
        deadline.check()
        return await asyncio.wait_for(asyncio.wrap_future(self._submitted(arguments)), deadline.remaining())

    def marker(self, collection: str) -> object:
        """When the files that hold its schema and its index were written.

        Milvus Lite takes a search with the metric of an index that is no more, and answers with wrong scores.
        """
        folder = Path(self._path)
        files = (
            folder / "collections" / collection / "schema.json",
            folder / "collections" / collection / "manifest.json",
        )
        return tuple(_written(file) for file in (*files, folder / "aliases.json"))

    def _submitted(self, arguments: Arguments) -> Future[Any]:
        try:
            return self._worker.submit(self._searched, arguments)
        except RuntimeError as error:  # the thread takes no more work
            raise closed_error() from error

    def _searched(self, arguments: Arguments) -> Any:
        if self.closed.is_set():
            raise closed_error()
        return self.client.search(**arguments, timeout=_SEARCH_SECONDS)

    def close(self) -> None:
        """Close the connection, and the database where no other client of this process uses it."""
        # What waits for its turn is not cancelled, which would look as if the caller's task were; it finds us closed.
        self.closed.set()
        self._worker.shutdown(wait=True)
        super().close()
        manager = require("milvus_lite.server_manager", extra="lite", wanted_by="milvus_search")
        if not _others(str(self._options["uri"])):
            manager.server_manager_instance.release_server(self._path)


def _written(file: Path) -> tuple[int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _others(address: str) -> bool:
    """Whether a client that is not ours is connected to the server at this address."""
    try:
        connections = connection_manager().ConnectionManager.get_instance().get_stats()["connections"]
        return any(found["address"] == urlsplit(address).netloc and found["client_count"] for found in connections)
    except INTERNALS_DIFFER:
        return True  # a database that somebody may use stays open


class _Reasons(logging.Filter):
    """The exceptions that this thread's openings of a database log, which is the only place that they show up.

    Threads may open different databases at once; each gets its own.
    """

    def __init__(self) -> None:
        super().__init__()
        self._logger = logging.getLogger(_MANAGER_LOG)
        self._lock = threading.Lock()
        self._kept: dict[int, list[BaseException]] = {}
        self._level = logging.NOTSET

    def filter(self, record: logging.LogRecord) -> bool:
        reasons = self._kept.get(record.thread or 0)
        if reasons is None or not record.exc_info or record.exc_info[1] is None:
            return True
        reasons.append(record.exc_info[1])
        return False

    @contextmanager
    def kept(self) -> Iterator[list[BaseException]]:
        """The reasons that show up until the block ends."""
        thread = threading.get_ident()
        with self._lock:
            if not self._kept:  # the first one changes the logger, the last one changes it back
                self._level = self._logger.level
                self._logger.setLevel(logging.ERROR)
                self._logger.addFilter(self)
            reasons = self._kept[thread] = []
        try:
            yield reasons
        finally:
            with self._lock:
                del self._kept[thread]
                if not self._kept:
                    self._logger.removeFilter(self)
                    self._logger.setLevel(self._level)


_reasons = _Reasons()


def _why(reasons: list[BaseException]) -> str:
    reason = reasons[-1] if reasons else None
    if reason is not None and type(reason).__name__ == "DataDirLockedError":
        return (
            "another process holds this Milvus Lite database; close that process (a notebook, perhaps), or use a "
            "Milvus server, which many processes can share"
        )
    if isinstance(reason, FileExistsError | NotADirectoryError):
        return "is a file, but a Milvus Lite database is a folder; name another `uri`, or move the file away"
    if isinstance(reason, PermissionError):
        return "this Milvus Lite database cannot be written to, which Milvus Lite needs; check its permissions"
    return f"the Milvus Lite database cannot be opened: {error_text(reason) if reason else 'no reason was given'}"
