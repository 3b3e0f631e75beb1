"""Packs: what is known of each closed pack, and which of its contents' numbers are its own."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterator

from vnafs.domain.clock import Instant
from vnafs.domain.errors import FormatUnknown
from vnafs.domain.ids import ContentNumber, PackId, PackNumber, RepositoryId, Sha256
from vnafs.index import keys
from vnafs.index.engine import Reader, Transaction, prefix_stop

_RECORD = struct.Struct(">B16s32sQQIQQI?")
_VERSION = 1
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


def put(tx: Transaction, pack: Pack) -> None:
    """Store a pack's row, new or changed."""
    tx.put(
        keys.pack(pack.number),
        _RECORD.pack(
            _VERSION,
            pack.id,
            pack.sha256,
            pack.size_bytes,
            pack.repository,
            pack.retention_class,
            pack.closed,
            pack.contents_first,
            pack.contents_count,
            pack.local,
        )
        + b"".join(_NUMBER.pack(number) for number in pack.leans_on),
    )
    tx.put(keys.pack_id(pack.id), _NUMBER.pack(pack.number))


def get(reader: Reader, number: PackNumber) -> Pack | None:
    """The pack with that number."""
    row = reader.get(keys.pack(number))
    return None if row is None else _decode(number, row)


def _decode(number: PackNumber, row: bytes) -> Pack:
    if row[0] > _VERSION:
        raise FormatUnknown(what="a pack record", found=row[0], known=_VERSION)
    _, identity, sha256, size, repository, retention, closed, first, count, local = _RECORD.unpack_from(row)
    leans_on = tuple(PackNumber(n) for (n,) in _NUMBER.iter_unpack(row[_RECORD.size :]))
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
    )


def number_of(reader: Reader, identity: PackId) -> PackNumber | None:
    """The number of the pack with that id."""
    row = reader.get(keys.pack_id(identity))
    return None if row is None else PackNumber(_NUMBER.unpack(row)[0])


def every(reader: Reader, *, after: PackNumber = PackNumber(0)) -> Iterator[Pack]:
    """All packs with a number above *after*, in order."""
    for key, row in reader.scan(keys.pack(PackNumber(after + 1)), prefix_stop(keys.PACKS)):
        yield _decode(PackNumber(keys.number_of(key)), row)


def last_number(reader: Reader) -> PackNumber:
    """The highest pack number given out so far, 0 when there is none."""
    for key, _ in reader.scan(keys.PACKS, prefix_stop(keys.PACKS), reverse=True):
        return PackNumber(keys.number_of(key))
    return PackNumber(0)
