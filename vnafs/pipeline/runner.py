"""The runner: queues, workers and crashes, so that each stage knows only its own step.

Work is found in the namespace's queue rows and the store's transfer rows; nothing that matters is only in memory.
Threads: one that looks for work, some that seal and pack, one that proposes, one that watches the disk, and those
of the recorder, the replicators and the recaller. Any of them dying ends the process: the supervisor starts it
again, and it goes on from its rows.
"""

from __future__ import annotations

import collections
import dataclasses
import logging
import os
import queue
import threading
from collections.abc import Callable, Mapping, Sequence

from vnafs.content import packfile
from vnafs.domain.clock import NANOSECONDS, Clock, Instant
from vnafs.domain.copies import Capabilities, Copy
from vnafs.domain.errors import DaemonUnreachable, NoSpace, NotFound, NotYet, VnaError
from vnafs.domain.faults import Faults
from vnafs.domain.files import Candidate, FileFacts, FileState, Proposal, Seal, Verdict
from vnafs.domain.ids import ContentNumber, Inode, PackNumber, RepositoryId, TargetName, Version
from vnafs.domain.repositories import Repository
from vnafs.index import contents, copies, packs, targets
from vnafs.index.engine import Engine
from vnafs.local.spool import sync_file_system
from vnafs.pipeline.evict import Evictor, Watermarks, watermarks
from vnafs.pipeline.held import copies_of_content
from vnafs.pipeline.namespace import ANY_TIME, Described, Namespace
from vnafs.pipeline.pack import File, Packer, PackerSettings
from vnafs.pipeline.recall import Recaller
from vnafs.pipeline.replicate import Replicator, backfill
from vnafs.pipeline.seal import Gone, Later, reading
from vnafs.pipeline.shelf import Shelf
from vnafs.pipeline.tree import Tree
from vnafs.targets.port import Target

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.2
SEALED_LOOK_SECONDS = 5.0
SEALED_SAY_SECONDS = 1.0
DISK_LOOK_SECONDS = 2.0
RETRY_SECONDS = 10.0
CANDIDATES_MAX = 256
TICK_NANOSECONDS = 20_000_000
"""More than the coarsest kernel clock that files are stamped with (CONFIG_HZ=100)."""
PROPOSALS_AT_ONCE_MAX = 32
"""How long the tree may be kept busy by one request."""
PROPOSALS_MAX = 100_000


@dataclasses.dataclass(frozen=True, slots=True)
class TieringSettings:
    """Folders and limits of tiering."""

    archive_id: bytes
    spool_folder: str
    packs_folder: str
    staging_folder: str
    recall_cache_folder: str
    quiet_seconds: float
    pack_target_bytes: int
    pack_age_seconds_max: float
    compression_level: int
    workers: int
    waiting_bytes_max: int
    recall_cache_bytes_max: int
    high_watermark_percent: float
    low_watermark_percent: float
    local_bytes_max: int


@dataclasses.dataclass(frozen=True, slots=True)
class Destination:
    """A target as configured: where, and how many uploads at once."""

    open: Callable[[Capabilities | None], Target]
    """Makes the target, given what its last probe found."""
    url: str
    transfers_max: int


@dataclasses.dataclass(slots=True)
class _Flight:
    """A version between being found and the tree's answer."""

    since: float
    seal: Seal | None = None
    said_sealed: bool = False


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
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._flights: dict[tuple[Inode, Version], _Flight] = {}
        self._candidates: queue.Queue[tuple[Candidate, Instant] | None] = queue.Queue()
        self._proposals: collections.deque[Proposal] = collections.deque()
        self._proposed = threading.Condition()
        self._sweep_due = True
        self._stalled = ""
        self._replicators: dict[int, Replicator] = {}
        self.shelf = Shelf(
            settings.packs_folder,
            settings.recall_cache_folder,
            store,
            sources=self._sources,
            cache_bytes_max=settings.recall_cache_bytes_max,
        )
        self.recaller = Recaller(store, self.shelf, settings.staging_folder, clock=clock, faults=faults, fatal=fatal)
        self.evictor = Evictor(tree, namespace, self.copies_of, clock=clock, faults=faults)
        self.packer = Packer(
            store,
            PackerSettings(
                settings.packs_folder,
                settings.pack_target_bytes,
                settings.pack_age_seconds_max,
                settings.compression_level,
                settings.archive_id,
            ),
            clock=clock,
            faults=faults,
            propose=self._propose,
            recorded=self._recorded,
            lost=self._lost,
            fatal=fatal,
        )
        names = {"look": self._look, "propose": self._propose_all, "disk": self._watch_disk}
        names |= {f"seal-{n}": self._work for n in range(settings.workers)}
        self._threads = [
            threading.Thread(target=self._guarded, args=(w,), name=n, daemon=True) for n, w in names.items()
        ]

    # -- life --------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stop taking work, finish what is in hand where that is quick, and end."""
        self._stopping.set()
        for _ in range(self._settings.workers):
            self._candidates.put(None)
        with self._proposed:
            self._proposed.notify_all()
        for thread in self._threads:
            thread.join(timeout=30)
        self.packer.stop()
        for replicator in list(self._replicators.values()):
            replicator.stop()
        self.recaller.stop()

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as problem:
            self._fatal(problem)

    # -- targets -----------------------------------------------------------------------------------------------

    def set_targets(self, wanted: Mapping[TargetName, Destination]) -> None:
        """Follow the configuration: new targets are back-filled, those that are gone no longer count."""
        now = self._clock.now()
        with self._store.write() as tx:
            known = {row.name: row for row in targets.every(tx) if not row.removed}
            number = max((row.number for row in targets.every(tx)), default=0)
            for name, destination in wanted.items():
                if name not in known:
                    number += 1
                    known[name] = targets.TargetRow(number, name, destination.url)
                    targets.put(tx, known[name])
            for name, row in known.items():
                if name not in wanted:
                    targets.put(tx, dataclasses.replace(row, removed=True))
        for name, row in known.items():
            running = self._replicators.get(row.number)
            if name not in wanted and running is not None:
                with self._lock:
                    del self._replicators[row.number]
                running.stop()
            elif name in wanted and running is None:
                backfill(self._store, row.number, now=now)
                self._run_replicator(row, wanted[name])
        self._sweep_due = True

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
            fatal=self._fatal,
        )
        with self._lock:
            self._replicators[row.number] = replicator
        replicator.start()

    def _sources(self) -> Mapping[int, Target]:
        with self._lock:
            return {number: replicator.target for number, replicator in self._replicators.items()}

    def replicators(self) -> list[Replicator]:
        """Every target's transfers, for status."""
        with self._lock:
            return list(self._replicators.values())

    # -- looking for work --------------------------------------------------------------------------------------

    def _look(self) -> None:
        sealed_due = 0.0
        while not self._stopping.wait(LOOK_SECONDS):
            self.packer.close_aged()
            self._say_sealed()
            if not self._room_for_packs():
                continue
            self._dispatch(FileState.OPEN, self._clock.now())
            if self._clock.monotonic() >= sealed_due:
                # rows of versions that were in hand when a daemon died, and of packs that were lost
                self._dispatch(FileState.SEALED, ANY_TIME)
                sealed_due = self._clock.monotonic() + SEALED_LOOK_SECONDS
            if self._sweep_due:
                self._sweep_due = False
                self._sweep()

    def _dispatch(self, state: FileState, until: Instant) -> None:
        found = self._fresh(state, until)
        if not found:
            return
        # one sync for all of them; times of change are as coarse as the kernel's tick
        synced = Instant(self._clock.now() - TICK_NANOSECONDS)
        sync_file_system(self._settings.spool_folder)
        for candidate in found:
            with self._lock:
                self._flights[candidate.inode, candidate.version] = _Flight(self._clock.monotonic())
            self._candidates.put((candidate, synced))

    def _fresh(self, state: FileState, until: Instant) -> list[Candidate]:
        """Versions that are due and not in hand, as many as there is room for: the next look finds the others."""
        room = CANDIDATES_MAX - self._candidates.qsize()
        found: list[Candidate] = []
        after: Candidate | None = None
        while len(found) < room:
            batch = self._namespace.waiting(state, until=until, limit=CANDIDATES_MAX, after=after)
            with self._lock:
                found += [c for c in batch if (c.inode, c.version) not in self._flights]
            if len(batch) < CANDIDATES_MAX:
                break
            after = batch[-1]
        return found[:room]

    def _room_for_packs(self) -> bool:
        """Whether packs that wait for targets leave room for more."""
        waiting = sum(entry.stat().st_size for entry in os.scandir(self._settings.packs_folder) if entry.is_file())
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

    def _say_sealed(self) -> None:
        """Tell the tree of versions that are sealed but whose pack is still open."""
        now = self._clock.monotonic()
        proposals = []
        with self._lock:
            for (inode, version), flight in self._flights.items():
                if flight.seal is not None and not flight.said_sealed and now - flight.since >= SEALED_SAY_SECONDS:
                    flight.said_sealed = True
                    proposals.append(Proposal(inode, version, FileState.SEALED, flight.seal))
        self._propose(proposals)

    def _sweep(self) -> None:
        """Propose again what a crash, a lost answer or a changed rule left behind: only rows in work are looked at."""
        for state, wanted in ((FileState.PACKED, FileState.REPLICATED), (FileState.REPLICATED, FileState.PACKED)):
            after: Candidate | None = None
            while batch := self._namespace.waiting(state, limit=CANDIDATES_MAX, after=after):
                for candidate in batch:
                    after = candidate
                    enough = self._has_copies(candidate.inode, candidate.version)
                    if enough is (wanted is FileState.REPLICATED):
                        self._propose([Proposal(candidate.inode, candidate.version, wanted)])
                if self._stopping.is_set():
                    return

    def _has_copies(self, inode: Inode, version: Version) -> bool | None:
        """Whether a version has the copies its repository asks for; None when nothing can be said of it."""
        try:
            facts = self._namespace.facts(inode)
            repository = self._namespace.repository(facts.repository)
        except NotFound:
            return None
        if facts.version != version or facts.sha256 is None:
            return None
        with self._store.write() as tx:  # heals a use that a crash kept from being noted; mostly changes nothing
            content = contents.find(tx, facts.sha256, facts.repository)
            if content is None:
                return None
            if (inode, version) not in set(contents.uses(tx, content.number)):
                contents.add_use(tx, content.number, inode, version)
        return len(self.copies_of(facts)) >= max(1, repository.copies_min)

    # -- sealing -----------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while (found := self._candidates.get()) is not None:
            if self._stopping.is_set():
                return
            candidate, synced = found
            try:
                later = self._seal(candidate, synced)
            except (NoSpace, NotYet, DaemonUnreachable) as problem:
                log.warning("seal.later", extra={"inode": candidate.inode, "why": str(problem)})
                later = Later(str(problem), self._soon())
            except OSError as problem:
                log.exception("seal.failed", extra={"inode": candidate.inode})
                later = Later(str(problem), self._soon())
            if later is not None:
                self._land(candidate.inode, candidate.version)
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
            with self._lock:
                flight = self._flights.get((candidate.inode, candidate.version))
                if flight is not None:
                    flight.seal = seal
        return None

    def _soon(self) -> Instant:
        return Instant(self._clock.now() + int(RETRY_SECONDS * NANOSECONDS))

    def _postpone(self, candidate: Candidate, due: Instant) -> None:
        try:
            self._tree.postpone([(candidate, due)])
        except VnaError as problem:
            log.warning("seal.postpone_failed", extra={"inode": candidate.inode, "why": str(problem)})

    def _land(self, inode: Inode, version: Version) -> None:
        with self._lock:
            self._flights.pop((inode, version), None)

    def _lost(self, files: list[File], problem: VnaError) -> None:
        """A pack could not be written: its files are taken up again from their rows."""
        log.warning("pack.files_return", extra={"files": len(files), "why": str(problem)})
        for file in files:
            self._land(file.inode, file.version)

    # -- proposing ---------------------------------------------------------------------------------------------

    def _propose(self, proposals: Sequence[Proposal]) -> None:
        if not proposals:
            return
        with self._proposed:
            if len(self._proposals) + len(proposals) > PROPOSALS_MAX:
                self._sweep_due = True
                for proposal in proposals:
                    self._land(proposal.inode, proposal.version)
                return
            self._proposals.extend(proposals)
            self._proposed.notify()

    def _propose_all(self) -> None:
        while True:
            with self._proposed:
                while not self._proposals and not self._stopping.is_set():
                    self._proposed.wait()
                if not self._proposals:
                    return
                batch = [self._proposals.popleft() for _ in range(min(len(self._proposals), PROPOSALS_AT_ONCE_MAX))]
            try:
                verdicts = self._tree.advance(batch)
            except VnaError as problem:
                log.warning("propose.later", extra={"why": str(problem)})
                with self._proposed:
                    self._proposals.extendleft(reversed(batch))
                if self._stopping.wait(1.0):
                    return
                continue
            self._heed(batch, verdicts)

    def _heed(self, batch: Sequence[Proposal], verdicts: Sequence[Verdict]) -> None:
        ready = []
        for proposal, verdict in zip(batch, verdicts, strict=True):
            if proposal.state is FileState.SEALED and verdict is Verdict.DONE:
                continue
            if proposal.state is not FileState.REPLICATED:
                self._land(proposal.inode, proposal.version)
            if proposal.state is FileState.PACKED and verdict is Verdict.DONE and self._is_ready(proposal):
                ready.append(Proposal(proposal.inode, proposal.version, FileState.REPLICATED))
        self._propose(ready)

    def _is_ready(self, proposal: Proposal) -> bool:
        """Whether a version that was just packed has all its copies already, because its content was known."""
        if proposal.seal is None:
            return False
        with self._store.read() as reader:
            repositories = self._repositories()
            for repository in repositories.values():
                content = contents.find(reader, proposal.seal.sha256, repository.id)
                if content is None:
                    continue
                held = copies.verified_on(reader, content.packs())
                if len(held) >= max(1, repository.copies_min) and (proposal.inode, proposal.version) in set(
                    contents.uses(reader, content.number)
                ):
                    return True
        return False

    def _repositories(self) -> dict[RepositoryId, Repository]:
        return {repository.id: repository for repository in self._namespace.repositories()}

    # -- what became of packs ------------------------------------------------------------------------------------

    def _recorded(self, _: PackNumber) -> None:
        for replicator in self.replicators():
            replicator.kick()

    def _verified(self, number: PackNumber) -> None:
        """A pack is verified on one more target: files may have become replicated."""
        repositories = self._repositories()
        proposals: list[Proposal] = []
        with self._store.read() as reader:
            pack = packs.get(reader, number)
            if pack is None or pack.repository not in repositories:
                return
            wanted = max(1, repositories[pack.repository].copies_min)
            for content in contents.of_pack(reader, pack.contents_first, pack.contents_count):
                if len(copies.verified_on(reader, content.packs())) >= wanted:
                    proposals.extend(
                        Proposal(inode, version, FileState.REPLICATED)
                        for inode, version in contents.uses(reader, content.number)
                    )
            for leaning in contents.leaning_on(reader, number):
                elsewhere = contents.get(reader, ContentNumber(leaning))
                if elsewhere is not None and len(copies.verified_on(reader, elsewhere.packs())) >= wanted:
                    proposals.extend(
                        Proposal(inode, version, FileState.REPLICATED)
                        for inode, version in contents.uses(reader, elsewhere.number)
                    )
        self._propose(proposals)

    # -- the local disk ------------------------------------------------------------------------------------------

    def _watch_disk(self) -> None:
        while not self._stopping.wait(DISK_LOOK_SECONDS):
            used, marks = self._marks()
            if used > marks.high_bytes:
                try:
                    self.evictor.make_room(lambda: self._marks()[0], marks.low_bytes, stop=self._stopping.is_set)
                except VnaError as problem:
                    log.warning("evict.later", extra={"why": str(problem)})

    def _marks(self) -> tuple[int, Watermarks]:
        return watermarks(
            self._settings.spool_folder,
            high_percent=self._settings.high_watermark_percent,
            low_percent=self._settings.low_watermark_percent,
            bytes_max=self._settings.local_bytes_max,
        )

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
