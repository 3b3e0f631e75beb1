"""What every part of the tree shares: rows with their cache, open files, numbers, and changes as transactions.

One thread. A `Change` gathers rows and events and commits them at once; nothing cached is touched unless the commit
succeeded. The queue row of a file follows from its inode row (state, due, version), so the two cannot disagree.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import itertools
import logging
import os
from collections.abc import Mapping
from types import TracebackType

from vnafs.domain.clock import NANOSECONDS, BootClock, Clock, Instant
from vnafs.domain.errors import (
    IndexBroken,
    NoSpace,
    NotADirectory,
    NotFound,
    ReadOnly,
    StorageFailed,
    Superseded,
    TooManyOpen,
    VnaError,
)
from vnafs.domain.events import Event, EventKind
from vnafs.domain.faults import Faults
from vnafs.domain.files import Candidate, FileState
from vnafs.domain.ids import NO_VERSION, ROOT, Inode, RepositoryId, Version
from vnafs.domain.repositories import Acknowledgement, OnTrip, Repository
from vnafs.fs.attributes import Attributes, attributes_of, attributes_while_written
from vnafs.fs.fences import Fences
from vnafs.fs.handles import Handles, OpenFile
from vnafs.fs.settings import Settings
from vnafs.fs.timekeeper import Timekeeper
from vnafs.fs.tripwire import Harm, Tripwire
from vnafs.fs.usage import Usage
from vnafs.index import inodes, keys, meta, queue, repositories
from vnafs.index.engine import Engine, Position, Reader, Transaction, prefix_stop
from vnafs.index.entries import COOKIE_FIRST
from vnafs.index.feeds import Feed
from vnafs.index.holds import Holds
from vnafs.index.inodes import NOT_QUEUED, InodeRow
from vnafs.index.ranges import Numbers, epoch_stop
from vnafs.local.space import Space
from vnafs.local.spool import Spool

_LOG = logging.getLogger(__name__)

ROOT_REPOSITORY = RepositoryId(0)
"""What the root of the mount belongs to."""


NO_INODE = Inode(0)
SIZES_PER_TURN_MAX = 1024
"""Looked at in one go; some milliseconds."""
GONE_DIRECTORIES_MAX = 4096
REAP_FILES_MAX = 256
"""Removed in one go, so that nobody waits long for a turn."""
FEED_EVENTS_TRIMMED_MAX = 512
"""In one transaction; some milliseconds."""


class Watcher:
    """Told when something changed that the kernel may have cached, other than by a request of the kernel itself.

    This one ignores it; an engine puts its own in its place. Calls never block.
    """

    def is_behind(self) -> bool:
        """Whether so much is still to be told that whoever changes many things should wait."""
        return False

    def attributes_changed(self, inode: Inode) -> None:
        """Attributes of an inode changed, its bytes did not."""

    def bytes_changed(self, inode: Inode) -> None:
        """Bytes changed behind our back."""

    def entry_changed(self, parent: Inode, name: bytes) -> None:
        """A name came, went or leads elsewhere."""

    def entry_doubted(self, parent: Inode, name: bytes) -> None:
        """As `entry_changed`, but perhaps the kernel knows: it only has to look again."""


class Core:
    """The state of one tree in one process."""

    def __init__(
        self,
        engine: Engine,
        spool: Spool,
        clock: Clock,
        faults: Faults,
        settings: Settings,
        *,
        boot_clock: BootClock | None = None,
        boot_id: str = "",
    ) -> None:
        self.engine = engine
        self.spool = spool
        self.clock = clock
        self.faults = faults
        self.settings = settings
        self.space = Space(spool.directory, clock, reserve_bytes=settings.reserve_bytes)
        self.watcher = Watcher()
        self.handles = Handles(settings.handles_open_max)
        self.fences = Fences(clock, settings.hold_seconds_max)
        self.feed = Feed()
        self.failure: VnaError | None = None
        """Set once local storage failed; every change is refused from then on."""
        self.superseded: Superseded | None = None
        """Set while targets have gone on without this index: clients may read, and change nothing."""
        self.asked = b""
        """For which request changes are made now; empty: nobody will want to know."""
        self.rows: dict[Inode, InodeRow] = {}
        self.gone: dict[Inode, InodeRow] = {}
        """Directories that were removed a while ago, the last of them: somebody may still have one open."""
        self.drops: collections.deque[tuple[Position, Inode, Version]] = collections.deque()
        """Local bytes without a row, and the position that must be synced before they may go."""
        self.drops_left = False
        """There were more than are listed; their D rows say which."""
        self.removed: dict[tuple[Inode, Version], int] = {}
        """Local bytes that were removed, each with a number of its own: their D rows go when loss of power brings them
        back no more."""
        self._removals = 0
        with engine.read() as reader:
            self.epoch = meta.get_int(reader, meta.EPOCH) or 0
            why = meta.get_bytes(reader, meta.SUPERSEDED)
            if why is not None:
                self.superseded = Superseded(why=why.decode())
            self.repositories: dict[RepositoryId, Repository] = {r.id: r for r in repositories.every(reader)}
            self.holds = Holds(reader)
            self.usage = Usage(reader)
        self.time = Timekeeper(engine, clock, boot_clock, boot_id)
        self.frozen: set[RepositoryId] = set()
        """Repositories in which clients may change nothing now."""
        self.guarded: set[RepositoryId] = set()
        """Repositories in which something may be retained or held."""
        self.tripwire = Tripwire(clock)
        self.tripped: list[RepositoryId] = []
        """Repositories whose tripwire was touched, which no row says yet."""
        self.repositories_changed()
        first = max(self.epoch << 40, ROOT) + 1
        self.inode_numbers = Numbers(
            engine, meta.INODE_RANGE, first=first, ahead=settings.numbers_ahead, stop=epoch_stop(self.epoch)
        )
        self.cookie_numbers = Numbers(engine, meta.COOKIE_RANGE, first=COOKIE_FIRST, ahead=settings.cookies_ahead)

    # -- reading --------------------------------------------------------------------------------------------

    def find(self, inode: Inode, reader: Reader | None = None) -> InodeRow | None:
        """The row of an inode, or None."""
        row = self.rows.get(inode)
        if row is None:
            if reader is not None:
                row = inodes.find(reader, inode)
            else:
                with self.engine.read() as view:
                    row = inodes.find(view, inode)
            if row is not None:
                self.remember(inode, row)
        return row

    def row(self, inode: Inode, reader: Reader | None = None) -> InodeRow:
        """The row of an inode. Raises NotFound."""
        row = self.rows.get(inode) or self.find(inode, reader)
        if row is None:
            raise NotFound(what=f"inode {inode}")
        return row

    def directory(self, inode: Inode, reader: Reader | None = None) -> InodeRow:
        """The row of a directory. Raises NotFound, NotADirectory."""
        row = self.row(inode, reader)
        if not row.is_directory:
            raise NotADirectory(what=f"inode {inode}")
        return row

    def attributes(self, inode: Inode, row: InodeRow) -> Attributes:
        """What stat shows: from the local file while it is open for write, from the row otherwise."""
        file = self.handles.files.get(inode)
        if file is None or file.writing < 0:
            return attributes_of(inode, row)
        local = os.fstat(file.writing)
        if self.usage.limited:
            self.usage.note(row.repository, file, row.size_bytes, local.st_size)
        return attributes_while_written(inode, row, local)

    def remember(self, inode: Inode, row: InodeRow) -> None:
        """Keep a row decoded; the one kept longest goes when there are too many."""
        rows = self.rows
        rows.pop(inode, None)
        if len(rows) >= self.settings.rows_cached_max:
            del rows[next(iter(rows))]
        rows[inode] = row

    def remember_gone(self, inode: Inode, row: InodeRow | None) -> None:
        """What fstat(2) of a directory goes on showing once it is removed, while this process lives."""
        if row is not None and row.is_directory:
            if len(self.gone) >= GONE_DIRECTORIES_MAX:
                del self.gone[next(iter(self.gone))]
            self.gone[inode] = row._replace(nlink=0)

    def is_durable(self, repository: RepositoryId) -> bool:
        """Whether an answer about this repository waits for stable storage; the root always does."""
        found = self.repositories.get(repository)
        return found is None or found.acknowledgement is Acknowledgement.DURABLE

    def repositories_changed(self) -> None:
        """Follow the rules of repositories."""
        self.frozen = {number for number, repository in self.repositories.items() if repository.is_frozen}
        self.guarded = {number for number, repository in self.repositories.items() if repository.is_guarded}
        limited = self.usage.follow(self.repositories)
        if limited:
            for file in self.handles.files.values():
                row = self.find(file.inode)
                if file.writing >= 0 and row is not None and row.repository in limited:
                    self.watch_size(file, row)

    def watch_size(self, file: OpenFile, row: InodeRow) -> None:
        """A file that is open for write counts as it is, from now on also where the kernel writes past us."""
        self.usage.note(row.repository, file, row.size_bytes)
        if file.unseen_writers and row.repository in self.usage.limited:
            self.usage.unseen[file.inode] = row.repository, file

    def follow_sizes(self) -> None:
        """See how large some of the files have become that the kernel writes past us, those first that wait longest."""
        unseen = self.usage.unseen
        for inode in list(itertools.islice(unseen, SIZES_PER_TURN_MAX)):
            number, file = unseen[inode] = unseen.pop(inode)
            row = self.find(inode)
            if row is not None:
                self.usage.note(number, file, row.size_bytes)

    def refuse_frozen(self, inode: Inode) -> None:
        """Raises ReadOnly when clients may not change *inode* now. Ask only while something is frozen."""
        row = self.find(inode)
        repository = None if row is None else self.repositories.get(row.repository)
        if repository is not None and repository.is_frozen:
            raise ReadOnly(what=f"Repository {repository.name}", why=repository.why_frozen)

    def harmed(self, number: RepositoryId, harm: Harm) -> None:
        """A content that is kept was overwritten, renamed or deleted."""
        repository = self.repositories[number]
        if repository.tripwire is OnTrip.OFF or repository.tripped_ns or repository.rolling_to_ns:
            return
        why = self.tripwire.note(repository, harm)
        if why:
            self.repositories[number] = dataclasses.replace(repository, tripped_ns=self.clock.now(), tripped_why=why)
            self.repositories_changed()
            self.tripped.append(number)
            _LOG.critical("tripwire.touched", extra={"repository": number, "why": why})

    def keeps(self, repository: RepositoryId) -> bool:
        """Whether a repository remembers what was overwritten and deleted."""
        found = self.repositories.get(repository)
        return found is not None and found.versions_kept_seconds > 0

    def is_limbo(self, inode: Inode, repository: RepositoryId) -> bool:
        """Whether an inode is where what a repository's rollback took out of the tree waits."""
        found = self.repositories.get(repository)
        return found is not None and found.limbo == inode

    def quiet_until(self) -> Instant:
        """When a file that was just closed may be sealed."""
        return Instant(self.clock.now() + int(self.settings.quiet_seconds * NANOSECONDS))

    def due_when_closed(self, row: InodeRow) -> Instant:
        """When a file that nobody writes any more may be sealed."""
        if not row.nlink:
            return NOT_QUEUED
        return queue.DUE_NEVER if row.is_suspect else self.quiet_until()

    # -- changing -------------------------------------------------------------------------------------------

    def new_inode(self) -> Inode:
        """A number that no inode ever had. Never inside a change."""
        return Inode(self.inode_numbers.take())

    def new_cookie(self) -> int:
        """A place that no listing ever had. Never inside a change."""
        return self.cookie_numbers.take()

    def change(self) -> Change:
        """A transaction over rows and events. Raises StorageFailed after storage failed once."""
        if self.failure is not None:
            raise self.failure
        return Change(self)

    def sync(self) -> None:
        """Return once every change so far survives loss of power. Blocks. Raises StorageFailed, and the tree ends."""
        try:
            self.engine.sync(self.engine.position)
        except StorageFailed as error:
            self.fail(error)
            raise

    def fail(self, error: VnaError) -> None:
        """Local storage cannot be trusted any more: refuse every change from now on."""
        if self.failure is None:
            self.failure = error
            _LOG.critical("tree.storage_failed", extra={"why": str(error)})

    def trim_feed(self) -> bool:
        """Remove some of the events that the feed has too many; says whether there may be more."""
        if self.failure is not None:
            return False
        return self.feed.trim(self.engine, self.settings.feed_events_max, FEED_EVENTS_TRIMMED_MAX) > 0

    # -- local bytes that no row names ----------------------------------------------------------------------

    def drop_later(self, inode: Inode, version: Version) -> None:
        """Remove local bytes once the change that gave them up survives loss of power; its D row is written."""
        self.removed.pop((inode, version), None)
        if self.drops_left or (self.frozen and len(self.drops) >= self.settings.drops_pending_max):
            self.drops_left = True  # whoever changes very many files at once does not wait for the disk
            return
        self.drops.append((self.engine.position, inode, version))
        if len(self.drops) > self.settings.drops_pending_max:
            self.sync()
            self.reap(self.settings.drops_pending_max)

    def find_drops(self) -> None:
        """List local bytes without a row again, when there were too many to list and those listed are gone."""
        if not self.drops_left or self.drops:
            return
        with self.engine.read() as reader:
            rows = (keys.dropped_of(bytes(key)) for key, _ in reader.scan(keys.DROPPED, prefix_stop(keys.DROPPED)))
            wanted = (place for place in rows if place not in self.removed)
            found = list(itertools.islice(wanted, self.settings.drops_pending_max))
            for inode, version in found:
                row = inodes.find(reader, inode)
                if row is not None and row.version == version and row.state is not FileState.STUB:
                    raise IndexBroken(what="the tree", why=f"local bytes of inode {inode} are wanted and given up")
        self.drops_left = len(found) == self.settings.drops_pending_max
        self.drops.extend((self.engine.position, inode, version) for inode, version in found)

    def reap(self, files_max: int = REAP_FILES_MAX) -> int:
        """Remove local bytes whose end is synced, at most so many files; returns how many were dealt with.

        Their D rows stay until `forget_removed`: loss of power may bring them back.
        """
        if len(self.removed) > self.settings.drops_pending_max:
            try:
                self.sync_removed()
            except (NoSpace, TooManyOpen) as problem:  # no reason to refuse whatever made somebody remove
                _LOG.warning("tree.removals_wait", extra={"why": str(problem)})
                self.drops_left = True
                return 0
        synced = self.engine.synced
        ready = itertools.takewhile(lambda drop: drop[0] <= synced, itertools.islice(self.drops, files_max))
        done = [(inode, version) for _, inode, version in ready]
        for inode, version in done:
            self.spool.remove(inode, version)
            self.faults.reach("tree.unlinked")
            self._removals += 1
            self.removed[inode, version] = self._removals
        for _ in done:
            self.drops.popleft()
        return len(done)

    def sync_removed(self) -> None:
        """Make what was removed stay away, and forget it. Blocks.

        Raises NoSpace, TooManyOpen; StorageFailed, and the tree ends.
        """
        removed = dict(self.removed)
        try:
            self.spool.sync_places(removed)
        except StorageFailed as error:
            self.fail(error)
            raise
        self.forget_removed(removed)

    def forget_removed(self, synced: Mapping[tuple[Inode, Version], int]) -> None:
        """The removal of these survives loss of power now: their D rows go, of those that were not used again since."""
        done = [place for place, number in synced.items() if self.removed.get(place) == number]
        if done and self.failure is None:
            with self.engine.write() as tx:
                for inode, version in done:
                    tx.delete(keys.dropped(inode, version))
            for place in done:
                del self.removed[place]

    def drop_now(self, inode: Inode, version: Version) -> None:
        """Forget a waiting drop because its place is about to be used again; the caller removes the D row."""
        self.removed.pop((inode, version), None)
        with contextlib.suppress(ValueError):
            waiting = next((drop for drop in self.drops if drop[1:] == (inode, version)), None)
            if waiting is not None:
                self.drops.remove(waiting)
            if waiting is not None or self.drops_left:
                self.spool.remove(inode, version)


class Change:
    """One transaction over the tree; a context manager."""

    __slots__ = ("_before", "_block", "_drops", "_more", "_rows", "_told", "core", "tx")

    def __init__(self, core: Core) -> None:
        self.core = core
        self._rows: dict[Inode, InodeRow | None] = {}
        self._before: dict[Inode, InodeRow | None] = {}
        self._drops: list[tuple[Inode, Version]] = []
        self._told: set[Inode] = set()
        self._more: dict[RepositoryId, tuple[int, int]] = {}
        self._block = core.engine.write()

    def __enter__(self) -> Change:
        try:
            self.tx: Transaction = self._block.__enter__()
        except StorageFailed as failed:
            self.core.fail(failed)  # some sync of others failed
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._block.__exit__(kind, error, trace)
            return
        core = self.core
        try:
            for inode, row in self._rows.items():
                self._write(inode, row)
            used = core.usage.record(self.tx, self._more) if self._more else None
            if core.asked:
                meta.set_bytes(self.tx, meta.ASKED, core.asked)
        except BaseException as failed:
            self._block.__exit__(type(failed), failed, failed.__traceback__)
            raise
        try:
            self._block.__exit__(None, None, None)
        except StorageFailed as failed:
            core.fail(failed)
            raise
        for inode, row in self._rows.items():
            if row is None:
                core.rows.pop(inode, None)
                core.remember_gone(inode, self._before[inode])
            else:
                core.remember(inode, row)
        if used:
            core.usage.recorded(used)
        core.faults.reach("tree.logged")
        for inode, version in self._drops:
            core.drop_later(inode, version)

    def _write(self, inode: Inode, row: InodeRow | None) -> None:
        before = self._before[inode]
        if row is before:
            return
        if row is None:
            if before is not None:
                self._count(before, -1, -inodes.bytes_used(before))
        elif before is None:
            self._count(row, 1, inodes.bytes_used(row))
        elif row.size_bytes != before.size_bytes:
            self._count(row, 0, row.size_bytes - before.size_bytes)
        if inode not in self._told and row is not None and (before is None or row[:15] != before[:15]):  # not its due
            self.event(EventKind.ATTRIBUTES, inode, row.version)
        if before is not None and before.due != NOT_QUEUED:
            if row is not None and before[13:16] == row[13:16]:  # version, state and due are the same
                inodes.put(self.tx, inode, row)
                return
            queue.remove(self.tx, Candidate(inode, before.version, before.state, before.due))
        if row is None:
            inodes.delete(self.tx, inode)
            return
        if row.due != NOT_QUEUED:
            queue.put(self.tx, Candidate(inode, row.version, row.state, row.due))
        inodes.put(self.tx, inode, row)

    def _count(self, row: InodeRow, files: int, size_bytes: int) -> None:
        """Its repository has so much more; the root is in none."""
        number = row.repository
        if number != ROOT_REPOSITORY:
            known = self._more.get(number)
            self._more[number] = (files, size_bytes) if known is None else (known[0] + files, known[1] + size_bytes)

    def row(self, inode: Inode) -> InodeRow:
        """The row as this change leaves it so far. Raises NotFound."""
        if inode in self._rows:
            row = self._rows[inode]
        else:
            row = self._before[inode] = self.core.find(inode, self.tx)
            if row is not None:
                self._rows[inode] = row
        if row is None:
            raise NotFound(what=f"inode {inode}")
        return row

    def new(self, inode: Inode, row: InodeRow) -> None:
        """Store the row of an inode that never was."""
        self._before[inode] = None
        self._rows[inode] = row

    def set(self, inode: Inode, row: InodeRow) -> None:
        """Store the row of an inode that was read in this change."""
        self._rows[inode] = row

    def delete(self, inode: Inode) -> None:
        """Forget an inode that was read in this change."""
        self._rows[inode] = None

    def drop(self, inode: Inode, version: Version) -> None:
        """Give up local bytes: they are removed once this change survives loss of power."""
        self.tx.put(keys.dropped(inode, version), b"")
        self._drops.append((inode, version))

    def put_rules(self, repository: Repository) -> None:
        """Store a repository's rules and where it stands, and say so."""
        repositories.put(self.tx, repository)
        self.event(EventKind.ATTRIBUTES, Inode(repository.id), NO_VERSION)

    def event(
        self,
        kind: EventKind,
        inode: Inode,
        version: Version,
        parent: Inode = NO_INODE,
        name: bytes = b"",
        detail: int = 0,
    ) -> None:
        """Tell the feed, which also hears of any other inode whose row this change leaves different."""
        self._told.update((inode, parent))
        self.core.feed.append(self.tx, Event(kind, inode, version, parent, name, detail))
