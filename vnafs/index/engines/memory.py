"""The memory engine: the index contract without a disk, for unit and model tests.

A transaction copies nothing until it commits; commits swap in one step. Not for data anyone wants to keep.
"""

from __future__ import annotations

import bisect
import contextlib
import threading
from collections.abc import Iterator, Mapping

from vnafs.index.engine import KEY_BYTES_MAX, Position


class MemoryEngine:
    """An Engine over a dict and a sorted list of its keys."""

    def __init__(self) -> None:
        self._rows: dict[bytes, bytes] = {}
        self._keys: list[bytes] = []
        self._turn = threading.Lock()
        self._position = Position(0)

    @contextlib.contextmanager
    def read(self) -> Iterator[_View]:
        """See Engine. The view is of the moment: keep it within one thread's turn."""
        yield _View(self._rows, self._keys, {})

    @contextlib.contextmanager
    def write(self) -> Iterator[_Change]:
        """See Engine."""
        with self._turn:
            change = _Change(self._rows, self._keys, {})
            yield change
            for key, value in change.changed.items():
                self._apply(key, value)
            if change.changed:
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
        """Memory has nothing to sync."""

    def fold(self) -> Position:
        """See Engine."""
        return self._position

    def close(self) -> None:
        """See Engine."""


class _View:
    def __init__(self, rows: Mapping[bytes, bytes], keys: list[bytes], changed: dict[bytes, bytes | None]) -> None:
        self._rows = rows
        self._keys = keys
        self.changed = changed

    def get(self, key: bytes) -> bytes | None:
        if key in self.changed:
            return self.changed[key]
        return self._rows.get(key)

    def scan(self, start: bytes, stop: bytes, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        low, high = bisect.bisect_left(self._keys, start), bisect.bisect_left(self._keys, stop)
        keys = self._keys[low:high]
        if self.changed:
            keys = sorted({*keys, *(key for key in self.changed if start <= key < stop)})
        for key in reversed(keys) if reverse else keys:
            value = self.get(key)
            if value is not None:
                yield key, value


class _Change(_View):
    def put(self, key: bytes, value: bytes) -> None:
        if not 0 < len(key) <= KEY_BYTES_MAX:
            raise ValueError(f"a key has 1 to {KEY_BYTES_MAX} bytes, not {len(key)}")
        self.changed[key] = bytes(value)

    def delete(self, key: bytes) -> None:
        self.changed[key] = None
