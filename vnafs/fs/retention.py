"""Retention: how files are committed, retained for longer or for less, and put under holds.

A file is committed by command, by the convention that archives and backup programs know (set atime to the date, then
take the write bits away), or by itself when it was sealed and then not changed for as long as its repository says.
What may wait for that stands in a queue (C rows) since it was sealed; files that were there before the rule are found
by one walk over all inodes that remembers where it is. What is protected then is said in `vnafs.fs.guard`.

Everything that an administrator does is noted with its reason (`vnafs.fs.auditing`); of any other commit the file's
own row says whose it was. One thread.
"""

from __future__ import annotations

import dataclasses
import enum
import itertools
import logging
import stat
from collections.abc import Sequence
from typing import Any

from vnafs.domain.actors import SYSTEM, Actor
from vnafs.domain.clock import NANOSECONDS
from vnafs.domain.errors import InvalidArgument, NotFound, Refused, Retained
from vnafs.domain.events import EventKind
from vnafs.domain.files import FileState
from vnafs.domain.ids import ROOT, Inode, RepositoryId
from vnafs.domain.repositories import Repository
from vnafs.domain.retention import SECONDS_MAX, Retention, RetentionMode, stronger
from vnafs.fs import auditing, guard
from vnafs.fs.attributes import AttributeChanges
from vnafs.fs.core import Change, Core
from vnafs.index import audits, entries, holds, inodes, keys, meta, retentions
from vnafs.index.engine import prefix_stop
from vnafs.index.holds import Hold
from vnafs.index.inodes import InodeRow
from vnafs.index.retentions import Committing

_LOG = logging.getLogger(__name__)

COMMITTED_PER_STEP_MAX = 128
WALKED_PER_STEP_MAX = 256
FILES_AT_ONCE_MAX = 256
"""In one command's call, which is one transaction."""
_FILE = entries.kind_of(stat.S_IFREG)
NAME_BYTES_MAX = 64
REASON_BYTES_MAX = 1024
WRITE_BITS = 0o222


@dataclasses.dataclass(frozen=True, slots=True)
class Guarded:
    """What protects one inode."""

    inode: Inode
    retention: Retention | None
    is_over: bool
    """Of the retention, by the steady clock."""
    holds: tuple[Hold, ...]


class _Done(enum.Enum):
    """What a command did to one file."""

    NOTHING = enum.auto()
    RETAINED = enum.auto()
    SHORTENED = enum.auto()


class Retentions:
    """Commits, retains and holds."""

    def __init__(self, core: Core) -> None:
        self._core = core
        with core.engine.read() as reader:
            self._walked = meta.get_bytes(reader, retentions.WALK)
        """None: no walk is under way."""

    # -- by command -----------------------------------------------------------------------------------------

    def retain(
        self,
        files: Sequence[tuple[Inode, Inode]],
        *,
        until_ns: int | None = None,
        seconds: int | None = None,
        shorten: bool = False,
        reason: str = "",
        by: Actor = SYSTEM,
    ) -> list[bool]:
        """Commit files until a date or for a time, or retain them for longer; which of them changed, in order.

        Each file comes with a directory that has a name of it. One that is retained for as long stays as it is,
        unless *shorten*, which needs a *reason* and is never done to compliance. All of them or none. Survives loss of
        power when it returns. Raises NotFound, InvalidArgument, Refused, Retained, NotPermitted.
        """
        core = self._core
        if len(files) > FILES_AT_ONCE_MAX:
            raise InvalidArgument(why=f"{len(files)} files at once are more than {FILES_AT_ONCE_MAX}")
        self._check_here()
        if shorten:
            _check_text("a reason", reason, REASON_BYTES_MAX)
        until = self._until(until_ns, seconds, shorten=shorten)
        with core.change() as change:
            why = reason if shorten else ""
            done = [self._retain(change, file, place, until, why, by) for file, place in files]
            longer = [file for (file, _), what in zip(files, done, strict=True) if what is _Done.RETAINED]
            if longer:  # one row for all of them: each says itself who did it
                auditing.note(change, by, "retained", longer[0], files=len(longer), until_ns=until, reason=reason)
        changed = [what is not _Done.NOTHING for what in done]
        self._settled([file for (file, _), is_new in zip(files, changed, strict=True) if is_new])
        return changed

    def _until(self, until_ns: int | None, seconds: int | None, *, shorten: bool) -> int:
        start = self._core.time.latest()
        if (until_ns is None) == (seconds is None):
            raise InvalidArgument(why="a retention has a date or a length")
        until = until_ns if until_ns is not None else start + (seconds or 0) * NANOSECONDS
        if until <= start and not shorten:
            raise InvalidArgument(why="that date is over")
        check_date(until, start)
        return until

    def _retain(self, change: Change, inode: Inode, place: Inode, until_ns: int, shorter_why: str, by: Actor) -> _Done:
        core = self._core
        row = change.row(inode)
        if not row.is_file:
            raise InvalidArgument(why=f"inode {inode} is no file; only files are committed")
        if not row.nlink:
            raise NotFound(what=f"a name of inode {inode}")
        repository = core.repositories[row.repository]
        known = retentions.find(change.tx, inode)
        if repository.retention is RetentionMode.OFF and known is None:
            raise Refused(
                what=f"Retention in repository {repository.name}",
                why="its retention is off; see `vna repository set --retention`",
            )
        if not shorter_why or known is None or known.until_ns <= until_ns:
            if place:
                mark(change, place, row.repository, until_ns)
            return _Done.RETAINED if commit(change, inode, row, until_ns, by) else _Done.NOTHING
        if stronger(known.mode, repository.retention) is RetentionMode.COMPLIANCE:
            raise Retained(
                what=f"Inode {inode}", until=guard.shown(known.until_ns), mode=RetentionMode.COMPLIANCE.value
            )
        retentions.put(change.tx, inode, dataclasses.replace(known, until_ns=until_ns, by=by))
        change.set(inode, row._replace(atime_ns=until_ns))
        dates = {"before_ns": known.until_ns, "until_ns": until_ns}
        auditing.note(change, by, "shortened", inode, version=row.version, **dates, reason=shorter_why)
        _LOG.warning("retention.shortened", extra={"inode": inode, "before": known.until_ns, "until": until_ns})
        return _Done.SHORTENED

    # -- holds ----------------------------------------------------------------------------------------------

    def hold(self, inode: Inode, name: str, reason: str, by: Actor = SYSTEM) -> Hold:
        """Lay a hold on a file, a directory with all below it, or a repository; one of that name gets the reason.

        Survives loss of power when it returns. Raises NotFound, InvalidArgument, TooMuch.
        """
        core = self._core
        _check_text("the id of a hold", name, NAME_BYTES_MAX)
        _check_text("a reason", reason, REASON_BYTES_MAX)
        self._check_here()
        if inode == ROOT:
            raise InvalidArgument(why="a hold lies on a repository or on something in it, not on the mount")
        known = {hold.name: hold for hold in core.holds.lying_on(inode)}.get(name)
        if known is None:
            core.holds.check_room()
        fresh, now = core.new_inode(), core.clock.now()
        with core.change() as change:
            row = change.row(inode)
            if not row.nlink:
                raise NotFound(what=f"a name of inode {inode}")
            made = Hold(inode, name, row.repository, fresh, now, reason, row.is_directory)
            holds.put(change.tx, made)
            before = core.repositories[row.repository]
            rules = dataclasses.replace(before, was_guarded=True)
            if rules != before:
                change.put_rules(rules)
                self.rules_change(change, before, rules)
            auditing.note(change, by, "held", inode, version=row.version, id=name, reason=reason)
        core.repositories[rules.id] = rules
        core.repositories_changed()
        core.holds.add(made)
        core.sync()
        _LOG.warning("hold.added", extra={"inode": inode})
        return made

    def release(self, inode: Inode, name: str, reason: str, by: Actor = SYSTEM) -> None:
        """Take a hold away; what is under no other is free. Raises NotFound, InvalidArgument."""
        core = self._core
        _check_text("a reason", reason, REASON_BYTES_MAX)
        self._check_here()
        known = {hold.name: hold for hold in core.holds.lying_on(inode)}.get(name)
        if known is None:
            raise NotFound(what=f"Hold {name} on inode {inode}")
        with core.change() as change:
            version = change.row(inode).version
            holds.remove(change.tx, known)
            auditing.note(change, by, "released", inode, version=version, id=name, reason=reason)
        core.holds.drop(known)
        core.sync()
        _LOG.warning("hold.removed", extra={"inode": inode})

    # -- looking --------------------------------------------------------------------------------------------

    def of(self, inode: Inode) -> Guarded:
        """What protects an inode. Raises NotFound."""
        core = self._core
        with core.engine.read() as reader:
            row = core.row(inode, reader)
            found = core.holds.on(lambda number: core.find(number, reader), inode, row)
            retention = retentions.find(reader, inode) if row.is_file else None
        is_over = retention is not None and retention.is_over(core.time.now())
        return Guarded(inode, retention, is_over, tuple(found))

    def holds(self) -> list[Hold]:
        """Every hold, the oldest first."""
        return sorted(self._core.holds.all(), key=lambda hold: (hold.since_ns, hold.inode, hold.name))

    def audit(self, after: int, limit: int) -> list[tuple[int, dict[str, Any]]]:
        """At most so many things that were done, past *after*."""
        with self._core.engine.read() as reader:
            return list(itertools.islice(audits.every(reader, after), limit))

    # -- by itself ------------------------------------------------------------------------------------------

    def rules_change(self, change: Change, before: Repository, now: Repository) -> None:
        """Files are committed by themselves at another time, or at all: those that are there are looked for.

        In the change that says so: a rule without its walk would never reach them.
        """
        is_new = now.is_guarded and not before.is_guarded
        if is_new or now.autocommit_seconds not in {0, before.autocommit_seconds}:
            meta.set_bytes(change.tx, retentions.WALK, keys.ENTRIES)
            self._walked = keys.ENTRIES

    def step(self) -> bool:
        """Commit a little of what is due; whether there may be more to do at once. Raises NoSpace."""
        core = self._core
        if core.failure is not None:
            return False
        core.time.save_if_due()
        if core.superseded is not None or not core.guarded:
            return False
        is_automatic = any(rules.autocommit_seconds for rules in core.repositories.values())
        return (is_automatic and self._commit_due()) | self._walk()

    def _commit_due(self) -> bool:
        core = self._core
        now = core.time.now()
        with core.engine.read() as reader:
            found = list(itertools.islice(retentions.due(reader, now), COMMITTED_PER_STEP_MAX))
        if not found:
            return False
        with core.change() as change:
            done = [one.inode for one in found if self._look(change, one)]
        core.faults.reach("retention.committed")
        for inode in done:
            core.watcher.attributes_changed(inode)
        return len(found) == COMMITTED_PER_STEP_MAX

    def _look(self, change: Change, one: Committing) -> bool:
        """One that is due: committed if nothing changed, else due again; whether it was committed."""
        core = self._core
        retentions.remove(change.tx, one)
        row = core.find(one.inode, change.tx)
        rules = None if row is None else core.repositories.get(row.repository)
        if row is None or rules is None or not row.nlink or not rules.autocommit_seconds:
            return False
        if row.state is FileState.OPEN:
            return False  # comes back when it is sealed
        row = change.row(one.inode)
        if (row.version, row.ctime_ns) != (one.version, one.ctime_ns):
            queue(change, one.inode, row)
            return False
        known = retentions.find(change.tx, one.inode)
        if known is not None and not known.is_over(core.time.now()):
            return False
        return commit(change, one.inode, row, core.time.latest() + rules.retention_seconds * NANOSECONDS, SYSTEM)

    def _walk(self) -> bool:
        """Go on looking at files that were there before the rule: who waits, and who has several names where."""
        core = self._core
        if self._walked is None:
            return False
        with core.engine.read() as reader:
            rows = reader.scan(self._walked + b"\0", prefix_stop(keys.ENTRIES))
            found = [(bytes(key), bytes(raw)) for key, raw in itertools.islice(rows, WALKED_PER_STEP_MAX)]
        with core.change() as change:
            for key, raw in found:
                entry = entries.decode(raw)
                if entry.kind == _FILE:
                    self._meet(change, keys.entry_of(key)[0], entry.inode)
            if found:
                meta.set_bytes(change.tx, retentions.WALK, found[-1][0])
            else:
                meta.remove(change.tx, retentions.WALK)
        self._walked = found[-1][0] if found else None  # what found no room is looked at again
        return bool(found)

    def _meet(self, change: Change, parent: Inode, inode: Inode) -> None:
        """A name of a file on the walk."""
        row = inodes.find(change.tx, inode)
        if row is None or row.repository not in self._core.guarded:
            return
        if row.nlink > 1:
            named(change, inode, row, parent)
        if retentions.find(change.tx, inode) is None:
            queue(change, inode, row)

    # -- parts ----------------------------------------------------------------------------------------------

    def _check_here(self) -> None:
        if self._core.superseded is not None:
            raise self._core.superseded

    def _settled(self, changed: Sequence[Inode]) -> None:
        core = self._core
        for inode in changed:
            fix(core, inode)
            core.watcher.attributes_changed(inode)
        core.sync()


# -- inside the caller's change ----------------------------------------------------------------------------------


def commit(change: Change, inode: Inode, row: InodeRow, until_ns: int, by: Actor) -> bool:
    """Commit a file until then, or retain it until then if that is later; False when it is retained for as long.

    *row* is the file's as this change leaves it so far. Its atime says until when, as programs that know the
    convention expect. Whoever calls says `fix` afterwards.
    """
    core = change.core
    known = retentions.find(change.tx, inode)
    mode = core.repositories[row.repository].retention
    since: int = core.time.latest()
    if known is not None:
        mode, since = stronger(known.mode, mode), known.since_ns
        if mode is known.mode and until_ns <= known.until_ns:
            return False
        until_ns = max(until_ns, known.until_ns)
    retentions.put(change.tx, inode, Retention(mode, until_ns, since, by))
    for directory in {row.parent, *retentions.places(change.tx, inode)}:
        mark(change, directory, row.repository, until_ns)
    change.set(inode, row._replace(atime_ns=until_ns))
    change.event(EventKind.RETENTION, inode, row.version)
    return True


def mark(change: Change, directory: Inode, repository: RepositoryId, until_ns: int) -> None:
    """Directories above a retained file are not moved before its date. Looks up only as far as that is news."""
    while directory not in {Inode(0), ROOT, Inode(repository)}:
        row = change.core.find(directory, change.tx)
        if row is None or not retentions.raise_below(change.tx, directory, until_ns):
            return
        directory = row.parent


def named(change: Change, inode: Inode, row: InodeRow, parent: Inode) -> None:
    """A file has several names, one of them in *parent*; that stays for as long as the others.

    *row* knows only one of them, so it is noted where they are: when the file is committed, all of them stay.
    """
    if row.repository not in change.core.guarded or not row.is_file:
        return
    known = retentions.find(change.tx, inode)
    for directory in {row.parent, parent} - {Inode(0)}:
        retentions.name_in(change.tx, inode, directory)
        if known is not None:
            mark(change, directory, row.repository, known.until_ns)


def ended(change: Change, inode: Inode, row: InodeRow) -> None:
    """An inode is no more."""
    if row.repository not in change.core.guarded:
        return
    if row.is_directory:
        retentions.forget_below(change.tx, inode)
    elif row.is_file:
        retentions.forget_places(change.tx, inode)
        if retentions.forget(change.tx, inode):
            change.event(EventKind.RETENTION, inode, row.version)


def queue(change: Change, inode: Inode, row: InodeRow) -> None:
    """A file has its bytes: if nothing of it changes any more, it is committed by itself, where that is the rule."""
    core = change.core
    rules = core.repositories.get(row.repository)
    if rules is None or not rules.autocommit_seconds or row.state is FileState.OPEN:
        return
    due_ns = core.time.now() + rules.autocommit_seconds * NANOSECONDS
    retentions.queue(change.tx, Committing(due_ns, inode, row.version, row.ctime_ns))


def commit_by_mode(change: Change, inode: Inode, before: InodeRow, row: InodeRow, by: Actor) -> bool:
    """The convention: a file whose atime is a date to come loses its write bits. Raises InvalidArgument."""
    core = change.core
    if not row.is_file or not row.nlink or not before.mode & WRITE_BITS or row.mode & WRITE_BITS:
        return False
    start = core.time.latest()
    if core.repositories[row.repository].retention is RetentionMode.OFF or row.atime_ns <= start:
        return False
    check_date(row.atime_ns, start)
    return commit(change, inode, row, row.atime_ns, by)


def extends(core: Core, inode: Inode, row: InodeRow, changes: AttributeChanges) -> bool:
    """The convention: whether setting the atime of a committed file means that it is retained for longer."""
    atime_ns = changes.atime_ns
    if atime_ns is None or changes != AttributeChanges(atime_ns=atime_ns) or not row.is_file:
        return False
    with core.engine.read() as reader:
        known = retentions.find(reader, inode)
    return known is not None and atime_ns > max(known.until_ns, core.time.latest())


def extend(core: Core, inode: Inode, atime_ns: int, by: Actor) -> InodeRow:
    """Retain a committed file for longer; the row it has then. Raises InvalidArgument."""
    check_date(atime_ns, core.time.latest())
    with core.change() as change:
        commit(change, inode, change.row(inode), atime_ns, by)
    return core.row(inode)


def check_date(until_ns: int, start_ns: int) -> None:
    """Raises InvalidArgument for a date that nobody can mean."""
    if until_ns - start_ns > SECONDS_MAX * NANOSECONDS:
        raise InvalidArgument(why=f"a retention of more than {SECONDS_MAX // (365 * 86400)} years is a mistake")


def fix(core: Core, inode: Inode) -> None:
    """It was committed: whoever still has it open for write can write no more."""
    file = core.handles.files.get(inode)
    if file is not None:
        file.is_fixed = True


def _check_text(what: str, text: str, bytes_max: int) -> None:
    if not text.strip() or len(text.encode()) > bytes_max or "\0" in text:
        raise InvalidArgument(why=f"{what} is 1 to {bytes_max} bytes of text")
