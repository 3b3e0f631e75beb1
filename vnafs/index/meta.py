"""Named values of one environment (the M rows): typed, small, few.

It knows no meaning of any name beyond those below; owners add theirs beside their use. Changes take effect with
the transaction that carries them.
"""

from __future__ import annotations

import struct

from vnafs.domain.errors import Damaged
from vnafs.index import keys
from vnafs.index.engine import Reader, Transaction

SCHEMA = "schema"
ARCHIVE_ID = "archive_id"
"""16 random bytes: names the archive in packs and, as fsid, in NFS exports."""
EPOCH = "epoch"
"""Rises whenever an archive goes on from an older state, so that no inode number is ever used twice."""
INODE_RANGE = "inode_range_end"
COOKIE_RANGE = "cookie_range_end"
RETENTION_TIME = "retention_time"
"""The steady clock as manifests carry it, up to an hour behind; see `vnafs.index.steady`."""
SUPERSEDED = "superseded"
"""Why nothing may be changed any more: targets have gone on without this index."""
ASKED = "asked"
"""For which request of which mount the last change was made, if for one; see `vnafs.fs.takeover`."""

_U64 = struct.Struct(">Q")


def get_bytes(reader: Reader, name: str) -> bytes | None:
    """The value, or None when it was never set."""
    return reader.get(keys.meta(name))


def set_bytes(tx: Transaction, name: str, value: bytes) -> None:
    """Set a value."""
    tx.put(keys.meta(name), value)


def get_int(reader: Reader, name: str) -> int | None:
    """An unsigned 64-bit number, or None when it was never set. Raises Damaged when the value is none."""
    raw = reader.get(keys.meta(name))
    if raw is None:
        return None
    if len(raw) != _U64.size:
        raise Damaged(what=f"the meta value {name}")
    return int(_U64.unpack(raw)[0])


def set_int(tx: Transaction, name: str, number: int) -> None:
    """Set an unsigned 64-bit number. Raises struct.error for any other."""
    tx.put(keys.meta(name), _U64.pack(number))


def remove(tx: Transaction, name: str) -> None:
    """Forget a value if it is there."""
    tx.delete(keys.meta(name))
