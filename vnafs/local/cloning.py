"""Cloning and copying the bytes of local files.

A clone (FICLONE, ioctl_ficlonerange(2)) shares its blocks with the source and takes no time to speak of, where the
file system has them. Works on descriptors; knows no places. Nothing here is durable until somebody syncs it. Any
thread; a copy blocks for as long as its bytes take.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator

FICLONE = 0x40049409
"""_IOW(0x94, 9, int), linux/fs.h"""
CHUNK_BYTES = 8 * 1024 * 1024
"""Of one run of data."""
_NO_CLONES = frozenset({errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS, errno.EPERM})


def clone(reading: int, writing: int) -> bool:
    """Make one file share all bytes of another; False where the file system cannot. Raises OSError."""
    try:
        fcntl.ioctl(writing, FICLONE, reading)
    except OSError as error:
        if error.errno in _NO_CLONES:
            return False
        raise
    return True


def runs(descriptor: int, size_bytes: int) -> Iterator[tuple[int, int]]:
    """Offset and length of runs of data up to CHUNK_BYTES each; holes stay holes."""
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


def transfer(reading: int, writing: int, offset: int, length: int) -> None:
    """Copy one run to the same place; less where the source became shorter, which its fingerprint says too."""
    os.lseek(writing, offset, os.SEEK_SET)
    while length > 0:
        done = os.sendfile(writing, reading, offset, length)
        if not done:
            return
        offset += done
        length -= done
