"""Time is a parameter, so that an hour's jump of the machine's clock can be a test."""

from __future__ import annotations

import time
from typing import NewType, Protocol

Instant = NewType("Instant", int)
"""Nanoseconds since 1970-01-01 UTC."""

NANOSECONDS = 1_000_000_000


class Clock(Protocol):
    """Wall time for what is recorded, monotonic time for what is waited for."""

    def now(self) -> Instant:
        """Wall time; may step in either direction."""
        ...

    def monotonic(self) -> float:
        """Seconds that never step back; their zero has no meaning."""
        ...

    def sleep(self, seconds: float) -> None:
        """Wait; a fake clock returns at once and moves on."""
        ...


class BootClock(Protocol):
    """What the kernel counts by itself, and nobody sets."""

    def since_boot_ns(self) -> int:
        """Nanoseconds since the machine was booted, those included in which it slept (CLOCK_BOOTTIME)."""
        ...


class SystemClock:
    """The machine's own clock."""

    def now(self) -> Instant:
        """See Clock."""
        return Instant(time.time_ns())

    def monotonic(self) -> float:
        """See Clock."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """See Clock."""
        time.sleep(seconds)

    def since_boot_ns(self) -> int:
        """See BootClock."""
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME)
