"""History: what is worth keeping when a name goes or a version is over, and when it has been kept long enough.

A name is kept while anything of its inode is; of a file that means that some version of it was sealed. A version is
remembered once it was sealed and *kept* once its bytes are in packs: `vnafs.index.past`; until then its local bytes
stay where that is possible (`vnafs.fs.leaving`). Names that a file had only
for a moment before it was ever sealed (`upload.tmp`) are not noted. How long is a rule of each repository.

Runs inside the caller's change. One thread. No clock of its own: time comes with the change that ends something, and
should the clock have been set back meanwhile, an interval still has a nanosecond.
"""

from __future__ import annotations

from vnafs.domain.clock import NANOSECONDS
from vnafs.domain.events import EventKind, seal_detail
from vnafs.domain.files import FileState, Proposal, Verdict
from vnafs.domain.ids import NO_VERSION, ROOT, Inode, RepositoryId
from vnafs.fs import guard, leaving
from vnafs.fs.core import Change, Core
from vnafs.fs.tripwire import Harm
from vnafs.index import keys, past, returned, xattrs
from vnafs.index.engine import Reader
from vnafs.index.entries import Entry
from vnafs.index.inodes import InodeRow
from vnafs.index.past import Ending, PastName, PastVersion
from vnafs.index.returned import Returned

EXPIRED_PER_STEP_MAX = 128
"""Moments, each of a row or a few, in one transaction."""
LOOK_AGAIN_SECONDS = 86400
"""At the past of what is held or retained."""


def keep_name(change: Change, parent: Inode, name: bytes, entry: Entry, row: InodeRow, now: int, *, ends: bool) -> int:
    """Note that a name leads there no more; when it ended, or 0 when nothing is noted.

    *row* is the inode's before it lost the name, *ends* whether it was the last one.
    """
    if parent == ROOT or not change.core.keeps(row.repository) or change.core.is_limbo(parent, row.repository):
        return 0
    since = entry.since_ns or row.birth_ns
    if row.is_file and row.state is FileState.OPEN and row.before is None:
        was_brief = now - since < change.core.settings.quiet_seconds * NANOSECONDS
        if (ends or was_brief) and past.version_before(change.tx, entry.inode, row.version) is None:
            return 0
    if not ends and row.is_file:
        change.core.harmed(row.repository, Harm.RENAMED)
    noted = PastName(parent, name, entry.inode, entry.kind, since, max(now, since + 1))
    return past.put_name(change.tx, row.repository, noted).ended_ns


def keep_version(change: Change, inode: Inode, row: InodeRow, now: int, *, is_last: bool) -> bool:
    """Note that the version of *row* is over; whether anything is noted, so that its content may be needed."""
    if not change.core.keeps(row.repository) or inode == Inode(row.repository):
        return False
    if change.core.is_limbo(inode, row.repository):
        return False
    before = past.version_before(change.tx, inode, row.version)
    if row.is_file and (row.seal is None or row.state < FileState.SEALED) and not (is_last and before is not None):
        return False
    since = row.birth_ns if before is None else before.ended_ns
    past.put_version(change.tx, PastVersion(inode, row.version, since, max(now, since + 1), row, is_last), is_new=True)
    if row.is_file:
        change.core.harmed(row.repository, Harm.DELETED if is_last else Harm.OVERWRITTEN)
    return True


def settle_kept(change: Change, proposal: Proposal) -> Verdict:
    """What tiering hears of a version that is not a file's any more."""
    found = past.find_version(change.tx, proposal.inode, proposal.version)
    if found is None or found.row.seal is None:
        return Verdict.GONE
    if proposal.content not in {None, found.row.seal.sha256}:
        leaving.doubt(change, proposal)
        return Verdict.GONE
    if found.row.state < FileState.PACKED <= proposal.state:
        past.put_version(change.tx, found._replace(row=found.row._replace(state=FileState.PACKED)), is_new=False)
        change.event(EventKind.KEPT, proposal.inode, proposal.version)
        # its use may have been dropped when an earlier proposal was refused
        again = Returned(proposal.inode, proposal.version, found.row.repository, found.row.seal.sha256)
        returned.put(change.tx, again)
        leaving.let_go(change, proposal.inode, proposal.version)
    return Verdict.KEPT


class Expiry:
    """Forgets the past that was kept long enough, oldest first, a little at a time."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def step(self) -> bool:
        """Forget a little; whether there may be more to do at once."""
        core = self._core
        if core.failure is not None or core.superseded is not None:
            return False
        now = core.clock.now()
        with core.engine.read() as reader:
            due = self._due(reader, now)
            # files that came back from a kept version, of which the store has not heard yet, need that version
            if due is None or returned.some(reader, 1):
                return False
        with core.change() as change:
            for _ in range(EXPIRED_PER_STEP_MAX):
                found = past.next_ending(change.tx, due)
                if found is None or found.repository != due or not self._is_over(found, now):
                    return False
                change.tx.delete(found.key)
                if core.guarded and guard.keeps_past(core, change.tx, found):
                    self._postpone(change, found, now)
                    continue
                for key in found.rows:
                    forget(change, key)
        return True

    def _postpone(self, change: Change, found: Ending, now: int) -> None:
        """What is held or retained keeps its past: it is looked at again in a day, as if it had ended so much later."""
        kept_ns = self._core.repositories[found.repository].versions_kept_seconds * NANOSECONDS
        later = now - kept_ns + LOOK_AGAIN_SECONDS * NANOSECONDS
        for key in found.rows:
            past.add_endings(change.tx, found.repository, later, keys.ending_of(found.key)[2], key)

    def _due(self, reader: Reader, now: int) -> RepositoryId | None:
        """A repository of whose past something has been kept long enough; also one that is gone."""
        number = RepositoryId(0)
        while (found := past.next_ending(reader, number)) is not None:
            if self._is_over(found, now):
                return found.repository
            number = RepositoryId(found.repository + 1)
        return None

    def _is_over(self, found: Ending, now: int) -> bool:
        repository = self._core.repositories.get(found.repository)
        if repository is None:
            return True
        if repository.rolling_to_ns or repository.tripped_ns:
            return False
        return found.ended_ns + repository.versions_kept_seconds * NANOSECONDS <= now


def forget(change: Change, key: bytes) -> None:
    """An A or V row goes for good, if it is there, with what an inode that ended left in place."""
    value = change.tx.get(key)
    if value is None:
        return
    change.tx.delete(key)
    if key.startswith(keys.PAST_NAMES):
        name = past.decode_name(key, value)
        change.event(EventKind.NAME_EXPIRED, name.inode, NO_VERSION, name.parent, name.name, name.ended_ns)
        return
    version = past.decode_version(key, value)
    change.event(EventKind.VERSION_EXPIRED, version.inode, version.version, detail=seal_detail(version.row.seal))
    if version.row.state is FileState.SEALED:
        leaving.let_go(change, version.inode, version.version)
    if version.is_last:
        for name_of_one in xattrs.names(change.tx, version.inode):
            xattrs.delete(change.tx, version.inode, name_of_one)
        change.tx.delete(keys.symlink(version.inode))
