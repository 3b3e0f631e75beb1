"""What is known of one plain mirror, and what is to be looked at there: the rows of its own environment.

A *place* is a folder (by the first bytes of its path's SHA-256) and a name in it; without a name it is the folder
itself, and its object what describes the folder. An *errand* says that a place may differ from the tree, never how:
whoever runs it compares. It knows nothing of trees and targets. Reads and changes happen in the caller's transaction.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from vnafs.domain.clock import Instant
from vnafs.domain.ids import Inode, RepositoryId, Sha256
from vnafs.index import keys, meta
from vnafs.index.engine import Engine, Reader, Transaction, in_batches, prefix_stop
from vnafs.index.records import RecordType

FOLDER_BYTES = 16
OBJECTS, BYTES, ERRANDS, WALKS, HELD = (f"mirror.{name}" for name in ("objects", "bytes", "errands", "walks", "held"))
"""Counts, kept with the rows."""
WALKS_FROM = Instant(1 << 62)
"""Walks are due behind all else: they find errands, of which there shall not be too many at once."""

_MIRRORED = RecordType("mirrored", {1: ">BBQQ32s"})  # kind, flags, inode, size, SHA-256
_ERRAND = RecordType("errand", {1: ">qqIQB"})  # due, since, attempts, generation, flags; where a walk goes on
_PRESENT, _IN_DOUBT, _LEFT = 1, 2, 4
_NO_SHA256 = bytes(32)


class Place(NamedTuple):
    """A name on the mirror."""

    folder: bytes
    leaf: bytes


def folder_of(parts: Sequence[bytes]) -> bytes:
    """How the rows call the folder of that path; no parts: the top."""
    return hashlib.sha256(b"/".join(parts)).digest()[:FOLDER_BYTES]


class Kind(enum.IntEnum):
    """What is at a place. The numbers are stored and never change meaning."""

    FILE = 1
    FOLDER = 2
    OTHER = 3
    """Links, pipes and so on, of which only metadata are mirrored."""
    METADATA = 4


@dataclasses.dataclass(frozen=True, slots=True)
class Mirrored:
    """One O row."""

    kind: Kind
    inode: Inode = Inode(0)
    size_bytes: int = 0
    sha256: Sha256 | None = None
    """Of the object that is there."""
    is_present: bool = False
    """An object is or may be there."""
    is_in_doubt: bool = False
    """It was about to be put or removed: what is there is not known."""
    is_left: bool = False
    """The tree has no such name any more; the object stays on purpose."""


class Work(enum.IntFlag):
    """What an errand to a folder is about."""

    NAME = 0
    WALK = 1
    """All that is in it may differ."""
    METADATA = 2


@dataclasses.dataclass(frozen=True, slots=True)
class Errand:
    """One D row."""

    due: Instant
    since: Instant
    """When it was first known that the place may differ."""
    attempts: int = 0
    generation: int = 0
    """Rises with each change that is heard of."""
    work: Work = Work.NAME
    after: bytes = b""
    """The last name that a walk looked at."""


# -- folders and names ---------------------------------------------------------------------------------------


def path_of(reader: Reader, folder: bytes) -> tuple[bytes, ...] | None:
    """The path of a folder that is known."""
    raw = reader.get(keys.mirror_folder(folder))
    if raw is None:
        return None
    return tuple(bytes(raw).split(b"/")) if raw else ()


def put_path(tx: Transaction, parts: Sequence[bytes]) -> bytes:
    """Know a folder; how the rows call it."""
    folder = folder_of(parts)
    if tx.get(keys.mirror_folder(folder)) is None:
        tx.put(keys.mirror_folder(folder), b"/".join(parts))
    return folder


def forget_path_if_empty(tx: Transaction, folder: bytes) -> None:
    """Forget a folder of which no row is left."""
    for prefix in (keys.mirrored_in(folder), keys.errands_in(folder)):
        if next(tx.scan(prefix, prefix_stop(prefix)), None) is not None:
            return
    tx.delete(keys.mirror_folder(folder))


def names_of(reader: Reader, inode: Inode, limit: int | None = None) -> list[Place]:
    """Where the mirror knows an inode; at most so many places."""
    prefix = keys.mirrored_names(inode)
    rows = itertools.islice(reader.scan(prefix, prefix_stop(prefix)), limit)
    return [Place(*keys.mirrored_name_of(key)) for key, _ in rows]


# -- objects -------------------------------------------------------------------------------------------------


def find(reader: Reader, place: Place) -> Mirrored | None:
    """What the mirror has at a place."""
    raw = reader.get(keys.mirrored(*place))
    return None if raw is None else _decoded(raw)


def _decoded(raw: bytes) -> Mirrored:
    (kind, flags, inode, size, sha256), _ = _MIRRORED.unpack(bytes(raw))
    return Mirrored(
        Kind(kind),
        Inode(inode),
        size,
        None if sha256 == _NO_SHA256 else Sha256(sha256),
        bool(flags & _PRESENT),
        bool(flags & _IN_DOUBT),
        bool(flags & _LEFT),
    )


def put(tx: Transaction, place: Place, row: Mirrored | None) -> None:
    """Note what the mirror has at a place, None for nothing; the inode's names and the counts follow."""
    before = find(tx, place)
    if before == row:
        return
    if before is not None and before.inode and (row is None or row.inode != before.inode):
        tx.delete(keys.mirrored_name(before.inode, *place))
    if row is None:
        tx.delete(keys.mirrored(*place))
    else:
        if row.inode:
            tx.put(keys.mirrored_name(row.inode, *place), b"")
        flags = _PRESENT * row.is_present | _IN_DOUBT * row.is_in_doubt | _LEFT * row.is_left
        tx.put(
            keys.mirrored(*place),
            _MIRRORED.pack(row.kind, flags, row.inode, row.size_bytes, row.sha256 or _NO_SHA256),
        )
    objects, size = (after - earlier for after, earlier in zip(_counted(row), _counted(before), strict=True))
    _count(tx, OBJECTS, objects)
    _count(tx, BYTES, size)


def _counted(row: Mirrored | None) -> tuple[int, int]:
    if row is None or not row.is_present or row.is_in_doubt or row.kind is not Kind.FILE:
        return 0, 0
    return 1, row.size_bytes


def every_in(reader: Reader, folder: bytes, after: bytes) -> Iterator[tuple[bytes, Mirrored]]:
    """The names past *after* in a folder, in byte order, without the folder's own row; lazily."""
    prefix = keys.mirrored_in(folder)
    for key, raw in reader.scan(prefix + after + b"\0", prefix_stop(prefix)):
        yield keys.mirrored_leaf(key), _decoded(raw)


def doubted(engine: Engine, now: Instant, rows_max: int) -> None:
    """Trust nothing of what the mirror is said to have: everything is to be looked at."""
    for batch in in_batches(engine, keys.MIRRORED, rows_max):
        with engine.write() as tx:
            for key, raw in batch:
                place, row = Place(*keys.mirrored_of(key)), _decoded(raw)
                if row.is_present:
                    put(tx, place, dataclasses.replace(row, is_in_doubt=True))
                    mark(tx, place, now, work=Work.NAME if place.leaf else Work.METADATA)


# -- errands -------------------------------------------------------------------------------------------------


def errand_at(reader: Reader, place: Place) -> Errand | None:
    """What is to be looked at there."""
    raw = reader.get(keys.errand(*place))
    if raw is None:
        return None
    (due, since, attempts, generation, work), after = _ERRAND.unpack(bytes(raw))
    return Errand(Instant(due), Instant(since), attempts, generation, Work(work), after)


def put_errand(tx: Transaction, place: Place, errand: Errand | None) -> None:
    """Note an errand in place of the one there was; None for none."""
    before = errand_at(tx, place)
    if before is not None:
        tx.delete(keys.errand_due(before.due, *place))
        _count(tx, _counted_as(before), -1)
    if errand is None:
        tx.delete(keys.errand(*place))
        return
    _count(tx, _counted_as(errand), 1)
    fixed = (errand.due, errand.since, errand.attempts, errand.generation, errand.work)
    tx.put(keys.errand(*place), _ERRAND.pack(*fixed, tail=errand.after))
    tx.put(keys.errand_due(errand.due, *place), b"")


def _counted_as(errand: Errand) -> str:
    return WALKS if errand.work & Work.WALK else ERRANDS


def mark(tx: Transaction, place: Place, now: Instant, *, work: Work = Work.NAME, due: Instant | None = None) -> None:
    """A place may differ from the tree since now; a walk begins anew."""
    due = now if due is None else due
    known = errand_at(tx, place)
    if known is None:
        known = Errand(due, now, generation=-1)
    work |= known.work
    after = b"" if work & Work.WALK else known.after
    soonest = Instant(WALKS_FROM + known.since) if work & Work.WALK else min(known.due, due)
    put_errand(
        tx,
        place,
        dataclasses.replace(known, due=soonest, generation=known.generation + 1, work=work, after=after),
    )


def due(reader: Reader, limit: int, *, walks: bool = False) -> list[tuple[Instant, Place]]:
    """Errands, soonest first: those that are walks, or the others."""
    between = keys.errand_due(WALKS_FROM, b"", b"")
    first, last = (between, prefix_stop(keys.ERRANDS_DUE)) if walks else (keys.ERRANDS_DUE, between)
    rows = reader.scan(first, last)
    found = []
    for key, _ in itertools.islice(rows, limit):
        when, folder, leaf = keys.errand_due_of(key)
        found.append((when, Place(folder, leaf)))
    return found


# -- held ----------------------------------------------------------------------------------------------------


def hold(tx: Transaction, repository: RepositoryId, place: Place, since: Instant) -> None:
    """Let a place be as it is until *release*."""
    key = keys.waiting(repository, *place)
    if tx.get(key) is None:
        _count(tx, HELD, 1)
        tx.put(key, since.to_bytes(8, "big"))


def held_for(reader: Reader) -> list[RepositoryId]:
    """The repositories for which something is held."""
    found: list[RepositoryId] = []
    start = keys.WAITING
    while True:
        key = next((bytes(key) for key, _ in reader.scan(start, prefix_stop(keys.WAITING))), None)
        if key is None:
            return found
        repository = keys.waiting_of(key)[0]
        found.append(repository)
        start = prefix_stop(keys.waitings(repository))


def release(tx: Transaction, repository: RepositoryId, limit: int) -> int:
    """Make errands of what was held, at most so many; how many it were."""
    prefix = keys.waitings(repository)
    rows = [(bytes(key), bytes(raw)) for key, raw in itertools.islice(tx.scan(prefix, prefix_stop(prefix)), limit)]
    for key, raw in rows:
        _, folder, leaf = keys.waiting_of(key)
        tx.delete(key)
        _count(tx, HELD, -1)
        since = Instant(int.from_bytes(raw, "big"))
        mark(tx, Place(folder, leaf), since, work=Work.NAME if leaf else Work.METADATA)
    return len(rows)


# -- counts --------------------------------------------------------------------------------------------------


def count(reader: Reader, name: str) -> int:
    """One of OBJECTS, BYTES, ERRANDS, WALKS, HELD."""
    return meta.get_int(reader, name) or 0


def _count(tx: Transaction, name: str, more: int) -> None:
    if more:
        meta.set_int(tx, name, count(tx, name) + more)
