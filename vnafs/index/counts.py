"""Counts: how many rows of a kind there are and of how many bytes, so that nobody has to walk them to know.

A count changes in the transaction of the rows it counts, so the two cannot disagree; `recount` walks the rows, for
tests and for archives from before there were counts. The files of each table call `add`; it knows no table itself.

| name         | counts                                                                                   |
|--------------|------------------------------------------------------------------------------------------|
| packs        | packs, and their bytes as stored                                                         |
| contents     | contents, and their bytes as files                                                       |
| local        | packs whose file is still on the local disk                                              |
| verified.T   | packs that target T holds verified                                                       |
| waiting.T    | transfers to target T that are still to do; no bytes                                     |
| held.N       | packs that exactly N of the targets that count hold verified                             |
"""

from __future__ import annotations

import dataclasses
import struct

from vnafs.domain.errors import Damaged
from vnafs.index import keys
from vnafs.index.engine import Reader, Transaction, prefix_stop

PACKS = "packs"
CONTENTS = "contents"
LOCAL = "local"

_RECORD = struct.Struct(">qq")
_PREFIX = "count."


@dataclasses.dataclass(frozen=True, slots=True)
class Count:
    """So many rows, of so many bytes together."""

    rows: int = 0
    size_bytes: int = 0


NONE = Count()


def verified(target: int) -> str:
    """The name of the count of packs that a target holds."""
    return f"verified.{target}"


def waiting(target: int) -> str:
    """The name of the count of transfers to a target."""
    return f"waiting.{target}"


def held(targets: int) -> str:
    """The name of the count of packs that so many targets hold."""
    return f"held.{targets}"


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
