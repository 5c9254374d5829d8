"""Which files a model was read from: the commit of a hub's snapshot, or a digest of what makes its numbers."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterable
from pathlib import Path

from milvus_pipeline import StageError, told
from milvus_stages._layout import module_list
from milvus_stages._location import MODEL_FILES

_COMMIT = re.compile(r"[0-9a-f]{40}")


class Origin:
    """The files that a model is read from. Make it before they are read; they are not read for that.

    Args:
        folder: the model's.
        others: patterns of more files of it, beside those that a model of safetensors has.

    Raises:
        StageError: the folder cannot be looked at.
    """

    def __init__(self, folder: Path, others: Iterable[str] = ()) -> None:
        self._folder = folder
        self._patterns = [*MODEL_FILES, *others]
        self._commit = commit_of(folder)
        self._stamps = {} if self._commit else self._stamped()
        self._lock = threading.Lock()
        self._revision: str | None = None

    def revision(self) -> str:
        """The commit of a hub's snapshot, else ``sha256:`` and a digest of the files, which are read once for it.

        Raises:
            StageError: they were changed since the model was loaded, or cannot be read.
        """
        with self._lock:
            if self._revision is None:
                self._revision = self._commit or self._digest()
            return self._revision

    def _digest(self) -> str:
        try:
            digest = digest_of(self._folder, self._stamps)
        except OSError as error:
            raise self._unreadable(error) from error
        if self._stamped() != self._stamps:
            raise StageError(
                f"{self._folder}: the model's files were changed after they had been loaded, so there is no telling "
                "which ones are in memory; open the pipeline anew"
            )
        return digest

    def _stamped(self) -> dict[Path, tuple[int, int]]:
        """Size and time of change of each file: configurations, tokenizer, weights, those of modules among them."""
        modules = [path for _, path in module_list(self._folder) or []]
        try:
            folders = dict.fromkeys([self._folder, *modules])
            found = {path for own in folders for pattern in self._patterns for path in own.glob(pattern)}
            states = {path: path.stat() for path in sorted(found) if path.is_file()}
        except OSError as error:
            raise self._unreadable(error) from error
        return {path: (state.st_size, state.st_mtime_ns) for path, state in states.items()}

    def _unreadable(self, error: OSError) -> StageError:
        return StageError(f"{self._folder}: the model's files cannot be read: {told(error)}")


def commit_of(folder: Path) -> str | None:
    """The commit that a folder of the hub's cache is the snapshot of; None for any other folder."""
    snapshot = folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--")
    return folder.name if snapshot and _COMMIT.fullmatch(folder.name) else None


def digest_of(folder: Path, files: Iterable[Path]) -> str:
    """``sha256:`` and the digest over names and contents of files in a folder. OSError where one cannot be read."""
    whole = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256")
        whole.update(hashlib.sha256(path.relative_to(folder).as_posix().encode()).digest() + content.digest())
    return f"sha256:{whole.hexdigest()}"
