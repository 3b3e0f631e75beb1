"""Holes, allocation and copies within the tree: what only an engine that hears of them can offer.

Each is the local file system's own call on the local file: what it does not support (XFS, ext4 and others differ) is
refused in its words. A handle that reads a stub by range has no local file: its copies are NotSupported, and programs
read instead. One thread; a copy is bounded, so that nobody waits long.
"""

from __future__ import annotations

import ctypes
import errno
import os

from vnafs.domain.errors import BadHandle, InvalidArgument, NotPermitted, NotSupported, PastTheEnd, VnaError
from vnafs.fs.asof import BASE
from vnafs.fs.core import Core
from vnafs.fs.data import Data
from vnafs.fs.handles import Handle
from vnafs.local.spool import local_error

COPY_BYTES_MAX = 64 << 20
"""In one call, unless the local file system shares the bytes: some tens of milliseconds; copy_file_range(2) may copy
less than it was asked for."""
KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 0x01, 0x02, 0x10
"""fallocate(2). Linux refuses every other mode for FUSE (fs/fuse/file.c)."""
_MODES = frozenset({0, KEEP_SIZE, KEEP_SIZE | PUNCH_HOLE, ZERO_RANGE, ZERO_RANGE | KEEP_SIZE})


class Extents:
    """What lies behind the bytes of an open file."""

    def __init__(self, core: Core, data: Data) -> None:
        self._core = core
        self._data = data

    def allocate(self, handle: Handle, mode: int, offset: int, length: int) -> None:
        """fallocate(2). Raises NotSupported for modes that are unknown here or below, and as a write."""
        if mode not in _MODES:
            raise NotSupported(what=f"fallocate of mode {mode:#x}")
        end = offset + length
        wanted_bytes = 0 if mode & PUNCH_HOLE else length
        self._data.check_write(handle, end, wanted_bytes, keeps_size=bool(mode & KEEP_SIZE))
        libc = ctypes.CDLL(None, use_errno=True)
        done = libc.fallocate(handle.file.writing, mode, ctypes.c_int64(offset), ctypes.c_int64(length))
        if done != 0:
            raise _refused(ctypes.get_errno(), "fallocate")
        self._data.wrote(handle)

    def seek(self, handle: Handle, offset: int, whence: int) -> int:
        """lseek(2) with SEEK_DATA or SEEK_HOLE. Raises PastTheEnd past the last byte. A stub is all data."""
        if whence not in (os.SEEK_DATA, os.SEEK_HOLE):
            raise InvalidArgument(why="only data and holes are looked for here")
        descriptor = handle.file.descriptor
        if descriptor < 0:
            size = self._size(handle)
            if offset >= size:
                raise PastTheEnd(what="Looking for data")
            return offset if whence == os.SEEK_DATA else size
        try:
            return os.lseek(descriptor, offset, whence)
        except OSError as error:
            raise _refused(error.errno or errno.EIO, "looking for data") from error

    def _size(self, handle: Handle) -> int:
        inode = handle.file.inode
        if inode >= BASE:
            raise NotSupported(what="Looking for holes in the past")
        return self._core.row(inode).size_bytes

    def copy(self, source: Handle, offset: int, into: Handle, at: int, length: int) -> int:
        """copy_file_range(2): copies at most *length* bytes, shared by the local file system where it can."""
        if not source.readable:
            raise BadHandle
        descriptor = source.file.descriptor
        if descriptor < 0:
            raise NotSupported(what="Copying from a stub without reading it")
        length = min(length, COPY_BYTES_MAX, max(os.fstat(descriptor).st_size - offset, 0))
        self._data.check_write(into, at + length, length)
        try:
            done = os.copy_file_range(descriptor, into.file.writing, length, offset, at)
        except OSError as error:
            raise _refused(error.errno or errno.EIO, "copying local bytes") from error
        if done:
            self._data.wrote(into)
        return done


def _refused(number: int, doing: str) -> VnaError:
    if number in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV):
        return NotSupported(what=f"{doing} on this local disk")
    if number == errno.EINVAL:
        return InvalidArgument(why=f"{doing}: the local disk refuses these numbers")
    if number == errno.ENXIO:
        return PastTheEnd(what=doing)
    if number == errno.EPERM:
        return NotPermitted(what=doing, why="the local disk refuses it")
    return local_error(OSError(number, os.strerror(number)), doing)
