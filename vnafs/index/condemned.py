"""Condemned packs (Z rows): nothing leans on them any more, and their contents are not reused.

A pack is condemned for one of two reasons. No place is known that has it whole: then it is *given up*. One that no
target ever had goes at once, and its row outlives the pack's own: it keeps the pack's number from being given out
again, and says which objects of ours are to be removed from targets if they are wrong. One that some target had, by
the manifests it was restored from, is kept for as long as a file needs it: that target may come back.

Or no file needs it: then it is *condemned* by the collector, for a while, and then *removed*: its own row and those of
its contents are gone, and its object goes from one target after another. What each target said stands here.
"""

from __future__ import annotations

import dataclasses
import enum
import itertools
import struct
from collections.abc import Iterable, Iterator, Mapping

from vnafs.domain.clock import Instant
from vnafs.domain.errors import FormatUnknown
from vnafs.domain.ids import PackId, PackNumber, Sha256
from vnafs.index import keys
from vnafs.index.engine import Engine, Reader, Transaction, prefix_stop

_RECORD = struct.Struct(">16s32sQ")
_ID_BYTES = 16
_COLLECTED = struct.Struct(">BQQI")
"""Stage, since, feed, how many targets follow."""
_ASKED = struct.Struct(">IBQ")


ROWS_AT_ONCE = 1000


class Stage(enum.IntEnum):
    """Where a condemned pack is on its way out. The numbers are stored."""

    GIVEN_UP = 0
    CONDEMNED = 1
    REMOVED = 2


class Removal(enum.IntEnum):
    """What became of an object on one target. The numbers are stored."""

    ASKED = 1
    """A transfer is to remove it."""
    GONE = 2
    LATER = 3
    """The target does not let it go yet."""


@dataclasses.dataclass(frozen=True, slots=True)
class Asked:
    """How far one target is with a removed pack."""

    removal: Removal
    when: Instant = Instant(0)
    """For ASKED: since when. For LATER: when to ask again."""


@dataclasses.dataclass(frozen=True, slots=True)
class Condemned:
    """One Z row."""

    id: PackId
    sha256: Sha256 | None
    """None in rows of earlier programs, which did not say what the pack would be."""
    size_bytes: int = 0
    stage: Stage = Stage.GIVEN_UP
    since: Instant = Instant(0)
    """When it was condemned by the collector."""
    feed: int = 0
    """For REMOVED: the store's feed tells of it in an event before this number."""
    asked: Mapping[int, Asked] = dataclasses.field(default_factory=dict)
    """For REMOVED: by target number."""

    def is_gone_from(self, target: int) -> bool:
        """Whether a target said that it has the object of a removed pack no more."""
        asked = self.asked.get(target)
        return asked is not None and asked.removal is Removal.GONE


def put(tx: Transaction, number: PackNumber, row: Condemned) -> None:
    """Condemn a pack, or change what is known of one."""
    record = _RECORD.pack(row.id, row.sha256 or b"", row.size_bytes)
    if row.stage is not Stage.GIVEN_UP:
        record += _COLLECTED.pack(row.stage, row.since, row.feed, len(row.asked))
        record += b"".join(
            _ASKED.pack(target, asked.removal, asked.when) for target, asked in sorted(row.asked.items())
        )
    tx.put(keys.condemned(number), record)


def find(reader: Reader, number: PackNumber) -> Condemned | None:
    """What a pack is, if it is condemned."""
    found = reader.get(keys.condemned(number))
    return None if found is None else _decode(bytes(found))


def _decode(row: bytes) -> Condemned:
    if len(row) == _ID_BYTES:
        return Condemned(PackId(row), None)
    identity, sha256, size_bytes = _RECORD.unpack_from(row)
    known = Condemned(PackId(identity), Sha256(sha256), size_bytes)
    rest = row[_RECORD.size :]
    if not rest:
        return known
    stage, since, feed, count = _COLLECTED.unpack_from(rest)
    if stage > Stage.REMOVED:
        raise FormatUnknown(what="a condemned pack's stage", found=stage, known=int(Stage.REMOVED))
    asked = {
        target: Asked(Removal(removal), Instant(when))
        for target, removal, when in _ASKED.iter_unpack(rest[_COLLECTED.size : _COLLECTED.size + count * _ASKED.size])
    }
    return dataclasses.replace(known, stage=Stage(stage), since=Instant(since), feed=feed, asked=asked)


def any_of(reader: Reader, numbers: Iterable[PackNumber]) -> bool:
    """Whether one of these packs is condemned."""
    return any(reader.get(keys.condemned(number)) is not None for number in numbers)


def any_given_up(reader: Reader, numbers: Iterable[PackNumber]) -> bool:
    """Whether one of these packs was given up: no place is known that has it whole."""
    found = (find(reader, number) for number in numbers)
    return any(row is not None and row.stage is Stage.GIVEN_UP for row in found)


def every(reader: Reader, *, after: PackNumber = PackNumber(0), limit: int) -> list[tuple[PackNumber, Condemned]]:
    """At most *limit* rows with a number above *after*, in order."""
    start = keys.condemned(PackNumber(after + 1))
    rows = itertools.islice(reader.scan(start, prefix_stop(keys.CONDEMNED)), limit)
    return [(PackNumber(keys.number_of(key)), _decode(bytes(row))) for key, row in rows]


def in_stage(reader: Reader, *stages: Stage) -> Iterator[tuple[PackNumber, Condemned]]:
    """The rows that are in one of some stages, in order; lazily."""
    for key, row in reader.scan(keys.CONDEMNED, prefix_stop(keys.CONDEMNED)):
        found = _decode(bytes(row))
        if found.stage in stages:
            yield PackNumber(keys.number_of(key)), found


def rows(store: Engine, *stages: Stage) -> Iterator[tuple[PackNumber, Condemned]]:
    """As `in_stage`, some rows in one view: whoever changes rows meanwhile finds what they are then."""
    after = PackNumber(0)
    while True:
        with store.read() as reader:
            batch = every(reader, after=after, limit=ROWS_AT_ONCE)
        if not batch:
            return
        after = batch[-1][0]
        yield from ((number, row) for number, row in batch if row.stage in stages)


def pardon(tx: Transaction, number: PackNumber) -> None:
    """A whole copy was found after all of a pack that was given up; the collector's reasons are others."""
    found = find(tx, number)
    if found is not None and found.stage is Stage.GIVEN_UP:
        tx.delete(keys.condemned(number))


def forget(tx: Transaction, number: PackNumber) -> None:
    """Drop a row: the pack is needed after all, or nothing of it is left."""
    tx.delete(keys.condemned(number))


def note(tx: Transaction, number: PackNumber, target: int, asked: Asked) -> None:
    """What one target said of a removed pack; nothing where the row is not of one."""
    found = find(tx, number)
    if found is not None and found.stage is Stage.REMOVED:
        put(tx, number, dataclasses.replace(found, asked={**found.asked, target: asked}))


def last_number(reader: Reader) -> PackNumber:
    """The highest number of a condemned pack, 0 when there is none."""
    for key, _ in reader.scan(keys.CONDEMNED, prefix_stop(keys.CONDEMNED), reverse=True):
        return PackNumber(keys.number_of(key))
    return PackNumber(0)
