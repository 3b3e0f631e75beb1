"""Packs: what is known of each closed pack, and which of its contents' numbers are its own."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterator

from vnafs.domain.clock import Instant
from vnafs.domain.envelopes import Envelope, KeyId
from vnafs.domain.errors import FormatUnknown
from vnafs.domain.events import Event, EventKind
from vnafs.domain.ids import ContentNumber, Inode, PackId, PackNumber, PieceNumber, RepositoryId, Sha256, Version
from vnafs.index import condemned, counts, feeds, keys
from vnafs.index.engine import Reader, Transaction, prefix_stop

_RECORDS = {
    1: struct.Struct(">B16s32sQQIQQI?"),
    2: struct.Struct(">B16s32sQQIQQI?QI"),
    3: struct.Struct(">B16s32sQQIQQI?QI16sB"),
}
"""The second version says which pieces' numbers are the pack's own; the third one, of encrypted packs, has the key."""
_PLAIN, _ENCRYPTED = 2, 3
_NUMBER = struct.Struct(">Q")


@dataclasses.dataclass(frozen=True, slots=True)
class Pack:
    """One K row."""

    number: PackNumber
    id: PackId
    sha256: Sha256
    size_bytes: int
    repository: RepositoryId
    retention_class: int
    closed: Instant
    contents_first: ContentNumber
    contents_count: int
    local: bool
    """Its file is still in the pack folder on the local disk."""
    leans_on: tuple[PackNumber, ...]
    """Other packs that some content at home here needs."""
    pieces_first: PieceNumber = PieceNumber(0)
    pieces_count: int = 0
    """0 also where it is not known."""
    envelope: Envelope | None = None
    """Of an encrypted pack, as its header has it, so that reading a piece needs no header."""


def put(tx: Transaction, pack: Pack) -> None:
    """Store a pack's row, new or changed; nothing is known yet of the copies of a new one."""
    before = get(tx, pack.number)
    if before is None:
        counts.add(tx, counts.PACKS, 1, pack.size_bytes)
        counts.add(tx, counts.held(0), 1, pack.size_bytes)
        feeds.append(tx, Event(EventKind.PACKED, Inode(0), Version(0), detail=pack.number))
    was_local = before is not None and before.local
    if was_local != pack.local:
        sign = 1 if pack.local else -1
        counts.add(tx, counts.LOCAL, sign, sign * pack.size_bytes)
    tx.put(keys.pack(pack.number), _encode(pack))
    tx.put(keys.pack_id(pack.id), _NUMBER.pack(pack.number))


def changed(tx: Transaction, number: PackNumber) -> None:
    """Have a pack's rows recorded again: some of its contents are no more."""
    feeds.append(tx, Event(EventKind.PACKED, Inode(0), Version(0), detail=number))


def remove(tx: Transaction, pack: Pack) -> None:
    """Forget a pack of which no copy is known any more (`copies.remove`)."""
    counts.add(tx, counts.PACKS, -1, -pack.size_bytes)
    counts.add(tx, counts.held(0), -1, -pack.size_bytes)
    if pack.local:
        counts.add(tx, counts.LOCAL, -1, -pack.size_bytes)
    tx.delete(keys.pack(pack.number))
    tx.delete(keys.pack_id(pack.id))
    feeds.append(tx, Event(EventKind.FORGOTTEN, Inode(0), Version(0), detail=pack.number))


def get(reader: Reader, number: PackNumber) -> Pack | None:
    """The pack with that number."""
    row = reader.get(keys.pack(number))
    return None if row is None else _decode(number, row)


def _encode(pack: Pack) -> bytes:
    version = _ENCRYPTED if pack.envelope else _PLAIN
    sealed = (pack.envelope.key, len(pack.envelope.wrapped)) if pack.envelope else ()
    head = _RECORDS[version].pack(
        version,
        pack.id,
        pack.sha256,
        pack.size_bytes,
        pack.repository,
        pack.retention_class,
        pack.closed,
        pack.contents_first,
        pack.contents_count,
        pack.local,
        pack.pieces_first,
        pack.pieces_count,
        *sealed,
    )
    wrapped = pack.envelope.wrapped if pack.envelope else b""
    return head + wrapped + b"".join(_NUMBER.pack(number) for number in pack.leans_on)


def _decode(number: PackNumber, row: bytes) -> Pack:
    layout = _RECORDS.get(row[0])
    if layout is None:
        raise FormatUnknown(what="a pack record", found=row[0], known=_ENCRYPTED)
    _, identity, sha256, size, repository, retention, closed, first, count, local, *more = layout.unpack_from(row)
    rest, envelope = row[layout.size :], None
    if row[0] == _ENCRYPTED:
        key, wrapped_bytes = more[2:]
        envelope, rest = Envelope(KeyId(key), bytes(rest[:wrapped_bytes])), rest[wrapped_bytes:]
    leans_on = tuple(PackNumber(n) for (n,) in _NUMBER.iter_unpack(rest))
    pieces_first, pieces_count = more[:2] or (0, 0)
    return Pack(
        number,
        PackId(identity),
        Sha256(sha256),
        size,
        RepositoryId(repository),
        retention,
        Instant(closed),
        ContentNumber(first),
        count,
        local,
        leans_on,
        PieceNumber(pieces_first),
        pieces_count,
        envelope,
    )


def number_of(reader: Reader, identity: PackId) -> PackNumber | None:
    """The number of the pack with that id."""
    row = reader.get(keys.pack_id(identity))
    return None if row is None else PackNumber(_NUMBER.unpack(row)[0])


def every(reader: Reader, *, after: PackNumber = PackNumber(0)) -> Iterator[Pack]:
    """All packs with a number above *after*, in order."""
    for key, row in reader.scan(keys.pack(PackNumber(after + 1)), prefix_stop(keys.PACKS)):
        yield _decode(PackNumber(keys.number_of(key)), row)


def latest(reader: Reader) -> Iterator[Pack]:
    """All packs, the highest number first."""
    for key, row in reader.scan(keys.PACKS, prefix_stop(keys.PACKS), reverse=True):
        yield _decode(PackNumber(keys.number_of(key)), row)


def last_number(reader: Reader) -> PackNumber:
    """The highest pack number given out so far, 0 when there is none."""
    for key, _ in reader.scan(keys.PACKS, prefix_stop(keys.PACKS), reverse=True):
        return max(PackNumber(keys.number_of(key)), condemned.last_number(reader))
    return condemned.last_number(reader)
