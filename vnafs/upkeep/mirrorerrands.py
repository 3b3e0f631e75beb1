"""What is to be done on a plain mirror: decisions over rows, in one transaction, without touching the mirror.

An event of the feed says only that a name may differ; what to do follows from the tree as it is when the errand is run
and from what the mirror is known to have. So an errand may be run twice, and the last state wins. Before an object is
touched its row says that it is in doubt, and the errand stays until what became of it is noted: a crash anywhere leads
to the same step again.

What is there is overwritten and removed only after a while, and not at all in a repository whose tripwire was touched:
an attack is not to be mirrored at once.
"""

from __future__ import annotations

import dataclasses
import enum
import itertools
from collections.abc import Iterator, Sequence

from vnafs.domain.clock import NANOSECONDS, Instant
from vnafs.domain.events import Event, EventKind
from vnafs.domain.files import FileState
from vnafs.domain.ids import ROOT, Inode, RepositoryId, Sha256
from vnafs.domain.plainnames import metadata_name, object_name
from vnafs.domain.repositories import OnTrip, Repository
from vnafs.index import inodes, mirrored
from vnafs.index.engine import Reader, Transaction
from vnafs.index.inodes import InodeRow
from vnafs.index.mirrored import Errand, Kind, Mirrored, Place, Work
from vnafs.targets.mirror import Original
from vnafs.upkeep.mirrormetadata import merged
from vnafs.upkeep.mirrortree import Name, View

WALK_NAMES = 512
"""Looked at in one step."""
ORIGINALS_MAX = 16
"""Names of one file that are looked at for bytes to copy."""
METADATA_SECONDS_MIN = 1.0
METADATA_BYTES_PER_SECOND = 256 * 1024
"""What describes a folder is written again at most this fast: that of a large one rarely, while much changes in it."""
_OF_NAMES = frozenset({EventKind.CREATED, EventKind.NAMED, EventKind.UNNAMED})
_OF_FILES = frozenset({*_OF_NAMES, EventKind.ATTRIBUTES, EventKind.XATTRS, EventKind.STATE, EventKind.VERSION})


class Deed(enum.Enum):
    """What is done on the mirror."""

    PUT = enum.auto()
    REMOVE = enum.auto()
    DESCRIBE = enum.auto()


@dataclasses.dataclass(frozen=True, slots=True)
class Job:
    """One object to put or remove."""

    deed: Deed
    place: Place
    parts: tuple[bytes, ...]
    """The path of the folder."""
    generation: int
    """Of the errand; it is run again if more was heard meanwhile."""
    before: Mirrored | None
    """What was known of the place."""
    inode: Inode = Inode(0)
    row: InodeRow | None = None
    sha256: Sha256 | None = None
    mtime_ns: int = 0
    repository: RepositoryId = RepositoryId(0)
    original: Original | None = None
    """What is to be put, where the mirror has it already."""

    @property
    def name(self) -> str:
        """The object's."""
        if self.place.leaf:
            return object_name((*self.parts, self.place.leaf))
        return metadata_name(self.parts)


class Errands:
    """Over one transaction of the mirror's rows and one view of the tree.

    *keeps_removed*: what the tree has no more stays. *harm_seconds*: how long overwriting and removing waits.
    """

    def __init__(self, tx: Transaction, view: View, now: Instant, *, keeps_removed: bool, harm_seconds: float) -> None:
        self._tx = tx
        self._view = view
        self._now = now
        self._keeps_removed = keeps_removed
        self._harm_ns = int(harm_seconds * NANOSECONDS)

    # -- what is heard -------------------------------------------------------------------------------------------

    def hear(self, event: Event) -> None:
        """Make errands of an event."""
        if event.kind in _OF_NAMES:
            for parts in self._paths_of(event.parent):
                self._mark(parts, event.name)
                self.describe_later(parts)
        if event.kind not in _OF_FILES or (event.kind is EventKind.STATE and event.detail == FileState.STUB):
            return
        for parts in self._paths_of(event.inode):
            self.describe_later(parts)
        for place in mirrored.names_of(self._tx, event.inode):
            known = mirrored.find(self._tx, place)
            if known is not None and known.kind is not Kind.FOLDER:
                mirrored.mark(self._tx, place, self._now)

    def _paths_of(self, inode: Inode) -> list[tuple[bytes, ...]]:
        """Where the mirror knows a folder."""
        if inode == ROOT:
            return [()]
        found = []
        for place in mirrored.names_of(self._tx, inode):
            known, parts = mirrored.find(self._tx, place), mirrored.path_of(self._tx, place.folder)
            if known is not None and known.kind is Kind.FOLDER and parts is not None:
                found.append((*parts, place.leaf))
        return found

    def _mark(self, parts: Sequence[bytes], leaf: bytes) -> None:
        mirrored.mark(self._tx, Place(mirrored.put_path(self._tx, parts), leaf), self._now)

    def walk_later(self, parts: Sequence[bytes]) -> None:
        """All that is in a folder may differ."""
        place = Place(mirrored.put_path(self._tx, parts), b"")
        mirrored.mark(self._tx, place, self._now, work=Work.WALK | Work.METADATA)

    def describe_later(self, parts: Sequence[bytes]) -> None:
        """What describes a folder may differ."""
        place = Place(mirrored.put_path(self._tx, parts), b"")
        known = mirrored.find(self._tx, place)
        seconds = METADATA_SECONDS_MIN
        if known is not None:
            seconds = max(seconds, known.size_bytes / METADATA_BYTES_PER_SECOND)
        due = Instant(self._now + int(seconds * NANOSECONDS))
        mirrored.mark(self._tx, place, self._now, work=Work.METADATA, due=due)

    # -- what is to be done --------------------------------------------------------------------------------------

    def run(self, place: Place) -> Job | None:
        """Decide on one errand: settle it, put it off, or say what is to be done on the mirror."""
        errand = mirrored.errand_at(self._tx, place)
        if errand is None:
            return None
        parts = mirrored.path_of(self._tx, place.folder)
        if parts is None:
            mirrored.put_errand(self._tx, place, None)
            return None
        if place.leaf:
            found = self._view.at(parts, place.leaf)
            if found is None:
                return self._gone(place, parts, errand)
            return self._there(place, parts, errand, *found)
        if errand.work & Work.WALK:
            self._walk(place, parts, errand)
            return None
        return self._describe(place, parts, errand)

    def _there(self, place: Place, parts: tuple[bytes, ...], errand: Errand, inode: Inode, row: InodeRow) -> Job | None:
        have = mirrored.find(self._tx, place)
        kind = Kind.FOLDER if row.is_directory else Kind.FILE if row.is_file else Kind.OTHER
        if have is not None and have.kind is Kind.FOLDER and kind is not Kind.FOLDER:
            self.walk_later((*parts, place.leaf))  # what was in it goes
            have = None
        if kind is not Kind.FILE:
            if have is not None and have.is_present:
                return self._removal(place, parts, errand, have)
            if kind is Kind.FOLDER and (have is None or have.kind is not kind or have.inode != inode):
                self.walk_later((*parts, place.leaf))
            mirrored.put(self._tx, place, Mirrored(kind, inode))
            self._settled(place, parts)
            return None
        if have is None or have.kind is not Kind.FILE:
            have = Mirrored(Kind.FILE)
        # What is open, or was never sealed, has the bytes that were sealed last.
        sha256 = row.before if row.seal is None else row.seal.sha256
        is_right = have.is_present and not have.is_in_doubt and have.sha256 == sha256
        if sha256 is None or is_right:
            mirrored.put(self._tx, place, dataclasses.replace(have, inode=inode, is_left=False))
            self._settled(place, parts)
            return None
        if have.sha256 not in {None, sha256} and not self._may_harm(place, parts, errand):
            mirrored.put(self._tx, place, dataclasses.replace(have, inode=inode, is_left=False))
            return None
        before = dataclasses.replace(have, inode=inode, is_left=False)
        mirrored.put(self._tx, place, dataclasses.replace(before, is_present=True, is_in_doubt=True))
        repository = self._view.repository(parts, place.leaf)
        return Job(
            Deed.PUT,
            place,
            parts,
            errand.generation,
            before,
            inode,
            row,
            sha256,
            row.mtime_ns,
            RepositoryId(0) if repository is None else repository.id,
            None if have.is_present or row.seal is None else self._original(inode, row.seal.sha256),
        )

    def _original(self, inode: Inode, sha256: Sha256) -> Original | None:
        """The bytes of a file by another of its names: one that it had, or has too."""
        for place in mirrored.names_of(self._tx, inode, ORIGINALS_MAX):
            known, parts = mirrored.find(self._tx, place), mirrored.path_of(self._tx, place.folder)
            if known is None or parts is None or known.kind is not Kind.FILE or known.sha256 != sha256:
                continue
            if known.is_present and not known.is_in_doubt:
                return Original(object_name((*parts, place.leaf)), known.size_bytes, sha256)
        return None

    def _gone(self, place: Place, parts: tuple[bytes, ...], errand: Errand) -> Job | None:
        have = mirrored.find(self._tx, place)
        if have is not None and have.kind is Kind.FOLDER:
            self.walk_later((*parts, place.leaf))
        if have is None or not have.is_present:
            mirrored.put(self._tx, place, None)
            self._settled(place, parts)
            return None
        if self._keeps_removed and not have.is_in_doubt and not self._view.is_erased(have.inode):
            mirrored.put(self._tx, place, dataclasses.replace(have, inode=Inode(0), is_left=True))
            self._settled(place, parts)
            return None
        return self._removal(place, parts, errand, have)

    def _removal(self, place: Place, parts: tuple[bytes, ...], errand: Errand, have: Mirrored) -> Job | None:
        if not self._may_harm(place, parts, errand):
            return None
        mirrored.put(self._tx, place, dataclasses.replace(have, is_in_doubt=True))
        return Job(Deed.REMOVE, place, parts, errand.generation, have)

    def _settled(self, place: Place, parts: Sequence[bytes]) -> None:
        mirrored.put_errand(self._tx, place, None)
        self.describe_later(parts)

    def _may_harm(self, place: Place, parts: Sequence[bytes], errand: Errand, *, waits: bool = True) -> bool:
        """Whether what is on the mirror may be overwritten or removed now; otherwise it is put off."""
        repository = self._view.repository(parts, place.leaf)
        if repository is not None and _is_tripped(repository):
            mirrored.hold(self._tx, repository.id, place, errand.since)
            mirrored.put_errand(self._tx, place, None)
            return False
        since = min(errand.since, self._now)  # the clock may have been set back
        if waits and self._now < since + self._harm_ns:
            mirrored.put_errand(
                self._tx, place, dataclasses.replace(errand, since=since, due=Instant(since + self._harm_ns))
            )
            return False
        return True

    def release(self, limit: int) -> int:
        """Make errands of what is held for repositories whose tripwire was reset; how many."""
        return sum(mirrored.release(self._tx, number, limit) for number in releasable(self._tx, self._view))

    # -- folders -------------------------------------------------------------------------------------------------

    def _walk(self, place: Place, parts: tuple[bytes, ...], errand: Errand) -> None:
        """Look at some names of a folder, in the tree and on the mirror."""
        inode = self._view.folder(parts)
        names: Iterator[Name] = iter(()) if inode is None else self._view.names(inode, errand.after)
        there = mirrored.every_in(self._tx, place.folder, errand.after)
        batch = list(itertools.islice(merged(names, there), WALK_NAMES))
        for leaf, name, have in batch:
            if name is not None and name.is_folder and have is not None and self._is_that_folder(name, have):
                self.walk_later((*parts, leaf))
            elif not self._is_equal(name, have):
                mirrored.mark(self._tx, Place(place.folder, leaf), self._now)
        if len(batch) == WALK_NAMES:
            mirrored.put_errand(self._tx, place, dataclasses.replace(errand, after=batch[-1][0]))
        else:
            after = dataclasses.replace(errand, work=Work.METADATA, after=b"", due=self._now)
            mirrored.put_errand(self._tx, place, after)

    @staticmethod
    def _is_that_folder(name: Name, have: Mirrored) -> bool:
        return have.kind is Kind.FOLDER and have.inode == name.inode

    def _is_equal(self, name: Name | None, have: Mirrored | None) -> bool:
        if have is None or have.is_in_doubt:
            return False
        if name is None:
            return have.is_left and self._keeps_removed
        if name.is_folder or have.inode != name.inode:
            return False
        row = inodes.find(self._view.reader, name.inode)
        if row is None or not row.is_file:
            return row is not None and have.kind is Kind.OTHER
        return row.seal is not None and have.kind is Kind.FILE and have.sha256 == row.seal.sha256

    def _describe(self, place: Place, parts: tuple[bytes, ...], errand: Errand) -> Job | None:
        have = mirrored.find(self._tx, place)
        inode = self._view.folder(parts)
        if inode is None:
            if have is None or not have.is_present:
                mirrored.put(self._tx, place, None)
            elif any(row.is_present for _, row in mirrored.every_in(self._tx, place.folder, b"")):
                mirrored.put_errand(self._tx, place, None)  # it goes with the last object that it describes
                return None
            else:
                return self._removal(place, parts, errand, have)
            mirrored.put_errand(self._tx, place, None)
            mirrored.forget_path_if_empty(self._tx, place.folder)
            return None
        have = have or Mirrored(Kind.METADATA)
        if have.sha256 is not None and parts and not self._may_harm(place, parts, errand, waits=False):
            return None
        mirrored.put(self._tx, place, dataclasses.replace(have, is_present=True, is_in_doubt=True))
        return Job(Deed.DESCRIBE, place, parts, errand.generation, have, inode, mtime_ns=self._now)

    # -- what became of it ---------------------------------------------------------------------------------------

    def done(self, job: Job, sha256: Sha256 | None, size_bytes: int) -> None:
        """An object is there, or gone, as the job says."""
        if job.deed is Deed.REMOVE:
            mirrored.put(self._tx, job.place, None)
        else:
            kind = Kind.FILE if job.deed is Deed.PUT else Kind.METADATA
            inode = job.inode if job.deed is Deed.PUT else Inode(0)
            mirrored.put(self._tx, job.place, Mirrored(kind, inode, size_bytes, sha256, is_present=True))
        errand = mirrored.errand_at(self._tx, job.place)
        if errand is None:
            return
        if errand.generation == job.generation and job.deed is not Deed.REMOVE:
            mirrored.put_errand(self._tx, job.place, None)
        elif not errand.work & Work.WALK:
            # what was heard meanwhile, or what is to be there instead of what was removed
            due = min(errand.due, self._now) if job.place.leaf else errand.due
            mirrored.put_errand(self._tx, job.place, dataclasses.replace(errand, due=due, since=self._now, attempts=0))
        if job.place.leaf:
            self.describe_later(job.parts)

    def failed(self, job: Job, seconds: float, *, was_sent: bool) -> None:
        """Nothing is known of the object, or it is as it was if nothing was sent; again in so many seconds."""
        if not was_sent:
            mirrored.put(self._tx, job.place, job.before)
        errand = mirrored.errand_at(self._tx, job.place)
        if errand is not None and not errand.work & Work.WALK:
            due = Instant(self._now + int(seconds * NANOSECONDS))
            again = dataclasses.replace(errand, due=due, attempts=errand.attempts + 1)
            mirrored.put_errand(self._tx, job.place, again)

    def given_up(self, job: Job) -> None:
        """The bytes that were sealed last cannot be had, and others will come: the object stays as it was."""
        mirrored.put(self._tx, job.place, job.before)
        errand = mirrored.errand_at(self._tx, job.place)
        if errand is not None and errand.generation == job.generation:
            self._settled(job.place, job.parts)


def releasable(rows: Reader, view: View) -> list[RepositoryId]:
    """Repositories for which something is held although nothing speaks against it any more."""
    tripped = {repository.id for repository in view.chosen.values() if _is_tripped(repository)}
    return [number for number in mirrored.held_for(rows) if number not in tripped]


def _is_tripped(repository: Repository) -> bool:
    return repository.tripped_ns != 0 and repository.tripwire is not OnTrip.OFF
