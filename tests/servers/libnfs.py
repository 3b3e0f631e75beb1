"""libnfs by ctypes: one NFSv3 client that keeps its handles, as a machine does that has mounted an export.

Only what tests call. Errors are OSError with the errno that libnfs says. One thread a client; no reconnection: a server
that goes away is an error here.
"""

from __future__ import annotations

import ctypes
import os
from ctypes import POINTER, byref, c_char_p, c_int, c_uint32, c_uint64, c_void_p, create_string_buffer

READ_BYTES = 1 << 17
_STAT_FIELDS = (
    "dev ino mode nlink uid gid rdev size blksize blocks atime mtime ctime atime_nsec mtime_nsec ctime_nsec used"
)


class Stat(ctypes.Structure):
    """struct nfs_stat_64."""

    _fields_ = [(name, c_uint64) for name in _STAT_FIELDS.split()]
    ino: int
    size: int
    mode: int


class _Entry(ctypes.Structure):
    """The beginning of struct nfsdirent."""

    _fields_ = [("next", c_void_p), ("name", c_char_p), ("inode", c_uint64), ("type", c_uint32)]


class Nfs:
    """An export of a server, mounted in user space."""

    def __init__(self, server: str, export: str) -> None:
        self._library = ctypes.CDLL("libnfs.so.13")
        for name in ("nfs_init_context", "nfs_get_error"):
            getattr(self._library, name).restype = c_void_p if name == "nfs_init_context" else c_char_p
        self._library.nfs_readdir.restype = POINTER(_Entry)
        self._context = c_void_p(self._library.nfs_init_context())
        self._library.nfs_set_version(self._context, c_int(3))
        self._call("nfs_mount", server.encode(), export.encode())

    def _call(self, name: str, *words: object) -> int:
        done = int(getattr(self._library, name)(self._context, *words))
        if done < 0:
            why = (self._library.nfs_get_error(self._context) or b"").decode(errors="replace")
            raise OSError(-done, f"{name}: {why}")
        return done

    def open(self, path: str, flags: int) -> c_void_p:
        handle = c_void_p()
        self._call("nfs_open", path.encode(), c_int(flags), byref(handle))
        return handle

    def create(self, path: str) -> c_void_p:
        handle = c_void_p()
        self._call("nfs_create", path.encode(), c_int(os.O_RDWR | os.O_EXCL), c_int(0o644), byref(handle))
        return handle

    def close(self, handle: c_void_p) -> None:
        self._call("nfs_close", handle)

    def pwrite(self, handle: c_void_p, data: bytes, offset: int) -> int:
        return self._call("nfs_pwrite", handle, c_uint64(offset), c_uint64(len(data)), data)

    def pread(self, handle: c_void_p, size: int, offset: int) -> bytes:
        parts: list[bytes] = []
        while size > 0:
            buffer = create_string_buffer(min(size, READ_BYTES))
            done = self._call("nfs_pread", handle, c_uint64(offset), c_uint64(len(buffer)), buffer)
            if not done:
                break
            parts.append(buffer.raw[:done])
            offset, size = offset + done, size - done
        return b"".join(parts)

    def fsync(self, handle: c_void_p) -> None:
        self._call("nfs_fsync", handle)

    def truncate(self, handle: c_void_p, size: int) -> None:
        self._call("nfs_ftruncate", handle, c_uint64(size))

    def stat(self, path: str) -> Stat:
        found = Stat()
        self._call("nfs_stat64", path.encode(), byref(found))
        return found

    def rename(self, old: str, new: str) -> None:
        self._call("nfs_rename", old.encode(), new.encode())

    def link(self, old: str, new: str) -> None:
        self._call("nfs_link", old.encode(), new.encode())

    def unlink(self, path: str) -> None:
        self._call("nfs_unlink", path.encode())

    def mkdir(self, path: str) -> None:
        self._call("nfs_mkdir", path.encode())

    def rmdir(self, path: str) -> None:
        self._call("nfs_rmdir", path.encode())

    def listing(self, path: str) -> dict[str, int]:
        """Names and inode numbers, without the dots. Raises AssertionError when a name comes twice."""
        directory, found = c_void_p(), dict[str, int]()
        self._call("nfs_opendir", path.encode(), byref(directory))
        try:
            while entry := self._library.nfs_readdir(self._context, directory):
                name = entry.contents.name.decode()
                assert name not in found, f"{name} is listed twice"
                found[name] = entry.contents.inode
        finally:
            self._library.nfs_closedir(self._context, directory)
        return {name: inode for name, inode in found.items() if name not in (".", "..")}
