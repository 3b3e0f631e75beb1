"""The port that every index engine fills: an ordered map from bytes to bytes, changed in transactions.

It knows nothing of files or packs. One thread writes at a time (`write` waits for its turn); any thread reads.
A transaction is visible to readers of the same engine when `write` returns, survives the death of the process
then, and survives loss of power once `sync` has returned for its position. Other processes, which open the
environment read-only, see it after `fold`.

The port stays this small so that a remote engine can carry it later. `tests/contract/test_engine.py` is its
definition; each engine passes all of it.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from typing import NewType, Protocol

Position = NewType("Position", int)
"""The sequence number of a committed transaction; later ones are larger, across restarts too."""

KEY_BYTES_MAX = 511


class Reader(Protocol):
    """One consistent view of the map."""

    def get(self, key: bytes) -> bytes | None:
        """The value at *key*, or None."""
        ...

    def scan(self, start: bytes, stop: bytes, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        """Pairs with start <= key < stop in key order (or the opposite); lazily, in bounded memory."""
        ...


class Transaction(Reader, Protocol):
    """A view that also changes; it reads what it wrote itself."""

    def put(self, key: bytes, value: bytes) -> None:
        """Set *key*: 1 to KEY_BYTES_MAX bytes, of which the first is 2 or more.

        Keys below that belong to the engines themselves. Raises ValueError for any other.
        """
        ...

    def delete(self, key: bytes) -> None:
        """Remove *key* if it is there."""
        ...


class Engine(Protocol):
    """An ordered map with transactions."""

    def read(self) -> contextlib.AbstractContextManager[Reader]:
        """A view of what is committed. Keep it short: a long one makes the environment grow."""
        ...

    def write(self) -> contextlib.AbstractContextManager[Transaction]:
        """Commit at the end of the block, or nothing at all if it raises."""
        ...

    @property
    def position(self) -> Position:
        """That of the last committed transaction."""
        ...

    def sync(self, position: Position) -> None:
        """Return once everything up to *position* survives loss of power; waiters share one sync.

        Raises StorageFailed, and goes on raising it: a failed sync is never retried.
        """
        ...

    @property
    def synced(self) -> Position:
        """Everything up to here survives loss of power; lets a caller skip a needless wait."""
        ...

    def fold(self) -> Position:
        """Make everything committed so far visible to other processes; returns up to where."""
        ...

    def close(self) -> None:
        """Sync, fold and let go. Idempotent."""
        ...


def prefix_stop(prefix: bytes) -> bytes:
    """The first key after every key that starts with *prefix*: scan(prefix, prefix_stop(prefix))."""
    trimmed = prefix.rstrip(b"\xff")
    if not trimmed:
        return b"\xff" * (KEY_BYTES_MAX + 1)
    return trimmed[:-1] + bytes([trimmed[-1] + 1])


def in_batches(engine: Engine, table: bytes, rows_max: int) -> Iterator[list[tuple[bytes, bytes]]]:
    """All rows whose keys start with *table*, in order; each batch read in a view of its own.

    Whoever changes rows between two batches finds what they are then.
    """
    after, stop = table, prefix_stop(table)
    while True:
        with engine.read() as reader:
            batch = [(bytes(key), bytes(value)) for key, value in itertools.islice(reader.scan(after, stop), rows_max)]
        if not batch:
            return
        yield batch
        after = batch[-1][0] + b"\0"
