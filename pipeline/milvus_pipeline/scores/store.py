"""Scores in a file, by key: an SQLite database that stages, threads and processes of one machine may share.

SQLite is part of Python. Its transactions survive a killed process, its write-ahead log lets any number of processes
read while one writes, and reading a file never executes anything in it.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

from milvus_pipeline.errors import StageError
from milvus_pipeline.shared import Shared
from milvus_pipeline.text import error_text

logger = logging.getLogger(__name__)

FORMAT: Final = 1  # version of the table and of the content of its keys
APPLICATION: Final = 0x4D53_5053  # "MSPS"; marks the file as ours
_MARKS: Final = b"SQLite format 3\x00" + FORMAT.to_bytes(4, "big") + APPLICATION.to_bytes(4, "big")
_OPEN_SECONDS: Final = 5.0  # to wait for another process that creates the same file
_PAGES_KIB: Final = 16_384  # cached by a connection
_PATIENCE: Final = 0.05  # seconds that a query waits for other processes, and as long for other threads
_KEYS_AT_ONCE: Final = 500  # in a statement

_TABLE: Final = "CREATE TABLE scores (key BLOB PRIMARY KEY, score REAL NOT NULL) WITHOUT ROWID"


class ScoreCache:
    """The scores of one file. It is only a cache: scores that cannot be written are dropped.

    Threads share two connections, so that reading never waits for a thread that waits to write.

    Args:
        path: an existing cache, or a place for a new one.

    Raises:
        StageError: the file is something else, or cannot be used.
    """

    def __init__(self, path: Path) -> None:
        _prepare(path)
        self.path = path
        self._reading = _Connection(path)
        self._writing = _Connection(path)
        self._failing = False

    def get(self, keys: Sequence[bytes]) -> dict[bytes, float]:
        """Return the scores that are known for these keys. StageError if the file cannot be read."""
        found: dict[bytes, float] = {}
        try:
            for start in range(0, len(keys), _KEYS_AT_ONCE):
                part = keys[start : start + _KEYS_AT_ONCE]
                marks = ",".join("?" * len(part))
                with self._reading.held() as database:
                    found.update(database.execute(f"SELECT key, score FROM scores WHERE key IN ({marks})", part))  # noqa: S608 - question marks
        except (sqlite3.Error, TimeoutError) as error:
            what = f"the score cache {self.path} cannot be read, so nothing is found in it: {error}"
            raise StageError(what, "delete the file if it is damaged") from error
        return found

    def put(self, scores: Mapping[bytes, float]) -> None:
        """Write these scores; those that are in the file already stay as they are.

        The scores of one call are written as a whole or not at all, even if the process is killed: texts that were
        scored together are never scored again in other company, which may change a score's last digits. If they cannot
        be written, they are dropped, and the first failure in a row is logged.
        """
        try:
            with self._writing.held() as database, database:
                database.execute("BEGIN IMMEDIATE")
                database.executemany("INSERT OR IGNORE INTO scores VALUES (?, ?)", sorted(scores.items()))
            self._failing = False
        except (sqlite3.Error, TimeoutError) as error:
            if not self._failing:
                logger.warning("the score cache %s cannot be written, so scores are not kept: %s", self.path, error)
            self._failing = True

    def close(self) -> None:
        """Close the file for good."""
        self._reading.close()
        self._writing.close()

    @contextmanager
    def crossing_fork(self) -> Iterator[None]:
        """Keep the connections closed while the process forks.

        SQLite keeps the locks of a file in the process's memory. A child that inherited them would believe that it
        holds locks that only its parent has, and the file would be in danger.
        """
        with self._reading.shut(), self._writing.shut():
            yield


class _Connection:
    """A connection that one thread at a time uses, opened on first use.

    Args:
        path: of the database.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._database: sqlite3.Connection | None = None
        self._closed = False

    @contextmanager
    def held(self) -> Iterator[sqlite3.Connection]:
        """The connection. TimeoutError if other threads keep it for too long, or it was closed."""
        if not self._lock.acquire(timeout=_PATIENCE):
            raise TimeoutError("it is busy")
        try:
            if self._closed:
                raise TimeoutError("it was closed")
            if self._database is None:
                self._database = sqlite3.connect(
                    self._path, timeout=_PATIENCE, isolation_level=None, check_same_thread=False
                )
                # Safe if a process is killed; a power cut may lose the last scores, and nothing else.
                self._database.execute("PRAGMA synchronous = NORMAL")
                self._database.execute(f"PRAGMA cache_size = -{_PAGES_KIB}")
            yield self._database
        finally:
            self._lock.release()

    @contextmanager
    def shut(self) -> Iterator[None]:
        """Without a connection; the next use opens another."""
        with self._lock:
            if self._database is not None:
                self._database.close()
                self._database = None
            yield

    def close(self) -> None:
        """Close the connection for good."""
        with self.shut():
            self._closed = True


_caches: Shared[Path, ScoreCache] = Shared(ScoreCache.close, at_fork=ScoreCache.crossing_fork)


def acquire(name: str) -> ScoreCache:
    """Return the cache in a file, one for all its users in this process. Each ``acquire`` needs its ``release``.

    Args:
        name: of the file; a place for a new one if it does not exist.

    Raises:
        StageError: the file is something else, or cannot be used.
    """
    path = Path(name).expanduser().resolve()
    if path.is_dir():
        raise _wrong(f"{name} is a folder", f"name a file in it, such as {Path(name) / 'scores.db'}")
    if not path.parent.is_dir():
        raise _wrong(f"the folder of {name} does not exist", "create it, or name another path")
    return _caches.acquire(path, lambda: ScoreCache(path))


def release(cache: ScoreCache) -> None:
    """Give a cache back; the last user's ``release`` closes it."""
    _caches.release(cache)


# -- the file ---------------------------------------------------------------------------------------------------------


def _prepare(path: Path) -> None:
    """Create the file if it does not exist. A file of something else is left alone.

    Raises:
        StageError: it is something else, of another version, or cannot be used.
    """
    ends = time.monotonic() + _OPEN_SECONDS
    while True:
        _check_header(path)
        try:
            with closing(sqlite3.connect(path, timeout=_OPEN_SECONDS, isolation_level=None)) as database:
                _create(database)
            return
        except sqlite3.DatabaseError as error:
            # A change of the journal mode is the one thing that does not wait for other processes.
            locked = error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
            if not locked or time.monotonic() > ends:
                step = "check its permissions and the disk, delete it if it is damaged, or name another file"
                raise _wrong(f"{path} cannot be used: {error}", step) from error
            time.sleep(0.02)


def _check_header(path: Path) -> None:
    """Refuse a file that is not one of our caches before SQLite opens it, which may write into it."""
    try:
        with path.open("rb") as file:
            header = file.read(100)
    except FileNotFoundError:
        return
    except OSError as error:
        step = "check its permissions, or name another file"
        raise _wrong(f"{path} cannot be read: {error_text(error)}", step) from error
    if header and header[:16] + header[60:64] + header[68:72] != _MARKS:  # user_version, application_id
        raise _wrong(f"{path} is not a score cache of format {FORMAT}", "it is left as it is; name another file")


def _create(database: sqlite3.Connection) -> None:
    """Create the table if the file is empty; one of several processes does."""
    with database:
        database.execute("BEGIN IMMEDIATE")
        if not database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            database.execute(f"PRAGMA application_id = {APPLICATION}")
            database.execute(f"PRAGMA user_version = {FORMAT}")
            database.execute(_TABLE)
    # Last: before, the header would be written to the log, where `_check_header` does not look.
    database.execute("PRAGMA journal_mode = WAL")


def _wrong(what: str, next_step: str) -> StageError:
    return StageError(what, next_step, place="cache", reason_code="config")
