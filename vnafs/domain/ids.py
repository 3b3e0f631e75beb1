"""The names of things: what the rest of vnafs passes around instead of bare ints and bytes."""

from __future__ import annotations

import dataclasses
import os
from typing import NewType

Inode = NewType("Inode", int)
"""(epoch << 40) | counter. Never used twice, also across restores: the epoch rises at each. 1 is the root."""

ROOT = Inode(1)
EPOCH_SHIFT_BITS = 40

Version = NewType("Version", int)
"""Counts the changes of one inode's bytes, from 1. Local bytes live at (inode, version)."""
NO_VERSION = Version(0)
"""Of what has no bytes."""

Sha256 = NewType("Sha256", bytes)
"""32 bytes (FIPS 180-4): the identity of a content, a piece, a pack."""

RepositoryId = NewType("RepositoryId", int)
"""The inode of the repository's top directory; unique in an archive for ever, as inodes are."""

ContentNumber = NewType("ContentNumber", int)
PieceNumber = NewType("PieceNumber", int)
PackNumber = NewType("PackNumber", int)
"""Sequential index keys: short, dense and never sent to a target."""

PackId = NewType("PackId", bytes)
"""16 random bytes that name a pack everywhere outside the index."""

TargetName = NewType("TargetName", str)
ObjectName = NewType("ObjectName", str)
"""`/`-separated name of an object on a target, relative to the target's prefix; ASCII, no patient data."""


def new_pack_id() -> PackId:
    """A fresh, random pack id."""
    return PackId(os.urandom(16))


def pack_object_name(pack: PackId) -> ObjectName:
    """Where a pack lives on every target: `packs/ab/abcdef….pack`, fanned out by its first byte."""
    text = pack.hex()
    return ObjectName(f"packs/{text[:2]}/{text}.pack")


@dataclasses.dataclass(frozen=True, slots=True)
class Span:
    """A run of bytes: offset and length in bytes; length None means to the end."""

    offset: int = 0
    length: int | None = None

    @property
    def stop(self) -> int | None:
        """The offset after the last byte, or None when open-ended."""
        return None if self.length is None else self.offset + self.length


WHOLE = Span()
