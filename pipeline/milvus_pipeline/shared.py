"""Resources that the users in one process share: models, connections, files, circuit breakers."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Generic, TypeVar
from weakref import WeakSet

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class _Entry(Generic[V]):
    """The value of a key, if there is one, its number of users, and the number of threads that work on the entry."""

    def __init__(self) -> None:
        self.lock = threading.Lock()  # held while the value is made or closed
        self.value: V | None = None
        self.users = 0
        self.workers = 0


class Shared(Generic[K, V]):
    """Values by key: made for the first user, closed after the last.

    Each key has its own lock, so a value that is slow to make or close delays only its own users::

        files = Shared[Path, File](File.close)
        file = files.acquire(path, lambda: File(path))
        ...
        files.release(file)

    Args:
        close: closes a value after its last user; by default nothing is done.
        at_fork: makes a context for each value that is entered before the process forks and left afterwards, in the
            parent and in the child. By default the child starts with no values: those it inherits are its parent's.
    """

    def __init__(
        self,
        close: Callable[[V], object] | None = None,
        *,
        at_fork: Callable[[V], AbstractContextManager[object]] | None = None,
    ) -> None:
        self._close = close
        self._at_fork = at_fork
        self._lock = threading.Lock()  # guards the entries and their counts; never held while a value is made or closed
        self._entries: dict[K, _Entry[V]] = {}
        _registries.add(self)

    def acquire(self, key: K, make: Callable[[], V], timeout: float | None = None) -> V:
        """Return the value of the key, and count one more user; each ``acquire`` needs its ``release``.

        Args:
            key: what the users of one value agree on.
            make: makes the value if there is none. Its exception is raised, and the next user tries again.
            timeout: seconds to wait while other threads make or close the value; None waits without a limit.

        Raises:
            TimeoutError: the others took longer.
        """
        with self._entry(key) as entry:
            if not entry.lock.acquire(timeout=-1 if timeout is None else timeout):
                raise TimeoutError("other threads have been opening or closing it for all of that time")
            try:
                if entry.value is None:
                    entry.value = make()
                with self._lock:
                    entry.users += 1
                return entry.value
            finally:
                entry.lock.release()

    def release(self, value: V) -> None:
        """Count one user less, and close the value after the last. A value that is not in here is ignored."""
        key = self._key_of(value)
        if key is None:
            return
        with self._entry(key) as entry, entry.lock:
            if entry.value is not value:
                return
            with self._lock:
                entry.users -= 1
                if entry.users:
                    return
                entry.value = None
            if self._close is not None:
                self._close(value)

    def users(self, value: V) -> int:
        """Return the number of users of the value."""
        with self._lock:
            return next((entry.users for entry in self._entries.values() if entry.value is value), 0)

    def values(self) -> list[V]:
        """Return the values that are there now."""
        with self._lock:
            return [entry.value for entry in self._entries.values() if entry.value is not None]

    def _key_of(self, value: V) -> K | None:
        with self._lock:
            return next((key for key, entry in self._entries.items() if entry.value is value), None)

    @contextmanager
    def _entry(self, key: K) -> Iterator[_Entry[V]]:
        """The entry of a key, which is kept while somebody works on it or uses its value."""
        with self._lock:
            entry = self._entries.setdefault(key, _Entry())
            entry.workers += 1
        try:
            yield entry
        finally:
            with self._lock:
                entry.workers -= 1
                if not entry.workers and not entry.users and self._entries.get(key) is entry:
                    del self._entries[key]

    def _hold(self, forking: ExitStack) -> None:
        forking.enter_context(self._lock)
        if self._at_fork is not None:
            for entry in self._entries.values():
                if entry.value is not None:
                    forking.enter_context(self._at_fork(entry.value))

    def _start_child(self) -> None:
        """Drop what belongs to the parent: its values, unless they cross a fork, and the locks of its threads."""
        inherited, self._entries = self._entries, {}
        if self._at_fork is not None:
            for key, entry in inherited.items():
                if entry.value is not None and entry.users:
                    kept = self._entries[key] = _Entry()
                    kept.value, kept.users = entry.value, entry.users


_registries: WeakSet[Shared[Any, Any]] = WeakSet()
_forking = ExitStack()


def _before_fork() -> None:
    for registry in list(_registries):
        registry._hold(_forking)


def _after_fork_in_child() -> None:
    for registry in list(_registries):
        registry._start_child()
    _forking.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_forking.close, after_in_child=_after_fork_in_child)
