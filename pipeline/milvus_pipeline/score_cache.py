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
from milvus_pipeline.score_file import checked_place, connection, prepared

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
