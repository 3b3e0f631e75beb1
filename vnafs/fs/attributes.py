"""What a caller sees of an inode, and what it may ask to change. Plain values."""

from __future__ import annotations

import dataclasses
import os
import stat
from typing import NamedTuple

from vnafs.domain.clock import NANOSECONDS
from vnafs.domain.ids import Inode
from vnafs.index.inodes import InodeRow

BLOCK_BYTES = 512
TIME_NS_MIN, TIME_NS_MAX = -(1 << 31) * NANOSECONDS, (1 << 63) - 1
"""Of a file: 1901 is what local file systems go back to, 2262 what a row holds."""

SET_ID = stat.S_ISUID | stat.S_ISGID
"""Bits of a mode that whoever runs the file gets."""


def without_set_id(mode: int) -> int:
    """A file's mode after somebody wrote to it or changed its owner (chown(2), write(2))."""
    mode &= ~stat.S_ISUID
    return mode & ~stat.S_ISGID if mode & stat.S_IXGRP else mode


class Attributes(NamedTuple):
    """As stat(2) shows them; times are nanoseconds since 1970 UTC, a block has 512 bytes."""

    inode: Inode
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    size_bytes: int
    blocks: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    birth_ns: int


def attributes_of(inode: Inode, row: InodeRow) -> Attributes:
    """The attributes of an inode whose row is the truth."""
    return Attributes(
        inode,
        row.mode,
        row.nlink,
        row.uid,
        row.gid,
        row.rdev,
        row.size_bytes,
        row.blocks,
        row.atime_ns,
        row.mtime_ns,
        row.ctime_ns,
        row.birth_ns,
    )


def attributes_while_written(inode: Inode, row: InodeRow, local: os.stat_result) -> Attributes:
    """The attributes of a file that is open for write: its local file is the truth for what writes change."""
    return Attributes(
        inode,
        row.mode,
        row.nlink,
        row.uid,
        row.gid,
        row.rdev,
        local.st_size,
        local.st_blocks,
        row.atime_ns,
        local.st_mtime_ns,
        max(row.ctime_ns, written_at(local)),
        row.birth_ns,
    )


def written_at(local: os.stat_result) -> int:
    """When a local file was written last, as far as its times tell: a time to come was set and is none."""
    return min(local.st_mtime_ns, local.st_ctime_ns)


@dataclasses.dataclass(frozen=True, slots=True)
class AttributeChanges:
    """What setattr should set; None leaves a field as it is. Whoever calls turns "now" into a time."""

    mode: int | None = None
    """Permission bits; type bits are ignored."""
    uid: int | None = None
    gid: int | None = None
    size_bytes: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None

    def within_range(self) -> AttributeChanges:
        """Times that no file can have become the nearest that one can, as Linux makes them (timestamp_truncate)."""
        if self.atime_ns is None and self.mtime_ns is None:
            return self
        return dataclasses.replace(self, atime_ns=_within(self.atime_ns), mtime_ns=_within(self.mtime_ns))


def _within(time_ns: int | None) -> int | None:
    return None if time_ns is None else min(max(time_ns, TIME_NS_MIN), TIME_NS_MAX)
