"""Bytes to look at: a buffer in memory, or an open file read piece by piece.

Splitters and the DICOM walk read through this port, so that a 4 GB file needs a few pages of memory and no
mmap: a mapped file that somebody truncates kills the process that touches it (SIGBUS), a short read is only an
error. Sources may be read from any thread; they write nothing.
"""

from __future__ import annotations

import os
from typing import Protocol

from vnafs.domain import errors

Buffer = bytes | bytearray | memoryview
"""Of single bytes, contiguous. A mapped file comes as a memoryview, at the risk named above."""

FILE_WINDOW_BYTES = 64 * 1024
"""Read at a time while walking headers in a file."""


class Source(Protocol):
    """A run of bytes of known size, readable anywhere."""

    @property
    def size_bytes(self) -> int:
        """How many bytes there are."""
        ...

    @property
    def window_bytes(self) -> int:
        """How many bytes are worth reading at once for a walk that reads a little in many places."""
        ...

    def read(self, offset: int, length_bytes: int) -> bytes | memoryview:
        """Exactly *length_bytes* from *offset*; both must lie inside. Raises NotYet when the file shrank."""
        ...


class MemorySource:
    """A buffer. Reads are views of it, not copies."""

    def __init__(self, data: Buffer) -> None:
        self._view = memoryview(data).cast("B")
        self.size_bytes = len(self._view)
        self.window_bytes = self.size_bytes

    def read(self, offset: int, length_bytes: int) -> memoryview:
        """See Source."""
        return self._view[offset : offset + length_bytes]


class FileSource:
    """An open file, read with pread. The caller keeps the descriptor open and closes it."""

    def __init__(self, descriptor: int, size_bytes: int) -> None:
        self._descriptor = descriptor
        self.size_bytes = size_bytes
        self.window_bytes = FILE_WINDOW_BYTES

    def read(self, offset: int, length_bytes: int) -> bytes:
        """See Source. Raises StorageFailed when the disk does not give the bytes."""
        parts: list[bytes] = []
        wanted = length_bytes
        while wanted:
            try:
                part = os.pread(self._descriptor, wanted, offset)
            except OSError as error:
                raise errors.StorageFailed(doing="reading a file", why=os.strerror(error.errno or 0)) from error
            if not part:
                raise errors.NotYet(what="reading a file", why="it became shorter meanwhile")
            parts.append(part)
            wanted -= len(part)
            offset += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)
