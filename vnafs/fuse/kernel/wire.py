"""The FUSE protocol as bytes: structures, opcodes and flags of include/uapi/linux/fuse.h, version 7.45 (Linux 6.18).

It knows no tree and no descriptor. Everything is little- or big-endian as the machine is, without padding that the
header does not name. Names in capitals are the header's own.
"""

from __future__ import annotations

import dataclasses
import struct

from vnafs.fs.caller import Caller

MAJOR = 7
MINOR = 45
MINOR_MIN = 36
"""With 64 flags (FUSE_INIT_EXT, Linux 5.17)."""
PAGE_BYTES = 4096
ROOT_NODE = 1

_S = struct.Struct
HEADER = _S("=IIQQIIIHH")
"""fuse_in_header: len, opcode, unique, nodeid, uid, gid, pid, total_extlen, padding."""
OUT = _S("=IiQ")
"""fuse_out_header: len, error, unique."""
INIT_IN = _S("=IIIII")
"""fuse_init_in as far as we read it: major, minor, max_readahead, flags, flags2."""
INIT_OUT = _S("=IIIIHHIIHHIIH22x")
ATTR = _S("=QQQQQQIIIIIIIIII")
"""fuse_attr: ino, size, blocks, three times in seconds, their nanoseconds, mode, nlink, uid, gid, rdev,
blksize, flags."""
ENTRY = _S("=QQQQII")
"""fuse_entry_out before its attributes: nodeid, generation, entry_valid, attr_valid, their nanoseconds."""
ATTR_OUT = _S("=QII")
"""fuse_attr_out before its attributes: attr_valid, attr_valid_nsec, dummy."""
OPEN_IN = _S("=II")
CREATE_IN = _S("=IIII")
"""flags, mode, umask, open_flags."""
OPEN_OUT = _S("=QIi")
"""fh, open_flags, backing_id."""
READ_IN = _S("=QQIIQII")
"""fh, offset, size, read_flags, lock_owner, flags, padding; also of READDIR."""
WRITE_IN = _S("=QQIIQII")
"""fh, offset, size, write_flags, lock_owner, flags, padding; the bytes follow."""
WRITE_OUT = _S("=II")
"""size, padding; also fuse_getxattr_out."""
RELEASE_IN = _S("=QIIQ")
FLUSH_IN = _S("=QIIQ")
FSYNC_IN = _S("=QII")
SETATTR_IN = _S("=IIQQQqqqIIIIIIII")
"""valid, padding, fh, size, lock_owner, three times, their nanoseconds, mode, unused4, uid, gid, unused5."""
MKNOD_IN = _S("=IIII")
"""mode, rdev, umask, padding."""
MKDIR_IN = _S("=II")
"""mode, umask."""
RENAME_IN = _S("=Q")
RENAME2_IN = _S("=QII")
LINK_IN = _S("=Q")
SETXATTR_IN = _S("=IIII")
"""size, flags, setxattr_flags, padding: the longer form, FUSE_SETXATTR_EXT."""
GETXATTR_IN = _S("=II")
FALLOCATE_IN = _S("=QQQII")
"""fh, offset, length, mode, padding."""
LSEEK_IN = _S("=QQII")
"""fh, offset, whence, padding."""
LSEEK_OUT = _S("=Q")
COPY_IN = _S("=QQQQQQQ")
"""fh_in, off_in, nodeid_out, fh_out, off_out, len, flags."""
INTERRUPT_IN = _S("=Q")
STATX_IN = _S("=IIQII")
"""getattr_flags, reserved, fh, sx_flags, sx_mask."""
STATX_OUT = _S("=QII16x")
"""attr_valid, attr_valid_nsec, flags, spare; before fuse_statx."""
STATX = _S("=IIQIIIHxxQQQQqIxxxxqIxxxxqIxxxxqIxxxxIIII112x")
"""mask, blksize, attributes, nlink, uid, gid, mode, ino, size, blocks, attributes_mask, then times of access, birth,
change and modification, then the device's numbers."""
KSTATFS = _S("=QQQQQIII28x")
"""blocks, bfree, bavail, files, ffree, bsize, namelen, frsize."""
DIRENT = _S("=QQII")
"""ino, off, namelen, type; the name follows, padded to 8 bytes."""
INVAL_INODE = _S("=Qqq")
INVAL_ENTRY = _S("=QII")
BACKING_MAP = _S("=iIQ")
BACKING_ID = _S("=I")

BACKING_OPEN = 0x4010E501
"""FUSE_DEV_IOC_BACKING_OPEN: _IOW(229, 1, struct fuse_backing_map)."""
BACKING_CLOSE = 0x4004E502
"""FUSE_DEV_IOC_BACKING_CLOSE: _IOW(229, 2, uint32_t)."""

LOOKUP, FORGET, GETATTR, SETATTR, READLINK, SYMLINK = 1, 2, 3, 4, 5, 6
MKNOD, MKDIR, UNLINK, RMDIR, RENAME, LINK, OPEN, READ, WRITE, STATFS, RELEASE = 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18
FSYNC, SETXATTR, GETXATTR, LISTXATTR, REMOVEXATTR, FLUSH, INIT = 20, 21, 22, 23, 24, 25, 26
OPENDIR, READDIR, RELEASEDIR, FSYNCDIR, CREATE, INTERRUPT, DESTROY, IOCTL = 27, 28, 29, 30, 35, 36, 38, 39
BATCH_FORGET, FALLOCATE, READDIRPLUS, RENAME2, LSEEK, COPY_FILE_RANGE, STATX_OP = 42, 43, 44, 45, 46, 47, 52

NOTIFY_INVAL_INODE, NOTIFY_INVAL_ENTRY, NOTIFY_RESEND = 2, 3, 7
EXPIRE_ONLY = 1
RESENT = 1 << 63
"""In `unique` of a request that was given to somebody before, and not answered."""

FATTR_MODE, FATTR_UID, FATTR_GID, FATTR_SIZE, FATTR_ATIME, FATTR_MTIME = 1, 2, 4, 8, 16, 32
FATTR_ATIME_NOW, FATTR_MTIME_NOW = 128, 256
FOPEN_KEEP_CACHE = 1 << 1
FOPEN_NOFLUSH = 1 << 5
FOPEN_PASSTHROUGH = 1 << 7

SETXATTR_ACL_KILL_SGID = 1 << 0

ASYNC_READ = 1 << 0
ATOMIC_O_TRUNC = 1 << 3
EXPORT_SUPPORT = 1 << 4
BIG_WRITES = 1 << 5
DONT_MASK = 1 << 6
DO_READDIRPLUS = 1 << 13
READDIRPLUS_AUTO = 1 << 14
ASYNC_DIO = 1 << 15
PARALLEL_DIROPS = 1 << 18
POSIX_ACL = 1 << 20
MAX_PAGES = 1 << 22
CACHE_SYMLINKS = 1 << 23
HANDLE_KILLPRIV_V2 = 1 << 28
SETXATTR_EXT = 1 << 29
INIT_EXT = 1 << 30
PASSTHROUGH = 1 << 37
HAS_RESEND = 1 << 39

MODIFICATION_TIME_NANOSECONDS = 1
_TYPE_SHIFT = 12
_ENTRY_ALIGN = 8


class Malformed(Exception):
    """A request is not what its opcode says; the kernel never sends one."""


@dataclasses.dataclass(slots=True)
class Request:
    """One request. *body* is a view of a buffer that the next request overwrites: whoever waits copies first."""

    opcode: int
    unique: int
    node: int
    uid: int
    gid: int
    pid: int
    body: memoryview

    @property
    def caller(self) -> Caller:
        """Who asks."""
        return Caller(self.uid, self.gid, self.pid)

    def name(self, start: int = 0) -> bytes:
        """The one name that ends the request, from *start*. Raises Malformed."""
        [name] = self.names(1, start)
        return name

    def names(self, count: int, start: int = 0) -> list[bytes]:
        """The names, each with its NUL, that end the request. Raises Malformed."""
        found = bytes(self.body[start:]).split(b"\0")
        if len(found) != count + 1 or found[-1]:
            raise Malformed
        return found[:count]


def request_of(data: memoryview) -> Request:
    """A request as it was read. Raises Malformed."""
    if len(data) < HEADER.size:
        raise Malformed
    length, opcode, unique, node, uid, gid, pid, extra, _ = HEADER.unpack_from(data)
    if length != len(data) or extra * 8 > length - HEADER.size:
        raise Malformed
    return Request(opcode, unique, node, uid, gid, pid, data[HEADER.size : length - extra * 8])


def dirent(inode: int, cookie: int, name: bytes, mode: int) -> bytes:
    """One entry of a listing."""
    padding = -len(name) % _ENTRY_ALIGN
    return DIRENT.pack(inode, cookie, len(name), mode >> _TYPE_SHIFT) + name + bytes(padding)


def init_out(minor: int, readahead_bytes: int, flags: int, transfer_bytes: int, background_max: int) -> bytes:
    """What we answer to INIT."""
    return INIT_OUT.pack(
        MAJOR,
        min(minor, MINOR),
        readahead_bytes,
        flags & 0xFFFFFFFF,
        background_max,
        background_max * 3 // 4,
        transfer_bytes,
        MODIFICATION_TIME_NANOSECONDS,
        transfer_bytes // PAGE_BYTES,
        0,
        flags >> 32,
        1 if flags & PASSTHROUGH else 0,  # max_stack_depth: the backing file system is no stacked one
        0,
    )
