"""Revival: an inode of the past comes back, as a new one with the bytes and attributes that the old one had.

Numbers are never used twice, so what comes back has a new one and the past stays what it was. Its bytes are those of
a kept version: it begins as a stub and is recalled like any other. The store hears of it through U rows: until then
the kept version must stay, so nothing expires.

Runs inside the caller's change. One thread.
"""

from __future__ import annotations

from vnafs.domain.events import EventKind
from vnafs.domain.files import FileState
from vnafs.domain.ids import Inode, Version
from vnafs.fs import acls, retention
from vnafs.fs.core import Change
from vnafs.index import entries, keys, returned, xattrs
from vnafs.index.entries import Entry, kind_of
from vnafs.index.inodes import NOT_QUEUED, InodeRow
from vnafs.index.past import PastVersion

FIRST_VERSION = Version(1)


def revive(
    change: Change, found: PastVersion, parent: Inode, name: bytes, inode: Inode, cookie: int, now: int
) -> InodeRow:
    """Give *name* in *parent*, which must be free, to a new *inode* that is what *found* was; the row it has now.

    Only of a version that is kept.
    """
    old = found.row
    above = change.row(parent)
    row = old._replace(
        nlink=2 if old.is_directory else 1,
        blocks=0,
        ctime_ns=now,
        birth_ns=now,
        parent=parent,
        cookie=cookie,
        version=FIRST_VERSION if old.is_file else Version(0),
        state=FileState.STUB if old.is_file else FileState.OPEN,
        due=NOT_QUEUED,
        before=None,
        is_suspect=False,
    )
    change.new(inode, row)
    links = above.nlink + 1 if old.is_directory else above.nlink
    change.set(parent, above._replace(nlink=links, mtime_ns=now, ctime_ns=now))
    entries.put(change.tx, parent, name, Entry(inode, cookie, kind_of(row.mode)))
    if old.has_xattrs:
        copied = xattrs.names(change.tx, found.inode)
        for attribute in copied:
            xattrs.put(change.tx, inode, attribute, xattrs.find(change.tx, found.inode, attribute) or b"")
        acls.follow_mode(change.tx, inode, row)  # which is that of the last version, the mode that of this one
        if not copied:
            row = row._replace(has_xattrs=False)
            change.set(inode, row)
    if old.is_symlink:
        change.tx.put(keys.symlink(inode), change.tx.get(keys.symlink(found.inode)) or b"")
    if row.seal is not None:
        returned.put(change.tx, returned.Returned(inode, row.version, row.repository, row.seal.sha256))
    if row.is_file:
        retention.queue(change, inode, row)
    change.event(EventKind.CREATED, inode, row.version, parent, name)
    return row
