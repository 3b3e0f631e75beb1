"""One sync for a whole file system instead of one for each file, and what may be believed after it.

syncfs(2) reports an error of any file's write-back once to each descriptor that was open before (Linux 5.8), and
not which file it was. So one descriptor is kept open as long as the process lives, and after an error nothing that
was written until then counts as synced any more: each such file needs an fdatasync of its own, now and later.
"""

from __future__ import annotations

import ctypes
import dataclasses
import logging
import os
from collections.abc import Callable

from vnafs.domain.clock import Clock, Instant

log = logging.getLogger(__name__)

TICK_NANOSECONDS = 20_000_000
"""More than the coarsest kernel clock that files are stamped with (CONFIG_HZ=100)."""


@dataclasses.dataclass(frozen=True, slots=True)
class Synced:
    """What was last changed between these two moments is on stable storage."""

    before: Instant
    after: Instant = Instant(-1)

    def covers(self, changed: int) -> bool:
        """Whether a file's last change (ctime, ns) needs no sync of its own."""
        return self.after < changed < self.before


class FileSystemSync:
    """Syncs the file system of one directory. One thread.

    *failed* is when it last went wrong, also in an earlier process; *note* keeps that for the next one.
    """

    def __init__(self, directory: str, clock: Clock, *, failed: Instant, note: Callable[[Instant], None]) -> None:
        self._clock = clock
        self._failed = failed
        self._note = note
        self._descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._libc = ctypes.CDLL(None, use_errno=True)

    def sync(self) -> Synced:
        """Put everything written so far on stable storage, and say what that may be believed of."""
        before = Instant(self._clock.now() - TICK_NANOSECONDS)
        try:
            self._call(self._descriptor)
        except OSError as problem:
            self._failed = self._clock.now()
            log.error("spool.sync_failed", extra={"why": str(problem)})  # noqa: TRY400 - each file is asked for on its own now
            self._note(self._failed)
        return Synced(before, self._failed)

    def _call(self, descriptor: int) -> None:
        if self._libc.syncfs(descriptor) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    def close(self) -> None:
        """Let go of the directory. Idempotent."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
