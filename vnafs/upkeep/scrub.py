"""Scrub: look at every copy and every local file again before it is needed, and have what is wrong mended.

Copies on targets: each is verified again within a period, by the target's own SHA-256 where that costs no reading,
else by reading every byte back, no faster than a set rate. One that is wrong or gone counts no more and is put again
from a good one; if there is none it stays, and is reported. Local bytes of replicated files: compared with their
SHA-256; rotten ones are let go as soon as enough copies are right, and the next reader gets them from a target. What
was wrong is kept in quarantine, for as long as that is set to last.
Manifests on targets: those that a restore needs are compared with ours once in a period, and put again. A target that
does not answer says nothing of what it has.

One thread, one object at a time; a cursor in the store says where it goes on after a restart. Pieces of work may be
repeated. It writes nothing but what replication and eviction write.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Protocol

from vnafs.domain.clock import NANOSECONDS, Clock, Instant
from vnafs.domain.copies import Capabilities, CopyState, VerifiedBy
from vnafs.domain.errors import Damaged, NotFound, ObjectMissing, TargetError, VnaError
from vnafs.domain.files import Candidate, FileFacts, FileState
from vnafs.domain.ids import Inode, PackNumber, TargetName, Version, pack_object_name
from vnafs.index import copies, keys, meta, packs
from vnafs.index.engine import Engine
from vnafs.local.quarantine import About, Kind, Quarantine
from vnafs.local.spool import fingerprint_of
from vnafs.local.turns import go_behind
from vnafs.pipeline.aside import LOCAL
from vnafs.pipeline.namespace import Namespace
from vnafs.targets.port import Target
from vnafs.targets.verifying import verify

log = logging.getLogger(__name__)

CURSOR = "scrub.pack"
FILE_CURSOR = "scrub.file"
BLOCK_BYTES = 1024 * 1024
IDLE_SECONDS = 60.0
"""Between looks for what is due, when nothing was."""
STOP_SECONDS_MAX = 1.0
PACKS_AT_ONCE = 256
FILES_AT_ONCE = 64
ROTTEN = "scrub.rotten"
ROTTEN_MAX = 10_000
"""Remembered until they may go; more are found again in the next period."""


class Copyist(Protocol):
    """Who brings packs to one target, and hears what became of its copies."""

    @property
    def number(self) -> int:
        """The target's number."""
        ...

    @property
    def name(self) -> TargetName:
        """Its name."""
        ...

    @property
    def target(self) -> Target:
        """The target."""
        ...

    def capabilities(self) -> Capabilities:
        """What it can do."""
        ...

    def damaged(self, number: PackNumber) -> None:
        """A copy that counted is wrong or gone."""
        ...

    def reverified(self, number: PackNumber, how: VerifiedBy) -> None:
        """A copy is right."""
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class ScrubSettings:
    """How often, and how fast."""

    period_seconds: float
    """Every copy and every local file is looked at again within this."""
    bytes_per_second_max: int
    """0 for no limit."""


@dataclasses.dataclass(slots=True)
class Findings:
    """What this run of the process has found, for status."""

    copies: int = 0
    copies_damaged: int = 0
    files: int = 0
    files_damaged: int = 0
    files_let_go: int = 0
    manifests: int = 0
    manifests_damaged: int = 0


class Scrub:
    """See the module. *evict* lets go of a file's local bytes if it may; whether it did. *manifests* looks at them."""

    def __init__(  # noqa: PLR0913 - parts and exits, each named where it is wired
        self,
        store: Engine,
        namespace: Namespace,
        local_path: Callable[[Inode, Version], str],
        settings: ScrubSettings,
        *,
        copyists: Callable[[], Collection[Copyist]],
        evict: Callable[[Sequence[Inode]], Sequence[bool]],
        manifests: Callable[[], Iterator[tuple[TargetName, int, bool]]],
        quarantine: Quarantine,
        clock: Clock,
        fatal: Callable[[BaseException], None],
    ) -> None:
        self._store = store
        self._namespace = namespace
        self._local_path = local_path
        self._settings = settings
        self._copyists = copyists
        self._evict = evict
        self._look_at_manifests = manifests
        self._manifests: Iterator[tuple[TargetName, int, bool]] | None = None
        self._manifests_not_before = 0.0
        self._quarantine = quarantine
        self._tidy_not_before = 0.0
        self._clock = clock
        self._fatal = fatal
        self.findings = Findings()
        with store.read() as reader:
            self._rotten = _numbers(meta.get_bytes(reader, ROTTEN) or b"")
        self._rotten_not_before = 0.0
        self._files: Iterator[Candidate] | None = None
        self._files_not_before = 0.0
        self._packs_not_before = 0.0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="scrub", daemon=True)

    def start(self) -> None:
        """Begin, in a thread."""
        self._thread.start()

    def stop(self) -> bool:
        """End. False when a request hangs, or an object is large, and is given up with the process."""
        self._stopping.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(timeout=STOP_SECONDS_MAX)
        return not self._thread.is_alive()

    def _run(self) -> None:
        go_behind()
        try:
            while not self._stopping.is_set():
                began = self._clock.monotonic()
                read_bytes = self.step()
                spent = self._clock.monotonic() - began
                self._stopping.wait(self._pause_seconds(read_bytes, spent))
        except BaseException as problem:
            self._fatal(problem)

    def _pause_seconds(self, read_bytes: int | None, spent_seconds: float) -> float:
        if read_bytes is None:
            return min(IDLE_SECONDS, self._settings.period_seconds / 10)
        rate = self._settings.bytes_per_second_max
        return max(0.0, read_bytes / rate - spent_seconds) if rate else 0.0

    def step(self) -> int | None:
        """Look at one pack's copies that are due, or else one local file; bytes read, None when nothing was due."""
        if self._clock.monotonic() >= self._tidy_not_before:
            self._quarantine.tidy()
            self._tidy_not_before = self._clock.monotonic() + IDLE_SECONDS
        if self._rotten and self._clock.monotonic() >= self._rotten_not_before:
            self._let_rotten_go()
        if self._clock.monotonic() >= self._packs_not_before:
            read_bytes = self._next_pack()
            if read_bytes is not None:
                return read_bytes
            # else every local file would cost another walk over all packs
            self._packs_not_before = self._clock.monotonic() + IDLE_SECONDS
        read_bytes = self._next_manifest()
        return self._next_file() if read_bytes is None else read_bytes

    # -- manifests ---------------------------------------------------------------------------------------------

    def _next_manifest(self) -> int | None:
        """Begins again with each process: they are few, and which of them are needed changes."""
        if self._manifests is None:
            if self._clock.monotonic() < self._manifests_not_before:
                return None
            self._manifests = self._look_at_manifests()
        found = next(self._manifests, None)
        if found is None:
            self._manifests = None
            self._manifests_not_before = self._clock.monotonic() + self._settings.period_seconds
            return None
        target, size_bytes, was_wrong = found
        self.findings.manifests += 1
        if was_wrong:
            self.findings.manifests_damaged += 1
            log.error("scrub.manifest_damaged", extra={"target": target})
        return size_bytes

    # -- copies ------------------------------------------------------------------------------------------------

    def _next_pack(self) -> int | None:
        due_before = self._clock.now() - int(self._settings.period_seconds * NANOSECONDS)
        with self._store.read() as reader:
            after = PackNumber(meta.get_int(reader, CURSOR) or 0)
            last = after
            found: tuple[packs.Pack, list[int]] | None = None
            for seen, pack in enumerate(packs.every(reader, after=after)):
                held = [
                    copy.target
                    for copy in copies.of_pack(reader, pack.number)
                    if copy.state is CopyState.VERIFIED and self._is_due(copy.verified, due_before)
                ]
                last = pack.number
                if held:
                    found = pack, held
                    break
                if seen == PACKS_AT_ONCE:
                    break
        if found is None:
            if last == after:
                if after:
                    self._go_on_from(PackNumber(0))
                return None
            self._go_on_from(last)
            return 0
        read_bytes = sum(
            self._look_at_copy(found[0], copyist) for copyist in self._copyists() if copyist.number in found[1]
        )
        self._go_on_from(found[0].number)
        return read_bytes

    def _is_due(self, verified: Instant, before: int) -> bool:
        # one from the future was recorded before the clock was set back: nobody knows how old it is
        return verified <= before or verified > self._clock.now()

    def _go_on_from(self, number: PackNumber) -> None:
        with self._store.write() as tx:
            meta.set_int(tx, CURSOR, number)

    def _look_at_copy(self, pack: packs.Pack, copyist: Copyist) -> int:
        """Bytes that were read."""
        try:
            capabilities = copyist.capabilities()
            how = verify(copyist.target, pack_object_name(pack.id), pack.size_bytes, pack.sha256, capabilities)
        except (Damaged, ObjectMissing) as problem:
            self.findings.copies_damaged += 1
            log.error("scrub.copy_damaged", extra={"target": copyist.name, "pack": pack.id.hex(), "why": str(problem)})  # noqa: TRY400 - it is an answer, not a failure
            copyist.damaged(pack.number)
            return pack.size_bytes
        except TargetError as problem:
            log.info("scrub.no_answer", extra={"target": copyist.name, "why": str(problem)})
            return 0
        self.findings.copies += 1
        copyist.reverified(pack.number, how)
        return pack.size_bytes if how is VerifiedBy.READ_BACK else 0

    # -- local files ---------------------------------------------------------------------------------------------

    def _next_file(self) -> int | None:
        if self._files is None:
            if self._clock.monotonic() < self._files_not_before:
                return None
            self._files = self._walk()
        candidate = next(self._files, None)
        if candidate is None:
            self._files = None
            self._files_not_before = self._clock.monotonic() + self._settings.period_seconds
            return None
        return self._look_at_file(candidate)

    def _walk(self) -> Iterator[Candidate]:
        with self._store.read() as reader:
            before = meta.get_bytes(reader, FILE_CURSOR)
        after = None if before is None else keys.candidate_of(before, Version(0))
        while batch := self._namespace.waiting(FileState.REPLICATED, limit=FILES_AT_ONCE, after=after):
            yield from batch
            after = batch[-1]
            with self._store.write() as tx:
                meta.set_bytes(tx, FILE_CURSOR, keys.queue(after))
        with self._store.write() as tx:
            meta.remove(tx, FILE_CURSOR)

    def _look_at_file(self, candidate: Candidate) -> int:
        try:
            facts = self._namespace.facts(candidate.inode)
        except NotFound:
            return 0
        if facts.version != candidate.version or facts.state is not FileState.REPLICATED or facts.sha256 is None:
            return 0
        digest, read_bytes = hashlib.sha256(), 0
        try:
            with open(self._local_path(facts.inode, facts.version), "rb", buffering=0) as file:
                if fingerprint_of(os.fstat(file.fileno())) != facts.fingerprint:
                    return 0  # somebody changed it: not rot, and the tree will see
                while block := file.read(BLOCK_BYTES):
                    digest.update(block)
                    read_bytes += len(block)
                    if self._stopping.is_set():
                        return read_bytes
                changed = fingerprint_of(os.fstat(file.fileno())) != facts.fingerprint
        except FileNotFoundError:
            return 0  # evicted just now, or the tree will see
        except OSError as problem:
            log.error("scrub.unreadable", extra={"inode": facts.inode, "why": str(problem)})  # noqa: TRY400 - it is an answer
            changed = False
        if changed:
            return read_bytes
        self.findings.files += 1
        if digest.digest() != facts.sha256:
            self._let_go(facts)
        return read_bytes

    def _let_go(self, facts: FileFacts) -> None:
        inode = facts.inode
        self.findings.files_damaged += 1
        log.error("scrub.file_damaged", extra={"inode": inode})
        self._set_aside(facts)
        if inode not in self._rotten and len(self._rotten) < ROTTEN_MAX:
            self._set_rotten([*self._rotten, inode])
        self._let_rotten_go()

    def _set_aside(self, facts: FileFacts) -> None:
        """Now, as they were found: until they may go somebody may write over them."""
        if facts.fingerprint is None:
            return
        about = About(
            Kind.FILE,
            f"{facts.inode:x}.{facts.version:x}",
            LOCAL,
            "its local bytes are not those that were sealed",
            facts.repository,
            facts.inode,
            facts.sha256 or b"",
        )
        self._quarantine.keep_file(about, self._local_path(facts.inode, facts.version), facts.fingerprint)

    def _let_rotten_go(self) -> None:
        """They wait for their copies, which may be damaged too and on the way to be mended."""
        self._rotten_not_before = self._clock.monotonic() + IDLE_SECONDS
        try:
            gone = list(self._evict(self._rotten))
        except VnaError as problem:
            log.warning("scrub.not_let_go", extra={"files": len(self._rotten), "why": str(problem)})
            return
        self.findings.files_let_go += sum(gone)
        kept = [inode for inode, yes in zip(self._rotten, gone, strict=True) if not yes and self._is_rotten(inode)]
        if kept != self._rotten:
            self._set_rotten(kept)

    def _is_rotten(self, inode: Inode) -> bool:
        """Whether it still has the local bytes that were wrong: not if it was written anew, evicted or removed."""
        try:
            return self._namespace.facts(inode).state is FileState.REPLICATED
        except NotFound:
            return False

    def _set_rotten(self, inodes: list[Inode]) -> None:
        self._rotten = inodes
        with self._store.write() as tx:
            meta.set_bytes(tx, ROTTEN, b"".join(inode.to_bytes(8, "big") for inode in inodes))


def _numbers(packed: bytes) -> list[Inode]:
    return [Inode(int.from_bytes(packed[at : at + 8], "big")) for at in range(0, len(packed), 8)]
