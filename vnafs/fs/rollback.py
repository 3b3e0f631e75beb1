"""Rollback: make a repository's tree what it was at a moment, in bounded steps that may be interrupted anywhere.

From the top down each directory's names become those of then (`vnafs.fs.retrace`): a directory is done only once its
own place is right, so nothing is ever moved into itself. What has no place in the tree of then goes, and what is not
kept yet (bytes that are still to be packed, directories with names in them) goes to *limbo* first, a directory without
a name: there it is copied like anything else and removed once it is kept. So nothing is lost, and a rollback to the
moment before undoes this one. While names are moved clients may change nothing.

Progress is rows (`vnafs.index.rollbacks`, and the repository's own). One thread; each step is one transaction.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import logging
import stat
from collections.abc import Callable, Iterator

from vnafs.domain.actors import SYSTEM, Actor
from vnafs.domain.clock import NANOSECONDS, Instant
from vnafs.domain.errors import Busy, InvalidArgument, NotFound, Refused
from vnafs.domain.events import EventKind
from vnafs.domain.files import FileState
from vnafs.domain.ids import Inode, RepositoryId, Version
from vnafs.domain.repositories import Repository
from vnafs.fs import auditing, guard, retention
from vnafs.fs.core import NO_INODE, Change, Core
from vnafs.fs.removal import end, unname
from vnafs.fs.rename import give, take
from vnafs.fs.retrace import NOWHERE, Move, Outcome, may_go_at_once, moves
from vnafs.fs.revival import revive
from vnafs.index import entries, keys, past, rollbacks, unpacked
from vnafs.index.engine import Reader, prefix_stop
from vnafs.index.entries import Entry
from vnafs.index.inodes import NOT_QUEUED, InodeRow
from vnafs.index.past import PastVersion
from vnafs.index.queue import DUE_NEVER
from vnafs.index.rollbacks import Folder

_LOG = logging.getLogger(__name__)

NAMES_PER_STEP_MAX = 256
SAMPLES_MAX = 20
"""Paths of each outcome that a dry run shows."""
LIMBO_LOOK_SECONDS = 2.0
"""Between two looks at what waits to be copied before it goes."""
UNPACKED_SECONDS_MAX = 300.0
"""A rollback waits so long, from when it was begun, for versions that are still to be packed; then it goes without."""
_QUIET = frozenset((Outcome.UNCHANGED, Outcome.LOST, Outcome.GUARDED))


@dataclasses.dataclass(slots=True)
class Preview:
    """What a rollback would do."""

    counts: collections.Counter[Outcome] = dataclasses.field(default_factory=collections.Counter)
    samples: dict[Outcome, list[bytes]] = dataclasses.field(default_factory=dict)


class Rollbacks:
    """Begins rollbacks and takes them on, step by step."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._limbo_after: dict[RepositoryId, bytes] = {}
        self._limbo_due = 0.0
        self._made_from: dict[RepositoryId, Inode] = {}

    # -- asking ---------------------------------------------------------------------------------------------

    def check(self, number: RepositoryId, to_ns: int) -> Repository:
        """The repository, if it can be made what it was then. Raises NotFound, InvalidArgument, Refused."""
        core = self._core
        repository = core.repositories.get(number)
        top = core.find(Inode(number))
        if repository is None or top is None:
            raise NotFound(what=f"repository {number}")
        now = core.clock.now()
        if to_ns > now:
            raise InvalidArgument(why="that time is still to come")
        if to_ns < top.birth_ns:
            raise Refused(what="Rolling back that far", why="the repository did not exist then")
        if to_ns < now - repository.versions_kept_seconds * NANOSECONDS:
            days = repository.versions_kept_seconds / 86400
            raise Refused(what="Rolling back that far", why=f"the repository keeps versions for {days:g} days")
        return repository

    def preview(self, number: RepositoryId, to_ns: int, into: Preview) -> Iterator[None]:
        """Find out what a rollback would do, a bounded piece at a time; yields between them. Raises as `check`."""
        self.check(number, to_ns)
        folders = [(Folder(Inode(number), Inode(number)), b"")]
        while folders:
            folder, path = folders.pop()
            with self._core.engine.read() as reader:
                names = moves(reader, folder.inode, folder.was, to_ns, folder.after, is_rooted=self._is_rooted)
                found = list(itertools.islice(names, NAMES_PER_STEP_MAX))
            if len(found) == NAMES_PER_STEP_MAX:
                folders.append((folder._replace(after=found[-1].name), path))
            for move in found:
                into.counts[move.outcome] += 1
                below = path + b"/" + move.name if path else move.name
                samples = into.samples.setdefault(move.outcome, [])
                if move.outcome is not Outcome.UNCHANGED and len(samples) < SAMPLES_MAX:
                    samples.append(below)
                if move.is_directory:
                    folders.append((Folder(move.live, move.was), below))
            yield

    # -- beginning ------------------------------------------------------------------------------------------

    def begin(self, number: RepositoryId, to_ns: int, by: Actor = SYSTEM) -> None:
        """From now on clients change nothing, and `step` does the work. The same again goes on with it.

        Survives loss of power when it returns. Raises as `check`, Busy while another one is under way, Superseded.
        """
        core = self._core
        if core.superseded is not None:
            raise core.superseded
        repository = self.check(number, to_ns)
        if repository.rolling_to_ns:
            if repository.rolling_to_ns == to_ns:
                return
            raise Busy(what=f"Repository {repository.name}", why="another rollback is under way there")
        limbo = repository.limbo or core.new_inode()
        now = core.clock.now()
        rolled = dataclasses.replace(repository, rolling_to_ns=to_ns, rolling_since_ns=now, limbo=limbo)
        with core.change() as change:
            if not repository.limbo:
                row = InodeRow(
                    stat.S_IFDIR | 0o700, 0, 0, 2, 0, 0, now, now, now, now,
                    number, Inode(number), 0, Version(0), FileState.OPEN, NOT_QUEUED,
                )  # fmt: skip
                change.new(limbo, row)
                change.event(EventKind.ATTRIBUTES, limbo, Version(0))
            rollbacks.put_folder(change.tx, number, Folder(Inode(number), Inode(number)))
            rollbacks.put_counts(change.tx, number, {})
            change.put_rules(rolled)
            auditing.note(change, by, "rollback", Inode(number), to_ns=to_ns)
        self._stands(rolled)
        core.sync()
        _LOG.warning("rollback.begun", extra={"repository": number, "to_ns": to_ns})

    def _is_rooted(self, reader: Reader, inode: Inode) -> bool:
        return bool(self._core.guarded) and guard.is_rooted(self._core, reader, inode)

    def _stands(self, repository: Repository) -> None:
        self._core.repositories[repository.id] = repository
        self._core.repositories_changed()

    def counts(self, number: RepositoryId) -> dict[str, int]:
        """What the rollback under way, or the last one, has done so far."""
        with self._core.engine.read() as reader:
            return rollbacks.counts(reader, number)

    # -- going on -------------------------------------------------------------------------------------------

    def step(self) -> bool:
        """Take every rollback on a little; whether there is more to do at once. Raises NoSpace."""
        core = self._core
        if core.failure is not None or core.superseded is not None:
            return False
        more = False
        for repository in list(core.repositories.values()):
            if repository.rolling_to_ns:
                more |= self._roll(repository)
        if not more and core.clock.monotonic() >= self._limbo_due:
            self._limbo_due = core.clock.monotonic() + LIMBO_LOOK_SECONDS
            for repository in list(core.repositories.values()):
                if repository.limbo and not repository.rolling_to_ns:
                    more |= self._let_go(repository)
        return more

    def _roll(self, repository: Repository) -> bool:
        core = self._core
        if core.watcher.is_behind():
            return False
        with core.engine.read() as reader:
            since = core.clock.now() - repository.rolling_since_ns
            if unpacked.is_in(reader, repository.id) and 0 <= since < UNPACKED_SECONDS_MAX * NANOSECONDS:
                return False
            folder = rollbacks.next_folder(reader, repository.id)
            found: list[Move] = []
            if folder is not None:
                to_ns = repository.rolling_to_ns
                names = moves(reader, folder.inode, folder.was, to_ns, folder.after, is_rooted=self._is_rooted)
                found = list(itertools.islice(names, NAMES_PER_STEP_MAX))
        if folder is None:
            return self._clear(repository)
        changing = sum(move.outcome not in _QUIET or move.live not in {NOWHERE, move.was} for move in found)
        numbers = iter([core.new_inode() for _ in range(changing)])
        cookies = iter([core.new_cookie() for _ in range(2 * changing)])
        now = core.clock.now()
        with core.change() as change:
            work = _Work(change, repository, folder, now, lambda: next(cookies), lambda: next(numbers))
            for move in found:
                work.do(move)
            if len(found) == NAMES_PER_STEP_MAX:
                rollbacks.put_folder(change.tx, repository.id, folder._replace(after=found[-1].name))
            else:
                rollbacks.remove_folder(change.tx, repository.id, folder.inode)
            counts = collections.Counter(rollbacks.counts(change.tx, repository.id))
            counts.update(move.outcome.value for move in found)
            rollbacks.put_counts(change.tx, repository.id, counts)
        core.faults.reach("rollback.step")
        for parent, name in work.names_changed:
            core.watcher.entry_changed(parent, name)
        for inode in {folder.inode, *work.inodes_changed}:
            core.watcher.attributes_changed(inode)
        return True

    # -- what has no place any more -------------------------------------------------------------------------

    def _clear(self, repository: Repository) -> bool:
        """Take directories in limbo apart; the last of them gone, clients may change things again."""
        core = self._core
        folder = self._folder_in(repository.limbo)
        cookies = iter([core.new_cookie() for _ in range(NAMES_PER_STEP_MAX + 1)])
        now = core.clock.now()
        done = False
        more_from: Inode | None = None
        with core.change() as change:
            if folder is not None:
                name, entry = folder
                work = _Work(
                    change, repository, Folder(entry.inode, NOWHERE), now, lambda: next(cookies), core.new_inode
                )
                below = _some(change, entry.inode)
                for other in below:
                    work.clear(other, is_out=True)
                if len(below) < NAMES_PER_STEP_MAX:
                    _remove(change, repository.limbo, name, entry, now)
            else:
                first = self._made_from.get(repository.id, NO_INODE)
                more_from = rollbacks.forget_made(change.tx, repository.id, first, 4 * NAMES_PER_STEP_MAX)
                if more_from is None:
                    change.put_rules(dataclasses.replace(repository, rolling_to_ns=0))
                    done = True
        core.faults.reach("rollback.cleared")
        if not done:
            if more_from is not None:
                self._made_from[repository.id] = more_from
            return True
        self._made_from.pop(repository.id, None)
        self._stands(dataclasses.replace(repository, rolling_to_ns=0))
        core.sync()
        _LOG.warning("rollback.done", extra={"repository": repository.id, **self.counts(repository.id)})
        return False

    def _folder_in(self, limbo: Inode) -> tuple[bytes, Entry] | None:
        """A directory in limbo. Their names come first."""
        prefix = keys.entries(limbo)
        with self._core.engine.read() as reader:
            for key, value in reader.scan(prefix, prefix_stop(prefix)):
                entry = entries.decode(bytes(value))
                return (keys.entry_of(bytes(key))[1], entry) if entry.is_directory else None
        return None

    def _let_go(self, repository: Repository) -> bool:
        """Remove what waited in limbo and is kept now, and in the end limbo itself."""
        core = self._core
        now = core.clock.now()
        prefix = keys.entries(repository.limbo)
        after = self._limbo_after.get(repository.id, b"")
        with core.engine.read() as reader:
            rows = itertools.islice(reader.scan(prefix + after, prefix_stop(prefix)), NAMES_PER_STEP_MAX)
            found = [(keys.entry_of(bytes(key))[1], entries.decode(bytes(value))) for key, value in rows]
        self._limbo_after[repository.id] = found[-1][0] + b"\0" if len(found) == NAMES_PER_STEP_MAX else b""
        if not found and not after:
            with core.change() as change:
                end(change, repository.limbo, change.row(repository.limbo), now)
                change.put_rules(dataclasses.replace(repository, limbo=NO_INODE))
            self._stands(dataclasses.replace(repository, limbo=NO_INODE))
            return False
        with core.change() as change:
            for name, entry in found:
                row = change.row(entry.inode)
                may_go = not row.is_file or row.state >= FileState.PACKED
                if may_go and guard.why_it_stays(core, change.tx, entry.inode, row) is None:
                    _remove(change, repository.limbo, name, entry, now)
        return len(found) == NAMES_PER_STEP_MAX


@dataclasses.dataclass(slots=True)
class _Work:
    """What one step does to the names of one directory, inside its change."""

    change: Change
    repository: Repository
    folder: Folder
    now: Instant
    cookie: Callable[[], int]
    number: Callable[[], Inode]
    names_changed: list[tuple[Inode, bytes]] = dataclasses.field(default_factory=list)
    inodes_changed: list[Inode] = dataclasses.field(default_factory=list)

    def do(self, move: Move) -> None:
        """Make one name what it was."""
        if move.clear and not self.clear(move.name):
            return
        if move.outcome in {Outcome.LOST, Outcome.REMOVED, Outcome.GUARDED}:
            return
        if move.live not in {NOWHERE, move.was} and not move.is_directory:
            self._stands(move)
            return
        inode, old = move.live, move.revive
        if old is None and not self._is_there(inode):
            old = past.last_version(self.change.tx, inode)  # it went a moment ago, with another name that it had
        if old is None:
            self._lead(move.name, inode)
        elif old.is_kept:
            inode = self._revived(move, old)
        if move.is_directory:
            rollbacks.put_folder(self.change.tx, self.repository.id, Folder(inode, move.was))

    def _stands(self, move: Move) -> None:
        """What has the name is what was there; so it is for every other name that was there."""
        known = rollbacks.made(self.change.tx, self.repository.id, move.was)
        if known is None:
            rollbacks.put_made(self.change.tx, self.repository.id, move.was, move.live)
        elif known != move.live and self._is_there(known) and self.clear(move.name):
            self._lead(move.name, known)

    def _is_there(self, inode: Inode) -> bool:
        try:
            self.change.row(inode)
        except NotFound:
            return False
        return True

    def _revived(self, move: Move, old: PastVersion) -> Inode:
        change, number = self.change, self.number()
        known = rollbacks.made(change.tx, self.repository.id, move.was)
        if known is not None and not move.is_directory and self._is_there(known):
            self._lead(move.name, known)
            return known
        revive(change, old, self.folder.inode, move.name, number, self.cookie(), self.now)
        rollbacks.put_made(change.tx, self.repository.id, move.was, number)
        self.names_changed.append((self.folder.inode, move.name))
        return number

    def _lead(self, name: bytes, inode: Inode) -> None:
        """Let a name lead to what is there: a directory comes from where it is, anything else gets one more name."""
        change, parent = self.change, self.folder.inode
        if entries.find(change.tx, parent, name) is not None:
            return  # it does already
        row = change.row(inode)
        entry = Entry(inode, 0, row.mode >> 12)
        if row.is_directory or row.parent == self.repository.limbo:
            place = entries.name_at(change.tx, row.parent, row.cookie, inode)
            if place is not None:
                take(change, row.parent, place, entries.find(change.tx, row.parent, place) or entry, self.now)
                self.names_changed.append((row.parent, place))
            give(change, parent, name, entry, self.cookie(), self.now)
        else:
            give(change, parent, name, entry, self.cookie(), self.now)
            retention.named(change, inode, row, parent)
            self._add_link(inode)
        self.names_changed.append((parent, name))
        self.inodes_changed.append(inode)

    def _add_link(self, inode: Inode) -> None:
        """One that had no name left and was only still open is a file again."""
        row = self.change.row(inode)
        due = row.due
        if not row.nlink:
            self.change.tx.delete(keys.orphan(inode))
            file = self.change.core.handles.files.get(inode)
            if not row.is_file or row.state is FileState.STUB:
                due = NOT_QUEUED
            elif row.state is FileState.OPEN:
                is_written = file is not None and file.writing >= 0
                due = DUE_NEVER if is_written or row.is_suspect else self.change.core.quiet_until()
            else:
                due = self.now
        self.change.set(inode, row._replace(nlink=row.nlink + 1, due=due))

    def clear(self, name: bytes, *, is_out: bool = False) -> bool:
        """Free a name: what it leads to goes, or waits in limbo; False when it is retained or held and stays.

        *is_out*: it is out of the tree already.
        """
        change, parent = self.change, self.folder.inode
        entry = entries.find(change.tx, parent, name)
        if entry is None:
            return True  # moved to its place already
        is_rooted = bool(change.core.guarded) and guard.is_rooted(change.core, change.tx, entry.inode)
        if is_rooted and not is_out:
            return False
        row = change.row(entry.inode)
        self.names_changed.append((parent, name))
        if row.is_directory:
            may_go = entries.is_empty(change.tx, entry.inode) and row.birth_ns > self.repository.rolling_to_ns
        else:
            may_go = row.nlink > 1 or may_go_at_once(change.tx, entry.inode, row, self.repository.rolling_to_ns)
        if may_go and not is_rooted:
            _remove(change, parent, name, entry, self.now)
            return True
        cookie = self.cookie()
        kind = b"d" if row.is_directory else b"f"
        take(change, parent, name, entry, self.now)
        give(change, self.repository.limbo, kind + b"%x" % cookie, entry, cookie, self.now)
        return True


def _remove(change: Change, parent: Inode, name: bytes, entry: Entry, now: int) -> None:
    entries.delete(change.tx, parent, name, entry)
    above = change.row(parent)
    links = above.nlink - 1 if entry.is_directory else above.nlink
    change.set(parent, above._replace(nlink=links, mtime_ns=now, ctime_ns=now))
    is_open = entry.inode in change.core.handles.files
    unname(change, entry, parent=parent, name=name, is_open=is_open, now=now)


def _some(change: Change, parent: Inode) -> list[bytes]:
    """The first names of a directory."""
    prefix = keys.entries(parent)
    rows = itertools.islice(change.tx.scan(prefix, prefix_stop(prefix)), NAMES_PER_STEP_MAX)
    return [keys.entry_of(bytes(key))[1] for key, _ in rows]
