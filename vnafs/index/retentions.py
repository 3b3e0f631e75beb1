"""Retentions: which files were committed, until when they are retained, and which directories are therefore not moved.

A W row says that a file was committed; it stays for as long as the file does. Whoever wants to remove bytes asks
`find` (or `every`) and compares with `vnafs.index.steady.now`; holds are next door (`vnafs.index.holds`). Reads and
changes happen in the caller's transaction.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from vnafs.domain.actors import Actor, Door
from vnafs.domain.clock import NANOSECONDS
from vnafs.domain.errors import Damaged, FormatUnknown
from vnafs.domain.ids import Inode, Version
from vnafs.domain.retention import Retention, RetentionMode
from vnafs.index import keys
from vnafs.index.engine import Reader, Transaction, prefix_stop
from vnafs.index.records import RecordType

_RETENTION = RecordType(
    "retention",
    {1: ">Bqq", 2: ">BqqBI"},  # mode, until, since, who: door and uid
    upgrades={1: lambda mode, until, since: (mode, until, since, Door.UNKNOWN, 0)},
)
_BELOW = RecordType("retained directory", {1: ">q"})
_COMMITTING = RecordType("commit queue", {1: ">Iq"})  # version, time of the last change
_MODES = (RetentionMode.GOVERNANCE, RetentionMode.COMPLIANCE)  # numbered from 1; the numbers never change meaning
WALK = "retention_walk"
"""The key of the name after which a walk goes on that finds what was there before a rule; none: none is under way."""
STEP_NS = 86400 * NANOSECONDS
"""A directory's date is rounded up to days, so that a day of commits below it changes its row once."""


# -- files ---------------------------------------------------------------------------------------------------


def find(reader: Reader, inode: Inode) -> Retention | None:
    """The retention of a file, over or not; None when it was never committed."""
    raw = reader.get(keys.retention(inode))
    return None if raw is None else decode(raw)


def decode(raw: bytes) -> Retention:
    """What a W row says. Raises FormatUnknown, Damaged."""
    (mode, until, since, door, uid), _ = _RETENTION.unpack(bytes(raw))
    if not 1 <= mode <= len(_MODES):
        raise Damaged(what="a retention record")
    if door >= len(Door):
        raise FormatUnknown(what="the door in a retention record", found=door, known=len(Door) - 1)
    return Retention(_MODES[mode - 1], until, since, Actor(Door(door), uid))


def put(tx: Transaction, inode: Inode, retention: Retention) -> None:
    """Commit a file, or give it another date; whether that may be is the caller's to know.

    Of who did it the row keeps the door and the number of the user.
    """
    mode = _MODES.index(retention.mode) + 1
    by = retention.by
    tx.put(keys.retention(inode), _RETENTION.pack(mode, retention.until_ns, retention.since_ns, by.door, by.uid))


def forget(tx: Transaction, inode: Inode) -> bool:
    """The inode is no more; whether it was committed."""
    key = keys.retention(inode)
    is_there = tx.get(key) is not None
    tx.delete(key)
    return is_there


def every(reader: Reader, after: Inode = Inode(0)) -> Iterator[tuple[Inode, Retention]]:
    """All files that were committed and are still there, with numbers past *after*, in order; lazily."""
    for key, raw in reader.scan(keys.retention(Inode(after + 1)), prefix_stop(keys.RETENTIONS)):
        yield Inode(keys.number_of(key)), decode(raw)


# -- directories ---------------------------------------------------------------------------------------------


def below(reader: Reader, directory: Inode) -> int:
    """Until when something below a directory may be retained, at the latest; 0: nothing ever was."""
    raw = reader.get(keys.retained_below(directory))
    return 0 if raw is None else int(_BELOW.unpack(bytes(raw))[0][0])


def raise_below(tx: Transaction, directory: Inode, until_ns: int) -> bool:
    """Something below a directory is retained until then; False when it was known for as long.

    Then it is known of everything above as well: a directory is not moved before its date.
    """
    rounded = -(-until_ns // STEP_NS) * STEP_NS
    if below(tx, directory) >= rounded:
        return False
    tx.put(keys.retained_below(directory), _BELOW.pack(rounded))
    return True


def forget_below(tx: Transaction, directory: Inode) -> None:
    """The directory is no more."""
    tx.delete(keys.retained_below(directory))


def name_in(tx: Transaction, inode: Inode, directory: Inode) -> None:
    """A file of several names has one in a directory."""
    tx.put(keys.named_in(inode, directory), b"")


def places(reader: Reader, inode: Inode) -> list[Inode]:
    """The directories in which a file of several names has one, or had; empty for one that never had several."""
    prefix = keys.named_ins(inode)
    return [Inode(keys.number_of(bytes(key))) for key, _ in reader.scan(prefix, prefix_stop(prefix))]


def forget_places(tx: Transaction, inode: Inode) -> None:
    """The inode is no more."""
    for directory in places(tx, inode):
        tx.delete(keys.named_in(inode, directory))


# -- what may be committed by itself -------------------------------------------------------------------------


class Committing(NamedTuple):
    """A file as it was when it was put into the queue; if it is still that when it is due, it is committed."""

    due_ns: int
    """On the steady clock."""
    inode: Inode
    version: Version
    ctime_ns: int


def queue(tx: Transaction, committing: Committing) -> None:
    """Look at a file again when it is due."""
    key = keys.committing(committing.due_ns, committing.inode)
    tx.put(key, _COMMITTING.pack(committing.version, committing.ctime_ns))


def remove(tx: Transaction, committing: Committing) -> None:
    """It was looked at."""
    tx.delete(keys.committing(committing.due_ns, committing.inode))


def due(reader: Reader, now_ns: int) -> Iterator[Committing]:
    """Whatever is due, the longest due first; lazily."""
    for key, raw in reader.scan(keys.COMMITTING, keys.committing(now_ns + 1, Inode(0))):
        (version, ctime_ns), _ = _COMMITTING.unpack(bytes(raw))
        due_ns, inode = keys.committing_of(bytes(key))
        yield Committing(due_ns, inode, Version(version), ctime_ns)
