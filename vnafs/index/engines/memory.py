"""The memory engine: the index contract without a disk, for unit and model tests.

A transaction copies nothing until it commits; a commit copies the map when somebody is looking at it, so that
views stay as they began. It keeps no rows of its own, but refuses the keys that engines reserve all the same: what
works here works on every engine. Not for data anyone wants to keep: `sync` and `fold` have nothing to do.
"""

from __future__ import annotations

import bisect
import contextlib
import threading
from collections.abc import Iterator

from vnafs.index.engine import Position
from vnafs.index.engines.overlay import Change


class MemoryEngine:
    """An Engine over a dict and a sorted list of its keys."""

    def __init__(self) -> None:
        self._rows: dict[bytes, bytes] = {}
        self._keys: list[bytes] = []
        self._turn = threading.Lock()
        self._turn_of = 0
        self._state = threading.Lock()
        self._views = 0
        self._position = Position(0)

    @contextlib.contextmanager
    def read(self) -> Iterator[_View]:
        """See Engine."""
        with self._state:
            self._views += 1
            view = _View(self._rows, self._keys)
        try:
            yield view
        finally:
            with self._state:
                self._views -= 1

    @contextlib.contextmanager
    def write(self) -> Iterator[Change]:
        """See Engine. A transaction inside a transaction raises RuntimeError."""
        if self._turn_of == threading.get_ident():
            raise RuntimeError("a transaction inside a transaction")
        with self._turn:
            self._turn_of = threading.get_ident()
            try:
                change = Change(_View(self._rows, self._keys))
                yield change
                if change.changed:
                    self._commit(change.changed)
            finally:
                self._turn_of = 0

    def _commit(self, changed: dict[bytes, bytes | None]) -> None:
        with self._state:
            if self._views:
                self._rows, self._keys = dict(self._rows), list(self._keys)
            for key, value in changed.items():
                self._apply(key, value)
            self._position = Position(self._position + 1)

    def _apply(self, key: bytes, value: bytes | None) -> None:
        if value is None:
            if self._rows.pop(key, None) is not None:
                del self._keys[bisect.bisect_left(self._keys, key)]
        else:
            if key not in self._rows:
                bisect.insort(self._keys, key)
            self._rows[key] = value

    @property
    def position(self) -> Position:
        """See Engine."""
        return self._position

    @property
    def synced(self) -> Position:
        """See Engine."""
        return self._position

    def sync(self, position: Position) -> None:
        """Memory has nothing to sync. Raises ValueError for a position that was never given."""
        if position > self._position:
            raise ValueError(f"there is no position {position} yet")

    def fold(self) -> Position:
        """See Engine."""
        return self._position

    def close(self) -> None:
        """See Engine."""


class _View:
    def __init__(self, rows: dict[bytes, bytes], keys: list[bytes]) -> None:
        self._rows = rows
        self._keys = keys

    def get(self, key: bytes) -> bytes | None:
        return self._rows.get(key)

    def scan(self, start: bytes, stop: bytes, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        low, high = bisect.bisect_left(self._keys, start), bisect.bisect_left(self._keys, stop)
        keys = self._keys[low:high]
        if reverse:
            keys.reverse()
        return ((key, self._rows[key]) for key in keys)
