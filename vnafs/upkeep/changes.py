"""What a manifest carries of the index, and which rows of it changed since a cursor.

Carried are the rows that cannot be derived from others: inodes, entries, links, extended attributes, repositories,
what names and versions were before, retention, holds and what was noted of them, erasures;
packs, contents, pieces, protections and the public keys of receipts; some named values. Feeds tell where to look, the
rows are read as they are now, all in one view: so what is written is a state that the index was in. Knows no object and
no target.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from vnafs.content.manifest import NAMESPACE, STORE, Operation, Row
from vnafs.domain.events import Event, EventKind
from vnafs.domain.ids import ContentNumber, Inode, PackNumber, PieceNumber, Version
from vnafs.index import keys, meta, packs
from vnafs.index import past as past_rows
from vnafs.index.engine import Reader, prefix_stop

NAMESPACE_TABLES = (b"A", b"E", b"H", b"I", b"L", b"R", b"S", b"T", b"V", b"W", b"X", b"Y")
"""In key order."""
STORE_TABLES = (b"C", b"E", b"K", b"P", b"S", b"W")
META_NAMES = (meta.ARCHIVE_ID, meta.COOKIE_RANGE, meta.EPOCH, meta.INODE_RANGE, meta.RETENTION_TIME)
"""Named values of the namespace, in key order."""

_ONLY_BYTES = frozenset((EventKind.STATE, EventKind.VERSION, EventKind.RETENTION))
_OF_NAMES = frozenset((EventKind.CREATED, EventKind.NAMED, EventKind.UNNAMED))


def of_namespace(reader: Reader, events: Iterable[Event]) -> Iterator[Row]:  # noqa: C901 - one kind after the other
    """The rows that the events speak of, each once."""
    inodes: dict[Inode, bool] = {}
    names: dict[tuple[Inode, bytes], None] = {}
    past: dict[bytes, None] = {}
    events = list(events)
    guarded = {(event.inode, event.detail) for event in events if event.kind is EventKind.RETENTION}
    erased = {(event.detail, event.inode) for event in events if event.kind is EventKind.ERASED}
    for event in events:
        past.update(dict.fromkeys(_past_keys(event)))
        if event.kind is EventKind.NAME_EXPIRED or (event.kind is EventKind.ERASED and not event.inode):
            continue
        inodes[event.inode] = inodes.get(event.inode, False) or event.kind not in _ONLY_BYTES
        if event.kind in _OF_NAMES:
            names[event.parent, event.name] = None
            inodes.setdefault(event.parent, False)  # its times and links changed
    for inode in sorted(inodes):
        row = _row(reader, NAMESPACE, keys.inode(inode))
        yield row
        if inodes[inode]:
            prefix = keys.xattrs(inode)
            yield Row(Operation.DELETE_PREFIX, NAMESPACE + prefix)
            if row.operation is Operation.PUT or _has_last_version(reader, inode):
                yield from _rows(reader, NAMESPACE, prefix, prefix_stop(prefix))
                target = reader.get(keys.symlink(inode))
                if target is not None:
                    yield Row(Operation.PUT, NAMESPACE + keys.symlink(inode), bytes(target))
                elif row.operation is Operation.DELETE:
                    yield Row(Operation.DELETE, NAMESPACE + keys.symlink(inode))
            else:
                yield Row(Operation.DELETE, NAMESPACE + keys.symlink(inode))
    for parent, name in sorted(names):
        yield _row(reader, NAMESPACE, keys.entry(parent, name))
    for key in sorted(past):
        yield _row(reader, NAMESPACE, key)
    for inode, audited in sorted(guarded):
        yield from _guard_rows(reader, inode, audited)
    for number in sorted({number for number, _ in erased}):
        yield _row(reader, NAMESPACE, keys.erasure(number))
    for number, inode in sorted(erased):
        prefix = keys.erased_inode(number, inode)
        yield from _rows(reader, NAMESPACE, prefix, prefix_stop(prefix))


def _guard_rows(reader: Reader, inode: Inode, audited: int) -> Iterator[Row]:
    """What protects an inode, and one thing that was noted of it."""
    yield _row(reader, NAMESPACE, keys.retention(inode))
    yield from _whole(reader, NAMESPACE, keys.holds(inode))
    if audited:
        yield _row(reader, NAMESPACE, keys.audit(audited))


def _past_keys(event: Event) -> Iterator[bytes]:
    """The rows of the past that an event speaks of, whether they are there or not."""
    match event.kind:
        case EventKind.UNNAMED | EventKind.NAME_EXPIRED if event.detail:
            yield keys.past_name(event.parent, event.name, event.detail)
        case EventKind.VERSION:
            yield keys.past_version(event.inode, Version(event.version - 1))
        case EventKind.REMOVED | EventKind.VERSION_EXPIRED | EventKind.KEPT:
            yield keys.past_version(event.inode, event.version)


def _has_last_version(reader: Reader, inode: Inode) -> bool:
    last = past_rows.last_version(reader, inode)
    return last is not None and last.is_last


def of_store(reader: Reader, events: Iterable[Event]) -> Iterator[Row]:
    """The packs that the events speak of, with their contents and pieces.

    Of a pack that is gone only its row is removed: what was in it goes with it when an index is rebuilt. Of one that is
    there some contents may be gone: those that leaned on others.
    """
    for number in sorted({PackNumber(event.detail) for event in events if event.kind is not EventKind.SIGNER}):
        yield _row(reader, STORE, keys.pack(number))
        pack = packs.get(reader, number)
        if pack is None:
            continue
        for content in range(pack.contents_first, pack.contents_first + pack.contents_count):
            yield _row(reader, STORE, keys.content(ContentNumber(content)))
        pieces_stop = keys.piece(PieceNumber(pack.pieces_first + pack.pieces_count))
        yield from _rows(reader, STORE, keys.piece(pack.pieces_first), pieces_stop)


def few_of_namespace(reader: Reader) -> Iterator[Row]:
    """What is small enough to be told whole each time: repositories and named values."""
    yield from _whole(reader, NAMESPACE, keys.REPOSITORIES)
    for name in META_NAMES:
        yield _row(reader, NAMESPACE, keys.meta(name))


def few_of_store(reader: Reader) -> Iterator[Row]:
    """The same of the store: files that stay open, packs that go because of erasures, and public keys of receipts."""
    yield from _whole(reader, STORE, keys.EMPTIED)
    yield from _whole(reader, STORE, keys.SIGNERS)
    yield from _whole(reader, STORE, keys.PROTECTIONS)


def everything(reader: Reader, which: bytes, after: bytes, rows_max: int, bytes_max: int) -> list[Row]:
    """Rows of all that is carried of one map, with keys past *after* (map byte included), in order.

    As many as the limits allow, one at least while there is one.
    """
    found: list[Row] = []
    size_bytes = 0
    ranges = [(table, prefix_stop(table)) for table in (NAMESPACE_TABLES if which == NAMESPACE else STORE_TABLES)]
    if which == NAMESPACE:
        ranges += [(keys.meta(name), keys.meta(name) + b"\0") for name in META_NAMES]
    for start, stop in sorted(ranges):
        begin = max(start, after[1:] + b"\0") if after else start
        for row in _rows(reader, which, begin, stop) if begin < stop else ():
            found.append(row)
            size_bytes += len(row.key) + len(row.value)
            if len(found) >= rows_max or size_bytes >= bytes_max:
                return found
    return found


def _row(reader: Reader, which: bytes, key: bytes) -> Row:
    value = reader.get(key)
    return Row(Operation.DELETE, which + key) if value is None else Row(Operation.PUT, which + key, bytes(value))


def _rows(reader: Reader, which: bytes, start: bytes, stop: bytes) -> Iterator[Row]:
    for key, value in reader.scan(start, stop):
        yield Row(Operation.PUT, which + bytes(key), bytes(value))


def _whole(reader: Reader, which: bytes, prefix: bytes) -> Iterator[Row]:
    yield Row(Operation.DELETE_PREFIX, which + prefix)
    yield from _rows(reader, which, prefix, prefix_stop(prefix))
