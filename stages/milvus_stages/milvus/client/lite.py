"""Milvus Lite: a database in a folder whose name ends in ``.db``, served by threads of this process."""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
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
# pymilvus pings every 10 s. The database, in the same process, treats pings without calls as abuse, and ends the
# connection with a message that gRPC prints to the terminal.
_GRPC_OPTIONS = {"grpc.keepalive_time_ms": 2**31 - 1}


def lite_path(uri: str) -> str:
    """Return the absolute path of a Lite database, with links resolved if the name still ends in ``.db``."""
    path = Path(uri).expanduser().absolute()
    # A database is locked under its real name, so two names of one database must become one.
    real = path.resolve()
    return str(real if real.name.endswith(".db") else path)


def check_present(uri: str) -> None:
    """Raise StageError if there is no database: Milvus Lite would create an empty one."""
    path = Path(lite_path(uri))
    # It would also turn any folder into one, among the files that are there.
    if not path.exists() or (path.is_dir() and not (path / "collections").is_dir()):
        raise StageError(
            f"there is no Milvus Lite database {uri} (looked for {path})",
            "check `uri`, or make it with `milvus-pipeline ingest`",
            reason_code="not_found",
        )


class LiteConnection(Connection):
    """An open connection to a Lite database.

    One thread makes its searches one after the other: concurrent searches with different ``nprobe`` corrupt each
    other's answers, and a search that its caller has given up cannot be stopped.
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
        address = manager.server_manager_instance.start_and_get_uri(path)
        if address is None:
            raise _open_error(uri, path)
        options = {"uri": address, "dedicated": True, "grpc_options": _GRPC_OPTIONS}
        return cls(pymilvus.MilvusClient(**options, timeout=timeout), options, path)

    def search(self, arguments: Arguments, deadline: Deadline) -> Any:
        """``MilvusClient.search`` with these arguments, after the searches that came first."""
        deadline.check()
        future = self._submit(arguments)
        try:
            return future.result(deadline.remaining())
        except TimeoutError:
            future.cancel()
            deadline.check()
            raise

    async def asearch(self, arguments: Arguments, deadline: Deadline) -> Any:
        """``search`` without blocking the event loop, which an asynchronous client of a Lite database does."""
        deadline.check()
        return await asyncio.wait_for(asyncio.wrap_future(self._submit(arguments)), deadline.remaining())

    def marker(self, collection: str) -> object:
        """When the files of its schema and its index were written.

        Milvus Lite accepts a search with the metric of an index that no longer exists, and returns wrong scores.
        """
        folder = Path(self._path)
        names = ("schema.json", "manifest.json")
        files = (*(folder / "collections" / collection / name for name in names), folder / "aliases.json")
        return tuple(_file_version(file) for file in files)

    def _submit(self, arguments: Arguments) -> Future[Any]:
        try:
            return self._worker.submit(self._search, arguments)
        except RuntimeError as error:  # the worker is shut down
            raise closed_error() from error

    def _search(self, arguments: Arguments) -> Any:
        if self.closed.is_set():
            raise closed_error()
        return self.client.search(**arguments, timeout=_SEARCH_SECONDS)

    def close(self) -> None:
        """Close the connection, and the database if no other client of this process uses it."""
        # Waiting searches are not cancelled, which would look like a cancellation of the caller's task: they fail.
        self.closed.set()
        self._worker.shutdown(wait=True)
        super().close()
        manager = require("milvus_lite.server_manager", extra="lite", wanted_by="milvus_search")
        if not _has_other_clients(str(self._options["uri"])):
            manager.server_manager_instance.release_server(self._path)


def _file_version(file: Path) -> tuple[int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _has_other_clients(address: str) -> bool:
    """Whether another client is connected to the server at this address."""
    try:
        connections = connection_manager().ConnectionManager.get_instance().get_stats()["connections"]
        return any(found["address"] == urlsplit(address).netloc and found["client_count"] for found in connections)
    except INTERNALS_DIFFER:
        return True  # a database that may be in use stays open


def _open_error(uri: str, path: str) -> StageError:
    """The error that a database cannot be opened. It is opened once more: the manager only logs the reason."""
    cause: Exception | None = None
    what, step = "the Milvus Lite database could not be opened", "retry: now it can be"
    try:
        require("milvus_lite", extra="lite", wanted_by="milvus_search").MilvusLite(path).close()
    except Exception as error:
        cause = error
        what, step = f"the Milvus Lite database cannot be opened: {error_text(error)}", "check its files, or rebuild it"
        if type(error).__name__ == "DataDirLockedError":
            what = f"another process{_lock_holder(Path(path) / 'LOCK')} holds this Milvus Lite database"
            step = "close that process (a notebook, perhaps), or use a Milvus server, which many processes can share"
        elif isinstance(error, FileExistsError | NotADirectoryError):
            what, step = "is a file, but a Milvus Lite database is a folder", "change `uri`, or move the file away"
        elif isinstance(error, PermissionError):
            what, step = "the database is not writable, which Milvus Lite requires", "check its permissions"
    explained = StageError(what, step, place=uri, reason_code="unavailable")
    explained.__cause__ = cause
    return explained


def _lock_holder(lock: Path) -> str:
    """Number and name of the process that has locked a file, in parentheses; empty if the system does not report it."""
    with suppress(OSError, ValueError, IndexError):
        wanted = str(lock.stat().st_ino)
        for line in Path("/proc/locks").read_text(encoding="ascii").splitlines():
            words = line.split()
            if words[1] == "FLOCK" and words[5].rpartition(":")[2] == wanted and int(words[4]) != os.getpid():
                name = Path("/proc", words[4], "comm").read_text(encoding="utf-8").strip()
                return f" (number {words[4]}, {name})"
    return ""
