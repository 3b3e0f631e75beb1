"""Unpacked: versions that are over and remembered, sealed, and not in packs yet (P rows).

Their local bytes stay until they are packed, at the version's own place in the spool or at that of a copy. Such a row
is written with the one that says what the version was (`vnafs.index.past`), and goes with the D row of its bytes. No
manifest carries it: what has no local bytes cannot be packed. Reads and changes happen in the caller's transaction.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

from vnafs.domain.ids import Inode, RepositoryId, Version
from vnafs.index import keys
from vnafs.index.engine import Reader, Transaction, prefix_stop
from vnafs.index.records import RecordType

_RECORD = RecordType("unpacked version", {1: ">QQ"})  # repository, place

LOOK_MAX = 4096
"""Rows for one answer."""


class Unpacked(NamedTuple):
    """Where the bytes of one version are."""

    inode: Inode
    version: Version
    repository: RepositoryId
    place: Version
    """In the spool."""


def put(tx: Transaction, found: Unpacked) -> None:
    """Note one."""
    tx.put(keys.unpacked(found.inode, found.version), _RECORD.pack(found.repository, found.place))


def remove(tx: Transaction, inode: Inode, version: Version) -> None:
    """Forget one."""
    tx.delete(keys.unpacked(inode, version))


def find(reader: Reader, inode: Inode, version: Version) -> Unpacked | None:
    """One, or None."""
    key = keys.unpacked(inode, version)
    value = reader.get(key)
    return None if value is None else _decode(key, value)


def some(reader: Reader, limit: int, *, after: tuple[Inode, Version] | None = None) -> list[Unpacked]:
    """At most *limit* of them past *after*, in order of inode and version."""
    start = keys.UNPACKED if after is None else keys.unpacked(*after) + b"\0"
    rows = itertools.islice(reader.scan(start, prefix_stop(keys.UNPACKED)), limit)
    return [_decode(key, value) for key, value in rows]


def has_any(reader: Reader, inode: Inode) -> bool:
    """Whether an inode has any."""
    prefix = keys.unpacked_versions(inode)
    return next(iter(reader.scan(prefix, prefix_stop(prefix))), None) is not None


def is_in(reader: Reader, repository: RepositoryId) -> bool:
    """Whether a repository has any; taken to be so where very many of others come first."""
    found = some(reader, LOOK_MAX)
    return len(found) == LOOK_MAX or any(one.repository == repository for one in found)


def count(reader: Reader, limit: int) -> int:
    """How many there are; stops counting at *limit*."""
    return sum(1 for _ in itertools.islice(reader.scan(keys.UNPACKED, prefix_stop(keys.UNPACKED)), limit))


def _decode(key: bytes, value: bytes) -> Unpacked:
    (repository, place), _ = _RECORD.unpack(bytes(value))
    inode, version = keys.unpacked_of(bytes(key))
    return Unpacked(inode, version, RepositoryId(repository), Version(place))
