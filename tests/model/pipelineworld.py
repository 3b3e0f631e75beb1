"""A whole archive in one process and one thread: tree, tiering and two targets, with time and death on demand.

Every step of the pipeline is driven by the test, so a seed gives the same run again. A crash is an exception that
nothing may catch, raised at a fault point: what was committed to the engines and written to folders and targets is
all that is left, as after kill -9.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from vnafs.content import keyring
from vnafs.domain.clock import NANOSECONDS, Instant
from vnafs.domain.copies import Capabilities, Evidence
from vnafs.domain.errors import Damaged, ObjectMissing, TargetError, TargetRefused
from vnafs.domain.files import FileState
from vnafs.domain.ids import Inode, ObjectName, Sha256, Span, TargetName, Version, pack_object_name
from vnafs.domain.locks import Lock
from vnafs.fs.attributes import AttributeChanges
from vnafs.fs.caller import Caller
from vnafs.fs.filesystem import Filesystem
from vnafs.fs.handles import Handle
from vnafs.fs.recall import RangeNeeded, RecallNeeded
from vnafs.fs.settings import Settings
from vnafs.index import contents, copies, counts, keys, packs, recount, targets
from vnafs.index.counts import Count
from vnafs.index.engine import Reader, Transaction, prefix_stop
from vnafs.index.engines.memory import MemoryEngine
from vnafs.index.past import PastVersion, decode_version, names_in
from vnafs.local import keyfile
from vnafs.local.spool import Spool
from vnafs.pipeline.held import stubs_without_copy
from vnafs.pipeline.keys import Keys
from vnafs.pipeline.namespace import Namespace
from vnafs.pipeline.runner import Tiering
from vnafs.pipeline.settings import Destination, TieringSettings
from vnafs.targets.faulty import FaultyTarget
from vnafs.targets.memory import MemoryTarget
from vnafs.targets.port import Body, Target
from vnafs.targets.verifying import verify

QUIET_SECONDS = 5.0
TICK_SECONDS = 0.011
"""Longer than the coarsest kernel clock's tick: where time passes, files' times of change must show it."""
FOLDERS = ("spool", "packs", "staging", "cache", "frozen")
SOMEBODY = Caller(0, 0, 1)
READ_BYTES = 1 << 24
RECOVERY = b"r" * 20
LEAN_SECONDS_MAX = 1_000_000.0
QUARANTINE_KEPT_SECONDS = 500_000.0


Found = TypeVar("Found")


class Crash(BaseException):
    """kill -9."""


class Fate:
    """Faults that end the world at a chosen moment."""

    def __init__(self) -> None:
        self._left = 0
        self._point = ""
        self.reached: dict[str, int] = {}
        self.meanwhile: dict[str, Callable[[], None]] = {}
        """What somebody else does, once, while the pipeline is at a point: as another thread or process would."""

    def seal(self, count: int, point: str = "") -> None:
        """Die at the *count*-th fault point from now, or of those of that name."""
        self._left, self._point = count, point

    def spare(self) -> None:
        self._left = 0

    def reach(self, point: str) -> None:
        self.reached[point] = self.reached.get(point, 0) + 1
        if (deed := self.meanwhile.pop(point, None)) is not None:
            deed()
        if self._left and self._point in {"", point}:
            self._left -= 1
            if self._left == 0:
                raise Crash(point)


class PassingClock:
    """The machine's time and whatever a test adds: local files carry the real one."""

    def __init__(self) -> None:
        self._passed_seconds = 0.0
        self._set_seconds = 0.0

    def now(self) -> Instant:
        return Instant(time.time_ns() + int((self._passed_seconds + self._set_seconds) * NANOSECONDS))

    def monotonic(self) -> float:
        return time.monotonic() + self._passed_seconds

    def sleep(self, seconds: float) -> None:
        self.advance(seconds)

    def advance(self, seconds: float) -> None:
        """Time passes."""
        time.sleep(TICK_SECONDS)
        self._passed_seconds += seconds

    def step(self, seconds: float) -> None:
        """The wall clock is set."""
        self._set_seconds += seconds


class BadTarget(FaultyTarget):
    """One that may also never take a certain object, or stop vouching for what it has."""

    vouches = True
    _poisoned: ObjectName | None = None

    def poison(self, name: ObjectName) -> None:
        self._poisoned = name

    def forgive(self) -> None:
        super().forgive()
        self._poisoned = None

    def put(self, name: ObjectName, body: Body) -> Evidence:
        if name == self._poisoned:
            raise TargetRefused(target=self.name, why="scripted: not this one")
        found = super().put(name, body)
        with body.open() as file:
            self._require_key(name, file.read(176))
        return found

    def _require_key(self, name: ObjectName, head: bytes) -> None:
        """Nothing encrypted is on a target that has not the keyring for it (FORMAT.md, C-5)."""
        at = {"packs": (72, 80), "manifests": (136, 144)}.get(name.split("/")[0])
        if at is None or not int.from_bytes(head[at[0] : at[0] + 2], "little"):
            return
        known = set()
        for ring in self._inner.list("keys/"):
            with contextlib.suppress(Damaged):
                known |= {key.id for key in keyring.decode(b"".join(self._inner.get(ring))).keys}
        assert head[at[1] : at[1] + 16] in known, f"{name} came before its key"

    def evidence(self, name: ObjectName) -> Evidence:
        found = super().evidence(name)
        return found if self.vouches else dataclasses.replace(found, sha256=None)


class World:
    """One archive, in the directory *home*; its only repository is `share`."""

    lock: Lock | None = None
    """What its targets give to each object."""
    quarantine_bytes_max = 1 << 20

    def __init__(
        self,
        home: Path,
        *,
        pack_target_bytes: int = 1024 * 1024,
        copies_min: int = 1,
        target_names: Sequence[str] = ("a", "b"),
        waiting_bytes_max: int = 1 << 30,
        parts_bytes_max: int = 1 << 30,
        unprotected_seconds_max: float = 3600.0,
        encrypted: bool = False,
        encode_seconds_per_gigabyte_max: float = 0.0,  # what is measured would differ from run to run
    ) -> None:
        self.home = home
        self.encrypted = encrypted
        self.clock = PassingClock()
        self.fate = Fate()
        self._pack_target_bytes = pack_target_bytes
        self._waiting_bytes_max = waiting_bytes_max
        self._parts_bytes_max = parts_bytes_max
        self._unprotected_seconds_max = unprotected_seconds_max
        self._encode_seconds_per_gigabyte_max = encode_seconds_per_gigabyte_max
        self._namespace = MemoryEngine()
        self._store = MemoryEngine()
        self.stores = {
            TargetName(name): MemoryTarget(TargetName(name), clock=self.clock if self.lock else None, lock=self.lock)
            for name in target_names
        }
        self.targets = {name: BadTarget(store, self.clock) for name, store in self.stores.items()}
        for name in FOLDERS:
            (home / name).mkdir(exist_ok=True)
        self.root = b""
        self.prepare()
        if encrypted and not self.root:
            made = keyring.made(b"a" * 16, self.clock.now(), master=b"m", recovery=RECOVERY, entropy=os.urandom)
            self.adopt_keys(made)
        self.begin()
        if not any(repository.name == "share" for repository in self.fs.repositories.list()):
            self.fs.repositories.add("share", copies_min=copies_min, encrypted=encrypted)
        self.share = self.fs.lookup(Inode(1), b"share").inode

    def prepare(self) -> None:
        """What comes before the first start: nothing, in a new archive."""

    def adopt_keys(self, unlocked: keyring.Unlocked) -> None:
        """The keyring of this archive, until the pipeline changes it."""
        keyfile.save(str(self.home / "keys"), unlocked.encode())
        self.root = unlocked.root

    def keys(self) -> Keys | None:
        """As a new process opens them, without the time that stretching a secret takes."""
        if not self.encrypted:
            return None
        place = str(self.home / "keys")
        unlocked = keyring.with_root(keyfile.load(place), self.root)
        save = functools.partial(keyfile.save, place)
        return Keys(unlocked, save=save, random=os.urandom, clock=self.clock, faults=self.fate)

    # -- life ----------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Start both daemons on what there is."""
        self.fs = Filesystem(
            self._namespace,
            Spool(str(self.home / "spool")),
            self.clock,
            self.fate,
            Settings(quiet_seconds=QUIET_SECONDS, reserve_bytes=0, recall_whole_bytes_max=100_000, numbers_ahead=16),
        )
        self.tiering = Tiering(
            self._store,
            Namespace(self._namespace),
            self.fs,
            self.fs.local_path,
            TieringSettings(
                archive_id=b"a" * 16,
                spool_folder=str(self.home / "spool"),
                packs_folder=str(self.home / "packs"),
                staging_folder=str(self.home / "staging"),
                recall_cache_folder=str(self.home / "cache"),
                frozen_folder=str(self.home / "frozen"),
                quarantine_folder=str(self.home / "quarantine"),
                quiet_seconds=QUIET_SECONDS,
                unprotected_seconds_max=self._unprotected_seconds_max,
                hold_seconds_max=3.0,
                pack_target_bytes=self._pack_target_bytes,
                pack_age_seconds_max=10.0,
                compression_level=1,
                encode_seconds_per_gigabyte_max=self._encode_seconds_per_gigabyte_max,
                attempts_file=str(self.home / "attempts"),
                workers=0,
                waiting_bytes_max=self._waiting_bytes_max,
                recall_cache_bytes_max=1 << 20,
                recall_parts_bytes_max=self._parts_bytes_max,
                high_watermark_percent=99.9,
                low_watermark_percent=99.8,
                reserve_bytes=0,
                lean_seconds_max=LEAN_SECONDS_MAX,
                quarantine_bytes_max=self.quarantine_bytes_max,
                quarantine_kept_seconds=QUARANTINE_KEPT_SECONDS,
            ),
            self.keys(),
            clock=self.clock,
            faults=self.fate,
            fatal=_raise,
        )
        self.tiering.set_targets(
            {
                name: Destination(_given(target), f"memory://{name}", 1, self.lock)
                for name, target in self.targets.items()
            }
        )

    def stop(self) -> None:
        """End both daemons properly."""
        self.tiering.stop()
        self.fs.close()

    def die(self) -> None:
        """Forget everything that only a process knew."""
        spool = str(self.home / "spool")
        for number in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/self/fd/{number}").startswith(spool):
                    os.close(int(number))  # an open one would keep its file from being sealed
        for domain in self.tiering.packer._domains.values():
            for pack in (domain.open, *domain.closing.values()):
                if pack is not None and pack.writer._file is not None:
                    with contextlib.suppress(OSError):
                        pack.writer._file.close()
        self.fate.spare()
        self.fate.meanwhile.clear()

    # -- the tree, as a client uses it ------------------------------------------------------------------------------

    def write(self, name: bytes, data: bytes) -> None:
        handle, _ = self._recalling(lambda: self.fs.create(self.share, name, 0o644, os.O_WRONLY | os.O_TRUNC, SOMEBODY))
        if data:
            self.fs.write(handle, 0, data)
        self.fs.release(handle)

    def patch(self, name: bytes, offset: int, data: bytes) -> None:
        inode = self.inode(name)
        handle = self._recalling(lambda: self.fs.open(inode, os.O_RDWR, SOMEBODY))
        self.fs.write(handle, offset, data)
        self.fs.release(handle)

    def read(self, name: bytes) -> bytes:
        inode = self.inode(name)
        handle = self._recalling(lambda: self.fs.open(inode, os.O_RDONLY, SOMEBODY))
        try:
            return self.fs.read(handle, 0, READ_BYTES)
        except RangeNeeded as needed:
            facts = self.fs.facts(inode)
            assert facts.sha256 is not None
            path, _ = self.tiering.recaller.ensure(
                inode, needed.version, facts.sha256, facts.repository, Span(needed.offset, needed.length)
            )
            with open(path, "rb") as file:
                file.seek(needed.offset)
                return file.read(needed.length)
        finally:
            self.fs.release(handle)

    def open(self, name: bytes) -> Handle:
        inode = self.inode(name)
        return self._recalling(lambda: self.fs.open(inode, os.O_RDWR, SOMEBODY))

    def cut(self, name: bytes, size: int) -> None:
        inode = self.inode(name)
        self._recalling(lambda: self.fs.setattr(inode, AttributeChanges(size_bytes=size), SOMEBODY))

    def rename(self, old: bytes, new: bytes) -> None:
        self.fs.rename(self.share, old, self.share, new, 0)

    def unlink(self, name: bytes) -> None:
        self.fs.unlink(self.share, name)

    def inode(self, name: bytes) -> Inode:
        return self.fs.lookup(self.share, name).inode

    def names(self) -> set[bytes]:
        return {name for _, name, _ in self.fs.listing(self.share, 0)} - {b".", b".."}

    def state(self, name: bytes) -> FileState:
        return self.fs.facts(self.inode(name)).state

    def _recalling(self, call: Callable[[], Found]) -> Found:
        for _ in range(3):
            try:
                return call()
            except RecallNeeded as needed:
                self._recall(needed.inode, needed.version)
        raise AssertionError("a file that was recalled is a stub each time")

    def _recall(self, inode: Inode, version: Version) -> None:
        facts = self.fs.facts(inode)
        assert facts.sha256 is not None
        staged = self.tiering.recaller.recall(inode, version, facts.sha256, facts.repository)
        try:
            self.fs.adopt(inode, version, staged)
        finally:
            if os.path.exists(staged):
                os.unlink(staged)

    def standing(self, name: bytes) -> tuple[FileState, bool, int]:
        """A file's state, whether a recorded pack has its content, and how many targets have it verified."""
        facts = self.fs.facts(self.inode(name))
        if facts.sha256 is None:
            return facts.state, False, 0
        with self._store.read() as reader:
            known = contents.find(reader, facts.sha256, facts.repository) is not None
        return facts.state, known, len(self.tiering.copies_of(facts))

    # -- behind the tree --------------------------------------------------------------------------------------------

    def evict(self, name: bytes) -> bool:
        return self.tiering.evictor.evict_many([self.inode(name)])[0].yes

    def require_copies(self, copies_min: int) -> None:
        self.fs.repositories.set(dataclasses.replace(self.fs.repositories.named("share"), copies_min=copies_min))

    def verify_all(self) -> None:
        """What `vna verify` does."""
        with self._store.read() as reader:
            every = list(packs.every(reader))
        for replicator in self.tiering.replicators():
            for pack in every:
                name = pack_object_name(pack.id)
                try:
                    verify(replicator.target, name, pack.size_bytes, pack.sha256, replicator.capabilities())
                except Damaged:
                    replicator.damaged(pack.number)
                except ObjectMissing:
                    assert name not in self.stored(replicator.name), "a fault looked like a missing object"
                    replicator.damaged(pack.number)
                except TargetError:
                    continue  # it does not answer: that says nothing of what it has

    def stored(self, target: TargetName) -> dict[ObjectName, str]:
        """What a target really holds: name to SHA-256."""
        store = self.stores[target]
        return {
            name: hashlib.sha256(b"".join(store.get(name))).hexdigest()
            for name in store.list()
            if name.endswith(".pack")
        }

    def rot(self, target: TargetName, name: ObjectName, at: int) -> None:
        store = self.stores[target]
        data = bytearray(b"".join(store.get(name)))
        data[at % len(data)] ^= 0xFF
        store.replace(name, bytes(data))

    def packs_known(self) -> set[str]:
        with self._store.read() as reader:
            return {pack_object_name(pack.id) for pack in packs.every(reader)}

    def transfers_waiting(self) -> int:
        with self._store.read() as reader:
            return sum(1 for row in targets.current(reader) for _ in copies.transfers(reader, row))

    def reading(self) -> contextlib.AbstractContextManager[Reader]:
        return self._store.read()

    def writing(self) -> contextlib.AbstractContextManager[Transaction]:
        return self._store.write()

    def counts(self) -> dict[str, Count]:
        with self._store.read() as reader, self._namespace.read() as tree:
            return counts.every(reader) | counts.every(tree)

    def recounted(self) -> dict[str, Count]:
        """What the counts must be, from the rows."""
        with self._store.read() as reader, self._namespace.read() as tree:
            used = {counts.used(number): count for number, count in recount.every_used(tree).items()}
            return recount.found(reader) | used

    def uses(self) -> set[tuple[Inode, Version, Sha256]]:
        """The versions that are some content, as far as the store knows."""
        with self._store.read() as reader:
            return {
                (inode, version, content.sha256)
                for content in contents.every(reader)
                for inode, version in contents.uses(reader, content.number)
            }

    def sealed(self) -> set[tuple[Inode, Version, Sha256]]:
        """The same, from the tree."""
        every = [self.fs.facts(self.inode(name)) for name in self.names()]
        return {(facts.inode, facts.version, facts.sha256) for facts in every if facts.sha256 is not None}

    def past(self) -> list[PastVersion]:
        """The versions that are over and remembered."""
        with self._namespace.read() as reader:
            rows = list(reader.scan(keys.PAST_VERSIONS, prefix_stop(keys.PAST_VERSIONS)))
        return [decode_version(key, value) for key, value in rows]

    def past_name(self, inode: Inode) -> bytes | None:
        """A name that an inode had."""
        with self._namespace.read() as reader:
            return next((one.name for one in names_in(reader, self.share) if one.inode == inode), None)

    def kept(self) -> set[tuple[Inode, Version, Sha256]]:
        """Those whose bytes are in packs."""
        return {
            (past.inode, past.version, past.row.seal.sha256)
            for past in self.past()
            if past.row.seal is not None and past.is_kept
        }

    def remembered(self) -> set[tuple[Inode, Version, Sha256]]:
        """Those that were sealed; of some the tree may not have heard that their bytes are in packs."""
        return {(past.inode, past.version, past.row.seal.sha256) for past in self.past() if past.row.seal is not None}

    def left(self) -> int:
        """How many versions that are over are still to be packed."""
        return self.namespace().count_unpacked(limit=1_000_000)

    def namespace(self) -> Namespace:
        """Mount's index as tierd reads it."""
        return Namespace(self._namespace)

    def keep(self, seconds: int) -> None:
        """How long the past is kept."""
        repository = self.fs.repositories.named("share")
        self.fs.repositories.set(dataclasses.replace(repository, versions_kept_seconds=seconds))

    def feed(self, change: Callable[[Transaction], object]) -> None:
        """Change mount's index behind its back."""
        with self._namespace.write() as tx:
            change(tx)

    def stubs_without_copy(self) -> list[tuple[Inode, Version]]:
        return list(stubs_without_copy(self._store, Namespace(self._namespace)))

    def settle(self, seconds_max: float = 4_000.0) -> None:
        """Let time pass until every file is replicated to every target."""
        passed = 0.0
        while passed < seconds_max:
            while self.tiering.step():
                pass
            states = {self.state(name) for name in self.names()}
            known = self.packs_known()
            everywhere = all(self.stored(name).keys() >= known for name in self.stores)
            done = states <= {FileState.REPLICATED, FileState.STUB} and not self.left()
            if done and everywhere and not self.transfers_waiting():
                return
            self.clock.advance(2.0)
            passed += 2.0
        raise AssertionError(f"not settled: {states}, {self.tiering.stalled}")

    def files_in(self, folder: str) -> list[str]:
        return sorted(
            str(path.relative_to(self.home / folder))
            for path in (self.home / folder).rglob("*")
            if path.is_file() and "quarantine" not in path.parts
        )


def _raise(problem: BaseException) -> None:
    raise problem


def _given(target: Target) -> Callable[[Capabilities | None], Target]:
    return lambda _: target
