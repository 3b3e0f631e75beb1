"""Frozen copies: the bytes of a local file that somebody goes on writing, as they were at one moment.

A clone (FICLONE, ioctl_ficlonerange(2)) where the file system has them: it holds every write that was made before
it began, and none in part. Elsewhere the bytes are read, and trusted only if the file's fingerprint was the same
before and after. A kernel stamps files with a clock that ticks every few milliseconds, so a fingerprint is taken
only when it has been the same for longer than a tick: the next write must then show.

Stores through a shared mapping show where they meet a page that was written back before, because that asks the file
system to make it writable again, which moves the times; so what is dirty is synced first. A copy of a mapped file
holds what its program had msynced, and any part of what it had not.

It knows no rows and no states. Copies are temporary: whoever makes one removes it, and what a crash left goes at the
next start. One thread. Blocks on the local disk.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import os
from collections.abc import Callable, Iterator

from vnafs.domain.clock import Clock
from vnafs.domain.errors import NoSpace
from vnafs.domain.files import Fingerprint
from vnafs.local.spool import fingerprint_of, local_error

FICLONE = 0x40049409
"""_IOW(0x94, 9, int), linux/fs.h"""
CHUNK_BYTES = 8 * 1024 * 1024
"""Between two looks at whether the file was changed, or the time is up."""
TICK_SECONDS = 0.02
"""Longer than the coarsest kernel clock that files are stamped with (CONFIG_HZ=100)."""
UNKNOWN = Fingerprint(0, 0, 0)
_NO_CLONES = frozenset({errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS, errno.EPERM})
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
                try:
                    fcntl.ioctl(writing, FICLONE, reading)
                except OSError as error:
                    if error.errno in _NO_CLONES:
                        os.unlink(path)
                        return None
                    raise
            return FrozenCopy(path, mark or UNKNOWN, os.fstat(reading).st_mtime_ns)

    def copy(self, source: str, name: str, *, seconds_max: float) -> FrozenCopy | None:
        """The file, read while nobody wrote. None when somebody did, or it took longer than *seconds_max*."""
        deadline = self._clock.monotonic() + seconds_max
        with _failing("copying a local file"), _opened(source) as reading:
            os.fdatasync(reading)
            before = self._settled(reading)
            if before is None:
                return None
            self._claim(os.fstat(reading).st_blocks * 512)
            path = os.path.join(self._folder, name)
            with self._making(path) as writing:
                os.ftruncate(writing, before.size_bytes)
                for offset, length in _chunks(reading, before.size_bytes):
                    _transfer(reading, writing, offset, length)
                    late = self._clock.monotonic() > deadline or self._stopping()
                    if late or fingerprint_of(os.fstat(reading)) != before:
                        break
                changed = fingerprint_of(os.stat(source, follow_symlinks=False)) != before
                if changed or self._clock.monotonic() > deadline or self._stopping():
                    os.unlink(path)
                    return None
            return FrozenCopy(path, before, before.mtime_ns)

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
    descriptor = os.open(source, os.O_RDONLY | os.O_NONBLOCK | _HERE)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _failing(doing: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise local_error(error, doing) from error


def _chunks(descriptor: int, size_bytes: int) -> Iterator[tuple[int, int]]:
    """Runs of data up to CHUNK_BYTES each; holes stay holes."""
    offset = 0
    while offset < size_bytes:
        try:
            offset = os.lseek(descriptor, offset, os.SEEK_DATA)
            stop = min(os.lseek(descriptor, offset, os.SEEK_HOLE), size_bytes)
        except OSError as error:
            if error.errno == errno.ENXIO:  # a hole up to the end
                return
            raise
        while offset < stop:
            yield offset, min(CHUNK_BYTES, stop - offset)
            offset += CHUNK_BYTES
        offset = stop


def _transfer(reading: int, writing: int, offset: int, length: int) -> None:
    os.lseek(writing, offset, os.SEEK_SET)
    while length > 0:
        done = os.sendfile(writing, reading, offset, length)
        if not done:
            return  # it became shorter, which its fingerprint says too
        offset += done
        length -= done
