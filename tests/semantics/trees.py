"""Builders: a small tree in a directory, with a clock that obeys and an engine that syncs only when told."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from vnafs.domain.clock import Instant
from vnafs.domain.errors import NoSpace, StorageFailed
from vnafs.domain.faults import Faults
from vnafs.domain.files import FileState, Proposal, Seal, Verdict
from vnafs.domain.ids import Inode, Sha256, Version
from vnafs.domain.repositories import Acknowledgement
from vnafs.fs.attributes import Attributes
from vnafs.fs.caller import Caller
from vnafs.fs.filesystem import Filesystem
from vnafs.fs.handles import Handle
from vnafs.fs.recall import RecallNeeded
from vnafs.fs.settings import Settings
from vnafs.fs.takeover import NOTHING_OPEN, OpenBefore
from vnafs.index import unpacked
from vnafs.index.engine import Position
from vnafs.index.engines.memory import MemoryEngine
from vnafs.local.spool import Spool, fingerprint_of

ROOT_USER = Caller(0, 0)
ALICE = Caller(1000, 1000)


class HandClock:
    """Moves only when told."""

    def __init__(self) -> None:
        self.wall = 1_700_000_000_000_000_000
        self.passed = 0.0

    def now(self) -> Instant:
        return Instant(self.wall)

    def monotonic(self) -> float:
        return self.passed

    def sleep(self, seconds: float) -> None:
        self.passed += seconds
        self.wall += int(seconds * 1e9)


class LazyEngine(MemoryEngine):
    """A memory engine whose changes are synced only by `sync`, which can be made to fail, as can changes."""

    def __init__(self) -> None:
        super().__init__()
        self.synced_to = Position(0)
        self.syncs = 0
        self.is_broken = False
        self.room_for: int | None = None
        """So many changes fit on the disk; None: as many as you like."""

    def _commit(self, changed: dict[bytes, bytes | None]) -> None:
        if self.room_for is not None:
            if not self.room_for:
                raise NoSpace(why="the test filled the disk")
            self.room_for -= 1
        super()._commit(changed)

    @property
    def synced(self) -> Position:
        return self.synced_to

    def sync(self, position: Position) -> None:
        self.syncs += 1
        if self.is_broken:
            raise StorageFailed(doing="syncing the log", why="the test broke it")
        self.synced_to = max(self.synced_to, position)


def passed(tree: Tree, handle: Handle) -> Handle:
    """The same; the kernel reads and writes its local file from now on."""
    assert tree.fs.unseen.may_pass(handle)
    tree.fs.unseen.pass_by(handle)
    return handle


def behind_our_back(handle: Handle, data: bytes, offset: int = 0) -> None:
    """What the kernel then does for a write(2)."""
    os.pwrite(handle.file.writing, data, offset)


class Tree:
    """One repository `r`, owned by Alice, and calls by path."""

    def __init__(
        self,
        directory: Path,
        *,
        acknowledgement: Acknowledgement = Acknowledgement.WRITTEN,
        settings: Settings | None = None,
        faults: Faults | None = None,
        spool: Spool | None = None,
        engine: LazyEngine | None = None,
    ) -> None:
        self.directory = directory
        self.engine = engine or LazyEngine()
        self.spool = spool or Spool(str(directory / "spool"))
        self.clock = HandClock()
        self.settings = settings or Settings(reserve_bytes=0)
        self.faults = faults
        self.store: dict[Sha256, bytes] = {}
        self.fs = self.start()
        self.r = self.repository("r", acknowledgement)

    def start(self) -> Filesystem:
        return Filesystem(self.engine, self.spool, self.clock, self.faults, settings=self.settings)

    def crash(self, *, boot_id: str = "", open_before: OpenBefore = NOTHING_OPEN) -> None:
        """Handles vanish without a release; then a new process starts, which takes over what was *open_before*."""
        for file in self.fs._core.handles.files.values():  # what a dying process does
            file.close_descriptors()
        self.fs = Filesystem(
            self.engine, self.spool, self.clock, settings=self.settings, boot_id=boot_id, open_before=open_before
        )

    def repository(self, name: str, acknowledgement: Acknowledgement = Acknowledgement.WRITTEN) -> Inode:
        made = self.fs.repositories.add(name, acknowledgement=acknowledgement, uid=ALICE.uid, gid=ALICE.gid)
        return Inode(made.id)

    # -- files ----------------------------------------------------------------------------------------------

    def create(self, name: bytes, data: bytes = b"", *, who: Caller = ALICE, mode: int = 0o644) -> Handle:
        handle, _ = self.fs.create(self.r, name, mode, os.O_RDWR | os.O_EXCL, who)
        if data:
            self.fs.write(handle, 0, data)
        return handle

    def file(self, name: bytes, data: bytes = b"bytes", *, mode: int = 0o644) -> Inode:
        """A closed file."""
        handle = self.create(name, data, mode=mode)
        self.fs.release(handle)
        return handle.file.inode

    def open(self, inode: Inode, flags: int = os.O_RDONLY, who: Caller = ALICE) -> Handle:
        return self.fs.open(inode, flags, who)

    def read(self, inode: Inode) -> bytes:
        handle = self.open(inode)
        try:
            return self.fs.read(handle, 0, 1 << 24)
        finally:
            self.fs.release(handle)

    def stat(self, inode: Inode) -> Attributes:
        return self.fs.getattr(inode)

    def names(self, inode: Inode) -> list[bytes]:
        return [name for _, name, _ in self.fs.readdir(inode, 2, 1 << 20)]

    def local(self, inode: Inode) -> Path:
        return Path(self.fs.local_path(inode, self.fs.facts(inode).version))

    # -- tiering --------------------------------------------------------------------------------------------

    def seal_of(self, inode: Inode) -> Seal:
        return self._seal(self.local(inode))

    def _seal(self, path: Path) -> Seal:
        data = path.read_bytes()
        digest = Sha256(hashlib.sha256(data).digest())
        self.store[digest] = data
        return Seal(digest, fingerprint_of(os.stat(path)))

    def advance(self, inode: Inode, state: FileState = FileState.REPLICATED) -> Verdict:
        facts = self.fs.facts(inode)
        seal = self.seal_of(inode) if facts.state is FileState.OPEN else None
        [verdict] = self.fs.advance([Proposal(inode, facts.version, state, seal)])
        return verdict

    def left(self) -> dict[tuple[Inode, Version], Path]:
        """Versions that are over and to be packed, and where their bytes are."""
        with self.engine.read() as reader:
            found = unpacked.some(reader, 1 << 20)
        return {(one.inode, one.version): Path(self.fs.local_path(one.inode, one.place)) for one in found}

    def pack_left(self) -> list[Verdict]:
        """What tiering does with them."""
        proposals = []
        for (inode, version), path in self.left().items():
            proposals.append(Proposal(inode, version, FileState.PACKED, self._seal(path)))
        return self.fs.advance(proposals)

    def evict(self, inode: Inode) -> Verdict:
        return self.fs.evict(inode, self.fs.facts(inode).version)

    def stub(self, name: bytes, data: bytes = b"bytes") -> Inode:
        inode = self.file(name, data)
        assert self.advance(inode) is Verdict.DONE
        assert self.evict(inode) is Verdict.DONE
        return inode

    def staged(self, inode: Inode) -> str:
        """A file as a recall leaves it."""
        digest = self.fs.facts(inode).sha256
        assert digest is not None
        path = self.directory / "staged"
        path.write_bytes(self.store[digest])
        return str(path)

    def recall(self, needed: RecallNeeded) -> Verdict:
        return self.fs.adopt(needed.inode, needed.version, self.staged(needed.inode))
