"""Rows on top of rows: how changes that are not in the map yet are read as if they were.

`Generation` holds committed rows that wait to be folded, with what they were before as long as somebody may still
look: a view remembers the sequence it began at and sees nothing later. `Change` is one open transaction. `layered`
makes one ordered map of two.

A generation is changed by one thread at a time, which holds the lock that its readers pass in; once it is being
folded nobody changes it. Nothing here touches a disk.
"""

from __future__ import annotations

import bisect
import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, Final, Protocol

from vnafs.index.engine import KEY_BYTES_MAX

FIRST_KEY = b"\x02"
"""Keys below belong to the engines themselves: no table, no scan and no get ever reaches them."""

_CHUNK_KEYS = 256
_INSERTED_KEYS_MAX = 100
"""More are merged at once: moving up the keys behind one costs about a hundredth of a pass over them all."""
_ROW_OVERHEAD_BYTES = 200
"""Roughly what CPython needs for a key, a value, an entry and their places in a dict and a list."""

Row = tuple[bytes, bytes | None]
Entry = tuple[int, bytes | None, Any]
"""Sequence, value (None: removed) and the entry before it or None: a chain from the newest to the oldest."""


class Absent:
    """The type of ABSENT."""


ABSENT: Final = Absent()
"""A layer that says nothing of a key, as opposed to None: the layer says that it is removed."""


class View(Protocol):
    """What a transaction reads where it has changed nothing itself."""

    def get(self, key: bytes) -> bytes | None:
        """See Reader."""
        ...

    def scan(self, start: bytes, stop: bytes, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        """See Reader."""
        ...


class Generation:
    """Committed rows that are not folded yet, in key order."""

    __slots__ = ("keys", "last", "rows", "size_bytes")

    def __init__(self) -> None:
        self.rows: dict[bytes, Entry] = {}
        self.keys: list[bytes] = []
        self.last = 0
        """The sequence of the newest transaction in here."""
        self.size_bytes = 0
        """Roughly, in memory."""

    def apply(self, changed: Mapping[bytes, bytes | None], sequence: int, *, keep_before: bool) -> None:
        """Add one transaction. Without *keep_before* nobody may be looking at an earlier sequence."""
        rows, size_bytes = self.rows, self.size_bytes
        new = []
        for key, value in changed.items():
            before = rows.get(key)
            if before is None:
                new.append(key)
                size_bytes += len(key) + _ROW_OVERHEAD_BYTES
            rows[key] = (sequence, value, before if keep_before else None)
            if value is not None:
                size_bytes += len(value)
        if len(new) > _INSERTED_KEYS_MAX:
            new.sort()
            self.keys += new
            self.keys.sort()
        else:
            for key in new:
                bisect.insort(self.keys, key)
        self.size_bytes = size_bytes
        self.last = sequence

    def get(self, key: bytes, at: int) -> bytes | Absent | None:
        """What *key* was at sequence *at*: a value, None when removed, ABSENT when this generation has no say."""
        entry: Entry | None = self.rows.get(key)
        while entry is not None and entry[0] > at:
            entry = entry[2]
        return ABSENT if entry is None else entry[1]

    def touches(self, start: bytes, stop: bytes) -> bool:
        """Whether there is any key in a range; the caller holds the lock."""
        index = bisect.bisect_left(self.keys, start)
        return index < len(self.keys) and self.keys[index] < stop

    def scan(
        self, start: bytes, stop: bytes, at: int, lock: contextlib.AbstractContextManager[Any], *, reverse: bool
    ) -> Iterator[Row]:
        """Rows of a range as they were at sequence *at*, removed ones too, while others go on committing.

        Keys are never taken out of a generation, so a scan that finds its place again by the last key it saw
        neither skips nor repeats one.
        """
        while True:
            with lock:
                low, high = bisect.bisect_left(self.keys, start), bisect.bisect_left(self.keys, stop)
                if reverse:
                    keys = self.keys[max(low, high - _CHUNK_KEYS) : high]
                    keys.reverse()
                else:
                    keys = self.keys[low : min(high, low + _CHUNK_KEYS)]
            for key in keys:
                value = self.get(key, at)
                if not isinstance(value, Absent):
                    yield key, value
            if len(keys) < _CHUNK_KEYS:
                return
            if reverse:
                stop = keys[-1]
            else:
                start = keys[-1] + b"\0"


def layered(upper: Iterator[Row], lower: Iterator[Row], *, reverse: bool) -> Iterator[Row]:
    """Both in one order; where they share a key the upper one speaks."""
    top = next(upper, None)
    if top is None:
        yield from lower
        return
    for row in lower:
        key = row[0]
        while top is not None and (top[0] > key if reverse else top[0] < key):
            yield top
            top = next(upper, None)
        if top is not None and top[0] == key:
            yield top
            top = next(upper, None)
        else:
            yield row
    if top is not None:
        yield top
        yield from upper


def present(rows: Iterator[Row]) -> Iterator[tuple[bytes, bytes]]:
    """Without the removed ones."""
    for key, value in rows:
        if value is not None:
            yield key, value


class Change:
    """One open transaction over a view: its own changes first, the view beneath."""

    __slots__ = ("_view", "changed")

    def __init__(self, view: View) -> None:
        self._view = view
        self.changed: dict[bytes, bytes | None] = {}

    def get(self, key: bytes) -> bytes | None:
        """See Reader."""
        if key in self.changed:
            return self.changed[key]
        return self._view.get(key)

    def scan(self, start: bytes, stop: bytes, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        """See Reader. It sees the transaction as it is now: rows may be changed while it runs."""
        below = self._view.scan(start, stop, reverse=reverse)
        own = [(key, value) for key, value in self.changed.items() if start <= key < stop]
        if not own:
            return below
        own.sort(reverse=reverse)
        return present(layered(iter(own), below, reverse=reverse))

    def put(self, key: bytes, value: bytes) -> None:
        """See Transaction. Keys that start with a byte below 2 belong to the engine: ValueError."""
        if not 0 < len(key) <= KEY_BYTES_MAX or key < FIRST_KEY:
            raise ValueError(f"a key has 1 to {KEY_BYTES_MAX} bytes and starts with one of value 2 or more")
        self.changed[key] = value if type(value) is bytes else bytes(value)

    def delete(self, key: bytes) -> None:
        """See Transaction."""
        if key >= FIRST_KEY:
            self.changed[key] = None
