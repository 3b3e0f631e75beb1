"""Numbers that are never used twice, also after loss of power: inode numbers and directory cookies.

A range is reserved ahead in one synced transaction and handed out from memory; what is left of it at a crash is
skipped. One thread at a time.
"""

from __future__ import annotations

from vnafs.domain.ids import EPOCH_SHIFT_BITS
from vnafs.index import meta
from vnafs.index.engine import Engine

NUMBERS_MAX = 1 << 63
"""Kernel interfaces (off_t cookies) are signed."""


def epoch_stop(epoch: int) -> int:
    """The first inode number of the next epoch."""
    return (epoch + 1) << EPOCH_SHIFT_BITS


class Numbers:
    """One sequence.

    Raises OverflowError at *stop*: 2^40 inode numbers an epoch last 12 days at a million a second, and the
    administrator then raises the epoch.
    """

    def __init__(self, engine: Engine, name: str, *, first: int, ahead: int, stop: int = NUMBERS_MAX) -> None:
        """Go on after everything that was ever reserved as *name*, but not below *first*; reserve *ahead* at once."""
        self._engine = engine
        self._name = name
        self._ahead = ahead
        with engine.read() as reader:
            self.reserved_before = meta.get_int(reader, name) or 0
        """The end of what earlier runs reserved; 0 at first."""
        self._next = max(self.reserved_before, first)
        self._end = self._next
        self._stop = stop

    def take(self) -> int:
        """The next number. Now and then opens a transaction and waits for its sync: never call it inside one."""
        number = self._next
        if number >= self._end:
            self._reserve()
        self._next = number + 1
        return number

    def _reserve(self) -> None:
        end = self._next + self._ahead
        if end > self._stop:
            raise OverflowError("this epoch's numbers are used up; raise the epoch")
        with self._engine.write() as tx:
            meta.set_int(tx, self._name, end)
        self._engine.sync(self._engine.position)
        self._end = end
