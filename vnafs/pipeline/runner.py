"""The runner: queues, workers and crashes, so that each stage knows only its own step.

Work is found in the namespace's queue rows and the store's transfer rows; nothing that matters is only in memory.
Threads: one that looks for work, some that seal and pack, one that proposes, one that watches the disk, and those
of the recorder, the replicators and the recaller. Any of them dying ends the process: the supervisor starts it
again, and it goes on from its rows. Each thread repeats one step that can also be called from outside: `step` does
one of each in the caller's thread, for whoever wants everything in a known order.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import queue
import threading
from collections.abc import Callable, Mapping, Sequence

from vnafs.content import packfile
from vnafs.domain.clock import NANOSECONDS, Clock, Instant
from vnafs.domain.copies import Copy, CopyState
from vnafs.domain.errors import ConfigurationInvalid, NotFound, Refused, VnaError
from vnafs.domain.faults import Faults
from vnafs.domain.files import Candidate, FileFacts, FileState, Proposal, Verdict
from vnafs.domain.ids import Inode, PackNumber, TargetName, Version
from vnafs.index import copies, packs, targets
from vnafs.index.engine import Engine
from vnafs.local.spool import sync_file_system
from vnafs.pipeline import replicated
from vnafs.pipeline.domains import File
from vnafs.pipeline.evict import Evictor, Watermarks, watermarks
from vnafs.pipeline.flights import Flights
from vnafs.pipeline.held import copies_of_content
from vnafs.pipeline.namespace import ANY_TIME, Described, Namespace
from vnafs.pipeline.pack import Packer, PackerSettings
from vnafs.pipeline.propose import Proposer
from vnafs.pipeline.recall import Recaller
from vnafs.pipeline.reconcile import Reconciler
from vnafs.pipeline.record import Recorder
from vnafs.pipeline.replicate import Replicator, backfill
from vnafs.pipeline.room import Room
from vnafs.pipeline.seal import Gone, Later, reading
from vnafs.pipeline.settings import Destination, TieringSettings
from vnafs.pipeline.shelf import Shelf
from vnafs.pipeline.tree import Tree
from vnafs.targets.port import Target

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.2
SEALED_LOOK_SECONDS = 5.0
DISK_LOOK_SECONDS = 2.0
RETRY_SECONDS = 10.0
SET_BACK_SECONDS = 60.0
"""A row that is due later than any quiet time and retry explains was made before the clock was set back."""
CANDIDATES_MAX = 256
TICK_NANOSECONDS = 20_000_000
"""More than the coarsest kernel clock that files are stamped with (CONFIG_HZ=100)."""


class Tiering:
    """Everything that happens behind the tree."""

    def __init__(
        self,
        store: Engine,
        namespace: Namespace,
        tree: Tree,
        local_path: Callable[[Inode, Version], str],
        settings: TieringSettings,
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
        self._clock = clock
        self._faults = faults
        self._fatal = fatal
        self._started = False
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._flights = Flights(clock)
        self._candidates: queue.Queue[tuple[Candidate, Instant] | None] = queue.Queue()
        self._sealed_look = self._pack_not_before = clock.monotonic()
        self._stalled = ""
        self._replicators: dict[int, Replicator] = {}
        self.room = Room(self._marks, shed=self._shed, evict=self._evict)
        self.shelf = Shelf(
            settings.packs_folder,
            settings.recall_cache_folder,
            store,
            sources=self._sources,
            has_room=self.room.has,
            cache_bytes_max=settings.recall_cache_bytes_max,
        )
        self.recaller = Recaller(
            store,
            self.shelf,
            settings.staging_folder,
            make_room=self.room.make,
            clock=clock,
            faults=faults,
            fatal=fatal,
        )
        self.evictor = Evictor(tree, namespace, self.copies_of, settle=self._settle, clock=clock, faults=faults)
        self._proposer = Proposer(tree, heed=self._heed, dropped=self._dropped)
        self._reconciler = Reconciler(store, namespace, self.shelf, propose=self._proposer.add)
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
                settings.compression_level,
                settings.archive_id,
            ),
            clock=clock,
            faults=faults,
        )
        names = {"look": self._look_on, "propose": self._proposer.run, "disk": self._watch_on}
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
        for replicator in self.replicators():
            replicator.start()
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stop taking work, finish what is in hand where that is quick, and end."""
        self._stopping.set()
        for _ in range(self._settings.workers):
            self._candidates.put(None)
        self._proposer.stop()
        if self._started:
            for thread in self._threads:
                thread.join(timeout=30)
        self._recorder.stop()
        self.packer.stop()
        for replicator in self.replicators():
            replicator.stop()
        self.recaller.stop()

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as problem:
            self._fatal(problem)

    def step(self) -> bool:
        """One step of every stage in this thread, instead of `start`; whether any of them had something to do."""
        self.look()
        done = self._record_on()
        done |= self.seal_next()
        done |= self._record_on()
        for replicator in self.replicators():
            done |= replicator.step()
        if len(self._proposer):
            done |= self._proposer.step()
        return done

    def _record_on(self) -> bool:
        done = False
        while self._recorder.record_next():
            done = True
        return done

    # -- targets -----------------------------------------------------------------------------------------------

    def set_targets(self, wanted: Mapping[TargetName, Destination]) -> None:
        """Follow the configuration: new targets are back-filled, those that are missing cannot be reached now.

        A missing one still counts: only `retire` ends that, and it looks first. Raises ConfigurationInvalid when a
        name points to another place than the one its copies are at.
        """
        now = self._clock.now()
        with self._store.write() as tx:
            known = {row.name: row for row in targets.every(tx) if not row.removed}
            number = max((row.number for row in targets.every(tx)), default=0)
            for name, destination in wanted.items():
                if name not in known:
                    number += 1
                    known[name] = targets.TargetRow(number, name, destination.url)
                    targets.put(tx, known[name])
                elif known[name].url != destination.url:
                    raise ConfigurationInvalid(
                        file="vnafs.toml",
                        key=f"target {name}: url",
                        value=destination.url,
                        why=f"its copies are at {known[name].url}",
                        fix="Write that URL again, and add the other place as a target with another name",
                    )
        for name, row in known.items():
            with self._lock:
                running = self._replicators.get(row.number)
            if name not in wanted and running is not None:
                with self._lock:
                    del self._replicators[row.number]
                running.stop()
            elif name in wanted and running is None:
                backfill(self._store, row.number, now=now)
                self._run_replicator(row, wanted[name])
        self._reconciler.ask()

    def retire(self, name: TargetName) -> None:
        """Let a target count no more. Raises NotFound, or Refused when it alone holds some pack verified."""
        with self._store.write() as tx:
            row = next((row for row in targets.current(tx).values() if row.name == name), None)
            if row is None:
                raise NotFound(what=f"target {name}")
            others = targets.current(tx).keys() - {row.number}
            alone = 0
            for pack in packs.every(tx):
                held = {c.target for c in copies.of_pack(tx, pack.number) if c.state is CopyState.VERIFIED}
                alone += row.number in held and not held & others
            if alone:
                raise Refused(
                    what=f"Removing target {name}",
                    why=f"{alone} packs have their only verified copy there; add another target and wait for it first",
                )
            targets.put(tx, dataclasses.replace(row, removed=True))
        with self._lock:
            running = self._replicators.pop(row.number, None)
        if running is not None:
            running.stop()
        self._reconciler.ask()

    def _run_replicator(self, row: targets.TargetRow, destination: Destination) -> None:
        replicator = Replicator(
            row.number,
            destination.open(row.capabilities),
            self._store,
            self.shelf,
            transfers_max=destination.transfers_max,
            clock=self._clock,
            faults=self._faults,
            verified=self._verified,
            lost=self._reconciler.ask,
            fatal=self._fatal,
        )
        with self._lock:
            self._replicators[row.number] = replicator
        if self._started:
            replicator.start()

    def _sources(self) -> Mapping[int, Target]:
        """Targets to read from, those that answer first: a reader must not wait for one that is known to be down."""
        found = sorted(self.replicators(), key=lambda replicator: not replicator.health.reachable)
        return {replicator.number: replicator.target for replicator in found}

    def replicators(self) -> list[Replicator]:
        """Every target's transfers, for status."""
        with self._lock:
            return list(self._replicators.values())

    # -- looking for work --------------------------------------------------------------------------------------

    def _look_on(self) -> None:
        while not self._stopping.wait(LOOK_SECONDS):
            self.look()

    def look(self) -> None:
        """Find versions that are due, and close packs that are."""
        self.packer.close_aged()
        self._flights.tidy()
        self._proposer.add(self._flights.unsaid())
        self._reconciler.step()
        now = self._clock.monotonic()
        if now < self._pack_not_before or not self._room_for_packs():
            return
        self._dispatch(FileState.OPEN, self._clock.now())
        if now >= self._sealed_look:
            # rows of versions that were in hand when a daemon died, and of packs that were lost
            self._dispatch(FileState.SEALED, ANY_TIME)
            self._dispatch_set_back()
            self._sealed_look = now + SEALED_LOOK_SECONDS

    def _dispatch(self, state: FileState, until: Instant, after: Candidate | None = None) -> None:
        found = self._fresh(state, until, after)
        if not found:
            return
        # one sync for all of them; times of change are as coarse as the kernel's tick
        synced = Instant(self._clock.now() - TICK_NANOSECONDS)
        sync_file_system(self._settings.spool_folder)
        for candidate in found:
            self._flights.begin(candidate)
            self._candidates.put((candidate, synced))

    def _dispatch_set_back(self) -> None:
        """Rows that an hour's step of the clock put into the future: they get a due time that will come."""
        latest = self._clock.now() + int((self._settings.quiet_seconds + SET_BACK_SECONDS) * NANOSECONDS)
        self._dispatch(FileState.OPEN, ANY_TIME, Candidate(Inode(0), Version(0), FileState.OPEN, Instant(latest)))

    def _fresh(self, state: FileState, until: Instant, after: Candidate | None) -> list[Candidate]:
        """Versions that are due and not in hand, as many as there is room for: the next look finds the others."""
        room = CANDIDATES_MAX - self._candidates.qsize()
        found: list[Candidate] = []
        while len(found) < room:
            batch = self._namespace.waiting(state, until=until, limit=CANDIDATES_MAX, after=after)
            found += self._flights.fresh(batch)
            if len(batch) < CANDIDATES_MAX:
                break
            after = batch[-1]
        return found[:room]

    def _room_for_packs(self) -> bool:
        """Whether packs that wait for targets leave room for more."""
        waiting = 0
        with os.scandir(self._settings.packs_folder) as found:
            for entry in found:
                try:
                    waiting += entry.stat().st_size
                except FileNotFoundError:
                    continue  # closed or taken by its targets just now
        if waiting <= self._settings.waiting_bytes_max:
            self._stalled = ""
            return True
        with self._store.read() as reader:
            local = [pack.number for pack in packs.every(reader) if pack.local]
        for number in local:
            self.shelf.release(number, copies_enough=1)
        if not self._stalled:
            log.warning("pack.waiting_for_targets", extra={"waiting_bytes": waiting})
        self._stalled = f"{waiting} bytes of packs wait for targets; files stay in the spool until they are taken"
        return False

    @property
    def stalled(self) -> str:
        """Why packing waits, or nothing."""
        return self._stalled

    # -- sealing -----------------------------------------------------------------------------------------------

    def _seal_on(self) -> None:
        while (found := self._candidates.get()) is not None and not self._stopping.is_set():
            self._take(*found)

    def seal_next(self) -> bool:
        """Seal and pack the next version that was found; whether there was one."""
        try:
            found = self._candidates.get_nowait()
        except queue.Empty:
            return False
        if found is None:
            return False
        self._take(*found)
        return True

    def _take(self, candidate: Candidate, synced: Instant) -> None:
        try:
            later = self._seal(candidate, synced)
        except (VnaError, OSError) as problem:
            # one file's trouble is no other's: it comes back, and the log says why
            log.warning("seal.later", extra={"inode": candidate.inode, "why": str(problem)})
            later = Later(str(problem), self._soon())
        if later is not None:
            self._flights.land(candidate.inode, candidate.version)
            if isinstance(later, Later):
                self._postpone(candidate, later.due)

    def _seal(self, candidate: Candidate, synced: Instant) -> Later | Gone | None:
        """None when the version is in hand of the packer."""
        try:
            described = self._namespace.described(candidate.inode)
            repository = self._namespace.repository(described.facts.repository)
        except NotFound:
            return Gone()
        with reading(
            candidate,
            described.facts,
            self._local_path(candidate.inode, candidate.version),
            quiet_seconds=self._settings.quiet_seconds,
            synced=synced,
            clock=self._clock,
            faults=self._faults,
        ) as sealing:
            if isinstance(sealing, Later | Gone):
                return sealing
            seal = self.packer.add(sealing, repository, _hints(described))
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

    # -- proposing ---------------------------------------------------------------------------------------------

    def _dropped(self, proposals: Sequence[Proposal]) -> None:
        for proposal in proposals:
            self._flights.land(proposal.inode, proposal.version, proposal.seal)
        self._reconciler.ask()

    def _heed(self, batch: Sequence[Proposal], verdicts: Sequence[Verdict]) -> None:
        packed = []
        for proposal, verdict in zip(batch, verdicts, strict=True):
            done = verdict is Verdict.DONE
            if proposal.seal is None or (proposal.state is FileState.SEALED and done):
                continue
            self._flights.land(proposal.inode, proposal.version, proposal.seal)
            if proposal.state is FileState.PACKED and done:
                packed.append(proposal)
        if packed:
            with self._store.read() as reader:
                ready = replicated.by_packing(reader, self._namespace.repositories(), packed)
            self._proposer.add(ready)

    # -- what became of packs ------------------------------------------------------------------------------------

    def _recorded(self, _: PackNumber) -> None:
        for replicator in self.replicators():
            replicator.kick()

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
        return self.evictor.make_room(used_bytes, bytes_max, stop=self._stopping.is_set)

    def _shed(self) -> None:
        self.shelf.shed()
        self.recaller.shed()

    def _marks(self) -> tuple[int, Watermarks]:
        return watermarks(
            self._settings.spool_folder,
            high_percent=self._settings.high_watermark_percent,
            low_percent=self._settings.low_watermark_percent,
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


def _hints(described: Described) -> packfile.FileHints:
    row = described.row
    return packfile.FileHints(
        path=described.path,
        inode=described.facts.inode,
        version=described.facts.version,
        mode=row.mode,
        uid=row.uid,
        gid=row.gid,
        mtime_ns=row.mtime_ns,
        ctime_ns=row.ctime_ns,
        xattrs=described.xattrs,
    )
