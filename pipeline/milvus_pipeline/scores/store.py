"""Scores in a file, by key: an SQLite database that stages, threads and processes of one machine may share.

SQLite is part of Python. Its transactions survive a killed process, its write-ahead log lets any number of processes
read while one writes, and reading a file never executes anything in it.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Final

from milvus_pipeline.errors import StageError
from milvus_pipeline.shared import Shared
from milvus_pipeline.text import error_text, short_repr

logger = logging.getLogger(__name__)

FORMAT: Final = 1
"""Version of the table and of the content of its keys."""

APPLICATION: Final = 0x4D53_5053  # "MSPS"; marks the file as ours
_MAGIC: Final = b"SQLite format 3\x00"
_HEADER_BYTES: Final = 100
_FORMAT_AT, _APPLICATION_AT = slice(60, 64), slice(68, 72)
_OPEN_SECONDS: Final = 5.0  # to wait for another process that creates the same file
_CHECK_SECONDS: Final = 1.0  # to look for damage; in a very large file the rest is found when it is read
_CHECK_STEPS: Final = 10_000  # SQLite instructions between two looks at the clock
_PAGES_KIB: Final = 16_384  # cached by a connection

_PATIENCE: Final = 0.05  # seconds that a query waits for other processes, and as long for other threads
_PAUSE: Final = 2.0  # seconds without another attempt after a failure
_LAST_SECONDS: Final = 2.0  # that closing waits for the file
_KEYS_AT_ONCE: Final = 500  # in a statement
_MOST_UNWRITTEN: Final = 500_000  # scores, about 60 MB, kept in memory while the file cannot be written

_TABLE: Final = "CREATE TABLE scores (key BLOB PRIMARY KEY, score REAL NOT NULL) WITHOUT ROWID"


class ScoreCache:
    """The scores of one file, for which a query waits ``_PATIENCE`` seconds at most; ``fault`` reports a failure.

    Scores that cannot be written (the file is locked, the disk full) stay in memory, are found there, and are written
    with the next ones. A file that cannot be read has no scores for a while. Nothing is raised.

    Args:
        path: an existing cache, or a place for a new one.
        whole: look for damage, which takes up to a second.

    Raises:
        StageError: the file is something else, damaged, or cannot be written.
    """

    def __init__(self, path: Path, *, whole: bool = True) -> None:
        _prepare(path, whole=whole)
        self.path = path
        self._reading = _Channel(path)
        self._writing = _Channel(path)
        self._lock = threading.Lock()  # guards the scores that are not written yet
        self._unwritten: dict[bytes, float] = {}
        self._lost = 0
        self._closed = False
        self._read_again_at = self._write_again_at = 0.0
        self._unreadable: str | None = None
        self._unwritable: str | None = None
        self._write_failures = 0

    @property
    def fault(self) -> str | None:
        """What is wrong with the file at the moment, for a warning; None if all is well.

        A first failure to write is none: another process may just have kept the file locked for a moment.
        """
        if self._unreadable is not None:
            return f"the score cache {self.path} cannot be read, so nothing is found in it: {self._unreadable}"
        if self._write_failures > 1:
            lost = f"; {self._lost:,} scores were not kept" if self._lost else ""
            return f"the score cache {self.path} cannot be written at the moment: {self._unwritable}{lost}"
        return None

    def get(self, keys: Sequence[bytes]) -> dict[bytes, float]:
        """Return the scores that are known for these keys."""
        with self._lock:
            found = {key: self._unwritten[key] for key in keys if key in self._unwritten}
        if self._closed or time.monotonic() < self._read_again_at:
            return found
        try:
            for start in range(0, len(keys), _KEYS_AT_ONCE):
                part = keys[start : start + _KEYS_AT_ONCE]
                marks = ",".join("?" * len(part))
                with self._reading.held() as database:
                    found.update(database.execute(f"SELECT key, score FROM scores WHERE key IN ({marks})", part))  # noqa: S608 - question marks
            self._unreadable = None
        except (sqlite3.Error, TimeoutError) as error:
            self._unreadable = str(error)
            self._read_again_at = time.monotonic() + _PAUSE
        return found

    def put(self, scores: Mapping[bytes, float]) -> None:
        """Keep these scores: write them, with all that could not be written before.

        The scores of one call are written as a whole or not at all, even if the process is killed: texts that were
        scored together are never scored again in other company, which may change a score's last digits.
        """
        with self._lock:
            if self._closed:
                return
            room = max(0, _MOST_UNWRITTEN - len(self._unwritten))
            self._lost += max(0, len(scores) - room)
            for key, score in islice(scores.items(), room):
                self._unwritten.setdefault(key, score)
        if time.monotonic() >= self._write_again_at:
            self._write()

    def close(self) -> None:
        """Write what is left, and close the file."""
        with suppress(TimeoutError, sqlite3.Error), self._writing.held() as database:
            database.execute(f"PRAGMA busy_timeout = {round(1000 * _LAST_SECONDS)}")
        self._write()
        with self._lock:
            self._closed = True
            if self._unwritten:
                logger.warning(
                    "%s: %d scores could not be written: %s", self.path, len(self._unwritten), self._unwritable
                )
        for channel in (self._reading, self._writing):
            channel.close()

    @contextmanager
    def crossing_fork(self) -> Iterator[None]:
        """Keep the connections closed while the process forks.

        SQLite keeps the locks of a file in the process's memory. A child that inherited them would believe that it
        holds locks that only its parent has, and the file would be in danger.
        """
        with self._reading.shut(), self._writing.shut(), self._lock:
            yield

    def _write(self) -> None:
        """Write all that is not written yet, in one transaction. A score that is in the file already stays as it is."""
        try:
            with self._writing.held() as database:
                with self._lock:
                    rows = dict(self._unwritten)  # another thread may have written ours with its own
                if rows:
                    _insert(database, rows)
                with self._lock:
                    for key in rows:
                        del self._unwritten[key]
            self._unwritable, self._write_failures, self._lost = None, 0, 0
        except TimeoutError:
            pass  # a thread of this process is writing; the next call writes these, too
        except sqlite3.Error as error:
            self._unwritable = str(error)
            self._write_failures += 1
            self._write_again_at = time.monotonic() + _PAUSE


class _Channel:
    """A connection that one thread at a time uses, opened on first use.

    Args:
        path: of the database.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._closed = False

    @contextmanager
    def held(self) -> Iterator[sqlite3.Connection]:
        """The connection. TimeoutError if other threads keep it for too long, or it was closed."""
        if not self._lock.acquire(timeout=_PATIENCE):
            raise TimeoutError("it is busy")
        try:
            if self._closed:
                raise TimeoutError("it was closed")
            if self._connection is None:
                self._connection = _connect(self._path, _PATIENCE)
            yield self._connection
        finally:
            self._lock.release()

    @contextmanager
    def shut(self) -> Iterator[None]:
        """Without a connection; the next use opens another."""
        with self._lock:
            if self._connection is not None:
                with suppress(sqlite3.Error), closing(self._connection):
                    self._connection = None
            yield

    def close(self) -> None:
        """Close the connection for good."""
        with self.shut():
            self._closed = True


_caches: Shared[Path, ScoreCache] = Shared(ScoreCache.close, at_fork=ScoreCache.crossing_fork)


def acquire(name: str, *, whole: bool = True) -> ScoreCache:
    """Return the cache in a file, one for all its users in this process. Each ``acquire`` needs its ``release``.

    Args:
        name: of the file; a place for a new one if it does not exist.
        whole: look for damage, which takes up to a second, if the file is not open yet.

    Raises:
        StageError: the file is something else, damaged, or cannot be written.
    """
    path = _checked_path(name)
    return _caches.acquire(path, lambda: ScoreCache(path, whole=whole))


def release(cache: ScoreCache) -> None:
    """Give a cache back; the last user's ``release`` closes it."""
    _caches.release(cache)


# -- the file ---------------------------------------------------------------------------------------------------------


def _checked_path(name: str) -> Path:
    """Return the path of a cache, without links. StageError if no file can be there."""
    try:
        path = Path(os.path.realpath(Path(name).expanduser()))
        if path.is_dir():
            raise _wrong(f"{name} is a folder", f"name a file in it, such as {Path(name) / 'scores.db'}")
        if not path.parent.is_dir():
            raise _wrong(f"the folder of {short_repr(name)} does not exist", "create it, or name another path")
    except (OSError, RuntimeError, ValueError) as error:
        raise _wrong(f"{short_repr(name)} is not a usable path: {error_text(error)}", "check the path") from error
    return path


def _prepare(path: Path, *, whole: bool) -> None:
    """Create the file if it does not exist, and check that it can be used. A file of something else is left alone.

    Raises:
        StageError: it is something else, of another version, damaged, or cannot be written.
    """
    ends = time.monotonic() + _OPEN_SECONDS
    while True:
        _check_header(path)
        try:
            with closing(_connect(path, _OPEN_SECONDS)) as database:
                _create(database)
                if whole:
                    _check_whole(path, database)
            return
        except sqlite3.OperationalError as error:
            # A change of the journal mode is the one thing that does not wait for other processes.
            if not _is_locked(error) or time.monotonic() > ends:
                raise _unusable(path, error) from error
            time.sleep(0.02)
        except sqlite3.Error as error:
            raise _unusable(path, error) from error


def _connect(path: Path, patience: float) -> sqlite3.Connection:
    """Open a connection, for one thread at a time, that waits ``patience`` seconds while others lock the file."""
    database = sqlite3.connect(path, timeout=patience, isolation_level=None, check_same_thread=False)
    try:
        # Safe if a process is killed; a power cut may lose the last scores, and nothing else.
        database.execute("PRAGMA synchronous = NORMAL")
        database.execute(f"PRAGMA cache_size = -{_PAGES_KIB}")
    except BaseException:
        database.close()
        raise
    return database


@contextmanager
def _transaction(database: sqlite3.Connection) -> Iterator[None]:
    """Write all or nothing."""
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
        database.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):
            database.execute("ROLLBACK")
        raise


def _insert(database: sqlite3.Connection, rows: Mapping[bytes, float]) -> None:
    with _transaction(database):
        database.executemany("INSERT OR IGNORE INTO scores VALUES (?, ?)", sorted(rows.items()))


def _create(database: sqlite3.Connection) -> None:
    """Create the table if the file is empty; one of several processes does."""
    with _transaction(database):
        if not database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            database.execute(f"PRAGMA application_id = {APPLICATION}")
            database.execute(f"PRAGMA user_version = {FORMAT}")
            database.execute(_TABLE)
    # Last: before, the header would be written to the log, where `_check_header` does not look.
    database.execute("PRAGMA journal_mode = WAL")


def _check_header(path: Path) -> None:
    """Refuse a file that is not one of our caches before SQLite opens it, which may write into it."""
    try:
        with path.open("rb") as file:
            header = file.read(_HEADER_BYTES)
    except FileNotFoundError:
        return
    except OSError as error:
        raise _wrong(
            f"{path} cannot be read: {error_text(error)}", "check its permissions, or name another file"
        ) from error
    if not header:
        return
    step = "it is left as it is; name another file"
    if len(header) < _HEADER_BYTES or not header.startswith(_MAGIC):
        raise _wrong(f"{path} is not a score cache", step)
    if int.from_bytes(header[_APPLICATION_AT], "big") != APPLICATION:
        raise _wrong(f"{path} is a database of another program, not a score cache", step)
    if (found := int.from_bytes(header[_FORMAT_AT], "big")) != FORMAT:
        raise _wrong(
            f"{path} is a score cache of format {found}, and this version reads format {FORMAT}",
            "name another file, or delete this one",
        )


def _check_whole(path: Path, database: sqlite3.Connection) -> None:
    """Look for damage for at most ``_CHECK_SECONDS``."""
    ends = time.monotonic() + _CHECK_SECONDS
    database.set_progress_handler(lambda: time.monotonic() > ends, _CHECK_STEPS)
    try:
        (verdict,) = database.execute("PRAGMA quick_check(1)").fetchone()
        database.execute("SELECT key, score FROM scores LIMIT 1").fetchone()
    except sqlite3.OperationalError as error:
        if "interrupted" not in str(error):
            raise
        return
    finally:
        database.set_progress_handler(None, 0)
    if verdict != "ok":
        raise _unusable(path, sqlite3.DatabaseError(verdict.splitlines()[-1]))


def _is_locked(error: sqlite3.OperationalError) -> bool:
    return error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def _unusable(path: Path, error: sqlite3.Error) -> StageError:
    if isinstance(error, sqlite3.OperationalError):
        return _wrong(f"{path} cannot be used: {error}", "check its permissions and the disk, or name another file")
    return _wrong(f"{path} is damaged: {error}", "delete it; the scores are computed again")


def _wrong(what: str, next_step: str) -> StageError:
    return StageError(what, next_step, place="cache", reason_code="config")
