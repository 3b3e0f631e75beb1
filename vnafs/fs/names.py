"""Names: lookup, listing, and every call that adds or removes one (rename is next door).

No FUSE types; permission bits are the kernel's to check (`default_permissions`). One thread. A call that returns has
been committed; whether it also survives loss of power is asked with `must_sync`.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterator

from vnafs.domain.clock import Instant
from vnafs.domain.errors import (
    AlreadyExists,
    CrossesRepositories,
    DirectoryNotEmpty,
    InvalidArgument,
    IsADirectory,
    NameTooLong,
    NotADirectory,
    NotFound,
    NotPermitted,
    TooManyLinks,
)
from vnafs.domain.events import EventKind
from vnafs.domain.files import FileState
from vnafs.domain.ids import NO_VERSION, ROOT, Inode, RepositoryId, Version
from vnafs.fs import acls, guard, retention
from vnafs.fs.asof import AS_OF
from vnafs.fs.attributes import Attributes, attributes_of
from vnafs.fs.caller import Caller
from vnafs.fs.core import Change, Core
from vnafs.fs.removal import unname
from vnafs.index import entries, inodes, keys, repositories, xattrs
from vnafs.index.entries import Entry, kind_of
from vnafs.index.inodes import NOT_QUEUED, InodeRow

_LOG = logging.getLogger(__name__)

FIRST_VERSION = Version(1)
COOKIE_SELF, COOKIE_PARENT = 1, 2
_PERMISSIONS = 0o7777


def check_name(name: bytes) -> None:
    """Raises NameTooLong, InvalidArgument. Any byte but `/` and NUL may be part of a name."""
    if len(name) > keys.NAME_BYTES_MAX:
        raise NameTooLong(length_bytes=len(name), length_bytes_max=keys.NAME_BYTES_MAX)
    if not name or name in (b".", b"..") or b"/" in name or b"\0" in name:
        raise InvalidArgument(why="a name is neither empty nor . nor .. and holds neither / nor NUL")


def refuse_in_root(*parents: Inode) -> None:
    """Only repositories live in the root, and only `vna repository` makes or removes them. Raises NotPermitted."""
    if ROOT in parents:
        _LOG.warning("tree.root_refused", extra={"inode": ROOT, "advice": "use `vna repository add` or `remove`"})
        raise NotPermitted(what="A change in the root of the mount", why="use `vna repository add` or `remove`")


def refuse_as_of(parent: Inode, name: bytes, above: InodeRow) -> None:
    """The name of a repository's past is taken. Raises AlreadyExists."""
    if name == AS_OF and parent == Inode(above.repository):
        raise AlreadyExists(what="The repository's past, which has that name,")


class Names:
    """The directory side of the tree."""

    def __init__(self, core: Core) -> None:
        self._core = core

    # -- looking --------------------------------------------------------------------------------------------

    def find(self, parent: Inode, name: bytes) -> Attributes | None:
        """What *name* leads to, or None: a name that is not there is an ordinary answer.

        `.` and `..` work for any inode, as file servers ask. Raises NotFound (no such parent), NotADirectory,
        NameTooLong.
        """
        core = self._core
        if len(name) > keys.NAME_BYTES_MAX:
            raise NameTooLong(length_bytes=len(name), length_bytes_max=keys.NAME_BYTES_MAX)
        if name == b".":
            return core.attributes(parent, core.row(parent))
        with core.engine.read() as reader:
            if name == b"..":
                above = core.row(parent, reader).parent
                return core.attributes(above, core.row(above, reader))
            entry = entries.find(reader, parent, name)
            if entry is None:
                core.directory(parent, reader)
                return None
            row = core.row(entry.inode, reader)
        return core.attributes(entry.inode, row)

    def lookup(self, parent: Inode, name: bytes) -> Attributes:
        """As `find`, but raises NotFound."""
        found = self.find(parent, name)
        if found is None:
            raise NotFound(what=f"that name in directory {parent}")
        return found

    def getattr(self, inode: Inode) -> Attributes:
        """What stat(2) shows, of a directory that was removed a while ago too. Raises NotFound."""
        core = self._core
        row = core.find(inode) or core.gone.get(inode) or core.row(inode)
        return core.attributes(inode, row)

    def readlink(self, inode: Inode) -> bytes:
        """Where a symbolic link points. Raises NotFound, InvalidArgument for anything else."""
        with self._core.engine.read() as reader:
            target = reader.get(keys.symlink(inode))
        if target is None:
            self._core.row(inode)
            raise InvalidArgument(why=f"inode {inode} is not a symbolic link")
        return bytes(target)

    def listing(self, inode: Inode, after: int = 0) -> Iterator[tuple[int, bytes, Attributes]]:
        """Cookie, name and attributes of everything past cookie *after*, `.` and `..` first; lazily.

        What is there for the whole time of a listing comes exactly once, whatever else changes. A directory that
        was removed while open lists nothing. Holds one view of the index while it runs: drop it soon.
        """
        core = self._core
        with core.engine.read() as reader:
            row = core.find(inode, reader)
            if row is None:
                return
            if not row.is_directory:
                raise NotADirectory(what=f"inode {inode}")
            if after < COOKIE_SELF:
                yield COOKIE_SELF, b".", core.attributes(inode, row)
            if after < COOKIE_PARENT:
                yield COOKIE_PARENT, b"..", core.attributes(row.parent, core.row(row.parent, reader))
            rows, open_files = core.rows, core.handles.files
            for cookie, name, number, _ in entries.listing(reader, inode, after):
                found = rows.get(number) or inodes.find_shown(reader, number)  # a listing must not sweep the cache
                if found is None:
                    continue
                shown = core.attributes(number, found) if number in open_files else attributes_of(number, found)
                yield cookie, name, shown

    def readdir(self, inode: Inode, after: int, limit: int) -> list[tuple[int, bytes, Attributes]]:
        """At most *limit* entries past cookie *after*: `listing` for whoever cannot hold an iterator."""
        batch = []
        for item in self.listing(inode, after):
            batch.append(item)
            if len(batch) >= limit:
                break
        return batch

    # -- adding ---------------------------------------------------------------------------------------------

    def mkdir(self, parent: Inode, name: bytes, mode: int, caller: Caller, umask: int = 0) -> Attributes:
        """Make a directory. *umask* has what *mode* was not masked with yet, if there is anything; not always asked.

        Raises AlreadyExists, NotFound, NotADirectory, TooManyLinks, OverQuota, NotPermitted in the root.
        """
        inode, row, _ = self.make(parent, name, stat.S_IFDIR | mode & _PERMISSIONS, caller, umask=umask)
        return attributes_of(inode, row)

    def symlink(self, parent: Inode, name: bytes, target: bytes, caller: Caller) -> Attributes:
        """Make a symbolic link. Raises as mkdir, and NameTooLong for a long or empty target."""
        longest = self._core.settings.symlink_bytes_max
        if not 0 < len(target) <= longest:
            raise NameTooLong(length_bytes=len(target), length_bytes_max=longest)
        inode, row, _ = self.make(parent, name, stat.S_IFLNK | 0o777, caller, target=target)
        return attributes_of(inode, row)

    def mknod(self, parent: Inode, name: bytes, mode: int, rdev: int, caller: Caller, umask: int = 0) -> Attributes:
        """Make a file, pipe or socket; for root also a device node, which the mount (`nodev`) never opens.

        Raises as mkdir, and InvalidArgument for other types.
        """
        kind = stat.S_IFMT(mode) or stat.S_IFREG
        if kind in (stat.S_IFCHR, stat.S_IFBLK):
            if not caller.is_root:
                raise NotPermitted(what="A device node", why="only root may make one")
        elif kind not in (stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK):
            raise InvalidArgument(why="mknod makes files, pipes, sockets and devices")
        else:
            rdev = 0
        due = self._core.quiet_until() if kind == stat.S_IFREG else NOT_QUEUED
        mode = kind | mode & _PERMISSIONS
        inode, row, descriptor = self.make(parent, name, mode, caller, rdev=rdev, due=due, umask=umask)
        if descriptor >= 0:
            os.close(descriptor)
        return attributes_of(inode, row)

    def make(
        self,
        parent: Inode,
        name: bytes,
        mode: int,
        caller: Caller,
        *,
        due: Instant = NOT_QUEUED,
        rdev: int = 0,
        target: bytes = b"",
        umask: int = 0,
    ) -> tuple[Inode, InodeRow, int]:
        """A new inode with its first name; for a file also its empty local bytes, open, otherwise -1.

        Local bytes are made before the row is logged: a crash between leaves a file that no row names, which the
        next start puts into quarantine.
        """
        core = self._core
        refuse_in_root(parent)
        check_name(name)
        inode, cookie, now = core.new_inode(), core.new_cookie(), core.clock.now()
        descriptor = -1
        try:
            with core.change() as change:
                above = self._room_for(change, parent, name, is_directory=stat.S_ISDIR(mode))
                core.usage.claim_file(above.repository)
                mode, begins_with = acls.inherit(change.tx, parent, above, mode, umask)
                gid = caller.gid
                if above.mode & stat.S_ISGID:
                    gid = above.gid
                    if stat.S_ISDIR(mode):
                        mode |= stat.S_ISGID
                version = NO_VERSION
                if stat.S_ISREG(mode):
                    version = FIRST_VERSION
                    core.space.claim(0)
                    descriptor = core.spool.create(inode, version)
                    os.utime(descriptor, ns=(now, now))  # its four times are one, as those of any new file are
                links = 1
                if stat.S_ISDIR(mode):
                    links = 2
                    above = above._replace(nlink=above.nlink + 1)
                row = InodeRow(
                    mode, caller.uid, gid, links, len(target), 0, now, now, now, now,
                    above.repository, parent, cookie, version, FileState.OPEN, due, rdev=rdev,
                    has_xattrs=bool(begins_with),
                )  # fmt: skip
                for attribute, value in begins_with.items():
                    xattrs.put(change.tx, inode, attribute, value)
                change.new(inode, row)
                change.set(parent, above._replace(mtime_ns=now, ctime_ns=now))
                entries.put(change.tx, parent, name, Entry(inode, cookie, kind_of(mode)))
                if target:
                    change.tx.put(keys.symlink(inode), target)
                change.event(EventKind.CREATED, inode, version, parent, name)
        except BaseException:
            if descriptor >= 0 and core.find(inode) is None:
                os.close(descriptor)
                core.spool.remove(inode, FIRST_VERSION)
            raise
        return inode, row, descriptor

    def link(self, inode: Inode, parent: Inode, name: bytes) -> Attributes:
        """Give a file one more name in its own repository.

        Raises NotPermitted for directories and in the root, CrossesRepositories, AlreadyExists, TooManyLinks,
        NotFound.
        """
        core = self._core
        refuse_in_root(parent)
        check_name(name)
        cookie, now = core.new_cookie(), core.clock.now()
        with core.change() as change:
            row = change.row(inode)
            if row.is_directory:
                raise NotPermitted(what="A second name for a directory", why="directories have one")
            if row.nlink == 0:
                raise NotFound(what=f"a name of inode {inode}")
            above = self._room_for(change, parent, name, is_directory=False)
            if above.repository != row.repository:
                raise CrossesRepositories
            if row.nlink >= core.settings.links_max:
                raise TooManyLinks(what=f"inode {inode}", links=row.nlink)
            retention.named(change, inode, row, parent)
            row = row._replace(nlink=row.nlink + 1, ctime_ns=now, parent=parent, cookie=cookie)
            change.set(inode, row)
            change.set(parent, above._replace(mtime_ns=now, ctime_ns=now))
            entries.put(change.tx, parent, name, Entry(inode, cookie, kind_of(row.mode), now))
            change.event(EventKind.NAMED, inode, row.version, parent, name)
        return core.attributes(inode, row)

    def _room_for(self, change: Change, parent: Inode, name: bytes, *, is_directory: bool) -> InodeRow:
        above = change.row(parent)
        if not above.is_directory:
            raise NotADirectory(what=f"inode {parent}")
        refuse_as_of(parent, name, above)
        if change.tx.get(keys.entry(parent, name)) is not None:
            raise AlreadyExists(what=f"that name in directory {parent}")
        if is_directory and above.nlink >= self._core.settings.links_max:
            raise TooManyLinks(what=f"directory {parent}", links=above.nlink)
        return above

    # -- removing -------------------------------------------------------------------------------------------

    def unlink(self, parent: Inode, name: bytes) -> None:
        """Remove a name that is not a directory's; open handles keep the bytes. Raises NotFound, IsADirectory."""
        core = self._core
        refuse_in_root(parent)
        now = core.clock.now()
        with core.change() as change:
            entry = self._entry(change, parent, name)
            if entry.is_directory:
                raise IsADirectory(what=f"inode {entry.inode}")
            self._remove(change, parent, name, entry, now)

    def rmdir(self, parent: Inode, name: bytes) -> None:
        """Remove an empty directory. Raises NotFound, NotADirectory, DirectoryNotEmpty."""
        refuse_in_root(parent)
        self.remove_directory(parent, name)

    def remove_directory(self, parent: Inode, name: bytes) -> None:
        """As rmdir, in the root too."""
        core = self._core
        now = core.clock.now()
        with core.change() as change:
            entry = self._entry(change, parent, name)
            if not entry.is_directory:
                raise NotADirectory(what=f"inode {entry.inode}")
            if not entries.is_empty(change.tx, entry.inode):
                raise DirectoryNotEmpty(what=entry.inode)
            self._remove(change, parent, name, entry, now)
            if parent == ROOT:
                repositories.delete(change.tx, RepositoryId(entry.inode))

    def _entry(self, change: Change, parent: Inode, name: bytes) -> Entry:
        if len(name) > keys.NAME_BYTES_MAX:
            raise NameTooLong(length_bytes=len(name), length_bytes_max=keys.NAME_BYTES_MAX)
        entry = entries.find(change.tx, parent, name)
        if entry is None:
            if not change.row(parent).is_directory:
                raise NotADirectory(what=f"inode {parent}")
            raise NotFound(what=f"that name in directory {parent}")
        return entry

    def _remove(self, change: Change, parent: Inode, name: bytes, entry: Entry, now: int) -> None:
        if self._core.guarded:
            guard.refuse_leaving(self._core, change.tx, entry.inode, change.row(entry.inode), place=parent)
        entries.delete(change.tx, parent, name, entry)
        above = change.row(parent)
        links = above.nlink - 1 if entry.is_directory else above.nlink
        change.set(parent, above._replace(nlink=links, mtime_ns=now, ctime_ns=now))
        is_open = entry.inode in self._core.handles.files
        unname(change, entry, parent=parent, name=name, is_open=is_open, now=now)
