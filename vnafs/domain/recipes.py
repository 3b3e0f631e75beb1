"""How a content is rebuilt: pieces in order, each in a pack."""

from __future__ import annotations

import dataclasses
import enum
import hashlib

from vnafs.domain.ids import PackId, Sha256

EMPTY = Sha256(hashlib.sha256().digest())
"""The content without bytes, which needs no pack."""
PIECE_BYTES_MAX = 16 * 1024 * 1024
PIECE_LOOKUP_BYTES_MIN = 4096
"""Smaller pieces are stored without looking for an equal one: the row would cost more than it saves."""


class Codec(enum.IntEnum):
    """How a piece's bytes are stored. The numbers are part of the pack format (FORMAT.md)."""

    NONE = 0
    ZSTD = 1
    SHUFFLED_ZSTD = 2
    """ZSTD of the bytes at even offsets followed by those at odd offsets: for samples of 16 bits."""


class PieceKind(enum.IntEnum):
    """What a piece is, for grouping and choice of codec. The numbers are part of the pack format."""

    BYTES = 0
    DICOM_HEADER = 1
    PIXELS = 2
    """Native pixel data: one frame, or all of it."""
    ENCAPSULATED = 3
    """Compressed frames with their item heads; stored as they are unless a sample shrinks (RLE does)."""
    DICOM_TRAILER = 4
    """What follows the pixel data."""
    CHUNK = 5
    """A content-defined chunk."""


@dataclasses.dataclass(frozen=True, slots=True)
class Cut:
    """One piece of a content before it is stored: where it lies and what it is."""

    offset: int
    length_bytes: int
    kind: PieceKind


@dataclasses.dataclass(frozen=True, slots=True)
class PieceRef:
    """One stored piece: enough to fetch, decode and check it without an index."""

    pack: PackId
    offset: int
    """Of the stored bytes, from the start of the pack."""
    stored_bytes: int
    raw_bytes: int
    codec: Codec
    kind: PieceKind
    sha256: Sha256
    """Of the raw bytes."""


@dataclasses.dataclass(frozen=True, slots=True)
class Recipe:
    """The pieces that, decoded and joined, are the content whose SHA-256 is *sha256*."""

    sha256: Sha256
    size_bytes: int
    pieces: tuple[PieceRef, ...]

    def packs(self) -> frozenset[PackId]:
        """Every pack the recipe needs."""
        return frozenset(piece.pack for piece in self.pieces)
