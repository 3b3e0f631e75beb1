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
    HTJ2K = 3
    """An image, as a reversible High-Throughput JPEG 2000 codestream (ISO/IEC 15444-15) behind a head of ours."""
    JPEG_XL = 4
    """The same, as a lossless JPEG XL codestream (ISO/IEC 18181-1)."""
    ZSTD_AFTER_BASE = 5
    """ZSTD with the raw bytes of an earlier piece of the same pack, its base, as if they came before: for headers."""


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
class Raster:
    """How samples of native pixel data lie in a piece, as the header says (PS3.3 C.7.6.3.1). It may lie.

    Samples are little-endian, row after row from the piece's first byte on.
    """

    rows: int
    """Of one frame."""
    columns: int
    samples: int
    """Per pixel: 1 or 3."""
    sample_bytes: int
    """1 or 2."""
    signed: bool
    """Two's complement, so that small negative values are near small positive ones."""
    planes: bool
    """All first samples of a frame come before all second ones (planar configuration 1)."""
    bits_stored: int
    """Of each sample; tells modalities with equal geometry apart."""

    @property
    def row_bytes(self) -> int:
        """Of one row of pixels, whatever their order."""
        return self.columns * self.samples * self.sample_bytes


@dataclasses.dataclass(frozen=True, slots=True)
class Cut:
    """One piece of a content before it is stored: where it lies and what it is."""

    offset: int
    length_bytes: int
    kind: PieceKind
    raster: Raster | None = None
    """Of PIXELS whose geometry is told; the piece holds whole rows, and perhaps a byte of padding."""


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
