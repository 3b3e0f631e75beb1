"""One sync for a whole file system instead of one for each file, and what may be believed after it.

syncfs(2) reports an error of any file's write-back once to each descriptor that was open before (Linux 5.8), and
not which file it was. So one descriptor is kept open as long as the process lives, and after an error nothing that
was written until then counts as synced any more: each such file needs an fdatasync of its own, now and later.
"""

from __future__ import annotations

import ctypes
import dataclasses
import errno
import logging
import os
from collections.abc import Callable

from vnafs.domain.clock import Clock, Instant
from vnafs.domain.errors import Suspect

log = logging.getLogger(__name__)

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
_JOURNALED = frozenset({"ext4", "xfs"})
_NOWHERE = 1 << 62
"""Behind the end that any file can have."""
_WAIT_BEFORE = 1
"""SYNC_FILE_RANGE_WAIT_BEFORE (include/uapi/linux/fs.h)."""
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


def sync_bytes(descriptor: int, what: str, *, times: bool = False) -> None:
    """fdatasync(2); with *times*, which that may leave, fsync(2).

    Raises Suspect when the disk did not keep everything, which Linux says once and never again.
    """
    try:
        (os.fsync if times else os.fdatasync)(descriptor)
    except OSError as error:
        raise Suspect(what=what, why=error.strerror or str(error)) from error


def names_follow_bytes(directory: str) -> bool:
    """Whether the first sync of a new file keeps its name too, so that its directory needs no sync of its own.

    ext4 and XFS make a file and its name in one transaction, and a sync of the file waits for that one and all before
    (ext4_fsync_journal, xfs_file_fsync). fsync(2) promises it of no file system. Renames are another transaction.
    """
    try:
        device = os.stat(directory).st_dev
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
            fields = [line.split() for line in mounts]
    except OSError:
        return False
    wanted = f"{os.major(device)}:{os.minor(device)}"
    # not by the magic of statfs(2), which ext2 shares
    return any(line[2] == wanted and line[line.index("-") + 1] in _JOURNALED for line in fields)


def check_kept(descriptor: int, what: str) -> None:
    """Raises Suspect when Linux failed to write bytes of a file back since *descriptor* was opened.

    Starts no writing and waits for none: sync_file_range(2) of a place where no byte can be gives its answer alone.
    Whoever synced by another descriptor, as msync(2) and O_SYNC do, has had that answer, and later openers get none.
    """
    if _LIBC.sync_file_range(descriptor, _NOWHERE, 1, _WAIT_BEFORE) == 0:
        return
    number = ctypes.get_errno()
    if number in (errno.EIO, errno.ENOSPC, errno.EDQUOT):
        raise Suspect(what=what, why=os.strerror(number))


class FileSystemSync:
    """Syncs the file system of one directory. One thread.

    *failed* is when it last went wrong, also in an earlier process; *note* keeps that for the next one.
    """

    def __init__(self, directory: str, clock: Clock, *, failed: Instant, note: Callable[[Instant], None]) -> None:
        self._clock = clock
        self._failed = failed
        self._note = note
        self._descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

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
        if _LIBC.syncfs(descriptor) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    def close(self) -> None:
        """Let go of the directory. Idempotent."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
