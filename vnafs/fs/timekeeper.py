"""The steady clock of a tree: reads the machine's clocks, and writes down where it stands once a minute.

Before anything was ever retained it does not run, and costs nothing. One thread.
"""

from __future__ import annotations

import os

from vnafs.domain.clock import NANOSECONDS, BootClock, Clock, Instant
from vnafs.domain.steady import Steady, moved_on
from vnafs.index import steady
from vnafs.index.engine import Engine, Transaction

SAVED_SECONDS = 60.0
"""A kill -9 takes back so much of it; a boot of the machine as well."""


class Timekeeper:
    """Tells the time that retention is judged by."""

    def __init__(self, engine: Engine, clock: Clock, boot_clock: BootClock | None, boot_id: str) -> None:
        """Without a *boot_clock* what the process itself counts is used; without a *boot_id* no boot is the same."""
        self._engine = engine
        self._clock = clock
        self._boot_clock = boot_clock
        self._boot = boot_id or os.urandom(8).hex()
        self._saved = clock.monotonic() - SAVED_SECONDS
        with engine.read() as reader:
            self._steady = steady.find(reader)
        self.now()  # from here on this boot is the one that counts

    @property
    def runs(self) -> bool:
        """Whether anything was ever retained."""
        return self._steady is not None

    def _moved_on(self) -> Steady:
        counted = int(self._clock.monotonic() * NANOSECONDS)
        if self._boot_clock is not None:
            counted = self._boot_clock.since_boot_ns()
        return moved_on(self._steady, boot=self._boot, since_boot_ns=counted, wall=self._clock.now())

    def now(self) -> Instant:
        """The time now; the wall clock's before anything was ever retained."""
        if self._steady is None:
            return self._clock.now()
        self._steady = self._moved_on()
        return self._steady.now

    def latest(self) -> Instant:
        """From when a length of time is counted: a clock that is set back or lags makes nothing shorter."""
        return max(self.now(), self._clock.now())

    def lag_seconds(self) -> float:
        """How far it is behind the wall clock."""
        return max(0.0, (self._clock.now() - self.now()) / NANOSECONDS)

    def begin(self, tx: Transaction) -> None:
        """Something is about to be retained: from now on it runs, if it did not."""
        if self._steady is None:
            self._steady = self._moved_on()
        self.save(tx)

    def save(self, tx: Transaction) -> None:
        """Write down where it stands."""
        self.now()
        if self._steady is not None:
            steady.put(tx, self._steady)
            self._saved = self._clock.monotonic()

    def save_if_due(self) -> None:
        """The same once a minute. Raises NoSpace."""
        if self._steady is not None and self._clock.monotonic() - self._saved >= SAVED_SECONDS:
            with self._engine.write() as tx:
                self.save(tx)
