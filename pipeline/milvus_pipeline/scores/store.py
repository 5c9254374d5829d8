"""Scores in a file, by key: an SQLite database that the stages, threads and processes of a machine may share.

SQLite is in Python already. Its transactions survive a process that is killed, its write-ahead log lets any number of
processes read while one writes, and nothing in the file is ever executed when it is read.
"""

from __future__ import annotations

import atexit
import logging
import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Final

from milvus_pipeline.errors import StageError
from milvus_pipeline.text import error_text, short_repr

FORMAT: Final = 1
"""Version of the table, and of what its keys are made of."""

APPLICATION: Final = 0x4D53_5053  # "MSPS", by which the file says whose it is
_MAGIC: Final = b"SQLite format 3\x00"
_HEADER_BYTES: Final = 100
_FORMAT_AT, _APPLICATION_AT = slice(60, 64), slice(68, 72)
_OPEN_SECONDS: Final = 5.0  # to wait for another process that makes the same file
_CHECK_SECONDS: Final = 1.0  # to look for damage; what is behind that in a very large file is found when it is read
_CHECK_STEPS: Final = 10_000  # instructions of SQLite between two looks at the clock
_PAGES_KIB: Final = 16_384  # kept in memory by a connection

_TABLE: Final = "CREATE TABLE scores (key BLOB PRIMARY KEY, score REAL NOT NULL) WITHOUT ROWID"


def checked_place(name: str) -> Path:
    """The path of a cache, without links. StageError where no file can be there."""
    try:
        path = Path(os.path.realpath(Path(name).expanduser()))
        if path.is_dir():
            raise _wrong(f"{name} is a folder; name a file in it, such as {Path(name) / 'scores.db'}")
        if not path.parent.is_dir():
            raise _wrong(f"the folder of {short_repr(name)} does not exist; make it, or name another place")
    except (OSError, RuntimeError, ValueError) as error:
        raise _wrong(f"{short_repr(name)} cannot be looked at: {error_text(error)}; check the path") from error
    return path


def prepared(path: Path, *, whole: bool = True) -> None:
    """Make the file where there is none, and see that it can be used. Nothing else's file is touched.

    Args:
        path: of the file.
        whole: look for damage, which takes up to a second.

    Raises:
        StageError: it is something else, of another version, damaged, or cannot be written.
    """
    ends = time.monotonic() + _OPEN_SECONDS
    while True:
        _check_header(path)
        try:
            with closing(connection(path, _OPEN_SECONDS)) as database:
                _make(database)
                if whole:
                    _check_whole(path, database)
            return
        except sqlite3.OperationalError as error:
            # A change of the journal's mode does not wait for other processes, as all else does.
            if not _is_locked(error) or time.monotonic() > ends:
                raise _unusable(path, error) from error
            time.sleep(0.02)
        except sqlite3.Error as error:
            raise _unusable(path, error) from error


def connection(path: Path, patience: float) -> sqlite3.Connection:
    """A connection, for one thread at a time, which waits so many seconds where others lock the file."""
    database = sqlite3.connect(path, timeout=patience, isolation_level=None, check_same_thread=False)
    try:
        # Safe where a process is killed; where the power goes, the last scores may be lost, and nothing else.
        database.execute("PRAGMA synchronous = NORMAL")
        database.execute(f"PRAGMA cache_size = -{_PAGES_KIB}")
    except BaseException:
        database.close()
        raise
    return database


def _make(database: sqlite3.Connection) -> None:
    """The table, where the file is empty; one of several processes makes it."""
    database.execute("BEGIN IMMEDIATE")
    try:
        if not database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            database.execute(f"PRAGMA application_id = {APPLICATION}")
            database.execute(f"PRAGMA user_version = {FORMAT}")
            database.execute(_TABLE)
    except BaseException:
        database.execute("ROLLBACK")
        raise
    database.execute("COMMIT")
    # Only now: before, the header would stand in the log, where `_check_header` does not look.
    database.execute("PRAGMA journal_mode = WAL")


def _check_header(path: Path) -> None:
    """Refuse a file that is not a cache of ours, before SQLite opens it, which may write into it."""
    try:
        with path.open("rb") as file:
            header = file.read(_HEADER_BYTES)
    except FileNotFoundError:
        return
    except OSError as error:
        raise _wrong(
            f"{path} cannot be read: {error_text(error)}; check its permissions, or name another file"
        ) from error
    if not header:
        return
    another = "it is left as it is; name another file"
    if len(header) < _HEADER_BYTES or not header.startswith(_MAGIC):
        raise _wrong(f"{path} is no score cache: {another}")
    if int.from_bytes(header[_APPLICATION_AT], "big") != APPLICATION:
        raise _wrong(f"{path} is a database of something else, and no score cache: {another}")
    if (found := int.from_bytes(header[_FORMAT_AT], "big")) != FORMAT:
        raise _wrong(
            f"{path} is a score cache of format {found}, and this version reads format {FORMAT}; name another file, or "
            "delete this one"
        )


def _check_whole(path: Path, database: sqlite3.Connection) -> None:
    """Look for damage, as far as the time for it goes."""
    ends = time.monotonic() + _CHECK_SECONDS
    database.set_progress_handler(lambda: time.monotonic() > ends, _CHECK_STEPS)
    try:
        (said,) = database.execute("PRAGMA quick_check(1)").fetchone()
        database.execute("SELECT key, score FROM scores LIMIT 1").fetchone()
    except sqlite3.OperationalError as error:
        if "interrupted" not in str(error):
            raise
        return
    finally:
        database.set_progress_handler(None, 0)
    if said != "ok":
        raise _unusable(path, sqlite3.DatabaseError(said.splitlines()[-1]))


def _is_locked(error: sqlite3.OperationalError) -> bool:
    return error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def _unusable(path: Path, error: sqlite3.Error) -> StageError:
    if isinstance(error, sqlite3.OperationalError):
        step = "check its permissions and the disk, or name another file"
        return _wrong(f"{path} cannot be used: {error}; {step}")
    return _wrong(f"{path} is damaged: {error}; delete it, and the scores are made anew")


def _wrong(message: str) -> StageError:
    return StageError(f"cache: {message}", reason_code="config")


logger = logging.getLogger(__name__)

_KEYS_AT_ONCE: Final = 500  # in a statement
_ROWS_AT_ONCE: Final = 10_000  # in a transaction, which other processes wait for; more where they came at once
_MOST_WAITING: Final = 500_000  # scores, about 60 MB, that are kept in memory while the file cannot be written
_PATIENCE: Final = 0.25  # seconds that a reader waits for the file
_PAUSE: Final = 2.0  # seconds that a file which failed is left alone
_LAST_SECONDS: Final = 3.0  # that closing waits for what is not written yet


class ScoreCache:
    """The scores of one file. Reading takes microseconds a key; writing is left to a thread, so nobody waits for it.

    What is not written yet is found, too. Where the file fails (no room on the disk, locked for too long), nothing is
    found in it, or new scores are kept in memory for a while; ``fault`` says so, and nothing is raised.

    Args:
        path: an existing cache, or a place for a new one.
        whole: look for damage, which takes up to a second.

    Raises:
        StageError: the file is something else, damaged, or cannot be written.
    """

    def __init__(self, path: Path, *, whole: bool = True) -> None:
        prepared(path, whole=whole)
        self.path = path
        self.users = 0
        self._reading = _Channel(path, _PATIENCE)
        self._writing = _Channel(path, _PAUSE)
        self._changed = threading.Condition()
        self._waiting: dict[bytes, float] = {}
        self._puts: deque[Mapping[bytes, float]] = deque()  # of what they consist
        self._lost = 0
        self._closed = False
        self._thread: threading.Thread | None = None
        self._unreadable: str | None = None
        self._unwritable: str | None = None
        self._retry_at = 0.0

    @property
    def fault(self) -> str | None:
        """What is wrong with the file at the moment, to warn of."""
        if self._unreadable is not None:
            return f"the score cache {self.path} cannot be read, and is done without: {self._unreadable}"
        if self._unwritable is not None:
            lost = f"; {self._lost:,} scores were not kept" if self._lost else ""
            return f"the score cache {self.path} cannot be written at the moment: {self._unwritable}{lost}"
        return None

    def get(self, keys: Sequence[bytes]) -> dict[bytes, float]:
        """The scores that are known of these keys."""
        with self._changed:
            found = {key: self._waiting[key] for key in keys if key in self._waiting} if self._waiting else {}
            if self._closed or time.monotonic() < self._retry_at:
                return found
        try:
            with self._reading.held() as database:
                for start in range(0, len(keys), _KEYS_AT_ONCE):
                    part = keys[start : start + _KEYS_AT_ONCE]
                    places = ",".join("?" * len(part))
                    rows = database.execute(f"SELECT key, score FROM scores WHERE key IN ({places})", part)  # noqa: S608 - question marks
                    found.update(rows)
        except (sqlite3.Error, TimeoutError) as error:
            self._unreadable = str(error)
            self._retry_at = time.monotonic() + _PAUSE
        else:
            self._unreadable = None
        return found

    def put(self, scores: Mapping[bytes, float]) -> None:
        """Keep these scores. A thread writes them; they are safe when it has, which takes milliseconds as a rule.

        What is put at once is there as a whole or not at all, though the process be killed: texts that were scored
        together are never scored again in other company, which may change a score's last digits.
        """
        with self._changed:
            if self._closed or not scores:
                return
            room = _MOST_WAITING - len(self._waiting)
            self._lost += max(0, len(scores) - room)
            if kept := dict(islice(scores.items(), max(0, room))):
                self._puts.append(kept)
                self._waiting.update(kept)
            if self._thread is None:
                self._thread = threading.Thread(target=self._write_on, name="score-cache", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def flush(self) -> bool:
        """Wait until everything is written, for ``_LAST_SECONDS`` at most; whether it is."""
        with self._changed:
            if self._thread is not None:
                self._changed.wait_for(lambda: not self._puts, _LAST_SECONDS)
            return not self._puts

    def close(self) -> None:
        """Write what is left, and let go of the file."""
        if not self.flush():
            logger.warning(
                "%s: %d scores could not be written: %s", self.path, len(self._waiting), self._unwritable or "no time"
            )
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join(_PAUSE)
        for channel in (self._reading, self._writing):
            channel.close()

    # -- the thread that writes ---------------------------------------------------------------------------------

    def _write_on(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._puts or self._closed)
                if self._closed:
                    return
                puts, rows = self._due()
            try:
                self._write(sorted(rows.items()))
            except (sqlite3.Error, TimeoutError) as error:
                if self._unwritable is None:
                    logger.warning("%s: scores cannot be written: %s", self.path, str(error))
                self._unwritable = str(error)
                with self._changed:
                    self._changed.wait_for(lambda: self._closed, _PAUSE)
                continue
            with self._changed:
                self._unwritable, self._lost = None, 0
                for _ in range(puts):
                    self._puts.popleft()
                for key in rows:
                    self._waiting.pop(key, None)
                self._changed.notify_all()

    def _due(self) -> tuple[int, dict[bytes, float]]:
        """How many puts are to be written next, and their rows, of which the first of a key counts."""
        count, rows = 0, dict[bytes, float]()
        for count, put in enumerate(self._puts, start=1):  # noqa: B007 - counted on behind the loop
            for key, score in put.items():
                rows.setdefault(key, score)
            if len(rows) >= _ROWS_AT_ONCE:
                break
        return count, rows

    def _write(self, rows: Sequence[tuple[bytes, float]]) -> None:
        """Write the rows, all or none. A score that is there already stays, so that results do not change."""
        with self._writing.held() as database:
            database.execute("BEGIN IMMEDIATE")
            try:
                database.executemany("INSERT OR IGNORE INTO scores VALUES (?, ?)", rows)
                database.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):
                    database.execute("ROLLBACK")
                raise

    # -- forks --------------------------------------------------------------------------------------------------

    def hold(self, held: ExitStack) -> None:
        """Close the connections, and keep them closed until ``held`` ends: none may be carried into another process."""
        for channel in (self._reading, self._writing):
            held.enter_context(channel.shut())
        held.enter_context(self._changed)

    def forget(self) -> None:
        """In a process that was forked there is no thread yet; what waited to be written is found there, too."""
        self._thread = None


class _Channel:
    """A connection that one thread uses at a time, made when it is needed.

    Args:
        path: of the database.
        patience: seconds to wait for it, and for the thread that uses it.
    """

    def __init__(self, path: Path, patience: float) -> None:
        self._path = path
        self._patience = patience
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._ended = False

    @contextmanager
    def held(self) -> Iterator[sqlite3.Connection]:
        """The connection. TimeoutError where others keep it too long, or it was closed meanwhile."""
        if not self._lock.acquire(timeout=self._patience):
            raise TimeoutError("it is busy")
        try:
            if self._ended:
                raise TimeoutError("it was closed")
            if self._connection is None:
                self._connection = connection(self._path, self._patience)
            yield self._connection
        finally:
            self._lock.release()

    @contextmanager
    def shut(self) -> Iterator[None]:
        """No connection, until this ends."""
        with self._lock:
            self._close()
            yield

    def close(self) -> None:
        """Let go of the connection, for good."""
        with self._lock:
            self._ended = True
            self._close()

    def _close(self) -> None:
        if self._connection is not None:
            with suppress(sqlite3.Error), closing(self._connection):
                self._connection = None


# -- one for each file of the process ---------------------------------------------------------------------------------

_caches: dict[Path, ScoreCache] = {}
_lock = threading.Lock()
_forking = ExitStack()


def acquire(name: str, *, whole: bool = True) -> ScoreCache:
    """The cache in a file; the one of this process, if it is open. Every ``acquire`` wants its ``release``.

    Arguments are those of ``ScoreCache``.

    Raises:
        StageError: see ``ScoreCache``.
    """
    path = checked_place(name)
    with _lock:
        if path not in _caches:
            _caches[path] = ScoreCache(path, whole=whole)
        _caches[path].users += 1
        return _caches[path]


def release(cache: ScoreCache) -> None:
    """Give a cache back; the last user's ``release`` closes it."""
    with _lock:
        cache.users -= 1
        if cache.users:
            return
        del _caches[cache.path]
        cache.close()


def _before_fork() -> None:
    _forking.enter_context(_lock)
    for cache in _caches.values():
        cache.hold(_forking)


def _after_fork_in_child() -> None:
    for cache in _caches.values():
        cache.forget()
    _forking.close()


@atexit.register
def _flush_all() -> None:
    """A stage that was called alone is open until the end; what it has just scored is written all the same."""
    with suppress(StageError):
        for cache in list(_caches.values()):
            cache.flush()


if hasattr(os, "register_at_fork"):
    # SQLite's own bookkeeping of locks must not be shared by two processes, or the file is in danger.
    os.register_at_fork(before=_before_fork, after_in_parent=_forking.close, after_in_child=_after_fork_in_child)
