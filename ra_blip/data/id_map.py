"""Whole numbers by id, 16 bytes an id: for files with more ids than a dictionary of strings has room for."""

from __future__ import annotations

import numpy as np

PENDING = 65_536  # ids kept in a dictionary until they are merged into the sorted arrays


class IdMap:
    """A dictionary from ids to whole numbers that keeps 8 bytes of each id's hash instead of the id.

    Of a million ids, two share a hash with probability 3e-8 (and would be taken for one). Hashes differ from process
    to process, as Python's do.
    """

    def __init__(self) -> None:
        self._pending: dict[int, int] = {}
        self._keys = np.empty(0, np.int64)
        self._values = np.empty(0, np.int64)

    def __len__(self) -> int:
        return len(self._keys) + len(self._pending)

    def __contains__(self, name: str) -> bool:
        return self.get(name) is not None

    def get(self, name: str) -> int | None:
        """The number of an id; None for one that was never set."""
        return self._get(hash(name))

    def setdefault(self, name: str, value: int) -> int:
        """The number of an id, which is set to ``value`` if it has none."""
        key = hash(name)
        found = self._get(key)
        if found is not None:
            return found
        self._pending[key] = value
        if len(self._pending) >= PENDING:
            self._merge()
        return value

    def _get(self, key: int) -> int | None:
        if (found := self._pending.get(key)) is not None:
            return found
        place = int(self._keys.searchsorted(key))
        return int(self._values[place]) if place < len(self._keys) and self._keys[place] == key else None

    def _merge(self) -> None:
        keys = np.fromiter(self._pending.keys(), np.int64, len(self._pending))
        values = np.fromiter(self._pending.values(), np.int64, len(self._pending))
        order = keys.argsort()
        places = self._keys.searchsorted(keys[order])
        self._keys = np.insert(self._keys, places, keys[order])
        self._values = np.insert(self._values, places, values[order])
        self._pending.clear()
