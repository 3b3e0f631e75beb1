"""Frozen copies: the bytes of a local file that somebody goes on writing, as they were at one moment.

A clone (FICLONE, ioctl_ficlonerange(2)) where the file system has them: it holds every write that was made before
it began, and none in part. Elsewhere the bytes are read, and trusted only if the file's fingerprint was the same
before and after. A kernel stamps files with a clock that ticks every few milliseconds, so a fingerprint is taken
only when it has been the same for longer than a tick: the next write must then show.

Of a file that is never left alone, and whose writers nobody can hold, the bytes are read until two readings, one
after the other, find the same: then all of them were there at once in between, but for a byte that was changed and
changed back.

Stores through a shared mapping show where they meet a page that was written back before, because that asks the file
system to make it writable again, which moves the times; so what is dirty is synced first. A copy of a mapped file
holds what its program had msynced, and any part of what it had not.

It knows no rows and no states. Copies are temporary: whoever makes one removes it, and what a crash left goes at the
next start. One thread. Blocks on the local disk.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator

from vnafs.domain.clock import Clock
from vnafs.domain.errors import NoSpace
from vnafs.domain.files import Fingerprint
from vnafs.local import cloning
from vnafs.local.spool import fingerprint_of, local_error
from vnafs.local.syncing import sync_bytes

TICK_SECONDS = 0.02
"""Longer than the coarsest kernel clock that files are stamped with (CONFIG_HZ=100)."""
READINGS_MAX = 4
"""Of a file that is never left alone, after the first."""
COMPARED_BYTES = 1024 * 1024
UNKNOWN = Fingerprint(0, 0, 0)
_HERE = os.O_CLOEXEC | os.O_NOFOLLOW


@dataclasses.dataclass(frozen=True, slots=True)
class FrozenCopy:
    """One copy on the local disk."""

    path: str
    fingerprint: Fingerprint
    """Of the source, when it was copied; UNKNOWN when the source was changing too fast to tell."""
    mtime_ns: int
    """Of the source."""


class FrozenCopies:
    """A private folder for them. Raises NoSpace rather than touch *reserve_bytes* of its disk, and StorageFailed.

    *stopping* says that nobody waits for a copy any more.
    """

    def __init__(
        self, folder: str, *, reserve_bytes: int, clock: Clock, stopping: Callable[[], bool] = lambda: False
    ) -> None:
        self._folder = folder
        self._reserve_bytes = reserve_bytes
        self._clock = clock
        self._stopping = stopping
        try:
            os.makedirs(folder, mode=0o700, exist_ok=True)
            for name in os.listdir(folder):
                os.unlink(os.path.join(folder, name))  # of a process that died
        except OSError as error:
            raise local_error(error, "clearing the folder of frozen copies") from error

    def clone(self, source: str, name: str) -> FrozenCopy | None:
        """The file as it is now, sharing its blocks. None where the file system cannot."""
        with _failing("cloning a local file"), _opened(source) as reading:
            self._claim(0)
            path = os.path.join(self._folder, name)
            mark = self._settled(reading)
            with self._making(path) as writing:
                if not cloning.clone(reading, writing):
                    os.unlink(path)
                    return None
            return FrozenCopy(path, mark or UNKNOWN, os.fstat(reading).st_mtime_ns)

    def copy(self, source: str, name: str, *, seconds_max: float) -> FrozenCopy | None:
        """The file, read while nobody wrote. None when somebody did, or it took longer than *seconds_max*."""
        deadline = self._clock.monotonic() + seconds_max
        with _failing("copying a local file"), _opened(source) as reading:
            before = self._settled(reading)
            if before is None:
                return None
            self._claim(os.fstat(reading).st_blocks * 512)
            path = os.path.join(self._folder, name)
            with self._making(path) as writing:
                os.ftruncate(writing, before.size_bytes)
                for offset, length in cloning.runs(reading, before.size_bytes):
                    cloning.transfer(reading, writing, offset, length)
                    late = self._clock.monotonic() > deadline or self._stopping()
                    if late or fingerprint_of(os.fstat(reading)) != before:
                        break
                changed = fingerprint_of(os.stat(source, follow_symlinks=False)) != before
                if changed or self._clock.monotonic() > deadline or self._stopping():
                    os.unlink(path)
                    return None
            return FrozenCopy(path, before, before.mtime_ns)

    def copy_while_written(self, source: str, name: str, *, seconds_max: float) -> FrozenCopy | None:
        """What the file has now, read twice alike while others write.

        What grows behind its end of now is not looked at. None when two readings were never the same, or it took
        longer than *seconds_max*.
        """
        deadline = self._clock.monotonic() + seconds_max
        with _failing("copying a local file that is being written"), _opened(source) as reading:
            found = os.fstat(reading)
            self._claim(found.st_blocks * 512)
            path = os.path.join(self._folder, name)
            with self._making(path) as writing:
                os.ftruncate(writing, found.st_size)
                for offset, length in cloning.runs(reading, found.st_size):
                    cloning.transfer(reading, writing, offset, length)
                for _ in range(READINGS_MAX):
                    alike = self._reads_alike(reading, writing, found.st_size, deadline)
                    if alike is None:
                        break
                    if alike:
                        return FrozenCopy(path, fingerprint_of(found), found.st_mtime_ns)
                os.unlink(path)
                return None

    def _reads_alike(self, reading: int, writing: int, size_bytes: int, deadline: float) -> bool | None:
        """Whether the source has what the copy has; the copy gets what is new. None when it is given up."""
        alike = True
        for offset in range(0, size_bytes, COMPARED_BYTES):
            length = min(COMPARED_BYTES, size_bytes - offset)
            data = os.pread(reading, length, offset)
            if len(data) < length or self._clock.monotonic() > deadline or self._stopping():
                return None  # it was cut short
            if data != os.pread(writing, length, offset):
                os.pwrite(writing, data, offset)
                alike = False
        return alike

    def remove(self, copy: FrozenCopy) -> None:
        """A copy is not needed any more. Idempotent."""
        with _failing("removing a frozen copy"), contextlib.suppress(FileNotFoundError):
            os.unlink(copy.path)

    def _claim(self, wanted_bytes: int) -> None:
        found = os.statvfs(self._folder)
        free_bytes = found.f_bavail * found.f_frsize
        if free_bytes - wanted_bytes < self._reserve_bytes:
            raise NoSpace(why=f"a copy of {wanted_bytes} bytes would leave less than the reserve")

    def _settled(self, descriptor: int) -> Fingerprint | None:
        """The fingerprint that the next write will change; None while one write follows another."""
        before = fingerprint_of(os.fstat(descriptor))
        self._clock.sleep(TICK_SECONDS)
        return before if fingerprint_of(os.fstat(descriptor)) == before else None

    @contextlib.contextmanager
    def _making(self, path: str) -> Iterator[int]:
        """A new file; nothing of it is left when the block fails."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        writing = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _HERE, 0o600)
        try:
            yield writing
        except Exception:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            raise
        finally:
            os.close(writing)


@contextlib.contextmanager
def _opened(source: str) -> Iterator[int]:
    """To read it, once the disk has what was written until now. Raises Suspect."""
    descriptor = os.open(source, os.O_RDONLY | os.O_NONBLOCK | _HERE)
    try:
        sync_bytes(descriptor, "a file that stays open")
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _failing(doing: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise local_error(error, doing) from error
