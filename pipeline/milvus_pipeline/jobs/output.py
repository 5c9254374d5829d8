"""The output file of a job, which only one job at a time may write, and which can be cut back to a point.

POSIX only: the file is locked with ``flock`` and written with ``pwrite``.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Final

from milvus_pipeline.errors import InputError

if TYPE_CHECKING:
    from hashlib import _Hash as Hash

_CHUNK: Final = 1 << 20  # bytes
_GZIP: Final = 31  # window bits: the largest window, in the gzip format
_LEVEL: Final = 6


class OutputFile:
    """A file that is locked while it is open. The system releases the lock of a process that was killed.

    Args:
        path: the file, which is a regular one if it exists.
        new: create it; otherwise it must exist, and keeps its content.

    Raises:
        InputError: it cannot be opened, or another job writes it.
    """

    def __init__(self, path: Path, *, new: bool) -> None:
        try:
            import fcntl  # here, so that everything but jobs runs on Windows
        except ImportError as error:
            step = "write to stdout, or run the job on Linux or macOS"
            raise InputError("jobs need a POSIX system", step, place=str(path)) from error
        flags = os.O_CREAT | os.O_EXCL if new else 0
        try:
            self._file = os.open(path, os.O_RDWR | flags, 0o666)
        except FileExistsError:
            what = "was created while the job was starting"
            raise InputError(what, "is another job writing to it?", place=str(path)) from None
        except OSError as error:
            raise InputError(f"cannot be written: {error.strerror}", place=str(path)) from error
        self.path = path
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            # Some network file systems have no locks; a job there is as safe as it can be.
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                self.close()
                step = "wait until it has ended, or write to another file"
                raise InputError("another job is writing it", step, place=str(path)) from error

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return os.fstat(self._file).st_size

    @property
    def mode(self) -> int:
        """Its permissions."""
        return stat.S_IMODE(os.fstat(self._file).st_mode)

    def digest(self, length: int) -> Hash:
        """Return the SHA-256 of its first ``length`` bytes, which more bytes can be added to."""
        digest = hashlib.sha256()
        at = 0
        while at < length and (chunk := os.pread(self._file, min(_CHUNK, length - at), at)):
            digest.update(chunk)
            at += len(chunk)
        return digest

    def cut(self, length: int) -> None:
        """Remove everything behind the first ``length`` bytes."""
        os.ftruncate(self._file, length)

    def write(self, data: bytes, at: int) -> None:
        """Write all of the data at this place. After an OSError a part of it may have been written."""
        rest = memoryview(data)
        while rest:
            written = os.pwrite(self._file, rest, at)
            at += written
            rest = rest[written:]

    def sync(self) -> None:
        """Flush what was written to the disk."""
        os.fsync(self._file)

    def close(self) -> None:
        """Close the file, and release the lock."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def gzip_member(data: bytes) -> bytes:
    """Return the data as one gzip member without a time in it, so that the same data always gives the same bytes.

    Members one after the other are a gzip file again, and so is one that was cut between two of them.
    """
    return zlib.compress(data, _LEVEL, wbits=_GZIP)
