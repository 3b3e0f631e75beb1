"""Entries: the names in a directory, by name for lookup, by cookie for listing, and by what they are in lower case.

A cookie is a number from a sequence that never repeats, so a listing that goes on from one neither skips nor
repeats what stayed. Reads and changes happen in the caller's transaction.
"""

from __future__ import annotations

import itertools
import stat
import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from vnafs.domain.errors import Damaged, FormatUnknown
from vnafs.domain.ids import ROOT, Inode
from vnafs.index import caseless, keys, migrations
from vnafs.index.engine import Reader, Transaction, prefix_stop

_HEAD = struct.Struct(">BQ")  # record version in the upper four bits, type in the lower ones; inode
_HEAD_BYTES = _HEAD.size
_SINCE = struct.Struct(">q")
_RECORD_VERSION = 1
_WITH_SINCE = 2
"""An E record that says since when; most names have been their inode's from its birth on, which costs no byte."""
_VERSION_BITS = _RECORD_VERSION << 4
_WITH_SINCE_BITS = _WITH_SINCE << 4
_make = tuple.__new__
COOKIE_FIRST = 16
"""Smaller cookies stand for `.` and `..`."""


class Entry(NamedTuple):
    """What a name leads to."""

    inode: Inode
    cookie: int
    kind: int
    """The type bits of the mode, shifted down: DT_REG, DT_DIR … of readdir(3)."""
    since_ns: int = 0
    """When this name came to lead there, nanoseconds since 1970 UTC; 0: with the inode's birth, or not known."""

    @property
    def is_directory(self) -> bool:
        """Whether the name is a directory's."""
        return self.kind == DIRECTORY


DIRECTORY = stat.S_IFDIR >> 12
"""The kind of a directory."""


class Place(NamedTuple):
    """One step of a listing."""

    cookie: int
    name: bytes
    inode: Inode
    kind: int


def kind_of(mode: int) -> int:
    """The entry type of a mode."""
    return mode >> 12


def find(reader: Reader, parent: Inode, name: bytes) -> Entry | None:
    """What *name* leads to in *parent*, or None."""
    value = reader.get(keys.entry(parent, name))
    return None if value is None else decode(value)


def find_caseless(reader: Reader, parent: Inode, name: bytes) -> bytes | None:
    """The name in *parent* that is *name*, or differs from it in case alone; None without one.

    Of several that differ so, the one in lower case, else the one that was made first.
    """
    folded = caseless.fold(name)
    for other in (name, folded):
        if reader.get(keys.entry(parent, other)) is not None:
            return other
    prefix = caseless.rows_of(parent, folded)
    for key, _ in reader.scan(prefix, prefix_stop(prefix)):
        place = reader.get(keys.cookie(parent, keys.number_of(key)))
        if place is not None and caseless.fold(found := bytes(place[_HEAD_BYTES:])) == folded:
            return found
    return None


def follow(reader: Reader, parts: Iterable[bytes]) -> Entry | None:
    """What the names of a path lead to, one after the other from the root; None without one of them.

    Links are followed nowhere. No names at all lead to the root.
    """
    found = Entry(ROOT, 0, DIRECTORY)
    for part in parts:
        entry = find(reader, found.inode, part) if found.is_directory else None
        if entry is None:
            return None
        found = entry
    return found


def decode(value: bytes) -> Entry:
    """What an E row says. Raises FormatUnknown, Damaged."""
    kind, inode = _head(value, _WITH_SINCE)
    if value[0] >> 4 != _WITH_SINCE:
        return Entry(inode, int.from_bytes(value[_HEAD_BYTES:], "big"), kind)
    try:
        (since,) = _SINCE.unpack_from(value, _HEAD_BYTES)
    except struct.error as error:
        raise Damaged(what="an entry record") from error
    return Entry(inode, int.from_bytes(value[_HEAD_BYTES + _SINCE.size :], "big"), kind, since)


def put(tx: Transaction, parent: Inode, name: bytes, entry: Entry) -> None:
    """Add a name that is not there; its cookie is new."""
    head = _HEAD.pack(_VERSION_BITS | entry.kind, entry.inode)
    cookie = entry.cookie
    known = head
    if entry.since_ns:
        known = _HEAD.pack(_WITH_SINCE_BITS | entry.kind, entry.inode) + _SINCE.pack(entry.since_ns)
    tx.put(keys.entry(parent, name), known + cookie.to_bytes((cookie.bit_length() + 7) >> 3, "big"))
    tx.put(keys.cookie(parent, cookie), head + name)
    folded = caseless.row_of(parent, name, cookie)
    if folded is not None:
        tx.put(folded, b"")


def delete(tx: Transaction, parent: Inode, name: bytes, entry: Entry) -> None:
    """Remove a name."""
    tx.delete(keys.entry(parent, name))
    tx.delete(keys.cookie(parent, entry.cookie))
    folded = caseless.row_of(parent, name, entry.cookie)
    if folded is not None:
        tx.delete(folded)


def fold_names(tx: Transaction, at_once: int = 20_000) -> bool:
    """A migration: names that earlier programs made are found by lower case, too; *at_once* in a step."""
    start = migrations.resume(tx) or keys.ENTRIES
    seen = list(itertools.islice(tx.scan(start, prefix_stop(keys.ENTRIES)), at_once))
    for key, value in seen:
        parent, name = keys.entry_of(key)
        folded = caseless.row_of(parent, name, decode(value).cookie)
        if folded is not None:
            tx.put(folded, b"")
    if len(seen) < at_once:
        return True
    migrations.set_resume(tx, bytes(seen[-1][0]) + b"\0")
    return False


def listing(reader: Reader, parent: Inode, after: int = 0) -> Iterator[Place]:
    """The places of a directory past cookie *after*, in order of creation; lazily."""
    start = keys.cookie(parent, max(after + 1, COOKIE_FIRST))
    cookie_of = keys.number_of
    for key, value in reader.scan(start, prefix_stop(keys.cookies(parent))):
        kind, inode = _head(value)
        yield _make(Place, (cookie_of(key), value[_HEAD_BYTES:], inode, kind))


def name_at(reader: Reader, parent: Inode, cookie: int, inode: Inode) -> bytes | None:
    """The name at one place, if it still leads to *inode*."""
    value = reader.get(keys.cookie(parent, cookie))
    if value is None or _head(value)[1] != inode:
        return None
    return bytes(value[_HEAD_BYTES:])


def is_empty(reader: Reader, parent: Inode) -> bool:
    """Whether a directory has no names."""
    return next(listing(reader, parent), None) is None


def _head(value: bytes, newest: int = _RECORD_VERSION) -> tuple[int, Inode]:
    try:
        mixed, inode = _HEAD.unpack_from(value)
    except struct.error as error:
        raise Damaged(what="an entry record") from error
    if not _RECORD_VERSION <= mixed >> 4 <= newest:
        raise FormatUnknown(what="an entry record", found=mixed >> 4, known=newest)
    return mixed & 0x0F, Inode(inode)
