"""Erasure: how files leave the tree for good, with every name and every version that is remembered of them.

What is retained or held stays, and says so; so does what is open, or on its way into packs: its hash is not known, or
somebody is reading its bytes. A file of several names goes only when every one of them was given: nothing disappears
from where nobody pointed at.

A file goes in one transaction with the rows that say what was erased (`vnafs.index.erasures`). Names that it had
elsewhere in the past lead nowhere from then on; they are found by one walk over what is remembered, a bounded number
of rows at a time, that begins anew after a crash. Whoever asks for many files may die between them: what was taken is
gone, and some time later the erasure goes on with that alone. Does not know packs or targets. One thread.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Sequence

from vnafs.domain.actors import SYSTEM, Actor
from vnafs.domain.clock import NANOSECONDS
from vnafs.domain.errors import InvalidArgument, NotFound, Refused, TooMuch
from vnafs.domain.events import EventKind, seal_detail
from vnafs.domain.files import FileState
from vnafs.domain.ids import NO_VERSION, ROOT, Inode, RepositoryId, Version
from vnafs.domain.repositories import Repository
from vnafs.fs import auditing, history, retention
from vnafs.fs.core import Change, Core
from vnafs.index import entries, erasures, holds, keeping, keys, meta, past, retentions, returned, unpacked, xattrs
from vnafs.index.engine import Reader, prefix_stop
from vnafs.index.erasures import Erased, Erasure, Stage
from vnafs.index.inodes import InodeRow
from vnafs.index.records import take_sized

_LOG = logging.getLogger(__name__)

AT_ONCE_MAX = 64
"""In one call, which is one transaction."""
FILES_MAX = 100_000
"""Of one erasure: what proves it goes over all of them each time."""
SWEPT_PER_STEP_MAX = 512
REMEMBERED_AT_ONCE_MAX = 1000
LEFT_SECONDS = 600
"""After which whoever was adding files is taken to have died."""
REASON_BYTES_MAX = 1024
ON_THEIR_WAY = "its bytes are on their way into packs; try again in a minute"


@dataclasses.dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be erased: an inode with all its names, or one that is gone and remembered, with none."""

    inode: Inode
    names: tuple[tuple[Inode, bytes], ...] = ()
    """Each a directory and a name in it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Remembered:
    """What a name led to, and what is not in the tree any more."""

    inode: Inode
    name: bytes
    is_directory: bool


class Erasures:
    """Begins erasures and takes them on."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._is_idle = False
        """Nothing is under way; told without a look at every erasure there ever was."""

    # -- looking --------------------------------------------------------------------------------------------

    def every(self) -> list[Erasure]:
        """All there ever were, the oldest first."""
        with self._core.engine.read() as reader:
            return list(erasures.every(reader))

    def remembered(self, directory: Inode, name: bytes = b"", after: bytes = b"") -> list[Remembered]:
        """What names in a directory led to that is gone: those past *after*, or the one *name*. Bounded."""
        found: dict[tuple[Inode, bytes], Remembered] = {}
        with self._core.engine.read() as reader:
            names = past.names_of(reader, directory, name) if name else past.names_in(reader, directory, after)
            last = b""
            for one in names:
                if len(found) >= REMEMBERED_AT_ONCE_MAX and one.name != last:
                    break  # one name as a whole: whoever goes on does so after it
                last = one.name
                if self._core.find(one.inode, reader) is not None or past.last_version(reader, one.inode) is None:
                    continue
                found.setdefault((one.inode, one.name), Remembered(one.inode, one.name, one.kind == entries.DIRECTORY))
        return list(found.values())

    def refusals(self, repository: RepositoryId, wanted: Sequence[Wanted]) -> list[tuple[str, ...]]:
        """Why each of them stays; nothing where it would go. A directory is taken to be empty by then."""
        _check_count(wanted)
        rules = self._rules(repository)
        with self._core.engine.read() as reader:
            return [self._why(reader, rules, one) for one in wanted]

    # -- erasing --------------------------------------------------------------------------------------------

    def begin(self, repository: RepositoryId, reason: str, by: Actor = SYSTEM) -> Erasure:
        """An erasure of nothing yet. Raises NotFound, InvalidArgument, Refused, Superseded."""
        core = self._core
        if not reason.strip() or len(reason.encode()) > REASON_BYTES_MAX or "\0" in reason:
            raise InvalidArgument(why=f"a reason is 1 to {REASON_BYTES_MAX} bytes of text")
        rules = self._rules(repository)
        if why := _why_frozen(rules):
            raise Refused(what=f"Erasing in repository {rules.name}", why=why)
        number, now = core.new_inode(), core.clock.now()
        begun = Erasure(number, Stage.TAKING, repository, now, now, 0, reason)
        with core.change() as change:
            self._note(change, begun)
            auditing.note(change, by, "erasure", Inode(repository), id=begun.id, reason=reason)
        self._is_idle = False
        core.sync()
        _LOG.warning("erase.begun", extra={"erasure": begun.id, "repository": repository})
        return begun

    def add(self, number: int, wanted: Sequence[Wanted]) -> list[tuple[str, ...]]:
        """Erase some files and empty directories, at once and for good; why each that stays does.

        Survives loss of power when it returns. Raises NotFound, InvalidArgument, Refused, TooMuch, Superseded.
        """
        core = self._core
        _check_count(wanted)
        with core.engine.read() as reader:
            erasure = erasures.find(reader, number)
        rules = self._rules(erasure.repository)
        if erasure.files + len(wanted) > FILES_MAX:
            raise TooMuch(what="That erasure", limit=f"{FILES_MAX} files", fix="Erase one folder after the other")
        if erasure.stage is not Stage.TAKING:
            raise Refused(what=f"Adding to erasure {erasure.id}", why="it has all its files")
        now, found = core.clock.now(), []
        taken: list[Wanted] = []
        with core.change() as change:
            for one in wanted:
                why = self._why(change.tx, rules, one, change=change)
                found.append(why)
                if not why:
                    self._take(change, number, one, now)
                    taken.append(one)
            self._note(change, dataclasses.replace(erasure, touched_ns=now, files=erasure.files + len(taken)))
        core.faults.reach("erase.taken")
        core.sync()
        for parent, name in itertools.chain.from_iterable(one.names for one in taken):
            core.watcher.entry_changed(parent, name)
            core.watcher.attributes_changed(parent)
        return found

    def finish(self, number: int) -> Erasure:
        """It has all its files. May be repeated. Raises NotFound."""
        core = self._core
        with core.engine.read() as reader:
            erasure = erasures.find(reader, number)
        if erasure.stage is not Stage.TAKING:
            return erasure
        erasure = dataclasses.replace(erasure, stage=Stage.SWEEPING, touched_ns=core.clock.now())
        with core.change() as change:
            self._note(change, erasure)
            meta.remove(change.tx, erasures.SWEPT)  # a walk under way begins anew: it is for all of them
        core.sync()
        _LOG.warning("erase.taken", extra={"erasure": erasure.id, "files": erasure.files})
        return erasure

    # -- by itself ------------------------------------------------------------------------------------------

    def step(self) -> bool:
        """Go on with what was begun; whether there may be more to do at once. Raises NoSpace."""
        core = self._core
        if self._is_idle or core.failure is not None or core.superseded is not None:
            return False
        with core.engine.read() as reader:
            known = [erasure for erasure in erasures.every(reader) if erasure.stage is not Stage.OVER]
        self._is_idle = not known
        before = core.clock.now() - LEFT_SECONDS * NANOSECONDS
        for erasure in known:
            if erasure.stage is Stage.TAKING and erasure.touched_ns < before:
                self.finish(erasure.number)
                return True
        sweeping = [erasure for erasure in known if erasure.stage is Stage.SWEEPING]
        return bool(sweeping) and self._sweep(sweeping)

    def _sweep(self, sweeping: list[Erasure]) -> bool:
        core = self._core
        with core.engine.read() as reader:
            after = meta.get_bytes(reader, erasures.SWEPT) or keys.ENDINGS
            rows = reader.scan(after + b"\0", prefix_stop(keys.ENDINGS))
            found = [(bytes(key), bytes(value)) for key, value in itertools.islice(rows, SWEPT_PER_STEP_MAX)]
        with core.change() as change:
            for key, value in found:
                inode = keys.ending_of(key)[2]
                if any(erasures.has(change.tx, erasure.number, inode) for erasure in sweeping):
                    change.tx.delete(key)
                    _forget(change, value)
            if found:
                meta.set_bytes(change.tx, erasures.SWEPT, found[-1][0])
            else:
                meta.remove(change.tx, erasures.SWEPT)
                for erasure in sweeping:
                    over = dataclasses.replace(erasure, stage=Stage.OVER, touched_ns=core.clock.now())
                    self._note(change, over)
        core.faults.reach("erase.swept")
        return bool(found)

    # -- parts ----------------------------------------------------------------------------------------------

    def _rules(self, repository: RepositoryId) -> Repository:
        core = self._core
        if core.superseded is not None:
            raise core.superseded
        rules = core.repositories.get(repository)
        if rules is None:
            raise NotFound(what=f"repository {repository}")
        return rules

    @staticmethod
    def _note(change: Change, erasure: Erasure) -> None:
        erasures.put(change.tx, erasure)
        change.event(EventKind.ERASED, Inode(0), NO_VERSION, detail=erasure.number)

    def _why(self, reader: Reader, rules: Repository, one: Wanted, *, change: Change | None = None) -> tuple[str, ...]:
        """Every reason why one of them stays. In a *change* it is about to go."""
        if one.inode in {ROOT, Inode(rules.id)}:
            return ("it is the repository itself; see `vna repository remove`",)
        found = [why] if (why := _why_frozen(rules)) else []
        row = self._core.find(one.inode, reader) if change is None else _row(change, one.inode)
        if row is None:
            return (*found, *self._why_remembered(reader, rules, one))
        if row.repository != rules.id:
            return ("it is in another repository",)
        found += keeping.reasons(reader, self._core.holds, one.inode, row)
        handles = self._core.handles
        if one.inode in handles.files or one.inode in handles.ending:
            found.append("it is open")
        leading = {
            (parent, name)
            for parent, name in one.names
            if (entry := entries.find(reader, parent, name)) is not None and entry.inode == one.inode
        }
        links = 1 if row.is_directory else row.nlink
        if len(leading) != links:
            found.append(f"{len(leading)} of its {links} names were given, and it goes with all of them or not at all")
        if row.is_directory and change is not None and not entries.is_empty(reader, one.inode):
            found.append("something is in it still")
        if (row.is_file and row.state < FileState.PACKED) or unpacked.has_any(reader, one.inode):
            found.append(ON_THEIR_WAY)
        return tuple(found)

    def _why_remembered(self, reader: Reader, rules: Repository, one: Wanted) -> tuple[str, ...]:
        rows = list(past.versions_of(reader, one.inode))
        if one.names or not rows:
            return ("it is gone",)
        if rows[-1].row.repository != rules.id:
            return ("it is in another repository",)
        found = [ON_THEIR_WAY] if unpacked.has_any(reader, one.inode) else []
        if (known := retentions.find(reader, one.inode)) is not None and not known.is_over(self._core.time.now()):
            found.append("retained")
        find = holds.find_past(reader)
        for version in rows:
            key = keys.past_version(one.inode, version.version)
            value = reader.get(key)
            if value is not None and self._core.holds.on_past(find, key, bytes(value), rules.id):
                found.append("held: it was where something is held")
                break
        return tuple(found)

    def _take(self, change: Change, number: int, one: Wanted, now: int) -> None:
        tx, inode = change.tx, one.inode
        row = _row(change, inode)
        for parent, name in one.names:
            entry = entries.find(tx, parent, name)
            if row is None or entry is None:
                continue  # given twice
            entries.delete(tx, parent, name, entry)
            above = change.row(parent)
            links = above.nlink - 1 if entry.is_directory else above.nlink
            change.set(parent, above._replace(nlink=links, mtime_ns=now, ctime_ns=now))
            change.event(EventKind.UNNAMED, inode, row.version, parent, name)
        for version in list(past.versions_of(tx, inode)):
            _take_version(change, number, version)
        if row is not None:
            change.delete(inode)
            retention.ended(change, inode, row)
            erasures.add(tx, number, _erased(inode, row.version, row))
            earlier = Version(row.version - 1)
            if row.before is not None and tx.get(keys.erased(number, inode, earlier)) is None:
                erasures.add(tx, number, Erased(inode, earlier, row.before, 0))
            returned.remove(tx, inode, row.version)
            if row.is_file and row.state is not FileState.STUB:
                change.drop(inode, row.version)
            change.event(EventKind.REMOVED, inode, row.version, detail=seal_detail(row.seal))
        for name in xattrs.names(tx, inode):
            xattrs.delete(tx, inode, name)
        tx.delete(keys.symlink(inode))
        change.event(EventKind.ERASED, inode, NO_VERSION if row is None else row.version, detail=number)


def _row(change: Change, inode: Inode) -> InodeRow | None:
    try:
        return change.row(inode)
    except NotFound:
        return None


def _take_version(change: Change, number: int, found: past.PastVersion) -> None:
    """A version that was over, with the names that ended with it."""
    tx = change.tx
    erasures.add(tx, number, _erased(found.inode, found.version, found.row))
    returned.remove(tx, found.inode, found.version)
    ending = keys.ending(found.row.repository, found.ended_ns, found.inode)
    value = tx.get(ending)
    if value is not None:
        tx.delete(ending)
        _forget(change, bytes(value))
    history.forget(change, keys.past_version(found.inode, found.version))


def _forget(change: Change, value: bytes) -> None:
    """The rows that a B row names."""
    at = 0
    while at < len(value):
        key, at = take_sized(value, at)
        history.forget(change, key)


def _erased(inode: Inode, version: Version, row: InodeRow) -> Erased:
    if not row.is_file:
        return Erased(inode, version, None, 0)
    return Erased(inode, version, None if row.seal is None else row.seal.sha256, row.size_bytes)


def _why_frozen(rules: Repository) -> str:
    """Why nothing of a repository may be erased now, or nothing."""
    if rules.tripped_ns:
        return "its repository's tripwire was touched; see `vna repository set --reset-tripwire`"
    return "its repository is being rolled back" if rules.rolling_to_ns or rules.limbo else ""


def _check_count(wanted: Sequence[Wanted]) -> None:
    if len(wanted) > AT_ONCE_MAX:
        raise InvalidArgument(why=f"{len(wanted)} files at once are more than {AT_ONCE_MAX}")
