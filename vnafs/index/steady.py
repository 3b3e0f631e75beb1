"""The steady clock's rows: where it stood last, and a coarse copy that manifests carry.

Whoever judges retention from the index alone asks `now`: it is behind by a minute or so, which only makes retention
longer. Reads and changes happen in the caller's transaction.
"""

from __future__ import annotations

from vnafs.domain.clock import NANOSECONDS, Instant
from vnafs.domain.steady import Steady
from vnafs.index import meta
from vnafs.index.engine import Reader, Transaction
from vnafs.index.records import RecordType

_NAME = "steady_clock"
_RECORD = RecordType("steady clock", {1: ">qQ"})  # now, since boot; the boot's name follows
CARRIED_SECONDS = 3600
"""How often what manifests carry moves on: each time is a segment on every target."""


def find(reader: Reader) -> Steady | None:
    """Where it stood last; None before anything was ever retained.

    In an archive that was restored it goes on from what the manifests carried.
    """
    carried = meta.get_int(reader, meta.RETENTION_TIME)
    raw = meta.get_bytes(reader, _NAME)
    if raw is None:
        return None if carried is None else Steady(Instant(carried), "", 0)
    (now, since_boot_ns), boot = _RECORD.unpack(raw)
    return Steady(Instant(max(now, carried or 0)), boot.decode(), since_boot_ns)


def now(reader: Reader) -> Instant | None:
    """The time that retention is judged by, or a little before it; None: nothing was ever retained."""
    found = find(reader)
    return None if found is None else found.now


def put(tx: Transaction, steady: Steady) -> None:
    """Remember where it stands."""
    meta.set_bytes(tx, _NAME, _RECORD.pack(steady.now, steady.since_boot_ns, tail=steady.boot.encode()))
    carried = meta.get_int(tx, meta.RETENTION_TIME)
    if carried is None or steady.now - carried >= CARRIED_SECONDS * NANOSECONDS:
        meta.set_int(tx, meta.RETENTION_TIME, steady.now)
