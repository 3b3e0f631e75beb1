"""How an inode loses a name or its local bytes, and how it ends: at its last name, or at its last close after that.

Runs inside the caller's change. Local bytes go only after the change that gives them up is synced: a name that
loss of power brings back must find its bytes.
"""

from __future__ import annotations

import logging

from vnafs.domain.events import EventKind, seal_detail
from vnafs.domain.files import FileState
from vnafs.domain.ids import Inode
from vnafs.fs.core import NO_INODE, Change
from vnafs.index import keys, xattrs
from vnafs.index.inodes import NOT_QUEUED, InodeRow

_LOG = logging.getLogger(__name__)


def unname(change: Change, inode: Inode, *, parent: Inode, name: bytes, cookie: int, is_open: bool, now: int) -> None:
    """One name of *inode* is gone; without another one the inode ends, or waits as an orphan while *is_open*."""
    row = change.row(inode)
    change.event(EventKind.UNNAMED, inode, row.version, parent, name)
    links = 0 if row.is_directory else row.nlink - 1
    if links:
        left = row._replace(nlink=links, ctime_ns=now)
        if row.parent == parent and row.cookie == cookie:
            left = left._replace(parent=NO_INODE, cookie=0)
        change.set(inode, left)
    elif is_open:
        change.set(inode, row._replace(nlink=0, ctime_ns=now, parent=NO_INODE, cookie=0, due=NOT_QUEUED))
        change.tx.put(keys.orphan(inode), b"")
    else:
        end(change, inode, row)


def end(change: Change, inode: Inode, row: InodeRow) -> None:
    """The inode is no more: its rows go now, its local bytes soon."""
    tx = change.tx
    change.delete(inode)
    if row.nlink == 0:
        tx.delete(keys.orphan(inode))
    if row.has_xattrs:
        for name in xattrs.names(tx, inode):
            xattrs.delete(tx, inode, name)
    if row.is_symlink:
        tx.delete(keys.symlink(inode))
    if row.is_file and row.state is not FileState.STUB:
        change.drop(inode, row.version)
    change.event(EventKind.REMOVED, inode, row.version, detail=seal_detail(row.seal))


def make_stub(change: Change, inode: Inode, row: InodeRow) -> None:
    """A version with verified copies needs its local bytes no more, or has lost them; recall brings them back."""
    change.set(inode, row._replace(state=FileState.STUB, blocks=0, due=NOT_QUEUED))
    change.event(EventKind.STATE, inode, row.version, detail=FileState.STUB)
    change.drop(inode, row.version)


def log_missing(inode: Inode, row: InodeRow) -> None:
    """Local bytes that should be there are not."""
    _LOG.error("tree.bytes_missing", extra={"inode": inode, "version": row.version, "state": row.state.label})
