"""The recipe record of the pack format: the ordered pieces of one content as bytes (FORMAT.md, "Recipe record").

Knows no file and no codec. Reading distrusts: lengths are compared before memory is taken. Pure; any thread.
"""

from __future__ import annotations

import struct

import xxhash

from vnafs.content.crypt import TAG_BYTES
from vnafs.content.source import Buffer
from vnafs.domain import errors
from vnafs.domain.ids import PackId, Sha256
from vnafs.domain.recipes import PIECE_BYTES_MAX, Codec, PieceKind, PieceRef, Recipe

MAGIC = b"RCPE"
PIECES_MAX = 1 << 20
"""16 TiB of the largest pieces."""
RECORD_BYTES_MAX = 80 * 1024 * 1024
"""PIECES_MAX entries and as many packs: a bound for whoever is about to fetch one."""

_HEAD = struct.Struct("<4sIQ32sII")
_PIECE = struct.Struct("<IIIBBHQ32s")
_GUARD = struct.Struct("<Q")
_OFFSET_MAX = 1 << 62


def encode_recipe(recipe: Recipe, home: PackId) -> bytes:
    """The record of *recipe* in the pack *home*, whose own pieces are told by pack number 0."""
    numbers = {home: 0}
    for piece in recipe.pieces:
        numbers.setdefault(piece.pack, len(numbers))
    others = [pack for pack in numbers if pack != home]
    length = _HEAD.size + 16 * len(others) + _PIECE.size * len(recipe.pieces) + _GUARD.size
    parts = [_HEAD.pack(MAGIC, length, recipe.size_bytes, recipe.sha256, len(recipe.pieces), len(others)), *others]
    parts.extend(
        _PIECE.pack(
            numbers[piece.pack],
            piece.raw_bytes,
            piece.stored_bytes,
            piece.codec,
            piece.kind,
            0,
            piece.offset,
            piece.sha256,
        )
        for piece in recipe.pieces
    )
    body = b"".join(parts)
    return body + _GUARD.pack(xxhash.xxh3_64_intdigest(body))


def decode_recipe(record: Buffer, home: PackId) -> Recipe:
    """The recipe in a record of the pack *home*. Raises Damaged, or FormatUnknown for a codec of a later format."""
    view = memoryview(record)
    what = f"a recipe in pack {home.hex()}"
    if len(view) < _HEAD.size + _GUARD.size:
        raise errors.Damaged(what=what)
    magic, length, size_bytes, sha256, count, others = _HEAD.unpack_from(view)
    pieces_at = _HEAD.size + 16 * others
    guard_at = pieces_at + _PIECE.size * count
    if magic != MAGIC or length != len(view) or count > PIECES_MAX or others > count or guard_at + 8 != length:
        raise errors.Damaged(what=what)
    if _GUARD.unpack_from(view, guard_at)[0] != xxhash.xxh3_64_intdigest(view[:guard_at]):
        raise errors.Damaged(what=what)
    packs = [home, *(PackId(bytes(view[at : at + 16])) for at in range(_HEAD.size, pieces_at, 16))]
    pieces = tuple(_piece(packs, fields, what) for fields in _PIECE.iter_unpack(view[pieces_at:guard_at]))
    if sum(piece.raw_bytes for piece in pieces) != size_bytes:
        raise errors.Damaged(what=what)
    return Recipe(Sha256(sha256), size_bytes, pieces)


def _piece(packs: list[PackId], fields: tuple[int, int, int, int, int, int, int, bytes], what: str) -> PieceRef:
    number, raw_bytes, stored_bytes, codec, kind, _, offset, sha256 = fields
    if number >= len(packs) or not 0 < raw_bytes <= PIECE_BYTES_MAX or offset > _OFFSET_MAX:
        raise errors.Damaged(what=what)
    if not 0 < stored_bytes <= raw_bytes + TAG_BYTES:
        raise errors.Damaged(what=what)
    return PieceRef(packs[number], offset, stored_bytes, raw_bytes, codec_of(codec), kind_of(kind), Sha256(sha256))


def codec_of(number: int) -> Codec:
    """Raises FormatUnknown."""
    if number > max(Codec):
        raise errors.FormatUnknown(what="a piece's codec", found=number, known=int(max(Codec)))
    return Codec(number)


def kind_of(number: int) -> PieceKind:
    """Kinds are advice; one of a later format is only bytes."""
    return PieceKind(number) if number <= max(PieceKind) else PieceKind.BYTES
