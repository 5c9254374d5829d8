"""The file of a score cache: made where there is none, refused where it is something else or damaged."""

from __future__ import annotations

import os
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Final

from milvus_pipeline.errors import StageError, shown, told

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
            raise _wrong(f"the folder of {shown(name)} does not exist; make it, or name another place")
    except (OSError, RuntimeError, ValueError) as error:
        raise _wrong(f"{shown(name)} cannot be looked at: {told(error)}; check the path") from error
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
        raise _wrong(f"{path} cannot be read: {told(error)}; check its permissions, or name another file") from error
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
