"""A clock that a test moves: sleeping returns at once and is remembered."""

from __future__ import annotations

import threading

from vnafs.domain.clock import NANOSECONDS, Instant

NOON = 1_790_000_000.0
"""Some moment in 2026, in seconds since 1970."""


class ManualClock:
    """See Clock."""

    def __init__(self, wall_seconds: float = NOON) -> None:
        self._lock = threading.Lock()
        self._wall_seconds = wall_seconds
        self._seconds = 0.0
        self.slept: list[float] = []

    def now(self) -> Instant:
        with self._lock:
            return Instant(int((self._wall_seconds + self._seconds) * NANOSECONDS))

    def monotonic(self) -> float:
        with self._lock:
            return self._seconds

    def sleep(self, seconds: float) -> None:
        with self._lock:
            self.slept.append(seconds)
            self._seconds += seconds

    def advance(self, seconds: float) -> None:
        """Time passes."""
        with self._lock:
            self._seconds += seconds

    def step(self, seconds: float) -> None:
        """The wall clock is set; nothing passes."""
        with self._lock:
            self._wall_seconds += seconds
