"""As-of trees: every repository as it was, to be read under `.as-of/@GMT-YYYY.MM.DD-HH.MM.SS` in its top directory.

`.as-of` is found by name and not listed, so that nothing that walks a share meets it; file servers show what is below
as earlier versions (vfs_shadow_copy2(8)). Nothing there can be changed. What is there has numbers of its own, given
when it is looked up and forgotten when there are too many: whoever asks for a forgotten one hears NotFound and looks
again.

Bytes come from where they are: from the local file while that still has the version of then or waits to be packed,
else by range from targets. Nothing live is touched. One thread.
"""

from __future__ import annotations

import calendar
import collections
import dataclasses
import os
import stat
import time
from collections.abc import Iterator

from vnafs.domain.clock import NANOSECONDS
from vnafs.domain.errors import (
    BadHandle,
    InvalidArgument,
    IsADirectory,
    NoSuchAttribute,
    NotADirectory,
    NotFound,
    NotSupported,
    ReadOnly,
)
from vnafs.domain.files import FileFacts, FileState
from vnafs.domain.ids import Inode, RepositoryId, Version
from vnafs.fs import posixacl
from vnafs.fs.attributes import Attributes, attributes_of
from vnafs.fs.core import ROOT_REPOSITORY, Core
from vnafs.fs.handles import Handle, OpenFile
from vnafs.fs.recall import RangeNeeded
from vnafs.fs.xattrs import REAL_NAMES, shown_names
from vnafs.index import inodes, keys, past, unpacked, xattrs
from vnafs.index.engine import Reader
from vnafs.index.inodes import InodeRow
from vnafs.local.spool import local_error

AS_OF = b".as-of"
BASE = Inode(1 << 62)
"""Numbers from here on are of the past; no inode has one."""
NODES_MAX = 200_000
"""Looked up and remembered, about 400 bytes each."""
LISTINGS_MAX = 16
"""Directories whose names are remembered for whoever goes on listing them."""
HOURS_LISTED = 24
DAYS_LISTED_MAX = 400
_NAME = "@GMT-%Y.%m.%d-%H.%M.%S"
_HOUR, _DAY = 3600, 86400
_SHA256 = b"user.vna.sha256"
_NO_WRITES = ~0o222


@dataclasses.dataclass(frozen=True, slots=True)
class Node:
    """Something of the past that was looked up."""

    above: Inode
    """A number from BASE on, or a repository's top directory."""
    repository: RepositoryId
    inode: Inode
    """What it was; 0: the directory of all moments."""
    at_ns: int


@dataclasses.dataclass(frozen=True, slots=True)
class Then:
    """An inode as it was."""

    row: InodeRow
    is_live: bool
    """It still has that version."""
    is_local: bool = False
    """It has not, but local bytes of that version are still here."""


class AsOf:
    """The read-only side of time."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._nodes: collections.OrderedDict[Inode, Node] = collections.OrderedDict()
        self._numbers: dict[Node, Inode] = {}
        self._next = Inode(BASE + core.clock.now())
        """Later than what any process before gave: an NFS client may still hold a number of one that is gone."""
        self._listings: collections.OrderedDict[Inode, list[bytes]] = collections.OrderedDict()

    # -- what it is -----------------------------------------------------------------------------------------

    def _number(self, node: Node) -> Inode:
        known = self._numbers.get(node)
        if known is not None:
            self._nodes.move_to_end(known)
            return known
        number = self._next = Inode(self._next + 1)
        self._nodes[number] = node
        self._numbers[node] = number
        if len(self._nodes) > NODES_MAX:
            _, old = self._nodes.popitem(last=False)
            del self._numbers[old]
        return number

    def _node(self, number: Inode) -> Node:
        node = self._nodes.get(number)
        if node is None:
            raise NotFound(what="That place of the past")
        return node

    def _then(self, reader: Reader, node: Node) -> Then | None:
        """The inode of a node as it was, if that is kept."""
        old = past.version_at(reader, node.inode, node.at_ns)
        if old is not None:
            if old.is_kept:
                return Then(old.row, is_live=False)
            # still to be packed: nobody vouches for a copy until then
            left, seal = unpacked.find(reader, node.inode, old.version), old.row.seal
            if left is None or left.place != old.version or seal is None:
                return None
            is_local = self._core.spool.fingerprint(node.inode, left.place) == seal.fingerprint
            return Then(old.row, is_live=False, is_local=True) if is_local else None
        row = inodes.find(reader, node.inode)
        return None if row is None else Then(row, is_live=True)

    def _shown(self, reader: Reader, number: Inode, node: Node) -> Attributes | None:
        if not node.inode:
            top = inodes.find(reader, Inode(node.repository))
            return None if top is None else _read_only(number, attributes_of(number, top))
        then = self._then(reader, node)
        if then is None:
            return None
        if then.is_live:
            return _read_only(number, self._core.attributes(node.inode, then.row))
        return _read_only(number, attributes_of(number, then.row))

    # -- names ----------------------------------------------------------------------------------------------

    def top(self, parent: Inode) -> Attributes | None:
        """The directory of all moments of a repository, asked for in its top directory; None anywhere else."""
        row = self._core.find(parent)
        if row is None or Inode(row.repository) != parent:
            return None
        number = self._number(Node(parent, row.repository, Inode(0), 0))
        return self.getattr(number)

    def find(self, parent: Inode, name: bytes) -> Attributes | None:
        """What a name led to, or None. Raises NotFound, NotADirectory."""
        node = self._node(parent)
        if name == b".":
            return self.getattr(parent)
        if name == b"..":
            if node.above >= BASE:
                return self.getattr(node.above)
            return self._core.attributes(node.above, self._core.row(node.above))
        if not node.inode:
            return self._moment(parent, node, name)
        with self._core.engine.read() as reader:
            self._directory(reader, node)
            found = past.find_at(reader, node.inode, name, node.at_ns)
            if found is None:
                return None
            below = Node(parent, node.repository, found.inode, node.at_ns)
            return self._shown(reader, self._number(below), below)

    def _moment(self, parent: Inode, node: Node, name: bytes) -> Attributes | None:
        at_ns = moment_of(name)
        if at_ns is None or not self._begin(node.repository) <= at_ns <= self._core.clock.now():
            return None
        below = Node(parent, node.repository, Inode(node.repository), at_ns)
        with self._core.engine.read() as reader:
            return self._shown(reader, self._number(below), below)

    def _begin(self, number: RepositoryId) -> int:
        """The first moment that can be seen."""
        repository, top = self._core.repositories.get(number), self._core.find(Inode(number))
        if repository is None or top is None:
            raise NotFound(what=f"repository {number}")
        return max(top.birth_ns, self._core.clock.now() - repository.versions_kept_seconds * NANOSECONDS)

    def _directory(self, reader: Reader, node: Node) -> InodeRow:
        then = self._then(reader, node)
        if then is None:
            raise NotFound(what="That directory of the past")
        if not then.row.is_directory:
            raise NotADirectory(what=f"inode {node.inode}")
        return then.row

    def repository(self, number: Inode) -> RepositoryId:
        """Whose past it is; the root's where that is forgotten."""
        node = self._nodes.get(number)
        return ROOT_REPOSITORY if node is None else node.repository

    def getattr(self, number: Inode) -> Attributes:
        """What stat(2) shows. Raises NotFound."""
        node = self._node(number)
        with self._core.engine.read() as reader:
            found = self._shown(reader, number, node)
        if found is None:
            raise NotFound(what="That file of the past")
        return found

    def readlink(self, number: Inode) -> bytes:
        """Where a symbolic link pointed. Raises NotFound, InvalidArgument."""
        node = self._node(number)
        with self._core.engine.read() as reader:
            target = reader.get(keys.symlink(node.inode))
        if target is None:
            raise InvalidArgument(why="that is not a symbolic link")
        return bytes(target)

    def listing(self, number: Inode, after: int = 0) -> Iterator[tuple[int, bytes, Attributes]]:
        """As `Names.listing`, in order of names."""
        node = self._nodes.get(number)
        if node is None:
            return
        for cookie, name in enumerate((b".", b".."), 1):
            found = self.find(number, name) if after < cookie else None
            if found is not None:
                yield cookie, name, found
        names = self._listings.get(number)
        if names is None or after < 2:
            names = self._names(node)
            self._listings[number] = names
            if len(self._listings) > LISTINGS_MAX:
                self._listings.popitem(last=False)
        for place in range(max(after - 2, 0), len(names)):
            found = self.find(number, names[place])
            if found is not None:
                yield place + 3, names[place], found

    def _names(self, node: Node) -> list[bytes]:
        if node.inode:
            with self._core.engine.read() as reader:
                self._directory(reader, node)
                return [found.name for found in past.listing_at(reader, node.inode, node.at_ns)]
        now = self._core.clock.now() // NANOSECONDS
        moments = {now - now % _HOUR - back * _HOUR for back in range(HOURS_LISTED)}
        moments |= {now - now % _DAY - back * _DAY for back in range(DAYS_LISTED_MAX)}
        begin = self._begin(node.repository)
        return [name_of(moment) for moment in sorted(moments) if moment * NANOSECONDS >= begin]

    # -- bytes ----------------------------------------------------------------------------------------------

    def open(self, number: Inode, flags: int) -> Handle:
        """Open for reading. Raises ReadOnly for anything else, IsADirectory, NotFound, TooManyOpen."""
        if flags & (os.O_ACCMODE | os.O_TRUNC):
            raise refused()
        core, found = self._core, self.getattr(number)
        if stat.S_ISDIR(found.mode):
            raise IsADirectory(what=f"inode {number}")
        if not stat.S_ISREG(found.mode):
            raise InvalidArgument(why="that has no bytes")
        core.handles.check_room()
        file = core.handles.files.get(number)
        if file is None:
            file = core.handles.files[number] = OpenFile(number, found.mode)
        return core.handles.add(file, readable=True, writable=False, privileged=False)

    def read(self, handle: Handle, offset: int, length: int) -> bytes:
        """As `Data.read`: bytes of then, or RangeNeeded."""
        core, node = self._core, self._node(handle.file.inode)
        if not handle.readable:
            raise BadHandle
        with core.engine.read() as reader:
            then = self._then(reader, node)
        if then is None:
            raise NotFound(what="That file of the past")
        row = then.row
        if then.is_live:
            row = core.row(node.inode)
            size = core.attributes(node.inode, row).size_bytes
        else:
            size = row.size_bytes
        length = min(length, size - offset)
        if length <= 0:
            return b""
        if not (then.is_live or then.is_local) or row.state is FileState.STUB:
            raise RangeNeeded(node.inode, row.version, offset, length)
        descriptor = core.spool.open(node.inode, row.version, write=False)
        try:
            return os.pread(descriptor, length, offset)
        except OSError as error:
            raise local_error(error, "reading local bytes") from error
        finally:
            os.close(descriptor)

    def kept_facts(self, inode: Inode, version: Version) -> FileFacts | None:
        """What a recall needs to know of a version that is over and kept; None of any other."""
        with self._core.engine.read() as reader:
            found = past.find_version(reader, inode, version)
        if found is None or not found.is_kept or found.row.seal is None:
            return None
        return FileFacts(
            inode=inode,
            version=version,
            repository=found.row.repository,
            state=FileState.STUB,
            size_bytes=found.row.size_bytes,
            sha256=found.row.seal.sha256,
            fingerprint=None,
            handles_open=0,
            mtime_ns=found.row.mtime_ns,
            path_hint=b"",
        )

    # -- extended attributes --------------------------------------------------------------------------------

    def getxattr(self, number: Inode, name: bytes) -> bytes:
        """The value. Raises NoSuchAttribute, NotSupported for names that differ in case, which nobody indexed."""
        node = self._node(number)
        if name.startswith(REAL_NAMES):
            raise NotSupported(what="Looking for a name of the past by another case")
        with self._core.engine.read() as reader:
            if name == _SHA256:
                then = self._then(reader, node) if node.inode else None
                value = None if then is None or then.row.seal is None else then.row.seal.sha256.hex().encode()
            else:
                value = xattrs.find(reader, node.inode, name)
        if value is None:
            raise NoSuchAttribute(what="of that name")
        return value

    def getacl(self, number: Inode, name: bytes) -> bytes:
        """As it was last, in step with the mode that is shown. Raises NoSuchAttribute."""
        value = self.getxattr(number, name)
        return posixacl.with_mode(value, self.getattr(number).mode) if name == posixacl.ACCESS else value

    def listxattr(self, number: Inode, *, trusted: bool = True, acls: bool = False) -> list[bytes]:
        """Every name that was set last."""
        node = self._node(number)
        with self._core.engine.read() as reader:
            return shown_names(xattrs.names(reader, node.inode), trusted=trusted, acls=acls)


def refused() -> ReadOnly:
    """For whoever wants to change what was."""
    return ReadOnly(what="The past", why="only the present can be changed")


def name_of(moment_seconds: int) -> bytes:
    """The name of a moment's directory."""
    return time.strftime(_NAME, time.gmtime(moment_seconds)).encode()


def moment_of(name: bytes) -> int | None:
    """The moment that a name stands for, in nanoseconds since 1970 UTC; None when it is no such name."""
    try:
        moment = calendar.timegm(time.strptime(name.decode("ascii"), _NAME))
    except (ValueError, OverflowError):
        return None
    return moment * NANOSECONDS if name_of(moment) == name else None


def _read_only(number: Inode, found: Attributes) -> Attributes:
    return found._replace(inode=number, mode=found.mode & _NO_WRITES)
