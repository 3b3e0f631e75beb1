"""Inodes: what the tree knows of each file, directory, link and node.

A row holds attributes and the state of a file's bytes, never a name: names are entries, and a row only hints at one
of them. Reads and changes happen in the caller's transaction. While a file is open for write, its local file and
not its row is the truth for size, blocks and time of change.
"""

from __future__ import annotations

import stat
import struct
from typing import NamedTuple

from vnafs.domain.clock import Instant
from vnafs.domain.errors import Damaged
from vnafs.domain.files import FileState, Fingerprint, Seal
from vnafs.domain.ids import Inode, RepositoryId, Sha256, Version
from vnafs.index import keys
from vnafs.index.engine import Reader, Transaction
from vnafs.index.records import RecordType

NOT_QUEUED = Instant(-1)
"""The *due* of a file that waits for nothing."""

# state, flags, mode, uid, gid, nlink, size, blocks, four times, repository, parent, cookie, version, due
_RECORD = RecordType("inode", {1: ">BBHIIIQQqqqqQQQIq"})
_SEAL = struct.Struct(">32sqq")  # SHA-256, mtime and ctime of the fingerprint; its size is the row's
_NO_SEAL = bytes(_SEAL.size)
"""A file's row keeps the place of its seal: a row that grew would split the full page it is in."""
_NO_FINGERPRINT = bytes(16)
_RDEV = struct.Struct(">Q")
_HAS_XATTRS, _SEALED, _DEVICE, _BEFORE, _SUSPECT = 1, 2, 4, 8, 16
_STATES = (FileState.OPEN, *FileState)  # by number; no row has 0
_make = tuple.__new__


class InodeRow(NamedTuple):
    """One I row. Times are nanoseconds since 1970 UTC; a block has 512 bytes."""

    mode: int
    """Type and permission bits, as in inode(7)."""
    uid: int
    gid: int
    nlink: int
    size_bytes: int
    blocks: int
    """Of the local file; 0 for a stub."""
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    birth_ns: int
    repository: RepositoryId
    """0 for the root of the mount."""
    parent: Inode
    """For a directory its parent; for anything else a directory that has a name of it, or 0 when none is known."""
    cookie: int
    """The place in *parent* where its name stands, or 0."""
    version: Version
    state: FileState
    due: Instant
    """Where its queue row stands, or NOT_QUEUED."""
    has_xattrs: bool = False
    seal: Seal | None = None
    """SHA-256 and fingerprint of this version's bytes; None while OPEN."""
    rdev: int = 0
    before: Sha256 | None = None
    """SHA-256 of the version sealed last, while this one is not; for the case that this one is lost."""
    is_suspect: bool = False
    """The local disk failed to keep some bytes of this version, which is OPEN and is not sealed until it is emptied."""

    @property
    def is_directory(self) -> bool:
        """Whether it lists names."""
        return stat.S_ISDIR(self.mode)

    @property
    def is_file(self) -> bool:
        """Whether it has bytes."""
        return stat.S_ISREG(self.mode)

    @property
    def is_symlink(self) -> bool:
        """Whether it holds a path."""
        return stat.S_ISLNK(self.mode)


def bytes_used(row: InodeRow) -> int:
    """What an inode takes of its repository's bytes: only files have any."""
    return row.size_bytes if row.size_bytes and stat.S_ISREG(row.mode) else 0


_STATE_AT = InodeRow._fields.index("state")
_SIZE_AT = InodeRow._fields.index("size_bytes") + 2  # after state and flags


def encode(row: InodeRow) -> bytes:
    """The record of one row; 101 bytes, 149 when sealed."""
    flags = row.has_xattrs | (_SUSPECT if row.is_suspect else 0)
    tail = b""
    if row.seal is not None:
        flags |= _SEALED
        mark = row.seal.fingerprint
        tail = _SEAL.pack(row.seal.sha256, mark.mtime_ns, mark.ctime_ns)
    elif row.rdev:
        flags |= _DEVICE
        tail = _RDEV.pack(row.rdev)
    elif row.before is not None:
        flags |= _BEFORE
        tail = row.before + _NO_FINGERPRINT
    elif row.is_file:
        tail = _NO_SEAL
    return _RECORD.pack(row.state, flags, *row[:_STATE_AT], row.due, tail=tail)


def decode(record: bytes) -> InodeRow:
    """The row of a record. Raises FormatUnknown for one that a newer program wrote, Damaged for one cut short."""
    fields, tail = _RECORD.unpack(record)
    flags = fields[1]
    seal, rdev, before = None, 0, None
    if flags:
        try:
            if flags & _SEALED:
                sha256, mtime, ctime = _SEAL.unpack(tail)
                seal = Seal(Sha256(sha256), Fingerprint(fields[_SIZE_AT], mtime, ctime))
            elif flags & _DEVICE:
                (rdev,) = _RDEV.unpack(tail)
            elif flags & _BEFORE:
                before = Sha256(_SEAL.unpack(tail)[0])
        except struct.error as error:
            raise Damaged(what="an inode record") from error
    return _make(
        InodeRow,
        (
            *fields[2:16],
            _STATES[fields[0]],
            fields[16],
            bool(flags & _HAS_XATTRS),
            seal,
            rdev,
            before,
            bool(flags & _SUSPECT),
        ),
    )


def find(reader: Reader, number: Inode) -> InodeRow | None:
    """The row of an inode, or None if there is no such inode."""
    record = reader.get(keys.inode(number))
    return None if record is None else decode(record)


def find_shown(reader: Reader, number: Inode) -> InodeRow | None:
    """As `find`, for a listing: without the seal, which takes most of the time and which no listing shows.

    Never store such a row: the hash sealed before is not in it either, nor whether the disk kept the bytes.
    """
    record = reader.get(keys.inode(number))
    if record is None:
        return None
    fields, _ = _RECORD.unpack(record)
    if fields[1] & _DEVICE:
        return decode(record)
    shown = (*fields[2:16], _STATES[fields[0]], fields[16], bool(fields[1] & _HAS_XATTRS), None, 0, None, False)
    return _make(InodeRow, shown)


def put(tx: Transaction, number: Inode, row: InodeRow) -> None:
    """Store a row, new or changed."""
    tx.put(keys.inode(number), encode(row))


def delete(tx: Transaction, number: Inode) -> None:
    """Forget an inode; its number is never used again."""
    tx.delete(keys.inode(number))
