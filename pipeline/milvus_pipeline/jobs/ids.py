"""Whether an id was seen before, for more ids than are worth being kept whole."""

from __future__ import annotations

import numpy as np

_RECENT = 1 << 16


class SeenIds:
    """A set of ids that takes 8 bytes for each: a million of them are 8 MB, where a set of texts takes a hundred.

    It keeps hashes of 64 bits. That two ids of a million have the same, so that one of them is taken for the other, is
    as likely as 3 in 100 million.
    """

    def __init__(self) -> None:
        self._recent: set[int] = set()
        self._older = np.empty(0, dtype=np.int64)  # sorted

    def add(self, seen: str) -> bool:
        """Remember an id; False where it is known already."""
        if seen in self:
            return False
        self._recent.add(hash(seen))
        if len(self._recent) >= _RECENT:
            added = np.fromiter(self._recent, dtype=np.int64, count=len(self._recent))
            self._older = np.sort(np.concatenate([self._older, added]))
            self._recent.clear()
        return True

    def __contains__(self, seen: str) -> bool:
        key = hash(seen)
        if key in self._recent:
            return True
        place = int(np.searchsorted(self._older, key))
        return place < len(self._older) and int(self._older[place]) == key
