"""Extended attributes: what a name may be, and the few that vnafs answers itself.

`user.vna.*` tells of a file's state. Those names are answered, never listed and never set, so that tools which copy
every attribute go on working. In `user.DOSATTRIB` one bit is ours (dosattrib.py). Who may set `trusted.` and
`security.` is the kernel's decision. One thread.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence

from vnafs.domain.clock import NANOSECONDS
from vnafs.domain.copies import Copy
from vnafs.domain.errors import (
    AlreadyExists,
    InvalidArgument,
    NameTooLong,
    NoSpace,
    NoSuchAttribute,
    NotPermitted,
    NotSupported,
    TooBig,
)
from vnafs.domain.events import EventKind
from vnafs.domain.files import FileState
from vnafs.domain.ids import Inode, Sha256
from vnafs.domain.repositories import Acknowledgement
from vnafs.fs import dosattrib, guard, posixacl
from vnafs.fs.core import Core
from vnafs.index import entries, retentions, xattrs
from vnafs.index.inodes import InodeRow
from vnafs.index.keys import NAME_BYTES_MAX

XATTR_CREATE = 1
XATTR_REPLACE = 2
VIRTUAL = b"user.vna."
REAL_NAMES = (b"glusterfs.get_real_filename:", b"user.glusterfs.get_real_filename:")
"""What Samba asks a directory for in case-insensitive shares (vfs_glusterfs_fuse(8)); the name it seeks follows."""
_TRUSTED = b"trusted."
_SPACES = (b"user.", _TRUSTED, b"security.")

CopiesOf = Callable[[Inode, Sha256], Sequence[Copy]]
"""Where a content has verified copies, as the store knows; never blocks for long."""


def no_copies(inode: Inode, sha256: Sha256) -> Sequence[Copy]:
    """Before anything tells of copies there are none."""
    del inode, sha256
    return ()


class Xattrs:
    """Extended attributes of every inode."""

    def __init__(self, core: Core, copies_of: CopiesOf) -> None:
        self._core = core
        self._copies_of = copies_of

    def getxattr(self, inode: Inode, name: bytes) -> bytes:
        """The value. Raises NoSuchAttribute, NotSupported for names outside user, trusted and security.

        Of a directory also its name that differs from one in case alone, as REAL_NAMES ask for it.
        """
        core = self._core
        row = core.row(inode)
        if name.startswith(VIRTUAL):
            return self._virtual(inode, row, name)
        if name.startswith(REAL_NAMES):
            return self._real_name(inode, row, name.partition(b":")[2])
        is_stub = name == dosattrib.NAME and row.is_file and row.state is FileState.STUB
        if not row.has_xattrs and name.startswith(_SPACES) and not is_stub:
            raise NoSuchAttribute(what="of that name")  # asked for before each write; costs no look at the index
        _check_name(name)
        with core.engine.read() as reader:
            value = xattrs.find(reader, inode, name)
        if is_stub:
            value = dosattrib.of_stub(value)
        if value is None:
            raise NoSuchAttribute(what="of that name")
        return value

    def listxattr(self, inode: Inode, *, trusted: bool = True, acls: bool = False) -> list[bytes]:
        """Every name that was set, in byte order; none of our own, `trusted.` and ACLs only if asked for."""
        core = self._core
        if not core.row(inode).has_xattrs:
            return []
        with core.engine.read() as reader:
            return shown_names(xattrs.names(reader, inode), trusted=trusted, acls=acls)

    def setxattr(self, inode: Inode, name: bytes, value: bytes, flags: int = 0) -> None:
        """Set a value.

        Raises AlreadyExists with XATTR_CREATE, NoSuchAttribute with XATTR_REPLACE, TooBig over 64 KiB, NoSpace when
        the names of an inode would no longer fit a listing, NotPermitted for our own names.
        """
        core = self._core
        _check_name(name)
        _refuse_virtual(name)
        if name == dosattrib.NAME:
            value = dosattrib.kept(bytes(value))
        if flags not in (0, XATTR_CREATE, XATTR_REPLACE):
            raise InvalidArgument(why=f"setxattr flags {flags:#x} are not known")
        if len(value) > core.settings.xattr_bytes_max:
            raise TooBig(what="The value of an extended attribute", limit_bytes=core.settings.xattr_bytes_max)
        with core.change() as change:
            row = change.row(inode)
            guard.refuse_change(core, inode, row, change.tx)
            is_there = xattrs.find(change.tx, inode, name) is not None
            if is_there and flags == XATTR_CREATE:
                raise AlreadyExists(what="an extended attribute of that name")
            if not is_there and flags == XATTR_REPLACE:
                raise NoSuchAttribute(what="of that name")
            if not is_there and row.has_xattrs:
                listed = sum(len(other) + 1 for other in xattrs.names(change.tx, inode)) + len(name) + 1
                if listed > core.settings.xattrs_bytes_max:
                    raise NoSpace(why="the names of this inode's extended attributes fill a listing")
            xattrs.put(change.tx, inode, name, bytes(value))
            change.set(inode, row._replace(has_xattrs=True, ctime_ns=core.clock.now()))
            change.event(EventKind.XATTRS, inode, row.version)

    def removexattr(self, inode: Inode, name: bytes) -> None:
        """Remove a value. Raises NoSuchAttribute, NotPermitted for our own names."""
        core = self._core
        _check_name(name)
        _refuse_virtual(name)
        with core.change() as change:
            row = change.row(inode)
            guard.refuse_change(core, inode, row, change.tx)
            names = xattrs.names(change.tx, inode) if row.has_xattrs else []
            if name not in names:
                raise NoSuchAttribute(what="of that name")
            xattrs.delete(change.tx, inode, name)
            change.set(inode, row._replace(has_xattrs=len(names) > 1, ctime_ns=core.clock.now()))
            change.event(EventKind.XATTRS, inode, row.version)

    # -- our own --------------------------------------------------------------------------------------------

    def _virtual(self, inode: Inode, row: InodeRow, name: bytes) -> bytes:
        what = name[len(VIRTUAL) :]
        if what == b"ack":
            found = self._core.repositories.get(row.repository)
            return (found.acknowledgement if found else Acknowledgement.DURABLE).value.encode()
        if what in {b"retention", b"hold"}:
            return self._guard(inode, row, what)
        if row.is_file:
            if what == b"state":
                return row.state.label.encode()
            if what == b"sha256" and row.seal is not None:
                return row.seal.sha256.hex().encode()
            if what == b"copies":
                return self._copies(inode, row)
        raise NoSuchAttribute(what="of that name")

    def _real_name(self, inode: Inode, row: InodeRow, name: bytes) -> bytes:
        found = None
        if row.is_directory:
            with self._core.engine.read() as reader:
                found = entries.find_caseless(reader, inode, name)
        if found is None:
            raise NoSuchAttribute(what="of that name")
        return found + b"\0"  # Samba takes it for a string

    def _guard(self, inode: Inode, row: InodeRow, what: bytes) -> bytes:
        core = self._core
        shown: object = None
        with core.engine.read() as reader:
            if what == b"hold":
                held = core.holds.on(lambda number: core.find(number, reader), inode, row)
                shown = sorted({hold.name for hold in held})
            elif row.is_file and (found := retentions.find(reader, inode)) is not None:
                is_over = found.is_over(core.time.now())
                shown = {"mode": found.mode.value, "until": guard.shown(found.until_ns), "over": is_over}
        if not shown:
            raise NoSuchAttribute(what="of that name")
        return json.dumps(shown).encode()

    def _copies(self, inode: Inode, row: InodeRow) -> bytes:
        copies: Sequence[Copy] = ()
        if row.seal is not None and row.state >= FileState.PACKED:
            copies = self._copies_of(inode, row.seal.sha256)
        shown = [{"target": copy.target, "verified": _iso8601(copy.verified)} for copy in copies]
        return json.dumps(shown).encode()


def shown_names(names: list[bytes], *, trusted: bool, acls: bool) -> list[bytes]:
    """Those of them that a caller hears of: only who may read `trusted.` attributes is told their names (xattr(7))."""
    names = names if trusted else [name for name in names if not name.startswith(_TRUSTED)]
    return names if acls else [name for name in names if name not in posixacl.NAMES]


def _iso8601(nanoseconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(nanoseconds // NANOSECONDS))


def _check_name(name: bytes) -> None:
    if len(name) > NAME_BYTES_MAX:
        raise NameTooLong(length_bytes=len(name), length_bytes_max=NAME_BYTES_MAX)
    if name in _SPACES:
        raise InvalidArgument(why="that is no name of an extended attribute, only its space")
    if not name.startswith(_SPACES):
        raise NotSupported(what="An extended attribute outside user, trusted and security")


def _refuse_virtual(name: bytes) -> None:
    if name.startswith(VIRTUAL):
        raise NotPermitted(what="Setting user.vna attributes", why="vnafs answers them itself")
