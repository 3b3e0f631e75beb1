"""What the tree says, as the kernel reads it; and answers that must wait.

A handler of a request returns its payload, or a `Later` that is awaited by a task of its own. Trio, one thread.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from vnafs.domain.clock import NANOSECONDS
from vnafs.domain.ids import Inode
from vnafs.fs.attributes import Attributes
from vnafs.fs.commitment import Commitment
from vnafs.fs.filesystem import Filesystem
from vnafs.fuse.kernel import wire
from vnafs.fuse.syncing import Syncing
from vnafs.index.engine import Position

PREFERRED_BYTES = 1 << 20
"""Of one read or write, as programs that ask st_blksize are told."""
BLOCK_BYTES = 4096
UNSEEN_SECONDS = 1
NAME_BYTES_MAX = 255
_UNSIGNED = (1 << 64) - 1
STATX_BASIC_AND_BIRTH = 0x7FF | 0x800
"""STATX_BASIC_STATS and STATX_BTIME; statx(2)."""


class Later(NamedTuple):
    """An answer that is not there yet."""

    work: Callable[[], Awaitable[bytes]]
    may_be_interrupted: bool = False
    """A signal to the program that waits ends it: nothing was changed yet."""
    payload: bytes | None = None
    """Of what was done already and waits for the disk: what it will be."""


class NoAnswer:
    """The kernel expects none."""


NO_ANSWER = NoAnswer()
Answer = bytes | Later | NoAnswer
Handler = Callable[[wire.Request], Answer]


class Replies:
    """Builds payloads. *cache_seconds* is how long the kernel may keep what it was not told to forget."""

    def __init__(self, filesystem: Filesystem, syncing: Syncing, cache_seconds: float) -> None:
        self._fs = filesystem
        self._syncing = syncing
        self._seconds, fraction = divmod(int(cache_seconds * NANOSECONDS), NANOSECONDS)
        self._fraction = fraction
        self.missing = wire.ENTRY.pack(0, 0, self._seconds, 0, fraction, 0) + bytes(wire.ATTR.size)
        """A name that leads nowhere, which the kernel may keep too."""

    def _valid(self, inode: Inode) -> tuple[int, int]:
        """How long attributes may be kept: not for long while the kernel itself writes to the file.

        It forgets size and times at each write, but not when a program stores to a mapping.
        """
        if self._seconds >= UNSEEN_SECONDS and self._fs.unseen.is_written(inode):
            return UNSEEN_SECONDS, 0
        return self._seconds, self._fraction

    def entry(self, found: Attributes) -> bytes:
        """fuse_entry_out."""
        seconds, fraction = self._valid(found.inode)
        head = wire.ENTRY.pack(found.inode, 0, self._seconds, seconds, self._fraction, fraction)
        return head + _packed(found)

    def attributes(self, found: Attributes) -> bytes:
        """fuse_attr_out."""
        seconds, fraction = self._valid(found.inode)
        return wire.ATTR_OUT.pack(seconds, fraction, 0) + _packed(found)

    def statx(self, found: Attributes) -> bytes:
        """fuse_statx_out, with the time of birth."""
        seconds, fraction = self._valid(found.inode)
        rdev = found.rdev
        return wire.STATX_OUT.pack(seconds, fraction, 0) + wire.STATX.pack(
            STATX_BASIC_AND_BIRTH, PREFERRED_BYTES, 0, found.nlink, found.uid, found.gid, found.mode, found.inode,
            found.size_bytes, found.blocks, 0, *divmod(found.atime_ns, NANOSECONDS),
            *divmod(found.birth_ns, NANOSECONDS), *divmod(found.ctime_ns, NANOSECONDS),
            *divmod(found.mtime_ns, NANOSECONDS), os_major(rdev), os_minor(rdev), 0, 0,
        )  # fmt: skip

    # -- waiting --------------------------------------------------------------------------------------------

    def synced(self, inode: int, payload: bytes) -> Answer:
        """*payload* once a change in or of *inode* may be answered."""
        position = self._fs.must_sync(Inode(inode))
        if position is None:
            return payload
        return Later(functools.partial(self._until, position, payload), payload=payload)

    async def _until(self, position: Position, payload: bytes) -> bytes:
        await self._syncing.until(position)
        return payload

    def settled(self, commitment: Commitment | None, payload: bytes = b"") -> Answer:
        """*payload* once a commitment is settled."""
        if commitment is None:
            return payload
        return Later(functools.partial(self._settle, commitment, payload), payload=payload)

    async def _settle(self, commitment: Commitment, payload: bytes) -> bytes:
        await self._syncing.settle(commitment)
        return payload


def _packed(found: Attributes) -> bytes:
    inode, mode, nlink, uid, gid, rdev, size, blocks, atime, mtime, ctime, _ = found
    accessed, accessed_part = divmod(atime, NANOSECONDS)
    modified, modified_part = divmod(mtime, NANOSECONDS)
    changed, changed_part = divmod(ctime, NANOSECONDS)
    return wire.ATTR.pack(
        inode, size, blocks, accessed & _UNSIGNED, modified & _UNSIGNED, changed & _UNSIGNED,
        accessed_part, modified_part, changed_part, mode, nlink, uid, gid, rdev, PREFERRED_BYTES, 0,
    )  # fmt: skip


def os_major(rdev: int) -> int:
    """Of a device number as the kernel packs it into 32 bits (new_encode_dev)."""
    return rdev >> 8 & 0xFFF


def os_minor(rdev: int) -> int:
    """See os_major."""
    return rdev & 0xFF | rdev >> 12 & 0xFFF00
