"""The time that Linux gives files, for what the tree dates itself.

A write to a local file is dated by the kernel, with a clock that ticks every few milliseconds (and since Linux 6.13
finer where somebody looked). Were names dated by another clock, a file that is written after a directory was made
could be older than it, and make(1) would build again what is new. So the kernel is asked to date a scratch file in
memory: its times and those of the spool's file system are then in one order. One thread.
"""

from __future__ import annotations

import os

from vnafs.domain.clock import Instant, SystemClock


class FileClock(SystemClock):
    """The machine's own clock, of which `now` is the time that a file written now would get. Close it once."""

    def __init__(self) -> None:
        self._scratch = os.memfd_create("vnafs-clock", os.MFD_CLOEXEC)

    def now(self) -> Instant:
        """See Clock; some microseconds."""
        os.utime(self._scratch)
        return Instant(os.fstat(self._scratch).st_mtime_ns)

    def close(self) -> None:
        """Not to be asked any more."""
        os.close(self._scratch)
