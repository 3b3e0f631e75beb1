"""rename(2): the one call that changes two directories, and the names and kinds of up to two inodes, at once.

Checks come in the order of Linux, so that a caller who breaks two rules hears of the same one as anywhere else.
"""

from __future__ import annotations

from vnafs.domain.errors import (
    AlreadyExists,
    CrossesRepositories,
    DirectoryNotEmpty,
    InvalidArgument,
    IsADirectory,
    NotADirectory,
    NotFound,
    TooManyLinks,
)
from vnafs.domain.events import EventKind
from vnafs.domain.ids import ROOT, Inode
from vnafs.fs import guard, history, retention
from vnafs.fs.core import Change, Core
from vnafs.fs.names import check_name, refuse_as_of, refuse_in_root
from vnafs.fs.removal import unname
from vnafs.index import entries
from vnafs.index.entries import Entry

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
# RENAME_WHITEOUT (4) makes device nodes for overlay file systems and is refused


class Renames:
    """Moves names."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def rename(self, parent: Inode, name: bytes, new_parent: Inode, new_name: bytes, flags: int = 0) -> None:
        """Give what *name* leads to another name in the same repository, atomically.

        With RENAME_NOREPLACE nothing may have that name, with RENAME_EXCHANGE something must and gets the old one.
        What was replaced lives on while it is open. Raises NotFound, AlreadyExists, InvalidArgument (a directory
        into itself, unknown flags), NotADirectory, IsADirectory, DirectoryNotEmpty, CrossesRepositories,
        NotPermitted in the root.
        """
        core = self._core
        if flags not in (0, RENAME_NOREPLACE, RENAME_EXCHANGE):
            raise InvalidArgument(why=f"rename flags {flags:#x} are not supported")
        refuse_in_root(parent, new_parent)
        check_name(name)
        check_name(new_name)
        exchange = flags == RENAME_EXCHANGE
        cookie, spare, now = core.new_cookie(), core.new_cookie() if exchange else 0, core.clock.now()
        with core.change() as change:
            source, target = self._check(change, parent, name, new_parent, new_name, flags)
            if target is not None and target.inode == source.inode:
                return
            if core.guarded:
                self._refuse(change, source, parent, moves=True)
                if target is not None:
                    self._refuse(change, target, new_parent, moves=exchange)
            if target is not None and exchange:
                take(change, new_parent, new_name, target, now)
                take(change, parent, name, source, now)
                give(change, parent, name, target, spare, now)
            else:
                if target is not None:
                    self._replace(change, new_parent, new_name, target, now)
                take(change, parent, name, source, now)
            give(change, new_parent, new_name, source, cookie, now)

    def _check(
        self, change: Change, parent: Inode, name: bytes, new_parent: Inode, new_name: bytes, flags: int
    ) -> tuple[Entry, Entry | None]:
        above, new_above = change.row(parent), change.row(new_parent)
        if not (above.is_directory and new_above.is_directory):
            raise NotADirectory(what=f"inode {parent} or {new_parent}")
        if above.repository != new_above.repository:
            raise CrossesRepositories
        refuse_as_of(new_parent, new_name, new_above)
        source = entries.find(change.tx, parent, name)
        target = entries.find(change.tx, new_parent, new_name)
        if source is None or (target is None and flags == RENAME_EXCHANGE):
            raise NotFound(what=f"that name in directory {parent if source is None else new_parent}")
        if target is not None and flags == RENAME_NOREPLACE:
            raise AlreadyExists(what=f"that name in directory {new_parent}")
        self._check_loops(change, source, target, parent, new_parent, flags)
        if target is None or flags == RENAME_EXCHANGE or target.inode == source.inode:
            grows = source.is_directory and not (target is not None and target.is_directory)
            if grows and parent != new_parent and new_above.nlink >= self._core.settings.links_max:
                raise TooManyLinks(what=f"directory {new_parent}", links=new_above.nlink)
            return source, target
        if source.is_directory and not target.is_directory:
            raise NotADirectory(what=f"inode {target.inode}")
        if target.is_directory and not source.is_directory:
            raise IsADirectory(what=f"inode {target.inode}")
        if target.is_directory and not entries.is_empty(change.tx, target.inode):
            raise DirectoryNotEmpty(what=target.inode)
        return source, target

    def _refuse(self, change: Change, entry: Entry, place: Inode, *, moves: bool) -> None:
        row = change.row(entry.inode)
        guard.refuse_leaving(self._core, change.tx, entry.inode, row, place=place, moves=moves)

    def _check_loops(
        self, change: Change, source: Entry, target: Entry | None, parent: Inode, new_parent: Inode, flags: int
    ) -> None:
        if parent == new_parent:
            return
        if source.is_directory and self._is_within(change, new_parent, source.inode):
            raise InvalidArgument(why="a directory cannot move into itself")
        if target is not None and target.is_directory and self._is_within(change, parent, target.inode):
            if flags == RENAME_EXCHANGE:
                raise InvalidArgument(why="a directory cannot move into itself")
            raise DirectoryNotEmpty(what=target.inode)

    def _is_within(self, change: Change, inode: Inode, ancestor: Inode) -> bool:
        while inode != ROOT:
            if inode == ancestor:
                return True
            inode = self._core.row(inode, change.tx).parent
        return False

    def _replace(self, change: Change, parent: Inode, name: bytes, target: Entry, now: int) -> None:
        entries.delete(change.tx, parent, name, target)
        if target.is_directory:
            above = change.row(parent)
            change.set(parent, above._replace(nlink=above.nlink - 1))
        is_open = target.inode in self._core.handles.files
        unname(change, target, parent=parent, name=name, is_open=is_open, now=now)


def take(change: Change, parent: Inode, name: bytes, entry: Entry, now: int) -> None:
    """A name goes, and what it led to stays; *entry* is what it says."""
    entries.delete(change.tx, parent, name, entry)
    above = change.row(parent)
    links = above.nlink - 1 if entry.is_directory else above.nlink
    change.set(parent, above._replace(nlink=links, mtime_ns=now, ctime_ns=now))
    row = change.row(entry.inode)
    noted = history.keep_name(change, parent, name, entry, row, now, ends=False)
    change.event(EventKind.UNNAMED, entry.inode, row.version, parent, name, noted)


def give(change: Change, parent: Inode, name: bytes, entry: Entry, cookie: int, now: int) -> None:
    """A name that is free leads to what *entry* says, under a new *cookie*."""
    entries.put(change.tx, parent, name, Entry(entry.inode, cookie, entry.kind, now))
    above = change.row(parent)
    links = above.nlink + 1 if entry.is_directory else above.nlink
    change.set(parent, above._replace(nlink=links, mtime_ns=now, ctime_ns=now))
    row = change.row(entry.inode)
    if row.nlink > 1:
        retention.named(change, entry.inode, row, parent)
    change.set(entry.inode, row._replace(parent=parent, cookie=cookie, ctime_ns=now))
    change.event(EventKind.NAMED, entry.inode, row.version, parent, name)
