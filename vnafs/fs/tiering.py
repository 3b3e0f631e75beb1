"""What tiering may ask of the tree: the port `vnafs.pipeline.tree.Tree`, filled.

Every request names (inode, version) and is applied only while that still holds; it may be repeated. Legal moves are
those of `vnafs.domain.files`. Local bytes count as sealed only while their fingerprint equals the recorded one:
a difference is a write nobody told us of, and the file is OPEN again in a new version. One thread; eviction waits
for one sync of the index, however many files it is about.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

from vnafs.domain.clock import Instant
from vnafs.domain.errors import Damaged, InvalidArgument, NotFound, Superseded
from vnafs.domain.events import EventKind, seal_detail
from vnafs.domain.files import Candidate, FileFacts, FileState, Proposal, Seal, Verdict, may_advance
from vnafs.domain.ids import ROOT, Inode, Version
from vnafs.fs import guard, history, retention
from vnafs.fs.attributes import written_at
from vnafs.fs.core import Change, Core
from vnafs.fs.removal import log_missing, make_stub
from vnafs.fs.tripwire import Harm
from vnafs.index import entries, keys, meta, returned
from vnafs.index.inodes import InodeRow
from vnafs.index.queue import DUE_NEVER
from vnafs.local.spool import is_plain, local_error

_LOG = logging.getLogger(__name__)

PROPOSALS_PER_CHANGE_MAX = 256
EVICTIONS_MAX = 64
"""In one call, which holds everybody else for one sync and as many removals."""
_DEPTH_MAX = 4096


class Tiering:
    """Moves versions between states."""

    def __init__(self, core: Core) -> None:
        self._core = core

    # -- forward --------------------------------------------------------------------------------------------

    def advance(self, proposals: Sequence[Proposal]) -> list[Verdict]:
        """Move versions forward, each only while its precondition holds; one verdict for each, in order.

        A file may be open for reading meanwhile, not for writing. To leave OPEN a seal is needed.
        """
        verdicts: list[Verdict] = []
        for begin in range(0, len(proposals), PROPOSALS_PER_CHANGE_MAX):
            moves: list[tuple[Inode, Version]] = []
            with self._core.change() as change:
                for proposal in proposals[begin : begin + PROPOSALS_PER_CHANGE_MAX]:
                    verdict = self._advance(change, proposal)
                    verdicts.append(verdict)
                    if verdict is Verdict.CHANGED:
                        moves.append((proposal.inode, proposal.version))
            for inode, version in moves:
                self._follow(inode, version)
        return verdicts

    def _advance(self, change: Change, proposal: Proposal) -> Verdict:
        inode = proposal.inode
        row = self._found(change, inode, proposal.version)
        if row is None:
            return history.settle_kept(change, proposal)
        is_of_others = row.seal is not None and proposal.content not in {None, row.seal.sha256}
        if not may_advance(row.state, proposal.state):
            return Verdict.GONE if is_of_others else Verdict.ILLEGAL
        if row.state is proposal.state:
            # other bytes that are only sealed may be what the file has now, which is found when they are packed
            return Verdict.GONE if is_of_others and row.state >= FileState.PACKED else Verdict.DONE
        file = self._core.handles.files.get(inode)
        if file is not None and file.writing >= 0:
            return Verdict.BUSY
        seal = proposal.seal if row.state is FileState.OPEN else row.seal
        if seal is None or row.is_suspect:
            return Verdict.ILLEGAL
        drifted = self._drifted(change, inode, row, seal) if proposal.state > row.state else None
        if drifted is not None:
            return drifted
        if proposal.content not in {None, seal.sha256}:
            return Verdict.GONE
        is_sealed = row.state is FileState.OPEN
        if is_sealed and seal.is_noise:
            self._core.harmed(row.repository, Harm.SCRAMBLED)
        row = row._replace(state=proposal.state, seal=seal, before=None, due=self._core.clock.now())
        if row.size_bytes != seal.fingerprint.size_bytes:  # written past us, when nobody had told us that it is open
            row = row._replace(size_bytes=seal.fingerprint.size_bytes)
            self._core.watcher.attributes_changed(inode)
        change.set(inode, row)
        change.event(EventKind.STATE, inode, row.version, detail=proposal.state)
        if is_sealed:
            retention.queue(change, inode, row)
        return Verdict.DONE

    def _drifted(self, change: Change, inode: Inode, row: InodeRow, seal: Seal) -> Verdict | None:
        """What comes of local bytes that are not those that were sealed; None when they are, or need not be.

        What is retained or held never takes other bytes: once it is in packs, those there are the file's.
        """
        mark = self._core.spool.fingerprint(inode, row.version)
        if mark is None:
            log_missing(inode, row)
            return Verdict.ILLEGAL
        if mark == seal.fingerprint:
            return None
        if row.state is FileState.OPEN or not self._is_fixed(change, inode, row):
            self._reopen(change, inode, row)
            return Verdict.CHANGED
        return None if row.state >= FileState.PACKED else Verdict.ILLEGAL

    # -- away and back --------------------------------------------------------------------------------------

    def evict(self, inode: Inode, version: Version) -> Verdict:
        """As `evict_many`, for one file."""
        [verdict] = self.evict_many([(inode, version)])
        return verdict

    def evict_many(self, requests: Sequence[tuple[Inode, Version]]) -> list[Verdict]:
        """REPLICATED to STUB; the local bytes of those it says DONE of are gone. One verdict for each, in order.

        Each only without any handle or mapping and while its local bytes carry their fingerprint. The rows are logged
        and synced, once for all of them, before any bytes go. Raises InvalidArgument for more than EVICTIONS_MAX.
        """
        core = self._core
        if core.superseded is not None:
            return [Verdict.BUSY] * len(requests)
        if len(requests) > EVICTIONS_MAX:
            raise InvalidArgument(why=f"{len(requests)} evictions at once are more than {EVICTIONS_MAX}")
        with core.change() as change:
            verdicts = [self._give_up(change, inode, version) for inode, version in requests]
        for (inode, version), verdict in zip(requests, verdicts, strict=True):
            if verdict is Verdict.CHANGED:
                self._follow(inode, version)
        if Verdict.DONE in verdicts:
            core.faults.reach("evict.recorded")
            core.sync()
            core.reap(core.settings.drops_pending_max)  # these may be the last of many
            if core.drops_left:  # or not even listed
                for (inode, version), verdict in zip(requests, verdicts, strict=True):
                    if verdict is Verdict.DONE:
                        core.spool.remove(inode, version)
            core.faults.reach("evict.removed")
        for (inode, _), verdict in zip(requests, verdicts, strict=True):
            if verdict is Verdict.DONE:
                core.watcher.attributes_changed(inode)
        return verdicts

    def _give_up(self, change: Change, inode: Inode, version: Version) -> Verdict:
        row = self._found(change, inode, version)
        if row is None:
            return Verdict.GONE
        if row.state is FileState.STUB:
            return Verdict.DONE
        if row.state is not FileState.REPLICATED or row.seal is None:
            return Verdict.ILLEGAL
        if inode in self._core.handles.files:
            return Verdict.BUSY
        mark = self._core.spool.fingerprint(inode, version)
        if mark is None:
            log_missing(inode, row)  # a stub is what it is already: its verified copies bring the bytes back
        elif mark != row.seal.fingerprint and not self._is_fixed(change, inode, row):
            self._reopen(change, inode, row)
            return Verdict.CHANGED
        elif self._core.spool.is_in_use(inode, version):
            return Verdict.BUSY  # mapped: a file that takes its place would not be what the mapping shows
        make_stub(change, inode, row)
        return Verdict.DONE

    def adopt(self, inode: Inode, version: Version, staged: str) -> Verdict:
        """STUB to REPLICATED: the staged file, complete, checked and synced, becomes the local bytes by rename.

        On any other verdict the staged file stays where it is. Raises Damaged when its size is not the file's.
        """
        core = self._core
        row = core.find(inode)
        if row is None or not row.is_file or row.version != version:
            return Verdict.GONE
        if row.state is not FileState.STUB:
            return Verdict.DONE if row.state is FileState.REPLICATED else Verdict.ILLEGAL
        try:
            found = os.stat(staged, follow_symlinks=False)
        except OSError as error:
            raise local_error(error, "looking at a recalled file") from error
        if not is_plain(found) or found.st_size != row.size_bytes or row.seal is None:
            raise Damaged(what=f"the recalled file for inode {inode} version {version}")
        core.drop_now(inode, version)
        with core.change() as change:
            # until the row says otherwise these bytes belong to nobody: a crash in between removes them
            change.tx.put(keys.dropped(inode, version), b"")
        core.sync()  # of a loss of power in between too
        mark = core.spool.adopt(inode, version, staged, sync=True)
        core.faults.reach("recall.adopted")
        with core.change() as change:
            row = change.row(inode)
            change.tx.delete(keys.dropped(inode, version))
            sealed = Seal(row.seal.sha256, mark) if row.seal else None
            change.set(
                inode,
                row._replace(state=FileState.REPLICATED, blocks=found.st_blocks, seal=sealed, due=core.clock.now()),
            )
            change.event(EventKind.STATE, inode, version, detail=FileState.REPLICATED)
        core.faults.reach("recall.recorded")
        core.watcher.attributes_changed(inode)
        return Verdict.DONE

    # -- copied while they stay open ------------------------------------------------------------------------

    def hold(self, inode: Inode, version: Version) -> Verdict:
        """Let writers of an OPEN file wait while its bytes are copied, for a bounded time; see `Fences`.

        UNHELD when the kernel writes for some of them, who cannot be held.
        """
        row = self._core.find(inode)
        if row is None or not row.is_file or row.version != version or not row.nlink:
            return Verdict.GONE
        file = self._core.handles.files.get(inode)
        if file is not None and file.unseen_writers:
            return Verdict.UNHELD
        return self._core.fences.hold(inode, version) if row.state is FileState.OPEN else Verdict.ILLEGAL

    def let_go(self, inode: Inode, version: Version) -> Verdict:
        """Its writers go on. GONE when they went on before, because the time was over."""
        return self._core.fences.let_go(inode, version)

    # -- what is known --------------------------------------------------------------------------------------

    def facts(self, inode: Inode) -> FileFacts:
        """What is known of a file now. Raises NotFound, also for what is not a file."""
        core = self._core
        row = core.row(inode)
        if not row.is_file:
            raise NotFound(what=f"file {inode}")
        file = core.handles.files.get(inode)
        shown = core.attributes(inode, row)
        has_bytes = row.seal is not None and row.state is not FileState.STUB
        return FileFacts(
            inode=inode,
            version=row.version,
            repository=row.repository,
            state=row.state,
            size_bytes=shown.size_bytes,
            sha256=None if row.seal is None else row.seal.sha256,
            fingerprint=row.seal.fingerprint if row.seal is not None and has_bytes else None,
            handles_open=0 if file is None else file.handles,
            mtime_ns=shown.mtime_ns,
            path_hint=self.path_hint(inode),
            is_suspect=row.is_suspect,
        )

    def path_hint(self, inode: Inode) -> bytes:
        """One current path below the mount; empty when there is no name, or none that is cheaply known."""
        core = self._core
        parts: list[bytes] = []
        with core.engine.read() as reader:
            while inode != ROOT and len(parts) < _DEPTH_MAX:
                row = core.find(inode, reader)
                name = None if row is None else entries.name_at(reader, row.parent, row.cookie, inode)
                if row is None or name is None:
                    return b""
                parts.append(name)
                inode = row.parent
        return b"/".join(reversed(parts))

    def postpone(self, candidates: Sequence[tuple[Candidate, Instant]]) -> None:
        """Give rows that are still in place a new due time; the others were overtaken and stay as they are."""
        if not candidates:
            return
        with self._core.change() as change:
            for candidate, due in candidates:
                row = self._found(change, candidate.inode, candidate.version)
                if row is not None and row.state is candidate.state and row.due == candidate.due:
                    change.set(candidate.inode, row._replace(due=due))

    def suspect(self, inode: Inode, version: Version) -> None:
        """The local disk did not keep all bytes of an OPEN version: it is not sealed before it is emptied.

        What Linux reads of it later may be what was there before, and nothing says so a second time (fsync(2)).
        """
        with Change(self._core) as change:  # also while everything else is refused, as another sync failed
            row = self._found(change, inode, version)
            if row is None or row.state is not FileState.OPEN or row.is_suspect:
                return
            change.set(inode, row._replace(is_suspect=True, due=DUE_NEVER))
        self._core.sync()
        _LOG.critical("tree.suspect", extra={"inode": inode, "version": version})

    def heard(self, versions: Sequence[tuple[Inode, Version]]) -> None:
        """The store has noted the uses of these versions, which came back from kept ones. May be repeated."""
        with self._core.change() as change:
            for inode, version in versions:
                returned.remove(change.tx, inode, version)

    def supersede(self, why: str) -> None:
        """From now on, and after restarts, clients may read and change nothing. Raises StorageFailed."""
        core = self._core
        if core.superseded is None:
            core.superseded = Superseded(why=why)
            _LOG.critical("tree.superseded", extra={"why": why})
        with core.change() as change:
            meta.set_bytes(change.tx, meta.SUPERSEDED, why.encode())
        core.sync()

    def fold(self) -> None:
        """A barrier: every change answered so far is visible to read-only readers of the namespace."""
        self._core.engine.fold()

    # -- parts ----------------------------------------------------------------------------------------------

    def _found(self, change: Change, inode: Inode, version: Version) -> InodeRow | None:
        try:
            row = change.row(inode)
        except NotFound:
            return None
        return row if row.is_file and row.version == version and row.nlink else None

    def _is_fixed(self, change: Change, inode: Inode, row: InodeRow) -> bool:
        """Whether a file must not take the other bytes that its local file has: it is retained or held."""
        if guard.why_unchanged(self._core, inode, row, change.tx) is None:
            return False
        _LOG.critical("tree.fixed_bytes_changed", extra={"inode": inode, "version": row.version})
        return True

    def _reopen(self, change: Change, inode: Inode, row: InodeRow) -> None:
        """A write nobody told us of: OPEN again, in a new version unless no seal was recorded for this one.

        Then nobody may have told tierd of a write that we know of; times that were set after it stay.
        """
        _LOG.warning("tree.bytes_changed", extra={"inode": inode, "version": row.version, "state": row.state.label})
        version = row.version
        if row.state is not FileState.OPEN:
            version = Version(version + 1)
            is_noted = history.keep_version(change, inode, row, self._core.clock.now(), is_last=False)
            change.event(EventKind.VERSION, inode, version, detail=0 if is_noted else seal_detail(row.seal))
        local = self._core.spool.stat(inode, row.version)
        before = row.before if row.seal is None else row.seal.sha256
        row = row._replace(
            state=FileState.OPEN, version=version, seal=None, before=before, due=self._core.quiet_until()
        )
        if local is not None:
            row = row._replace(size_bytes=local.st_size, blocks=local.st_blocks)
            written = written_at(local)
            if written > row.ctime_ns:  # else the row knows: it was written while it was read to be sealed
                row = row._replace(mtime_ns=written, ctime_ns=written)
        change.set(inode, row)

    def _follow(self, inode: Inode, version: Version) -> None:
        """The local file takes the name of the version that `_reopen` began, if it began one."""
        core = self._core
        now = core.find(inode)
        if now is not None and now.version != version and core.spool.stat(inode, version) is not None:
            core.sync()  # else loss of power could keep the new place and lose who is there
            core.spool.move(inode, version, now.version)
        core.watcher.bytes_changed(inode)
