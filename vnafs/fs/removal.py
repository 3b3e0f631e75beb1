"""How an inode loses a name or its local bytes, and how it ends: at its last name, or at its last close after that.

Runs inside the caller's change. Local bytes go only after the change that gives them up is synced: a name that
loss of power brings back must find its bytes.
"""

from __future__ import annotations

import logging

from vnafs.domain.events import EventKind, seal_detail
from vnafs.domain.files import FileState
from vnafs.domain.ids import Inode
from vnafs.fs import history, leaving, retention
from vnafs.fs.core import NO_INODE, Change
from vnafs.index import keys, xattrs
from vnafs.index.entries import Entry
from vnafs.index.inodes import NOT_QUEUED, InodeRow

_LOG = logging.getLogger(__name__)


def unname(change: Change, entry: Entry, *, parent: Inode, name: bytes, is_open: bool, now: int) -> None:
    """One name of an inode is gone; without another one the inode ends, or waits as an orphan while *is_open*."""
    inode = entry.inode
    row = change.row(inode)
    links = 0 if row.is_directory else row.nlink - 1
    noted = history.keep_name(change, parent, name, entry, row, now, ends=not links)
    change.event(EventKind.UNNAMED, inode, row.version, parent, name, noted)
    if links:
        left = row._replace(nlink=links, ctime_ns=now)
        if row.parent == parent and row.cookie == entry.cookie:
            left = left._replace(parent=NO_INODE, cookie=0)
        change.set(inode, left)
    elif is_open:
        change.set(inode, row._replace(nlink=0, ctime_ns=now, parent=NO_INODE, cookie=0, due=NOT_QUEUED))
        change.tx.put(keys.orphan(inode), b"")
    else:
        end(change, inode, row, now)


def end(change: Change, inode: Inode, row: InodeRow, now: int) -> None:
    """The inode is no more: its rows go now, its local bytes soon. What is remembered of it is for `history` to say."""
    tx = change.tx
    change.delete(inode)
    retention.ended(change, inode, row)
    if row.nlink == 0:
        tx.delete(keys.orphan(inode))
    is_noted = history.keep_version(change, inode, row, now, is_last=True)
    if row.has_xattrs and not is_noted:
        for name in xattrs.names(tx, inode):
            xattrs.delete(tx, inode, name)
    if row.is_symlink and not is_noted:
        tx.delete(keys.symlink(inode))
    if is_noted and leaving.is_wanted(change.core, inode, row):
        leaving.leave(change, inode, row, row.version)
    elif row.is_file and row.state is not FileState.STUB:
        change.drop(inode, row.version)
    change.event(EventKind.REMOVED, inode, row.version, detail=0 if is_noted else seal_detail(row.seal))


def make_stub(change: Change, inode: Inode, row: InodeRow) -> None:
    """A version with verified copies needs its local bytes no more, or has lost them; recall brings them back."""
    change.set(inode, row._replace(state=FileState.STUB, blocks=0, due=NOT_QUEUED))
    change.event(EventKind.STATE, inode, row.version, detail=FileState.STUB)
    change.drop(inode, row.version)


def log_missing(inode: Inode, row: InodeRow) -> None:
    """Local bytes that should be there are not."""
    _LOG.error("tree.bytes_missing", extra={"inode": inode, "version": row.version, "state": row.state.label})
