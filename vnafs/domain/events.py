"""What feeds carry: one ordered log of changes for each owner of an index, written with the change itself."""

from __future__ import annotations

import dataclasses
import enum

from vnafs.domain.files import Seal
from vnafs.domain.ids import Inode, Version


class EventKind(enum.IntEnum):
    """The numbers are stored and never change meaning."""

    CREATED = 1
    REMOVED = 2
    """The last name and the last handle are gone."""
    NAMED = 3
    """A name was added to, moved to or replaced in a directory."""
    UNNAMED = 4
    ATTRIBUTES = 5
    XATTRS = 6
    STATE = 7
    VERSION = 8
    """A new version of the bytes began; the version before it is no longer the file's."""
    PACKED = 9
    """A pack was recorded; its number is the detail."""
    FORGOTTEN = 10
    """A pack was given up; its number is the detail."""
    NAME_EXPIRED = 11
    """What a name led to until some time is not kept any more."""
    VERSION_EXPIRED = 12
    """A version that was over is not kept any more."""
    KEPT = 13
    """The bytes of a version that is over came into packs after all."""
    RETENTION = 14
    """Retention or holds of an inode changed; the detail is the audit row that says why, or 0."""
    ERASED = 15
    """An inode was erased for good, or the erasure itself went on (inode 0); the detail is the erasure's number."""
    SIGNER = 16
    """The keys that sign receipts, or what is known of them, changed."""


@dataclasses.dataclass(frozen=True, slots=True)
class Event:
    """One change of one inode, or of one pack. What it looks like now is in the index; the feed says where to look."""

    kind: EventKind
    inode: Inode
    version: Version
    parent: Inode = Inode(0)
    name: bytes = b""
    detail: int = 0
    """For STATE the new FileState. For VERSION and REMOVED the `seal_detail` of the version that is no more, 0 while it
    is remembered; for VERSION_EXPIRED that too. For UNNAMED and NAME_EXPIRED when the name ended, if that is noted."""


def seal_detail(seal: Seal | None) -> int:
    """The first eight bytes of a version's SHA-256; 0 for one that was not sealed."""
    return 0 if seal is None else int.from_bytes(seal.sha256[:8], "big")
