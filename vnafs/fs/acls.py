"""POSIX ACLs of the tree: kept as extended attributes are, in step with the mode.

Who may do what because of them is the kernel's decision (`default_permissions`), as it is with modes; an engine that
cannot tell it of ACLs does not ask here. One thread.
"""

from __future__ import annotations

import stat

from vnafs.domain.errors import AccessDenied, NoSpace, NoSuchAttribute
from vnafs.domain.events import EventKind
from vnafs.domain.ids import Inode
from vnafs.fs import guard, posixacl
from vnafs.fs.attributes import SET_ID
from vnafs.fs.core import Change, Core
from vnafs.index import xattrs
from vnafs.index.engine import Transaction
from vnafs.index.inodes import InodeRow


class Acls:
    """What `posixacl.NAMES` are asked for and set to."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def getacl(self, inode: Inode, name: bytes) -> bytes:
        """The ACL. Raises NoSuchAttribute where the mode says it all."""
        core = self._core
        value = None
        if core.row(inode).has_xattrs:
            with core.engine.read() as reader:
                value = xattrs.find(reader, inode, name)
        if value is None:
            raise NoSuchAttribute(what="of that name")
        return value

    def setacl(self, inode: Inode, name: bytes, value: bytes, *, drops_setgid: bool = False) -> None:
        """Set an ACL; the mode follows that of access. *drops_setgid*: whoever sets it may not keep that bit.

        Raises InvalidArgument, TooBig, AccessDenied (a default of what is no directory), NoSpace as setxattr, and
        Retained, Committed or Held.
        """
        core = self._core
        entries = posixacl.entries_of(value)
        if not entries:
            self.removeacl(inode, name)
            return
        with core.change() as change:
            row = change.row(inode)
            guard.refuse_change(core, inode, row, change.tx)
            if name == posixacl.DEFAULT:
                if not row.is_directory:
                    raise AccessDenied(what="a default ACL of what is no directory")
                is_kept = True
            else:
                mode = posixacl.mode_of(entries, row.mode)
                row = row._replace(mode=mode & ~stat.S_ISGID if drops_setgid else mode)
                is_kept = posixacl.says_more(entries)
            if is_kept:
                row = self._put(change, inode, row, name, posixacl.packed(entries))
            else:
                row = _without(change, inode, row, name)
            self._changed(change, inode, row)
        file = core.handles.files.get(inode)
        if file is not None:
            file.privileged_bits = bool(row.mode & SET_ID)

    def removeacl(self, inode: Inode, name: bytes) -> None:
        """Remove an ACL, which is no error where there is none (set_posix_acl in fs/posix_acl.c); the mode stays."""
        core = self._core
        with core.change() as change:
            row = change.row(inode)
            guard.refuse_change(core, inode, row, change.tx)
            if row.has_xattrs and xattrs.find(change.tx, inode, name) is not None:
                self._changed(change, inode, _without(change, inode, row, name))

    def _put(self, change: Change, inode: Inode, row: InodeRow, name: bytes, value: bytes) -> InodeRow:
        names = xattrs.names(change.tx, inode) if row.has_xattrs else []
        limit = self._core.settings.xattrs_bytes_max
        if name not in names and sum(len(other) + 1 for other in (*names, name)) > limit:
            raise NoSpace(why="the names of this inode's extended attributes fill a listing")
        xattrs.put(change.tx, inode, name, value)
        return row._replace(has_xattrs=True)

    def _changed(self, change: Change, inode: Inode, row: InodeRow) -> None:
        change.set(inode, row._replace(ctime_ns=self._core.clock.now()))
        change.event(EventKind.XATTRS, inode, row.version)


def _without(change: Change, inode: Inode, row: InodeRow, name: bytes) -> InodeRow:
    names = xattrs.names(change.tx, inode) if row.has_xattrs else []
    if name not in names:
        return row
    xattrs.delete(change.tx, inode, name)
    return row._replace(has_xattrs=len(names) > 1)


def follow_mode(tx: Transaction, inode: Inode, row: InodeRow, mode_before: int = -1) -> None:
    """The ACL of access follows the mode that *row* has now."""
    value = xattrs.find(tx, inode, posixacl.ACCESS) if row.has_xattrs and row.mode != mode_before else None
    if value is not None:
        xattrs.put(tx, inode, posixacl.ACCESS, posixacl.with_mode(value, row.mode))


def inherit(tx: Transaction, parent: Inode, above: InodeRow, mode: int, umask: int) -> tuple[int, dict[bytes, bytes]]:
    """The mode of what is made in *parent* with *mode*, and the ACLs that it begins with."""
    if stat.S_ISLNK(mode):
        return mode, {}
    default = xattrs.find(tx, parent, posixacl.DEFAULT) if above.has_xattrs else None
    if default is None:
        return mode & ~umask, {}
    mode, access = posixacl.inherited(default, mode)
    acls = {posixacl.ACCESS: access} if access else {}
    if stat.S_ISDIR(mode):
        acls[posixacl.DEFAULT] = default
    return mode, acls


__all__ = ["Acls", "follow_mode", "inherit"]
