"""What a caller sees of an inode, and what it may ask to change. Plain values."""

from __future__ import annotations

import dataclasses
import os
from typing import NamedTuple

from vnafs.domain.ids import Inode
from vnafs.index.inodes import InodeRow

BLOCK_BYTES = 512


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
        max(row.ctime_ns, local.st_mtime_ns),
        row.birth_ns,
    )


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
