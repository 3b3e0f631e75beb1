"""What the tree raises when bytes must come from a target first. Not errors: whoever called brings them and retries."""

from __future__ import annotations

from vnafs.domain.ids import Inode, Version


class RecallNeeded(Exception):
    """All bytes of a stub are needed here before the call can succeed."""

    def __init__(self, inode: Inode, version: Version) -> None:
        super().__init__(inode, version)
        self.inode = inode
        self.version = version


class RangeNeeded(Exception):
    """A read of a large stub needs these bytes of it; they stay where they are brought to."""

    def __init__(self, inode: Inode, version: Version, offset: int, length: int) -> None:
        super().__init__(inode, version, offset, length)
        self.inode = inode
        self.version = version
        self.offset = offset
        self.length = length
