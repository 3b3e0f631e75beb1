"""A file that remembers what was written to it and when it was flushed: the disk below an archive that loses power.

    python -m tests.cuts.recorder FOLDER MOUNTPOINT

A FUSE file system that shows FOLDER/image as its only file. Each write and each flush is appended to FOLDER/log before
it is answered; FOLDER/counter, which anybody may map, says how many there are. Read before a call is made and after it
was answered, it tells which of them the answer relied on. Nothing is ever synced below: it is all a rehearsal.
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
import struct
import sys
from pathlib import Path

import pyfuse3
import trio

HEADER = struct.Struct("<BxxxIQ")
"""Kind, length in bytes, offset in bytes; the bytes of a write follow."""
WRITE, FLUSH = 1, 2
COUNTER = struct.Struct("<Q")
NAME = b"image"
_IMAGE = pyfuse3.ROOT_INODE + 1


class Counter:
    """How many writes and flushes there were until now, as any process sees it."""

    def __init__(self, path: Path, *, make: bool = False) -> None:
        with path.open("w+b" if make else "r+b") as file:
            if make:
                file.write(bytes(COUNTER.size))
                file.flush()
            self._map = mmap.mmap(file.fileno(), COUNTER.size)

    def read(self) -> int:
        return int(COUNTER.unpack_from(self._map)[0])

    def set(self, value: int) -> None:
        COUNTER.pack_into(self._map, 0, value)


class Recorder(pyfuse3.Operations):
    """One image, one log. Requests are answered one after the other."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._image = os.open(folder / "image", os.O_RDWR)
        self._log = (folder / "log").open("wb", buffering=1 << 20)
        self._counter = Counter(folder / "counter", make=True)
        self._count = 0

    def _note(self, kind: int, offset: int = 0, data: bytes = b"") -> None:
        self._log.write(HEADER.pack(kind, len(data), offset))
        self._log.write(data)
        self._count += 1
        self._counter.set(self._count)

    def close(self) -> None:
        self._log.close()
        os.close(self._image)

    async def lookup(self, parent: int, name: bytes, context: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        if name != NAME:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return await self.getattr(_IMAGE, context)

    async def getattr(self, inode: int, context: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = inode
        entry.st_nlink = 1
        entry.st_mode = stat.S_IFDIR | 0o700 if inode == pyfuse3.ROOT_INODE else stat.S_IFREG | 0o600
        entry.st_size = 0 if inode == pyfuse3.ROOT_INODE else os.fstat(self._image).st_size
        entry.attr_timeout = entry.entry_timeout = 300
        return entry

    async def open(self, inode: int, flags: int, context: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        return pyfuse3.FileInfo(fh=1, direct_io=True)

    async def read(self, fh: int, offset: int, length: int) -> bytes:
        return os.pread(self._image, length, offset)

    async def write(self, fh: int, offset: int, data: bytes) -> int:
        self._note(WRITE, offset, data)
        return os.pwrite(self._image, data, offset)

    async def fsync(self, fh: int, datasync: bool) -> None:
        self._note(FLUSH)

    async def flush(self, fh: int) -> None:
        """A close of the file is no flush of the disk."""

    async def release(self, fh: int) -> None:
        """Nothing is kept."""


def main() -> None:
    folder, mountpoint = Path(sys.argv[1]), sys.argv[2]
    recorder = Recorder(folder)
    pyfuse3.init(recorder, mountpoint, {"fsname=recorder", "default_permissions"})
    try:
        print("ready", flush=True)
        trio.run(pyfuse3.main)
    finally:
        pyfuse3.close(unmount=True)
        recorder.close()


if __name__ == "__main__":
    main()
