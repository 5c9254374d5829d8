"""The output file of a job, which one job at a time may write, and which can be cut back to a point."""

from __future__ import annotations

import errno
import gzip
import hashlib
import os
import stat
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from milvus_pipeline.errors import InputError

if sys.platform != "win32":
    import fcntl

if TYPE_CHECKING:
    from hashlib import _Hash as Hash

_CHUNK: Final = 1 << 20  # bytes
_GZIP: Final = 31  # window bits: the largest window, in the gzip format
_LEVEL: Final = 6


class OutputFile:
    """A file that is locked as long as it is open; the system lets go of the lock of a process that was killed.

    Args:
        path: the file.
        new: make it; else it must be there, and keeps what it holds.

    Raises:
        InputError: it cannot be opened, or another job writes it.
        FileNotFoundError: it is not there, and not ``new``.
    """

    def __init__(self, path: Path, *, new: bool) -> None:
        flags = os.O_CREAT | os.O_EXCL if new else 0
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CLOEXEC | flags, 0o666)
        except FileExistsError:
            raise InputError(
                "came into being while the job was about to begin", "is another one at it?", place=str(path)
            ) from None
        except FileNotFoundError:
            if not new:
                raise
            raise InputError(f"the folder {path.parent} does not exist", "make it first", place=str(path)) from None
        except OSError as error:
            raise InputError(f"cannot be written: {error.strerror}", place=str(path)) from error
        self.path = path
        try:
            if not stat.S_ISREG(os.fstat(self._file).st_mode):
                raise InputError("is no ordinary file, so a job cannot go back in it", place=str(path))
            self._lock()
        except BaseException:
            self.close()
            raise

    def _lock(self) -> None:
        if sys.platform == "win32":
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise InputError(
                    "another job is writing it", "wait for its end, or write to another file", place=str(self.path)
                ) from error
            # Some network file systems have no locks; a job there is as safe as it can be.

    @property
    def size(self) -> int:
        """Bytes that it holds."""
        return os.fstat(self._file).st_size

    @property
    def mode(self) -> int:
        """Its permissions."""
        return stat.S_IMODE(os.fstat(self._file).st_mode)

    def digest(self, length: int) -> Hash:
        """The SHA-256 of its first ``length`` bytes, to go on with."""
        digest = hashlib.sha256()
        for chunk in self._chunks(length):
            digest.update(chunk)
        return digest

    def _chunks(self, length: int) -> Iterator[bytes]:
        at = 0
        while at < length and (chunk := os.pread(self._file, min(_CHUNK, length - at), at)):
            at += len(chunk)
            yield chunk

    def lines(self, *, gzipped: bool) -> Iterator[bytes]:
        """Read the lines that it holds."""
        with gzip.open(self.path, "rb") if gzipped else self.path.open("rb") as lines:
            yield from lines

    def cut(self, length: int) -> None:
        """Take away all behind the first ``length`` bytes."""
        os.ftruncate(self._file, length)

    def write(self, data: bytes, at: int) -> None:
        """Write at this place, all of it. OSError where that cannot be done; a part of it may be written then."""
        rest = memoryview(data)
        while rest:
            written = os.pwrite(self._file, rest, at)
            at += written
            rest = rest[written:]

    def sync(self) -> None:
        """Have what was written reach the disk."""
        os.fsync(self._file)

    def close(self) -> None:
        """Close it, and let go of the lock."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def gzip_member(data: bytes) -> bytes:
    """The data as one gzip member without a time in it, so that the same data is always the same bytes.

    Members one after the other are a gzip file again, and so is one that was cut between two of them.
    """
    return zlib.compress(data, _LEVEL, wbits=_GZIP)
