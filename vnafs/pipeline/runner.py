"""The runner: queues, workers and crashes, so that each stage knows only its own step.

Work is found in the namespace's queue rows and the store's transfer rows; nothing that matters is only in memory.
Threads: one that looks for work, one that tends to what is in hand, some that seal and pack, one that proposes, one
that protects what stays open, one that watches the disk, and those of the recorder, the replicators and the recaller.
Any of them dying ends the process: the supervisor starts it again, and it goes on from its rows. Each thread repeats
one step that can also be called from outside: `step` does one of each in the caller's thread, for whoever wants
everything in a known order.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from vnafs.content.encoder import Attempts, Encoder, NoAttempts
from vnafs.domain.clock import NANOSECONDS, Clock, Instant
from vnafs.domain.copies import Capabilities, Copy
from vnafs.domain.errors import NoSpace, NotFound, Suspect, VnaError
from vnafs.domain.faults import Faults
from vnafs.domain.files import Candidate, FileFacts, FileState, Proposal, Verdict
from vnafs.domain.ids import Inode, PackNumber, TargetName, Version
from vnafs.index.engine import Engine
from vnafs.index.targets import TargetRow
from vnafs.local.attempts import AttemptsFile
from vnafs.local.frozen import FrozenCopies
from vnafs.local.quarantine import Quarantine, QuarantineSettings
from vnafs.local.syncing import Synced
from vnafs.local.turns import go_behind
from vnafs.pipeline import replicated
from vnafs.pipeline.budgets import Budgets
from vnafs.pipeline.condemn import Condemner
from vnafs.pipeline.domains import File
from vnafs.pipeline.evict import Evictor, Watermarks, watermarks
from vnafs.pipeline.fleet import Fleet
from vnafs.pipeline.flights import Flights
from vnafs.pipeline.held import copies_of_content
from vnafs.pipeline.hints import hints_of
from vnafs.pipeline.keys import Keys
from vnafs.pipeline.look import Lookout
from vnafs.pipeline.namespace import Namespace
from vnafs.pipeline.pack import Packer, PackerSettings
from vnafs.pipeline.propose import Proposer
from vnafs.pipeline.protect import Protector, ProtectorSettings
from vnafs.pipeline.recall import Recaller
from vnafs.pipeline.reconcile import Reconciler
from vnafs.pipeline.record import Recorder
from vnafs.pipeline.replicate import Replicator
from vnafs.pipeline.returned import ReturnedFiles
from vnafs.pipeline.room import Room
from vnafs.pipeline.seal import Gone, Later, reading
from vnafs.pipeline.settings import Destination, TieringSettings
from vnafs.pipeline.shelf import Shelf
from vnafs.pipeline.suspects import Suspects
from vnafs.pipeline.thawing import Thaws
from vnafs.pipeline.tree import Tree
from vnafs.pipeline.uses import Uses
from vnafs.pipeline.waiting import WaitingPacks
from vnafs.targets.port import Target

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.2
DISK_LOOK_SECONDS = 2.0
PROTECT_LOOK_SECONDS = 0.2
RETRY_SECONDS = 10.0
NOT_SO = frozenset({Verdict.GONE, Verdict.CHANGED, Verdict.BUSY})
"""A version is not what was packed for it, or may not be; if it is after all, it is packed and found to be known."""
STOP_SECONDS_MAX = 7.0
"""Whoever ends us would rather have an answer than every upload under way."""


class Tiering:
    """Everything that happens behind the tree."""

    def __init__(  # noqa: PLR0913 - parts and exits, each named where it is wired
        self,
        store: Engine,
        namespace: Namespace,
        tree: Tree,
        local_path: Callable[[Inode, Version], str],
        settings: TieringSettings,
        keys: Keys | None = None,
        *,
        clock: Clock,
        faults: Faults,
        fatal: Callable[[BaseException], None],
    ) -> None:
        self._store = store
        self._namespace = namespace
        self._tree = tree
        self._local_path = local_path
        self._settings = settings
        self.keys = keys
        self._clock = clock
        self._faults = faults
        self._fatal = fatal
        self._started = False
        self.suspended = ""
        """Why nothing goes on but recalls, or nothing."""
        self._stopping = threading.Event()
        self._flights = Flights(clock)
        self._suspects = Suspects(store, tree)
        self._lookout = Lookout(store, namespace, self._flights, settings.spool_folder, settings.quiet_seconds, clock)
        self._pack_not_before = clock.monotonic()
        self._fleet = Fleet(store, made=self._replicator, begin=self._begin, changed=self._targets_changed, clock=clock)
        self.room = Room(self._marks, shed=self._shed, evict=self._evict)
        self.budgets = Budgets(store, namespace.repository, clock)
        self.thaws = Thaws(store, clock)
        self.quarantine = Quarantine(
            settings.quarantine_folder,
            QuarantineSettings(settings.quarantine_bytes_max, settings.quarantine_kept_seconds, settings.reserve_bytes),
            clock=clock,
            faults=faults,
        )
        self.shelf = Shelf(
            settings.packs_folder,
            settings.recall_cache_folder,
            store,
            sources=self._fleet.sources,
            has_room=self.room.has,
            spare_room=self.room.spare,
            cache_bytes_max=settings.recall_cache_bytes_max,
            budgets=self.budgets,
            thaws=self.thaws,
            quarantine=self.quarantine,
        )
        self.recaller = Recaller(
            store,
            self.shelf,
            settings.staging_folder,
            keys,
            taking_room=self.room.taking,
            parts_bytes_max=settings.recall_parts_bytes_max,
            clock=clock,
            faults=faults,
            fatal=fatal,
        )
        self.evictor = Evictor(tree, namespace, self.copies_of, settle=self._settle, clock=clock, faults=faults)
        self._proposer = Proposer(tree, heed=self._heed, dropped=self._dropped, clock=clock)
        self._reconciler = Reconciler(store, namespace, self.shelf, propose=self._proposer.add)
        self._uses = Uses(store, namespace)
        self._returned = ReturnedFiles(
            store, namespace, tree, clock, standing=self._reconciler.standing, propose=self._proposer.add
        )
        self._condemner = Condemner(
            store, namespace, tree, self.shelf, local_path, gone=self.contents_gone, clock=clock, faults=faults
        )
        self._waiting = WaitingPacks(
            store,
            self.shelf,
            filling=self._filling_bytes,
            stopping=self._stopping.is_set,
            bytes_max=settings.waiting_bytes_max,
            clock=clock,
        )
        self._recorder = Recorder(
            store,
            settings.packs_folder,
            clock=clock,
            faults=faults,
            propose=self._proposer.add,
            recorded=self._recorded,
            lost=self._lost,
            fatal=fatal,
        )
        self.packer = Packer(
            store,
            self._recorder,
            PackerSettings(
                settings.packs_folder,
                settings.pack_target_bytes,
                settings.pack_age_seconds_max,
                settings.archive_id,
                settings.lean_seconds_max,
            ),
            keys,
            encoder=Encoder(
                level=settings.compression_level,
                seconds_per_gigabyte_max=settings.encode_seconds_per_gigabyte_max,
                attempts=_attempts(settings.attempts_file),
                processor_seconds=time.thread_time,
            ),
            wait_for_room=self._waiting.wait_for_room,
            clock=clock,
            faults=faults,
        )
        self.protector = Protector(
            store,
            namespace,
            tree,
            self.packer,
            FrozenCopies(
                settings.frozen_folder,
                reserve_bytes=settings.reserve_bytes,
                clock=clock,
                stopping=self._stopping.is_set,
            ),
            ProtectorSettings(settings.unprotected_seconds_max, settings.hold_seconds_max),
            suspects=self._suspects,
            local_path=local_path,
            ready=self.may_pack,
            clock=clock,
            faults=faults,
        )
        names = {"look": self._look_on, "tend": self._tend_on, "propose": self._proposer.run, "disk": self._watch_on}
        names |= {"protect": self._protect_on}
        names |= {f"seal-{n}": self._seal_on for n in range(settings.workers)}
        self._threads = [
            threading.Thread(target=self._guarded, args=(w,), name=n, daemon=True) for n, w in names.items()
        ]

    # -- life --------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin."""
        self._started = True
        self._recorder.start()
        self.recaller.start()
        for replicator in self.replicators() if not self.suspended else ():
            replicator.start()
        for thread in self._threads:
            thread.start()

    def stop(self, seconds_max: float = STOP_SECONDS_MAX) -> bool:
        """Stop taking work, finish what is in hand where that is quick, and end.

        False when some thread did not end in time: what hangs on a target or on the tree ends with the process, and
        until then nobody may close the store.
        """
        until = time.monotonic() + seconds_max
        self._stopping.set()
        self._lookout.stop(self._settings.workers)
        self._proposer.stop()
        for replicator in self.replicators():
            replicator.ask_to_stop()
        self.recaller.ask_to_stop()
        ended = True
        if self._started:
            for thread in self._threads:
                thread.join(timeout=max(0.0, until - time.monotonic()))
                ended &= not thread.is_alive()
        ended &= self._recorder.stop(max(0.0, until - time.monotonic()))
        for part in (self._fleet, self.recaller):
            ended &= part.join(max(0.0, until - time.monotonic()))
        if ended:
            self.packer.stop()
            self._lookout.close()
        return ended

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as problem:
            self._fatal(problem)

    def step(self) -> bool:
        """One step of every stage in this thread, instead of `start`; whether any of them had something to do."""
        self.tend()
        self.look()
        done = self._record_on()
        done |= self.seal_next()
        done |= self._record_on()
        for replicator in self.replicators():
            done |= replicator.step()
        if len(self._proposer):
            done |= self._proposer.step()
        return self.protector.step() or done

    def _record_on(self) -> bool:
        done = False
        while self._recorder.record_next():
            done = True
        return done

    # -- targets -----------------------------------------------------------------------------------------------

    def set_targets(self, wanted: Mapping[TargetName, Destination]) -> None:
        """See Fleet.follow. Raises ConfigurationInvalid."""
        self._fleet.follow(wanted)

    def retire(self, name: TargetName) -> None:
        """See Fleet.retire. Raises NotFound, Refused."""
        self._fleet.retire(name)

    def replicators(self) -> list[Replicator]:
        """Every target's transfers, for status."""
        return self._fleet.every()

    def _targets_changed(self) -> None:
        self._reconciler.ask()

    def _replicator(self, row: TargetRow, destination: Destination) -> Replicator:
        return Replicator(
            row.number,
            destination.open(row.capabilities),
            self._store,
            self.shelf,
            transfers_max=destination.transfers_max,
            storage_seconds_min=destination.storage_seconds_min,
            prepare=self._bring_keys,
            clock=self._clock,
            faults=self._faults,
            verified=self._verified,
            lost=self._reconciler.ask,
            doubt=self._condemner.doubt,
            quarantine=self.quarantine,
            fatal=self._fatal,
            lock=destination.lock,
        )

    def _bring_keys(self, target: Target, capabilities: Callable[[], Capabilities]) -> None:
        if self.keys is not None:
            self.keys.bring(target, capabilities())

    def _begin(self, replicator: Replicator) -> None:
        if self._started and not self.suspended:
            replicator.start()

    # -- looking for work --------------------------------------------------------------------------------------

    def _look_on(self) -> None:
        while not self._stopping.wait(LOOK_SECONDS):
            self.look()

    def look(self) -> None:
        """Find versions that are due, unless there is no room for more packs."""
        if not self.suspended and self._clock.monotonic() >= self._pack_not_before and self._waiting.look():
            self._lookout.look()

    def _tend_on(self) -> None:
        while not self._stopping.wait(LOOK_SECONDS):
            self.tend()

    def tend(self) -> None:
        """Close packs that are old enough, and say what is still unsaid."""
        if self.suspended:
            return
        self.packer.close_aged()
        self._flights.tidy()
        self._suspects.tell()
        self._proposer.add(self._flights.unsaid())
        try:
            self._reconciler.step()
        except NoSpace as problem:
            log.warning("reconcile.later", extra={"why": str(problem)})
            self._reconciler.ask()
        self._uses.step()
        self._returned.step()

    def _filling_bytes(self) -> int:
        return self.packer.filling_bytes()

    @property
    def stalled(self) -> str:
        """Why packing waits, or nothing."""
        return self.suspended or self._waiting.why

    def suspend(self, why: str) -> None:
        """Take no more work, send nothing and let nothing go, until the process ends; recalls go on."""
        self.suspended = why
        for replicator in self.replicators():
            replicator.ask_to_stop()

    # -- sealing -----------------------------------------------------------------------------------------------

    def _seal_on(self) -> None:
        go_behind()
        while (found := self._lookout.take()) is not None and not self._stopping.is_set():
            self._take(*found)

    def seal_next(self) -> bool:
        """Seal and pack the next version that was found; whether there was one."""
        found = self._lookout.take_now()
        if found is None:
            return False
        self._take(*found)
        return True

    def _take(self, candidate: Candidate, synced: Synced) -> None:
        if not self._waiting.have_room():  # it was found before there were so many
            self._flights.land(candidate.inode, candidate.version)
            return
        try:
            later = self._sealed(candidate, synced)
        except (VnaError, OSError) as problem:
            # one file's trouble is no other's: it comes back, and the log says why
            log.warning("seal.later", extra={"inode": candidate.inode, "why": str(problem)})
            later = Later(str(problem), self._soon())
        if later is not None:
            self._flights.land(candidate.inode, candidate.version)
            if isinstance(later, Later):
                self._postpone(candidate, later.due)

    def _sealed(self, candidate: Candidate, synced: Synced) -> Later | Gone | None:
        try:
            return self._seal(candidate, synced)
        except Suspect as problem:
            self._suspects.add(candidate.inode, candidate.version, problem)
            return Gone()

    def _seal(self, candidate: Candidate, synced: Synced) -> Later | Gone | None:
        """None when the version is in hand of the packer."""
        try:
            described, place = self._namespace.to_pack(candidate.inode, candidate.version)
            repository = self._namespace.repository(described.facts.repository)
        except NotFound:
            return Gone()
        if self._suspects.is_full or (candidate.inode, candidate.version) in self._suspects:
            return Later("the tree does not know yet what the disk did not keep", self._soon())
        with reading(
            candidate,
            described.facts,
            self._local_path(candidate.inode, place),
            # nobody writes to a copy of a version that is over
            quiet_seconds=self._settings.quiet_seconds if place == candidate.version else 0.0,
            synced=synced,
            clock=self._clock,
            faults=self._faults,
        ) as sealing:
            if isinstance(sealing, Later | Gone):
                return sealing
            seal = self.packer.add(sealing, repository, hints_of(described))
            if seal is None:
                return Later("changed while it was read", self._soon())
            self._flights.sealed(candidate, seal)
        return None

    def _soon(self) -> Instant:
        return Instant(self._clock.now() + int(RETRY_SECONDS * NANOSECONDS))

    def _postpone(self, candidate: Candidate, due: Instant) -> None:
        try:
            self._tree.postpone([(candidate, due)])
        except VnaError as problem:
            log.warning("seal.postpone_failed", extra={"inode": candidate.inode, "why": str(problem)})

    def _lost(self, files: list[File], problem: VnaError) -> None:
        """A pack could not be written: its files are taken up again from their rows, after a while."""
        log.warning("pack.files_return", extra={"files": len(files), "why": str(problem)})
        self._pack_not_before = self._clock.monotonic() + RETRY_SECONDS
        for file in files:
            self._flights.land(file.inode, file.version, file.seal)

    # -- files that stay open ----------------------------------------------------------------------------------

    def _protect_on(self) -> None:
        go_behind()
        while not self._stopping.wait(PROTECT_LOOK_SECONDS):
            while not self._stopping.is_set() and self.protector.step():
                pass

    def may_pack(self) -> bool:
        """Whether what nobody waits for would find room in packs and a target to go to."""
        is_room = not self.stalled and self._waiting.have_room()
        is_room = is_room and not self._suspects.is_full
        return is_room and self._clock.monotonic() >= self._pack_not_before and bool(self.replicators())

    # -- proposing ---------------------------------------------------------------------------------------------

    def _dropped(self, proposals: Sequence[Proposal]) -> None:
        for proposal in proposals:
            self._flights.land(proposal.inode, proposal.version, proposal.seal)
        self._reconciler.ask()

    def _heed(self, batch: Sequence[Proposal], verdicts: Sequence[Verdict]) -> None:
        packed = []
        self._uses.refused(
            proposal
            for proposal, verdict in zip(batch, verdicts, strict=True)
            if proposal.state is FileState.PACKED and proposal.seal is not None and verdict in NOT_SO
        )
        for proposal, verdict in zip(batch, verdicts, strict=True):
            done = verdict is Verdict.DONE
            if proposal.seal is None:
                continue
            if proposal.state is FileState.SEALED and verdict in {Verdict.DONE, Verdict.KEPT}:
                continue  # still on its way into a pack
            self._flights.land(proposal.inode, proposal.version, proposal.seal)
            if proposal.state is FileState.PACKED and done:
                packed.append(proposal)
        if packed:
            with self._store.read() as reader:
                ready = replicated.by_packing(reader, self._namespace.repositories(), packed)
            self._proposer.add(ready)

    # -- what became of packs ------------------------------------------------------------------------------------

    def _recorded(self, _: PackNumber) -> None:
        self.kick()

    def kick(self) -> None:
        """There may be more transfers."""
        for replicator in self.replicators():
            replicator.kick()

    def contents_gone(self) -> None:
        """Some contents are not where they were."""
        self.recaller.forget_recipes()
        self._reconciler.ask()

    def _verified(self, number: PackNumber) -> None:
        """A pack is verified on one more target: files may have become replicated."""
        repositories = self._namespace.repositories()
        with self._store.read() as reader:
            proposals = replicated.by_pack(reader, repositories, number)
        self._proposer.add(proposals)

    # -- the local disk ------------------------------------------------------------------------------------------

    def _watch_on(self) -> None:
        while not self._stopping.wait(DISK_LOOK_SECONDS):
            self.watch_disk()

    def watch_disk(self) -> None:
        """Make room when the local disk is above its mark."""
        self.recaller.tidy()
        self.room.keep()

    def _evict(self, used_bytes: Callable[[], int], bytes_max: int) -> int:
        if self.suspended:
            return 0
        return self.evictor.make_room(used_bytes, bytes_max, stop=self._stopping.is_set)

    def _shed(self) -> None:
        self.shelf.shed()
        self.recaller.shed()

    def _marks(self) -> tuple[int, Watermarks]:
        return watermarks(
            self._settings.spool_folder,
            high_percent=self._settings.high_watermark_percent,
            low_percent=self._settings.low_watermark_percent,
            reserve_bytes=self._settings.reserve_bytes,
        )

    def _settle(self) -> None:
        """Return once everything that is known of copies survives loss of power."""
        self._store.sync(self._store.position)

    # -- answers -------------------------------------------------------------------------------------------------

    def local_size(self, facts: FileFacts) -> tuple[int, int]:
        """Bytes and time of change of a file now: while it is open for write only its local file knows."""
        try:
            status = os.stat(self._local_path(facts.inode, facts.version))
        except FileNotFoundError:
            return facts.size_bytes, facts.mtime_ns
        return status.st_size, max(facts.mtime_ns, status.st_mtime_ns)

    def copies_of(self, facts: FileFacts) -> list[Copy]:
        """Targets that hold every byte of a file verified."""
        return [] if facts.sha256 is None else copies_of_content(self._store, facts.sha256, facts.repository)


def _attempts(path: str) -> Attempts:
    """What was being tried. On a full disk nothing is noted: eviction, which makes room, must be able to start."""
    try:
        return AttemptsFile(path)
    except NoSpace:
        log.warning("attempts.no_space")
        return NoAttempts()
