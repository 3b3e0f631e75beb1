"""The past: what names led to and what versions were, until a repository's kept time is over.

A name in a directory and a version of an inode each hold for an interval of time, from *since* up to, not including,
*ended*. The one under way is the live row (E, I); those that are over are here (A, V), found by one short scan. B rows
say in which order they end for good. A version whose row is here is *kept* once its bytes are in packs: then its
content must stay. The last version of an inode that is gone leaves extended attributes and link target in place (X, L)
under the old number, for as long as its row is here.

Reads and changes happen in the caller's transaction. It decides nothing of what is worth keeping (`vnafs.fs.history`).
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from typing import NamedTuple

from vnafs.domain.files import FileState
from vnafs.domain.ids import Inode, RepositoryId, Version
from vnafs.index import entries, inodes, keys
from vnafs.index.engine import Reader, Transaction, prefix_stop
from vnafs.index.entries import Entry
from vnafs.index.inodes import NOT_QUEUED, InodeRow
from vnafs.index.records import RecordType, sized, take_sized

_NAME = RecordType("past name", {1: ">BQq"})  # kind, inode, since
_VERSION = RecordType("past version", {1: ">Bqq"})  # flags, since, ended; the inode record follows
_LAST = 1


class PastName(NamedTuple):
    """What a name led to; times are nanoseconds since 1970 UTC."""

    parent: Inode
    name: bytes
    inode: Inode
    kind: int
    """As of an entry."""
    since_ns: int
    ended_ns: int


class PastVersion(NamedTuple):
    """What an inode was while it had this version; its attributes are those it ended with."""

    inode: Inode
    version: Version
    since_ns: int
    ended_ns: int
    row: InodeRow
    is_last: bool
    """The inode ended with it."""

    @property
    def is_kept(self) -> bool:
        """Whether all of it can be had again: its bytes are in packs, or it has none."""
        return not stat.S_ISREG(self.row.mode) or (self.row.state >= FileState.PACKED and self.row.seal is not None)


# -- names ---------------------------------------------------------------------------------------------------


def put_name(tx: Transaction, repository: RepositoryId, past: PastName) -> PastName:
    """Note what a name led to; its end moves on by a nanosecond or more where two would be the same."""
    ended = past.ended_ns
    while tx.get(keys.past_name(past.parent, past.name, ended)) is not None:
        ended += 1
    past = past._replace(ended_ns=ended)
    key = keys.past_name(past.parent, past.name, ended)
    tx.put(key, _NAME.pack(past.kind, past.inode, past.since_ns))
    _add_ending(tx, repository, ended, past.inode, key)
    return past


def names_of(reader: Reader, parent: Inode, name: bytes) -> Iterator[PastName]:
    """The past of one name, oldest first."""
    yield from _names(reader, keys.past_names_of(parent, name))


def names_in(reader: Reader, parent: Inode, after: bytes = b"") -> Iterator[PastName]:
    """The past of every name in a directory past *after*, in byte order of names, oldest first; lazily."""
    yield from _names(reader, keys.past_names(parent), after)


def _names(reader: Reader, prefix: bytes, after: bytes = b"") -> Iterator[PastName]:
    for key, value in reader.scan(prefix + after + b"\1" if after else prefix, prefix_stop(prefix)):
        yield decode_name(key, value)


def decode_name(key: bytes, value: bytes) -> PastName:
    """What an A row says. Raises FormatUnknown, Damaged."""
    (kind, inode, since), _ = _NAME.unpack(bytes(value))
    parent, name, ended = keys.past_name_of(bytes(key))
    return PastName(parent, name, Inode(inode), kind, since, ended)


def name_at(reader: Reader, parent: Inode, name: bytes, at_ns: int) -> PastName | None:
    """What a name led to at a moment, when it leads elsewhere now; None when it led nowhere or to what it does now."""
    prefix = keys.past_names_of(parent, name)
    for key, value in reader.scan(keys.past_name(parent, name, at_ns + 1), prefix_stop(prefix)):
        found = decode_name(key, value)
        return found if found.since_ns <= at_ns else None
    return None


def since_of(reader: Reader, entry: Entry) -> int:
    """Since when a live name leads where it does."""
    if entry.since_ns:
        return entry.since_ns
    row = inodes.find(reader, entry.inode)
    return 0 if row is None else row.birth_ns


class Named(NamedTuple):
    """What a name leads to, or led to at some moment."""

    name: bytes
    inode: Inode
    kind: int


def listing_at(reader: Reader, parent: Inode, at_ns: int, after: bytes = b"") -> Iterator[Named]:
    """The names of a directory as they were at a moment, past *after*, in byte order; lazily."""
    live, past = _live_from(reader, parent, after), names_in(reader, parent, after)
    name_live, name_past = next(live, None), next(past, None)
    while name_live is not None or name_past is not None:
        if name_live is None or (name_past is not None and name_past.name < name_live[0]):
            name = name_past.name if name_past is not None else b""
        else:
            name = name_live[0]
        found: Named | None = None
        while name_past is not None and name_past.name == name:
            if found is None and name_past.since_ns <= at_ns < name_past.ended_ns:
                found = Named(name, name_past.inode, name_past.kind)
            name_past = next(past, None)
        if name_live is not None and name_live[0] == name:
            if found is None:
                entry = entries.decode(name_live[1])
                if since_of(reader, entry) <= at_ns:
                    found = Named(name, entry.inode, entry.kind)
            name_live = next(live, None)
        if found is not None:
            yield found


def _live_from(reader: Reader, parent: Inode, after: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The names of a directory past *after*, each with its E row."""
    prefix = keys.entries(parent)
    for key, value in reader.scan(prefix + after + b"\0" if after else prefix, prefix_stop(prefix)):
        yield keys.entry_of(bytes(key))[1], bytes(value)


def find_at(reader: Reader, parent: Inode, name: bytes, at_ns: int) -> Named | None:
    """What one name led to at a moment, or None."""
    past = name_at(reader, parent, name, at_ns)
    if past is not None:
        return Named(name, past.inode, past.kind)
    entry = entries.find(reader, parent, name)
    if entry is not None and since_of(reader, entry) <= at_ns:
        return Named(name, entry.inode, entry.kind)
    return None


# -- versions ------------------------------------------------------------------------------------------------


def put_version(tx: Transaction, past: PastVersion, *, is_new: bool) -> None:
    """Note what a version was, or change what is noted of it."""
    key = keys.past_version(past.inode, past.version)
    flags = _LAST if past.is_last else 0
    record = inodes.encode(past.row._replace(due=NOT_QUEUED))
    tx.put(key, _VERSION.pack(flags, past.since_ns, past.ended_ns, tail=record))
    if is_new:
        _add_ending(tx, past.row.repository, past.ended_ns, past.inode, key)


def find_version(reader: Reader, inode: Inode, version: Version) -> PastVersion | None:
    """One version that is over, or None."""
    key = keys.past_version(inode, version)
    value = reader.get(key)
    return None if value is None else decode_version(key, value)


def decode_version(key: bytes, value: bytes) -> PastVersion:
    """What a V row says. Raises FormatUnknown, Damaged."""
    (flags, since, ended), record = _VERSION.unpack(bytes(value))
    inode, version = keys.past_version_of(bytes(key))
    return PastVersion(inode, version, since, ended, inodes.decode(record), bool(flags & _LAST))


def versions_of(reader: Reader, inode: Inode, *, newest_first: bool = False) -> Iterator[PastVersion]:
    """The versions of an inode that are over."""
    prefix = keys.past_versions(inode)
    for key, value in reader.scan(prefix, prefix_stop(prefix), reverse=newest_first):
        yield decode_version(key, value)


def last_version(reader: Reader, inode: Inode) -> PastVersion | None:
    """The youngest version that is over."""
    return next(versions_of(reader, inode, newest_first=True), None)


def version_at(reader: Reader, inode: Inode, at_ns: int) -> PastVersion | None:
    """What an inode was at a moment, when it is not that any more."""
    for found in versions_of(reader, inode):
        if found.ended_ns > at_ns:
            return found if found.since_ns <= at_ns else None
    return None


def version_before(reader: Reader, inode: Inode, version: Version) -> PastVersion | None:
    """The one before a live version, if anything is known of it. Usually one look."""
    if version <= 1:
        return None
    return find_version(reader, inode, Version(version - 1)) or last_version(reader, inode)


def version_since(reader: Reader, inode: Inode, row: InodeRow) -> int:
    """Since when an inode has the version that its row says."""
    before = version_before(reader, inode, row.version)
    return row.birth_ns if before is None else before.ended_ns


# -- the end of it -------------------------------------------------------------------------------------------


def _add_ending(tx: Transaction, repository: RepositoryId, ended_ns: int, inode: Inode, key: bytes) -> None:
    ending = keys.ending(repository, ended_ns, inode)
    tx.put(ending, (tx.get(ending) or b"") + sized(key))


def add_endings(tx: Transaction, repository: RepositoryId, ended_ns: int, inode: Inode, key: bytes) -> None:
    """Note when an A or V row that is there is over; for whoever brings such rows from elsewhere."""
    ending = keys.ending(repository, ended_ns, inode)
    known = bytes(tx.get(ending) or b"")
    if sized(key) not in known:
        tx.put(ending, known + sized(key))


class Ending(NamedTuple):
    """Rows of one inode that ended at one moment."""

    key: bytes
    repository: RepositoryId
    ended_ns: int
    rows: tuple[bytes, ...]


def next_ending(reader: Reader, repository: RepositoryId) -> Ending | None:
    """The oldest of a repository, or of the first one behind it that has any."""
    for key, value in reader.scan(keys.ending(repository, 0, Inode(0)), prefix_stop(keys.ENDINGS)):
        found, ended, _ = keys.ending_of(bytes(key))
        rows, at = [], 0
        while at < len(value):
            row, at = take_sized(bytes(value), at)
            rows.append(row)
        return Ending(bytes(key), found, ended, tuple(rows))
    return None
