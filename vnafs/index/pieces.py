"""Pieces that may be shared: where each is stored. Smaller ones than PIECE_LOOKUP_BYTES_MIN have no row."""

from __future__ import annotations

import struct
from typing import NamedTuple

from vnafs.domain.errors import FormatUnknown
from vnafs.domain.ids import PackNumber, PieceNumber, Sha256
from vnafs.domain.recipes import Codec, PieceKind
from vnafs.index import contents, keys
from vnafs.index.engine import Reader, Transaction

_RECORD = struct.Struct(">BQQIIBB32s")
_VERSION = 1


class Piece(NamedTuple):
    """One P row."""

    pack: PackNumber
    offset: int
    stored_bytes: int
    raw_bytes: int
    codec: Codec
    kind: PieceKind
    sha256: Sha256


def add(tx: Transaction, number: PieceNumber, piece: Piece) -> None:
    """Store where a piece is and make it findable by its hash."""
    tx.put(
        keys.piece(number),
        _RECORD.pack(
            _VERSION,
            piece.pack,
            piece.offset,
            piece.stored_bytes,
            piece.raw_bytes,
            piece.codec,
            piece.kind,
            piece.sha256,
        ),
    )
    contents.add_hash(tx, keys.Hashed.PIECE, piece.sha256, number)


def find(reader: Reader, sha256: Sha256) -> list[Piece]:
    """Every stored piece with exactly that hash, in whatever pack; the caller keeps to its key domain."""
    found = []
    for number in contents.hash_numbers(reader, keys.Hashed.PIECE, sha256):
        row = reader.get(keys.piece(PieceNumber(number)))
        if row is not None and (piece := decode(row)).sha256 == sha256:
            found.append(piece)
    return found


def remove_run(tx: Transaction, first: PieceNumber, count: int) -> None:
    """Forget the pieces of one pack, by the run of numbers its row names."""
    for number in range(first, first + count):
        key = keys.piece(PieceNumber(number))
        row = tx.get(key)
        if row is not None:
            contents.drop_hash(tx, keys.Hashed.PIECE, decode(row).sha256, number)
            tx.delete(key)


def decode(row: bytes) -> Piece:
    """The piece of a row. Raises FormatUnknown for one that a newer program wrote."""
    if row[0] > _VERSION:
        raise FormatUnknown(what="a piece record", found=row[0], known=_VERSION)
    _, pack, offset, stored, raw, codec, kind, digest = _RECORD.unpack(row)
    return Piece(PackNumber(pack), offset, stored, raw, Codec(codec), PieceKind(kind), Sha256(digest))
