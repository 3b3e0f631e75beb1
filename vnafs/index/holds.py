"""Legal holds: named reasons why a file, a directory with all below it, or a repository must stay as it is.

One H row lies on the inode that was named, none on what is below: whoever asks goes up the directories. There are few
holds, so they are loaded whole (`Holds`), and nobody pays for them where there are none. A hold on a directory follows
it wherever it is moved.

A file knows one of its names. Of one with several, and of one whose only name is not known, it cannot be said what it
lies below: there every hold on a directory of its repository counts. So none is ever missed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

from vnafs.domain.errors import TooMuch
from vnafs.domain.ids import ROOT, Inode, RepositoryId
from vnafs.index import inodes, keys, past
from vnafs.index.engine import Reader, Transaction, prefix_stop
from vnafs.index.inodes import InodeRow
from vnafs.index.records import RecordType

_RECORD = RecordType("hold", {1: ">BQQq"})  # flags, repository, before, since; the reason follows
_DIRECTORY = 1
HOLDS_MAX = 10_000
"""In one archive, some 400 bytes each in memory."""
DEPTH_MAX = 4096

Find = Callable[[Inode], InodeRow | None]
"""The row of an inode, or None when it is gone."""


@dataclasses.dataclass(frozen=True, slots=True)
class Hold:
    """One hold."""

    inode: Inode
    """What it lies on."""
    name: str
    repository: RepositoryId
    before: Inode
    """Inodes with smaller numbers were there before it."""
    since_ns: int
    reason: str
    is_directory: bool

    def covers(self, inode: Inode, row: InodeRow) -> bool:
        """Whether what lies below it is held: what was there before, and of what came later files once sealed.

        A file is sealed when its first bytes are complete: until then it may be written, named and corrected.
        """
        if inode < self.before:
            return True
        if row.is_directory:
            return False
        return not row.is_file or row.seal is not None or row.before is not None


def put(tx: Transaction, hold: Hold) -> None:
    """Lay a hold on an inode, or replace the one of that name."""
    flags = _DIRECTORY if hold.is_directory else 0
    record = _RECORD.pack(flags, hold.repository, hold.before, hold.since_ns, tail=hold.reason.encode())
    tx.put(keys.hold(hold.inode, hold.name.encode()), record)


def remove(tx: Transaction, hold: Hold) -> None:
    """Take a hold away."""
    tx.delete(keys.hold(hold.inode, hold.name.encode()))


def every(reader: Reader) -> Iterator[Hold]:
    """All holds, by inode."""
    for key, raw in reader.scan(keys.HOLDS, prefix_stop(keys.HOLDS)):
        (flags, repository, before, since_ns), reason = _RECORD.unpack(bytes(raw))
        inode, name = keys.hold_of(bytes(key))
        yield Hold(
            inode,
            name.decode(),
            RepositoryId(repository),
            Inode(before),
            since_ns,
            reason.decode(),
            bool(flags & _DIRECTORY),
        )


def find_past(reader: Reader) -> Find:
    """Finds rows, also those of what is gone and remembered: for questions about the past."""

    def find(inode: Inode) -> InodeRow | None:
        row = inodes.find(reader, inode)
        if row is None:
            last = past.last_version(reader, inode)
            row = None if last is None else last.row
        return row

    return find


class Holds:
    """All holds of an archive, as they were when they were loaded and as `add` and `drop` changed them since."""

    def __init__(self, reader: Reader) -> None:
        self._by_inode: dict[Inode, dict[str, Hold]] = {}
        self._by_repository: dict[RepositoryId, dict[Inode, dict[str, Hold]]] = {}
        self._count = 0
        for hold in every(reader):
            self.add(hold)

    def __bool__(self) -> bool:
        return self._count > 0

    def check_room(self) -> None:
        """Raises TooMuch."""
        if self._count >= HOLDS_MAX:
            raise TooMuch(what="That hold", limit=f"{HOLDS_MAX} holds", fix="Hold a directory instead of its files")

    def add(self, hold: Hold) -> None:
        """Know of one more, or of another reason."""
        those = self._by_inode.setdefault(hold.inode, {})
        self._count += hold.name not in those
        those[hold.name] = hold
        self._by_repository.setdefault(hold.repository, {})[hold.inode] = those

    def drop(self, hold: Hold) -> None:
        """Know of one less."""
        those = self._by_inode[hold.inode]
        del those[hold.name]
        self._count -= 1
        if not those:
            del self._by_inode[hold.inode]
            there = self._by_repository[hold.repository]
            del there[hold.inode]
            if not there:
                del self._by_repository[hold.repository]

    def lying_on(self, inode: Inode) -> list[Hold]:
        """Those on an inode itself."""
        return list(self._by_inode.get(inode, {}).values())

    def all(self) -> list[Hold]:
        """Every one."""
        return [hold for those in self._by_inode.values() for hold in those.values()]

    def on(
        self, find: Find, inode: Inode, row: InodeRow, *, place: Inode = Inode(0), also_new: bool = False
    ) -> list[Hold]:
        """The holds that an inode is under. *place* is a directory that is known to have a name of it.

        *also_new*: those that do not cover it yet, too.
        """
        there = self._by_repository.get(row.repository)
        if not there:
            return []
        own = self.lying_on(inode)
        if inode == Inode(row.repository) or not row.nlink:
            return own
        if row.is_directory:
            above = self.above(find, row.parent, row.repository)
        elif row.nlink > 1 or not (place or row.parent):
            above = [hold for those in there.values() for hold in those.values() if hold.is_directory]
        else:
            above = self.above(find, place or row.parent, row.repository)
        return own + [hold for hold in above if also_new or hold.covers(inode, row)]

    def above(self, find: Find, directory: Inode, repository: RepositoryId) -> list[Hold]:
        """The holds on a directory and on all above it; where the way up is lost, all those of the repository."""
        there = self._by_repository.get(repository)
        if not there:
            return []
        found: list[Hold] = []
        for _ in range(DEPTH_MAX):
            found += there.get(directory, {}).values()
            if directory in {Inode(repository), ROOT}:
                return found
            row = find(directory)
            if row is None:
                break
            directory = row.parent
        return [hold for those in there.values() for hold in those.values() if hold.is_directory]

    def below(self, find: Find, directory: Inode, repository: RepositoryId) -> bool:
        """Whether a hold lies on something below a directory, or may: of a file it is not always known where it is."""
        for inode in self._by_repository.get(repository, {}):
            row, at = find(inode), inode
            for _ in range(DEPTH_MAX):
                if row is None or at in {Inode(repository), ROOT}:
                    break
                if not row.is_directory and (row.nlink > 1 or not row.parent):
                    return True
                at = row.parent
                if at == directory:
                    return True
                row = find(at)
        return False

    def on_past(self, find: Find, key: bytes, value: bytes, repository: RepositoryId) -> bool:
        """Whether an A or V row is of something that is held, or was where something is held now."""
        if repository not in self._by_repository:
            return False
        if key.startswith(keys.PAST_NAMES):
            name = past.decode_name(key, value)
            inode, parent = name.inode, name.parent
        else:
            version = past.decode_version(key, value)
            inode, parent = version.inode, version.row.parent
        row = find(inode)
        if row is not None and self.on(find, inode, row, also_new=True):
            return True
        return bool(self.above(find, parent, repository))
