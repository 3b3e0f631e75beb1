"""Attributes that clients set: chmod, chown, truncate and utimes, which FUSE asks for in one call.

What a size means for the bytes is for whoever has them to say (`vnafs.fs.data`). One thread.
"""

from __future__ import annotations

import dataclasses
import os
import stat
from collections.abc import Callable

from vnafs.domain.actors import at_mount
from vnafs.domain.events import EventKind
from vnafs.domain.ids import Inode
from vnafs.fs import acls, guard, retention
from vnafs.fs.attributes import SET_ID, AttributeChanges, Attributes, without_set_id
from vnafs.fs.caller import Caller
from vnafs.fs.core import Core
from vnafs.index import xattrs

_CAPABILITY = b"security.capability"
_PERMISSIONS = 0o7777
_NOTHING = (None, None, None, None, None)

Truncate = Callable[[Inode, int, Caller], bool]
"""Gives a file a size; False when it had it."""


class Setattr:
    """One call, with what else follows from it."""

    def __init__(self, core: Core, truncate: Truncate) -> None:
        self._core = core
        self._truncate = truncate

    def setattr(self, inode: Inode, changes: AttributeChanges, caller: Caller) -> Attributes:
        """chmod, chown, truncate and utimes in one.

        Raises NotFound, RecallNeeded, FileTooBig, OverQuota, IsADirectory, and WritersHeld when a size is set.

        Cutting a stub to nothing recalls nothing. A change of owner clears set-user-ID and file capabilities, as
        Linux does; truncation by an ordinary user clears set-user-ID.
        """
        core = self._core
        changes = changes.within_range()
        before = core.row(inode) if core.guarded else None
        if before is not None and before.repository not in core.guarded:
            before = None
        if before is not None:
            if changes.atime_ns is not None and retention.extends(core, inode, before, changes):
                return core.attributes(inode, retention.extend(core, inode, changes.atime_ns, at_mount(caller.uid)))
            guard.refuse_setattr(core, inode, before, changes)
        if changes.size_bytes is not None and not self._truncate(inode, changes.size_bytes, caller):
            now = core.clock.now() if changes.mtime_ns is None else changes.mtime_ns
            changes = dataclasses.replace(changes, mtime_ns=now)  # truncate(2) changes times even so
        wanted = (changes.mode, changes.uid, changes.gid, changes.atime_ns, changes.mtime_ns)
        if wanted == _NOTHING:
            return core.attributes(inode, core.row(inode))
        file = core.handles.files.get(inode)
        if changes.mtime_ns is not None and file is not None and file.writing >= 0:
            os.utime(file.writing, ns=(core.row(inode).atime_ns, changes.mtime_ns))
            file.times_set += 1
        with core.change() as change:
            row = change.row(inode)
            mode = mode_before = row.mode
            if changes.mode is not None:
                mode = stat.S_IFMT(mode) | changes.mode & _PERMISSIONS
            owner_changes = changes.uid is not None or changes.gid is not None
            has_xattrs = row.has_xattrs
            if owner_changes and not row.is_directory:
                mode = without_set_id(mode)
                if has_xattrs:
                    xattrs.delete(change.tx, inode, _CAPABILITY)
            row = row._replace(
                mode=mode,
                uid=row.uid if changes.uid is None else changes.uid,
                gid=row.gid if changes.gid is None else changes.gid,
                atime_ns=row.atime_ns if changes.atime_ns is None else changes.atime_ns,
                mtime_ns=row.mtime_ns if changes.mtime_ns is None else changes.mtime_ns,
                ctime_ns=core.clock.now(),
            )
            change.set(inode, row)
            acls.follow_mode(change.tx, inode, row, mode_before)
            change.event(EventKind.ATTRIBUTES, inode, row.version)
            by = at_mount(caller.uid)
            is_committed = before is not None and retention.commit_by_mode(change, inode, before, row, by)
        if is_committed:
            retention.fix(core, inode)
        if file is not None:
            file.privileged_bits = bool(row.mode & SET_ID)
        return core.attributes(inode, row)
