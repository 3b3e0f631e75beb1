"""The tree: what a file system of repositories looks like and what each call means. Here and only here.

`Filesystem` joins its parts (names, bytes, attributes, tiering, repositories) into one facade for FUSE engines and
control sockets. It knows no FUSE types, no targets and no loop: every call is synchronous, belongs to one thread,
and never waits for anything but the local disk. A change is committed when its call returns (it survives the death
of this process); whoever must promise more asks `must_sync`, `flush` or `fsync` what has to reach stable storage
first and waits for that on another thread (`vnafs.fs.commitment.settle`).
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterable
from typing import Concatenate, ParamSpec, TypeVar, cast

from vnafs.domain.clock import BootClock, Clock
from vnafs.domain.errors import NoSpace, StorageFailed, Suspect, VnaError
from vnafs.domain.faults import Faults, NoFaults
from vnafs.domain.ids import Inode, RepositoryId, Version
from vnafs.fs import capacity
from vnafs.fs.acls import Acls
from vnafs.fs.asof import AS_OF, BASE, AsOf, refused
from vnafs.fs.attributes import Attributes
from vnafs.fs.caller import Caller
from vnafs.fs.capacity import Statistics
from vnafs.fs.commitment import Commitment
from vnafs.fs.core import ROOT_REPOSITORY, Core, Watcher
from vnafs.fs.data import Data
from vnafs.fs.durability import Durability
from vnafs.fs.erasure import Erasures
from vnafs.fs.extents import Extents
from vnafs.fs.handles import Handle
from vnafs.fs.history import Expiry
from vnafs.fs.names import Names
from vnafs.fs.recovery import Recovery
from vnafs.fs.rename import Renames
from vnafs.fs.repositories import Repositories
from vnafs.fs.retention import Retentions
from vnafs.fs.rollback import Rollbacks
from vnafs.fs.setattr import Setattr
from vnafs.fs.settings import Settings
from vnafs.fs.takeover import NOTHING_OPEN, OpenBefore, Succession, take_over
from vnafs.fs.tiering import Tiering
from vnafs.fs.unseen import Unseen
from vnafs.fs.versions import Versions
from vnafs.fs.xattrs import CopiesOf, Xattrs, no_copies
from vnafs.index.counts import Count
from vnafs.index.engine import Engine, Position
from vnafs.local.spool import Spool

_LOG = logging.getLogger(__name__)

_Given = ParamSpec("_Given")
_Found = TypeVar("_Found")


class Filesystem:
    """One tree over one index and one spool.

    Its making repairs what a crash left behind (see `Recovery`). Calls are the parts' own, documented there.
    """

    def __init__(  # noqa: PLR0913 - each named where it is wired
        self,
        engine: Engine,
        spool: Spool,
        clock: Clock,
        faults: Faults | None = None,
        settings: Settings | None = None,
        *,
        copies_of: CopiesOf = no_copies,
        boot_id: str = "",
        boot_clock: BootClock | None = None,
        open_before: OpenBefore = NOTHING_OPEN,
    ) -> None:
        core = self._core = Core(
            engine, spool, clock, faults or NoFaults(), settings or Settings(), boot_clock=boot_clock, boot_id=boot_id
        )
        Recovery(core, open_before).run(boot_id)
        names = Names(core)
        data = self._data = Data(core, names)
        take_over(core, data, open_before)
        self._expiry, self.versions, self.rollbacks = Expiry(core), Versions(core), Rollbacks(core)
        renames, xattrs, tiering, acls = Renames(core), Xattrs(core, copies_of), Tiering(core), Acls(core)
        self.engine, self.settings = engine, core.settings
        self.retentions, self.erasures, self.succession = Retentions(core), Erasures(core), Succession(core)
        self.repositories = Repositories(core, names, self.retentions.rules_change)
        # names
        asof = self.asof = AsOf(core)
        self._names = names
        self.lookup = names.lookup
        self.getattr = _either(names.getattr, asof.getattr)
        self.readlink = _either(names.readlink, asof.readlink)
        self.listing = _either(names.listing, asof.listing)
        self.readdir = names.readdir
        self.mkdir, self.symlink = self._guarded(names.mkdir), self._guarded(names.symlink)
        self.mknod = self._guarded(names.mknod)
        self.link = self._guarded(names.link)
        self.unlink, self.rmdir = self._guarded(names.unlink), self._guarded(names.rmdir)
        self.rename = self._guarded(renames.rename)
        # bytes
        self.create = data.create
        self.release = data.release
        self.write, self.append = data.write, data.append
        self.unseen, self.extents = Unseen(core, data), Extents(core, data)
        self.setattr = self._guarded(Setattr(core, data.truncate).setattr)
        durability = self._durability = Durability(core, data)
        self.flush, self.fsync = durability.flush, durability.fsync
        self.handle = core.handles.get
        # extended attributes
        self.getxattr = _either(xattrs.getxattr, asof.getxattr)
        self.setxattr = self._guarded(xattrs.setxattr)
        self.listxattr = _either(xattrs.listxattr, asof.listxattr)
        self.removexattr = self._guarded(xattrs.removexattr)
        self.getacl = _either(acls.getacl, asof.getacl)
        self.setacl, self.removeacl = self._guarded(acls.setacl), self._guarded(acls.removeacl)
        # tiering: the port `Tree`
        self.advance = tiering.advance
        self.evict = tiering.evict
        self.evict_many = tiering.evict_many
        self.adopt = tiering.adopt
        self.hold, self.let_go = tiering.hold, tiering.let_go
        self.facts, self.suspect = tiering.facts, tiering.suspect
        self.heard = tiering.heard
        self.postpone = tiering.postpone
        self.fold = tiering.fold
        self.path_hint = tiering.path_hint
        self.supersede = tiering.supersede
        self.local_path = spool.local_path
        # upkeep
        self.reap, self.fail, self.forget_removed = core.reap, core.fail, core.forget_removed
        self._targets: capacity.Targets | None = None

    def _guarded(self, call: Callable[_Given, _Found]) -> Callable[_Given, _Found]:
        """The same call for clients, who may change nothing while the archive is superseded or a repository frozen.

        The call's first argument is an inode of the repository that it changes.
        """
        core = self._core

        @functools.wraps(call)
        def guarded(*args: _Given.args, **named: _Given.kwargs) -> _Found:
            if core.superseded is not None:
                raise core.superseded
            if any(type(argument) is int and argument >= BASE for argument in args):
                raise refused()
            if core.frozen:
                core.refuse_frozen(cast("Inode", args[0]))
            return call(*args, **named)

        return guarded

    # -- now or then ----------------------------------------------------------------------------------------

    def find(self, parent: Inode, name: bytes) -> Attributes | None:
        """See Names.find; `.as-of` in the top of a repository leads into its past."""
        if parent >= BASE:
            return self.asof.find(parent, name)
        found = self._names.find(parent, name)
        return self.asof.top(parent) if found is None and name == AS_OF else found

    def open(self, inode: Inode, flags: int, caller: Caller) -> Handle:
        """See Data.open."""
        return self.asof.open(inode, flags) if inode >= BASE else self._data.open(inode, flags, caller)

    def read(self, handle: Handle, offset: int, length: int) -> bytes:
        """See Data.read."""
        read = self.asof.read if handle.file.inode >= BASE else self._data.read
        return read(handle, offset, length)

    # -- durability -----------------------------------------------------------------------------------------

    def must_sync(self, inode: Inode) -> Position | None:
        """What an answer about a change in or of *inode* must wait for; None when it may go out at once.

        Ask after the change, about the inode itself or the directory that was changed. An inode that is gone
        belonged to a repository that may have been durable: it waits.
        """
        core = self._core
        position = core.engine.position
        row = core.find(inode)
        if row is not None and not core.is_durable(row.repository):
            return None
        return position if core.engine.synced < position else None

    def must_settle(self, inode: Inode) -> Commitment | None:
        """As `must_sync`, with the local bytes of a file whose size was just set."""
        core = self._core
        row = core.find(inode)
        if row is None or not core.is_durable(row.repository):
            return None
        return self._durability.commitment_of(inode, row)

    def must_settle_times(self, inode: Inode) -> Commitment | None:
        """As `must_sync`, of an inode whose times were just set."""
        core = self._core
        row = core.find(inode)
        return None if row is not None and not core.is_durable(row.repository) else self._durability.times(inode)

    def fsync_directory(self, inode: Inode) -> Commitment | None:
        """What fsync(2) of a directory must wait for, at any level."""
        core = self._core
        if inode not in core.gone:
            core.directory(inode)
        position = core.engine.position
        return Commitment(position) if core.engine.synced < position else None

    def settled(self, commitment: Commitment) -> None:
        """A commitment was settled; local bytes that waited for as much go now."""
        self._durability.settled(commitment)

    def unsettled(self, commitment: Commitment, why: StorageFailed) -> None:
        """A commitment could not be settled: bytes that were not kept are suspect, and every change is refused."""
        row = self._core.find(commitment.inode)
        if isinstance(why, Suspect) and row is not None:
            try:
                self.suspect(commitment.inode, row.version)
            except VnaError as problem:
                _LOG.critical("tree.suspect_untold", extra={"inode": commitment.inode, "why": str(problem)})
        self.fail(why)

    @property
    def clock(self) -> Clock:
        """What dates every change."""
        return self._core.clock

    @property
    def failure(self) -> VnaError | None:
        """Why this tree refuses every change, or None while it serves."""
        return self._core.failure

    # -- the rest -------------------------------------------------------------------------------------------

    def statfs(self, inode: Inode | None = None) -> Statistics:
        """Room for more in the repository of *inode*; in the root the local disk, without what writers never get.

        Whoever does not know the inode hears of the only repository, if there is one; of an inode that is gone the
        local disk is shown as well.
        """
        core = self._core
        local = capacity.of_disk(core.space.room(), self.settings.reserve_bytes)
        if inode is None:
            found = next(iter(core.repositories.values())) if len(core.repositories) == 1 else None
        else:
            found = core.repositories.get(self._repository(inode))
        if found is None:
            return local
        return capacity.of_repository(local, found, core.usage.of(found.id), self._targets)

    def _repository(self, inode: Inode) -> RepositoryId:
        if inode >= BASE:
            return self.asof.repository(inode)
        row = self._core.find(inode)
        return ROOT_REPOSITORY if row is None else row.repository

    def targets_have(self, targets: capacity.Targets) -> None:
        """How much room targets have now, for statfs."""
        self._targets = targets

    def used(self, repository: RepositoryId) -> Count:
        """Inodes and bytes of a repository, as its quota counts them."""
        return self._core.usage.of(repository)

    def watch(self, watcher: Watcher) -> None:
        """Tell *watcher* of changes that the kernel did not ask for, from now on."""
        self._core.watcher = watcher

    @property
    def handles_open(self) -> int:
        """How many handles are open."""
        return len(self._core.handles)

    @property
    def drops_pending(self) -> int:
        """How many local files wait for a sync before they are removed."""
        return len(self._core.drops)

    def removed(self) -> dict[tuple[Inode, Version], int]:
        """Local bytes that were removed: `sync_places` of them, then `forget_removed` them."""
        return dict(self._core.removed)

    def sync_places(self, places: Iterable[tuple[Inode, Version]]) -> None:
        """See Spool. Any thread."""
        self._core.spool.sync_places(places)

    def upkeep(self) -> bool:
        """What is due about once a second besides `reap`, a small step; says whether the next one should be soon.

        Raises NoSpace: the disk is full, another time then.
        """
        self._data.end_again()
        self._core.find_drops()
        self._core.follow_sizes()
        self.repositories.save_tripped()
        trimmed = self._core.trim_feed()
        rolled = self.rollbacks.step()
        committed = self.retentions.step()
        erased = self.erasures.step()
        return self._expiry.step() or rolled or trimmed or committed or erased

    def _save_time(self) -> None:
        core = self._core
        with contextlib.suppress(NoSpace):  # then it goes on a minute earlier
            if core.time.runs:
                with core.engine.write() as tx:
                    core.time.save(tx)

    @property
    def retention_lag_seconds(self) -> float:
        """How far the clock by which retention is judged is behind the wall clock."""
        return self._core.time.lag_seconds() if self._core.time.runs else 0.0

    def close(self) -> None:
        """Close every handle and make everything durable; the engine stays open for its owner. Raises StorageFailed."""
        core = self._core
        for handle in core.handles.every():
            self.release(handle)
        self._data.end_again()
        for file in core.handles.ending.values():  # the next start reads what they are from the local files
            file.close_descriptors()
        if core.failure is None:
            self._save_time()
            core.sync()
            while core.reap():
                core.find_drops()
            core.sync_removed()


def _either(
    now: Callable[Concatenate[Inode, _Given], _Found], then: Callable[Concatenate[Inode, _Given], _Found]
) -> Callable[Concatenate[Inode, _Given], _Found]:
    """A call for what is, or the same for what was."""

    def chosen(inode: Inode, /, *args: _Given.args, **named: _Given.kwargs) -> _Found:
        return then(inode, *args, **named) if inode >= BASE else now(inode, *args, **named)

    return chosen


__all__ = ["Filesystem", "Handle", "Statistics"]
