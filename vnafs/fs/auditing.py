"""Auditing: notes what was done and by whom (Y rows), in the change that does it. The only writer of these rows here.

A row has no name and no path: its inode says where. Feeds tell of it, so that manifests carry it.
"""

from __future__ import annotations

from vnafs.domain.actors import Actor
from vnafs.domain.events import EventKind
from vnafs.domain.ids import NO_VERSION, Inode, Version
from vnafs.fs.core import Change
from vnafs.index import audits


def note(
    change: Change, by: Actor, action: str, inode: Inode, *, version: Version = NO_VERSION, **more: object
) -> None:
    """Note one deed on an inode; *more* is what JSON carries."""
    what = {"at_ns": change.core.clock.now(), "action": action, "inode": inode, "who": by.shown(), **more}
    number = audits.add(change.tx, what)
    change.event(EventKind.RETENTION, inode, version, detail=number)
