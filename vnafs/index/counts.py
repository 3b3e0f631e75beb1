"""Counts: how many rows of a kind there are and of how many bytes, so that nobody has to walk them to know.

A count changes in the transaction of the rows it counts, so the two cannot disagree; `recount` walks the rows, for
tests and for archives from before there were counts. The files of each table call `add`; it knows no table itself.

| name         | counts                                                                                   |
|--------------|------------------------------------------------------------------------------------------|
| packs        | packs, and their bytes as stored                                                         |
| contents     | contents, and their bytes as files                                                       |
| local        | packs whose file is still on the local disk                                              |
| verified.T   | packs that target T holds verified                                                       |
| waiting.T    | transfers that are to bring a pack to target T; no bytes                                 |
| removing.T   | transfers that are to remove what target T has of a pack that is no more; no bytes       |
| held.N       | packs that exactly N of the targets that count hold verified                             |
| used.R       | inodes of repository R, and the bytes of its files as their rows say (the tree's index)  |
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from vnafs.domain.errors import Damaged
from vnafs.domain.ids import RepositoryId
from vnafs.index import keys
from vnafs.index.engine import Reader, Transaction, prefix_stop

PACKS = "packs"
CONTENTS = "contents"
LOCAL = "local"

_RECORD = struct.Struct(">qq")
_PREFIX = "count."
_USED = "used."
_USED_KEY = keys.meta(_PREFIX + _USED) + b"%d"


class Count(NamedTuple):
    """So many rows, of so many bytes together."""

    rows: int = 0
    size_bytes: int = 0


NONE = Count()


def verified(target: int) -> str:
    """The name of the count of packs that a target holds."""
    return f"verified.{target}"


def waiting(target: int) -> str:
    """The name of the count of transfers that bring packs to a target."""
    return f"waiting.{target}"


def removing(target: int) -> str:
    """The name of the count of transfers that remove from a target what is there of packs that are no more."""
    return f"removing.{target}"


def held(targets: int) -> str:
    """The name of the count of packs that so many targets hold."""
    return f"held.{targets}"


def used(repository: int) -> str:
    """The name of the count of what a repository has."""
    return f"{_USED}{repository}"


def put_used(tx: Transaction, repository: int, rows: int, size_bytes: int) -> None:
    """As `put`, of what a repository has; for every change of a tree, so without detours."""
    key = _USED_KEY % repository
    if rows or size_bytes:
        tx.put(key, _RECORD.pack(rows, size_bytes))
    else:
        tx.delete(key)


def every_used(reader: Reader) -> dict[RepositoryId, Count]:
    """What each repository has."""
    named = every(reader).items()
    return {RepositoryId(int(name[len(_USED) :])): count for name, count in named if name.startswith(_USED)}


def tally(found: dict[RepositoryId, Count], repository: RepositoryId, size_bytes: int) -> None:
    """One inode more, for whoever counts what repositories have; the root is in none."""
    if repository:
        before = found.get(repository, NONE)
        found[repository] = Count(before.rows + 1, before.size_bytes + size_bytes)


def get(reader: Reader, name: str) -> Count:
    """One count."""
    raw = reader.get(keys.meta(_PREFIX + name))
    return NONE if raw is None else _decode(name, raw)


def every(reader: Reader) -> dict[str, Count]:
    """All that are not zero, by name."""
    prefix = keys.meta(_PREFIX)
    found = {}
    for key, raw in reader.scan(prefix, prefix_stop(prefix)):
        name = key[len(prefix) :].decode("ascii")
        found[name] = _decode(name, raw)
    return found


def add(tx: Transaction, name: str, rows: int, size_bytes: int = 0) -> None:
    """So many rows more (or fewer) since this transaction."""
    before = get(tx, name)
    put(tx, name, Count(before.rows + rows, before.size_bytes + size_bytes))


def put(tx: Transaction, name: str, count: Count) -> None:
    """Set a count that was found by walking."""
    key = keys.meta(_PREFIX + name)
    if count == NONE:
        tx.delete(key)
    else:
        tx.put(key, _RECORD.pack(count.rows, count.size_bytes))


def _decode(name: str, raw: bytes) -> Count:
    if len(raw) != _RECORD.size:
        raise Damaged(what=f"the count {name}")
    return Count(*_RECORD.unpack(raw))
