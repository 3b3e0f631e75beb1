"""Erasing: what becomes of erased files behind the tree. Which packs go because of them, and what targets still have.

E rows name packs in which erased bytes are or may be, by number and by what their objects are called; manifests carry
them, so that an index that is rebuilt in the middle still knows which objects have to go. D rows say how far an
erasure is and when each target was seen without it; a rebuilt index finds that out again. The E rows of an erasure go
when it is proven. Reads and changes happen in the caller's transaction.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from vnafs.domain.clock import Instant
from vnafs.domain.ids import PackId, PackNumber
from vnafs.index import keys
from vnafs.index.engine import Reader, Transaction, prefix_stop
from vnafs.index.records import RecordType

_EMPTIED = RecordType("emptied pack", {1: ">16s"})
_ERASING = RecordType("erasing", {1: ">qqqQQ"})  # began, condemned, completed, feed, segment; what was found follows
_THERE = RecordType("erasing on a target", {1: ">qqQ"})  # looked, proven, until; why not yet follows
TARGET_BYTES = 4
HEAD_BYTES = 64
"""Of a D row, enough for the numbers of any version."""


@dataclasses.dataclass(frozen=True, slots=True)
class Erasing:
    """How far one erasure is. A time of 0: that is still to come."""

    began: Instant = Instant(0)
    condemned: Instant = Instant(0)
    """Every pack that has bytes of it is on its way out."""
    completed: Instant = Instant(0)
    """Every target was seen without it."""
    feed: int = 0
    """The tree's feed tells all of it before this number."""
    segment: int = 0
    """The manifests tell all of it in this segment or before; 0: not yet."""
    found: bytes = b""
    """For one that is completed: what is certified, as JSON."""


@dataclasses.dataclass(frozen=True, slots=True)
class There:
    """What one target says of one erasure."""

    looked: Instant
    proven: Instant = Instant(0)
    """When it was seen without any of it; 0: not yet."""
    until: Instant = Instant(0)
    """When a lock there ends; 0: none is known."""
    why: str = ""
    """What is still there, or nothing."""


# -- packs that go -------------------------------------------------------------------------------------------


def empty(tx: Transaction, pack: PackNumber, identity: PackId, erasure: int) -> None:
    """A pack goes because of an erasure."""
    tx.put(keys.emptied(pack, erasure), _EMPTIED.pack(identity))


def has(reader: Reader, pack: PackNumber, erasure: int) -> bool:
    """Whether a pack goes because of one erasure."""
    return reader.get(keys.emptied(pack, erasure)) is not None


def is_emptied(reader: Reader, pack: PackNumber, identity: PackId) -> bool:
    """Whether a pack goes because of any erasure."""
    prefix = keys.emptied_pack(pack)
    return any(_EMPTIED.unpack(bytes(raw))[0][0] == identity for _, raw in reader.scan(prefix, prefix_stop(prefix)))


def packs_of(reader: Reader, erasure: int) -> Iterator[tuple[PackNumber, PackId]]:
    """The packs that go because of one erasure, in order of number; lazily."""
    for key, raw in reader.scan(keys.EMPTIED, prefix_stop(keys.EMPTIED)):
        pack, because_of = keys.emptied_of(bytes(key))
        if because_of == erasure:
            yield pack, PackId(_EMPTIED.unpack(bytes(raw))[0][0])


def let_be(tx: Transaction, erasure: int) -> None:
    """Nothing has to go any more because of an erasure."""
    for pack, _ in list(packs_of(tx, erasure)):
        tx.delete(keys.emptied(pack, erasure))


# -- how far it is -------------------------------------------------------------------------------------------


def get(reader: Reader, erasure: int) -> Erasing:
    """How far an erasure is; one that did not begin has only zeros."""
    raw = reader.get(keys.erasing(erasure))
    if raw is None:
        return Erasing()
    (began, condemned, completed, feed, segment), found = _ERASING.unpack(bytes(raw))
    return Erasing(Instant(began), Instant(condemned), Instant(completed), feed, segment, found)


def is_completed(reader: Reader, erasure: int) -> bool:
    """Whether every target was seen without it; as `get`, without what was found, which may be long."""
    raw = reader.get(keys.erasing(erasure))
    return raw is not None and bool(_ERASING.unpack(bytes(raw[:HEAD_BYTES]))[0][2])


def put(tx: Transaction, erasure: int, row: Erasing) -> None:
    """Say how far it is."""
    record = _ERASING.pack(row.began, row.condemned, row.completed, row.feed, row.segment, tail=row.found)
    tx.put(keys.erasing(erasure), record)


def there(reader: Reader, erasure: int) -> dict[int, There]:
    """What each target said last, by its number."""
    prefix = keys.erasing(erasure)
    found = {}
    for key, raw in reader.scan(prefix + b"\0", prefix_stop(prefix)):
        (looked, proven, until), why = _THERE.unpack(bytes(raw))
        number = int.from_bytes(bytes(key)[-TARGET_BYTES:], "big")
        found[number] = There(Instant(looked), Instant(proven), Instant(until), why.decode())
    return found


def put_there(tx: Transaction, erasure: int, target: int, row: There) -> None:
    """Note what a target says."""
    record = _THERE.pack(row.looked, row.proven, row.until, tail=row.why.encode())
    tx.put(keys.erasing_on(erasure, target), record)
