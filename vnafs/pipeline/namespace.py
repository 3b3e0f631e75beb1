"""What tiering reads of the namespace: queue rows, file facts, repositories. Read-only, and only what is folded.

A row read here may be moments old; the tree checks every proposal against what is true then.
"""

from __future__ import annotations

import dataclasses
import itertools

from vnafs.domain.clock import Instant
from vnafs.domain.errors import NotFound
from vnafs.domain.events import Event
from vnafs.domain.files import Candidate, FileFacts, FileState
from vnafs.domain.ids import ROOT, Inode, RepositoryId, Version
from vnafs.domain.repositories import Repository
from vnafs.index import entries, feeds, inodes, keys, queue, repositories, unpacked, xattrs
from vnafs.index.engine import Engine, Reader
from vnafs.index.past import PastVersion, find_version
from vnafs.index.returned import Returned, some

PATH_DEPTH_MAX = 4096
ANY_TIME = Instant(keys.DUE_NEVER - 1)
"""Every row but those of files open for write."""


@dataclasses.dataclass(frozen=True, slots=True)
class Described:
    """A file as a pack's catalogue names it."""

    facts: FileFacts
    row: inodes.InodeRow
    path: bytes
    xattrs: dict[bytes, bytes]


class Namespace:
    """A read-only view of mount's environment."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def waiting(
        self, state: FileState, *, until: Instant = ANY_TIME, limit: int, after: Candidate | None = None
    ) -> list[Candidate]:
        """Versions that wait in *state* and are due, soonest first; *after* is the last one seen before."""
        with self._engine.read() as reader:
            return queue.due(reader, state, until, limit, after=after)

    def every(self, state: FileState, *, limit: int, after: Candidate | None = None) -> list[Candidate]:
        """As `waiting`, with those that are open for write at the end."""
        with self._engine.read() as reader:
            return list(itertools.islice(queue.every(reader, state, after=after), limit))

    def count(self, state: FileState, *, limit: int) -> int:
        """How many versions wait in *state*, those that are open for write included, counted up to *limit*."""
        with self._engine.read() as reader:
            return queue.count(reader, state, limit)

    def unpacked(self, *, limit: int, after: Candidate | None = None) -> list[Candidate]:
        """Versions that are over and still to be packed; *after* is the last one seen before."""
        with self._engine.read() as reader:
            found = unpacked.some(reader, limit, after=None if after is None else (after.inode, after.version))
            return [Candidate(one.inode, one.version, FileState.SEALED, Instant(0)) for one in found]

    def count_unpacked(self, *, limit: int) -> int:
        """How many of those there are, counted up to *limit*."""
        with self._engine.read() as reader:
            return unpacked.count(reader, limit)

    def facts(self, inode: Inode) -> FileFacts:
        """One file. Raises NotFound."""
        with self._engine.read() as reader:
            return _facts(inode, _row(reader, inode))

    def row(self, inode: Inode) -> inodes.InodeRow:
        """One inode's row. Raises NotFound."""
        with self._engine.read() as reader:
            return _row(reader, inode)

    def past(self, inode: Inode, version: Version) -> PastVersion | None:
        """A version that is over and remembered."""
        with self._engine.read() as reader:
            return find_version(reader, inode, version)

    def returned(self, limit: int) -> list[Returned]:
        """Versions that came back from kept ones and whose uses are not noted yet."""
        with self._engine.read() as reader:
            return some(reader, limit)

    def described(self, inode: Inode) -> Described:
        """One file with what a pack says of it. Raises NotFound."""
        with self._engine.read() as reader:
            return _described(reader, inode, _row(reader, inode))

    def to_pack(self, inode: Inode, version: Version) -> tuple[Described, Version]:
        """A version with local bytes, its file's or over, and their place in the spool. Raises NotFound."""
        with self._engine.read() as reader:
            row = inodes.find(reader, inode)
            if row is not None and row.version == version:
                return _described(reader, inode, row), version
            left, past = unpacked.find(reader, inode, version), find_version(reader, inode, version)
            if left is None or past is None:
                raise NotFound(what=f"local bytes of inode {inode} version {version}")
            tags = _xattrs(reader, inode) if past.is_last and past.row.has_xattrs else {}
            return Described(_facts(inode, past.row), past.row, b"", tags), left.place

    def events(self, cursor: int, limit: int) -> list[tuple[int, Event]]:
        """What changed from number *cursor* on. Raises CursorBehind, CursorAhead."""
        with self._engine.read() as reader:
            return feeds.read_from(reader, cursor, limit)

    def feed_end(self) -> int:
        """The number that the next change will get."""
        with self._engine.read() as reader:
            return feeds.end(reader)

    def repository(self, number: RepositoryId) -> Repository:
        """One repository. Raises NotFound."""
        with self._engine.read() as reader:
            found = repositories.find(reader, number)
        if found is None:
            raise NotFound(what=f"repository {number}")
        return found

    def repositories(self) -> list[Repository]:
        """All of them."""
        with self._engine.read() as reader:
            return list(repositories.every(reader))


def _row(reader: Reader, inode: Inode) -> inodes.InodeRow:
    row = inodes.find(reader, inode)
    if row is None:
        raise NotFound(what=f"inode {inode}")
    return row


def _described(reader: Reader, inode: Inode, row: inodes.InodeRow) -> Described:
    tags = _xattrs(reader, inode) if row.has_xattrs else {}
    return Described(_facts(inode, row), row, _path(reader, inode, row), tags)


def _xattrs(reader: Reader, inode: Inode) -> dict[bytes, bytes]:
    return {name: xattrs.find(reader, inode, name) or b"" for name in xattrs.names(reader, inode)}


def _facts(inode: Inode, row: inodes.InodeRow) -> FileFacts:
    return FileFacts(
        inode=inode,
        version=row.version,
        repository=row.repository,
        state=row.state,
        size_bytes=row.size_bytes,
        sha256=None if row.seal is None else row.seal.sha256,
        fingerprint=None if row.seal is None else row.seal.fingerprint,
        handles_open=0,
        mtime_ns=row.mtime_ns,
        path_hint=b"",
        is_suspect=row.is_suspect,
    )


def _path(reader: Reader, inode: Inode, row: inodes.InodeRow) -> bytes:
    """One path below the mount, as far as the rows' hints lead; empty when they lead nowhere."""
    parts: list[bytes] = []
    for _ in range(PATH_DEPTH_MAX):
        if inode == ROOT:
            return b"/".join(reversed(parts))
        name = entries.name_at(reader, row.parent, row.cookie, inode)
        above = inodes.find(reader, row.parent)
        if name is None or above is None:
            return b""
        parts.append(name)
        inode, row = row.parent, above
    return b""
