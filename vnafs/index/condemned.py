"""Condemned packs (Z rows): no place is known that has them whole.

A condemned pack is not leaned on and its contents are not reused. One that no target ever had is given up, and its
row outlives the pack's own: it keeps the pack's number from being given out again, and says which objects of ours are
to be removed from targets. One that some target had, by the manifests it was restored from, is kept for as long as a
file needs it: that target may come back.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterable

from vnafs.domain.ids import PackId, PackNumber, Sha256
from vnafs.index import keys
from vnafs.index.engine import Reader, Transaction, prefix_stop

_RECORD = struct.Struct(">16s32sQ")
_ID_BYTES = 16


@dataclasses.dataclass(frozen=True, slots=True)
class Condemned:
    """One Z row."""

    id: PackId
    sha256: Sha256 | None
    """None in rows of earlier programs, which did not say what the pack would be."""
    size_bytes: int = 0


def put(tx: Transaction, number: PackNumber, row: Condemned) -> None:
    """Condemn a pack."""
    tx.put(keys.condemned(number), _RECORD.pack(row.id, row.sha256 or b"", row.size_bytes))


def find(reader: Reader, number: PackNumber) -> Condemned | None:
    """What a pack is, if it is condemned."""
    found = reader.get(keys.condemned(number))
    if found is None:
        return None
    if len(found) == _ID_BYTES:
        return Condemned(PackId(found), None)
    identity, sha256, size_bytes = _RECORD.unpack(found)
    return Condemned(PackId(identity), Sha256(sha256), size_bytes)


def any_of(reader: Reader, numbers: Iterable[PackNumber]) -> bool:
    """Whether one of these packs is condemned."""
    return any(find(reader, number) is not None for number in numbers)


def pardon(tx: Transaction, number: PackNumber) -> None:
    """A whole copy was found after all."""
    tx.delete(keys.condemned(number))


def last_number(reader: Reader) -> PackNumber:
    """The highest number of a condemned pack, 0 when there is none."""
    for key, _ in reader.scan(keys.CONDEMNED, prefix_stop(keys.CONDEMNED), reverse=True):
        return PackNumber(keys.number_of(key))
    return PackNumber(0)
