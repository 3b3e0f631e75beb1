"""Random lives of a whole archive against a dictionary: writers, the pipeline step by step, eviction, recall, targets
with bad days, clocks that are set, bits that rot, and death at any fault point, also while coming back from death.

Every run is given by its seed, which a failure names:

    VNAFS_SEED=… pytest tests/model/test_pipeline_model.py
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.model.lives import run
from tests.model.pipelineworld import QUIET_SECONDS, Crash, World
from tests.seeds import soak_dice
from vnafs.domain.errors import Damaged, NotFound, RecallFailed
from vnafs.domain.faults import POINTS
from vnafs.domain.files import FileState
from vnafs.domain.ids import Inode, TargetName
from vnafs.targets.faulty import Fault

FIXED = int(os.environ.get("VNAFS_SEED", "0"))
NAMES = [b"name-%d" % number for number in range(12)]
MIDDLES = ("seal.leased", "seal.hashed", "pack.appended", "pack.closed", "pack.indexed", "pack.proposed")
MIDDLES += ("replicate.verified", "replicate.recorded", "evict.decided", "recall.fetched", "recall.written")
A, B = TargetName("a"), TargetName("b")


def pool(dice: random.Random) -> list[bytes]:
    """Contents to choose from: some come again and again, some share most of their bytes."""
    base = dice.randbytes(30_000)
    fixed = [b"", b"x", dice.randbytes(100), base, base[:15_000] + b"!" + base[15_001:], dice.randbytes(90_000)]
    return [*fixed, b"same " * 9_000, dice.randbytes(1_300_000)]


class Life:
    """One random life. *expected* holds what was acknowledged."""

    middles = MIDDLES
    rots_here = False
    """Packs rot on the local disk too. News of them that is under way when one is given up is true again only after the
    next reconciliation, and a use of it may stay until the next start: both keep more than they need, and lose nothing.
    """

    def __init__(self, home: Path, seed: int) -> None:
        self.dice = random.Random(seed)
        random.seed(seed)  # the jitter of back-offs
        self.contents = pool(self.dice)
        self.copies_min = self.dice.choice((1, 1, 2))
        self.encrypted = seed % 2 == 1
        self.world = self.made(home)
        self.expected: dict[bytes, bytes] = {}
        self.open: dict[bytes, object] = {}
        self.crashes = 0
        self.rotted = False
        self.known: dict[bytes, bytes] = {}
        """Every content that was acknowledged, by SHA-256."""
        self.undeleted: set[Inode] = set()
        """They may have come back before they had all their copies."""
        self.coming_back = b""
        """The name that the step under way gives to such a file; a crash may come when it has it."""
        self.trail: list[str] = []
        self.steps: list[tuple[int, Callable[[], None]]] = [
            (8, self.write),
            (5, self.patch),
            (3, self.cut),
            (4, self.rename),
            (2, self.remove),
            (2, self.undelete),
            (2, self.hold),
            (2, self.let_go),
            (30, self.step),
            (10, self.pass_time),
            (8, self.evict),
            (8, self.read),
            (3, self.target_fault),
            (1, self.set_clock),
            (1, self.rot),
            (8, self.seal_fate),
            (6, self.meddle),
            (1, self.restart),
        ]

    def made(self, home: Path) -> World:
        return World(home, copies_min=self.copies_min, encrypted=self.encrypted)

    def live(self, steps: int) -> None:
        weights = [weight for weight, _ in self.steps]
        for _ in range(steps):
            (step,) = self.dice.choices([step for _, step in self.steps], weights)
            self.surviving(step)
        self.world.fate.spare()
        self.world.fate.meanwhile.clear()
        self.end_well()

    def surviving(self, step: Callable[[], None]) -> None:
        """Do one step; a crash in it, or in coming back from it, is part of life."""
        self.trail.append(step.__name__)
        self.possible: dict[bytes, list[bytes | None]] = {}
        self.coming_back = b""
        try:
            step()
        except Crash as crash:
            self.come_back(crash)
        self.check_states()

    def check_states(self) -> None:
        """A state is never ahead of what is true: local bytes go for what it says."""
        for data in self.expected.values():
            self.known.setdefault(hashlib.sha256(data).digest(), data)
        for name in self.expected:
            state, known, copies = self.world.standing(name)
            if state >= FileState.PACKED and (not self.rots_here or state >= FileState.REPLICATED):
                assert known, f"{name!r} is {state.label}, and no pack has its content"
            if state >= FileState.REPLICATED and not self.rotted and self.world.inode(name) not in self.undeleted:
                assert copies >= self.copies_min, f"{name!r} is {state.label} with {copies} copies"

    def come_back(self, crash: Crash) -> None:
        while True:
            self.crashes += 1
            self.trail.append(f"crash at {crash}")
            self.world.die()
            self.open.clear()
            if self.dice.random() < 0.2:
                self.world.fate.seal(self.dice.randrange(1, 10))
            try:
                self.world.begin()
            except Crash as again:
                crash = again
                continue
            break
        self.world.fate.spare()
        assert self.world.counts() == self.world.recounted()
        assert self.world.names() == self.look_at_what_was_in_doubt()

    def look_at_what_was_in_doubt(self) -> set[bytes]:
        present = self.world.names()
        for name, contents in self.possible.items():
            allowed = [self.expected.pop(name, None), *contents]
            try:
                found = self.world.read(name) if name in present else None
            except (RecallFailed, Damaged):
                assert self.is_stub(name), "only a stub needs a target"
                self.forgive_targets()
                found = self.world.read(name)
            assert found in allowed, f"{name!r} holds neither what it held nor what was on its way"
            if found is not None:
                self.expected[name] = found
                if name == self.coming_back:
                    self.undeleted.add(self.world.inode(name))
        self.possible = {}
        return set(self.expected)

    # -- what clients do -------------------------------------------------------------------------------------------

    def name(self) -> bytes | None:
        free = [name for name in self.expected if name not in self.open]
        return self.dice.choice(free) if free else None

    def write(self) -> None:
        name, data = self.dice.choice(NAMES), self.dice.choice(self.contents)
        if name in self.open:
            return
        self.possible = {name: [b"", data]}
        self.tolerating(lambda: self.world.write(name, data), name, data)

    def patch(self) -> None:
        name = self.name()
        if name is None:
            return
        old = self.expected[name]
        at, data = self.dice.randrange(len(old) + 1), self.dice.randbytes(7)
        new = old[:at] + data + old[at + 7 :]
        self.possible = {name: [new]}
        self.tolerating(lambda: self.world.patch(name, at, data), name, new)

    def tolerating(self, call: Callable[[], None], name: bytes, then: bytes) -> None:
        """A stub that no target gives back now is refused, and stays as it is."""
        try:
            call()
        except (RecallFailed, Damaged):
            assert self.is_stub(name), "only a stub needs a target"
            return
        self.expected[name] = then

    def cut(self) -> None:
        name = self.name()
        if name is None:
            return
        old = self.expected[name]
        size = self.dice.choice((0, len(old) // 2, len(old) + 10))
        new = old[:size] + bytes(max(0, size - len(old)))
        self.possible = {name: [new]}
        self.tolerating(lambda: self.world.cut(name, size), name, new)

    def rename(self) -> None:
        old, new = self.name(), self.dice.choice(NAMES)
        if old is None or old == new or new in self.open:
            return
        self.possible = {old: [None], new: [self.expected[old]]}
        self.world.rename(old, new)
        self.expected[new] = self.expected.pop(old)

    def remove(self) -> None:
        name = self.name()
        if name is None:
            return
        self.possible = {name: [None]}
        self.world.unlink(name)
        del self.expected[name]

    def undelete(self) -> None:
        """Something that was overwritten or removed comes back beside everything else."""
        kept = [one for one in self.world.past() if one.is_kept and one.row.seal is not None]
        new = self.dice.choice(NAMES)
        if self.rots_here or not kept or new in self.expected:
            return
        chosen = self.dice.choice(kept)
        assert chosen.row.seal is not None
        data = self.known.get(chosen.row.seal.sha256)
        name = self.world.past_name(chosen.inode)
        if data is None or name is None:
            return
        self.possible = {new: [data]}
        self.coming_back = new
        label = f"{chosen.inode}.{chosen.version}"
        try:
            self.world.fs.versions.undelete(b"share/" + name, label=label, to=b"share/" + new)
        except NotFound:
            return  # it had another version by the time it had that name
        self.expected[new] = data
        self.undeleted.add(self.world.inode(new))

    def hold(self) -> None:
        """Open for write and stay so."""
        name = self.name()
        if name is None or self.is_stub(name):
            return
        self.possible = {name: []}
        self.open[name] = self.world.open(name)

    def let_go(self) -> None:
        if not self.open:
            return
        name = self.dice.choice(sorted(self.open))
        handle = self.open.pop(name)
        old = self.expected[name]
        new = b"held" + old[4:]
        self.possible = {name: [new]}
        self.world.fs.write(handle, 0, b"held")
        self.expected[name] = new
        self.possible = {}
        self.world.fs.release(handle)

    def read(self) -> None:
        if not self.expected:
            return
        name = self.dice.choice(sorted(self.expected))
        before, was_stub = self.expected[name], self.is_stub(name)
        try:
            found = self.world.read(name)
        except NotFound:  # replaced or removed while it was recalled; the kernel then looks the name up again
            if name not in self.expected:
                return
            found = self.world.read(name)
        except (RecallFailed, Damaged):
            # while it was recalled another file may have got its name
            assert was_stub or self.is_stub(name), "only a stub needs a target"
            return
        assert found in {before, self.expected.get(name)}, f"{name!r} gives wrong bytes"

    def is_stub(self, name: bytes) -> bool:
        return name in self.world.names() and self.world.state(name) is FileState.STUB

    # -- what goes on behind ---------------------------------------------------------------------------------------

    def step(self) -> None:
        for _ in range(self.dice.randrange(1, 6)):
            self.world.tiering.step()

    def pass_time(self) -> None:
        self.world.clock.advance(self.dice.choice((0.3, 2.0, QUIET_SECONDS + 0.1, 30.0)))

    def evict(self) -> None:
        for name in self.dice.sample(sorted(self.expected), min(4, len(self.expected))):
            if name not in self.expected:
                continue
            before = self.world.state(name)
            gone = self.world.evict(name)
            if gone:
                assert before is not FileState.OPEN, "bytes went that were never copied"
                assert name not in self.open

    def target_fault(self) -> None:
        kinds = (
            Fault(status=503, times=self.dice.randrange(1, 6)),
            Fault(status=403, times=2),
            Fault(status=429, retry_after_seconds=7),
            Fault(operation="put", lost_reply=True),
            Fault(operation="put", cut_at=100),
            Fault(operation="get", wrong_byte_at=self.dice.randrange(2_000), times=2),
            Fault(operation="get", cut_at=50, times=2),
            Fault(operation="read_back", wrong_byte_at=500),
            Fault(operation="evidence", status=500),
        )
        target = self.world.targets[self.dice.choice((A, B))]
        if self.dice.random() < 0.3:
            target.die(self.dice.choice((10, 200)))
        else:
            target.script(self.dice.choice(kinds))

    def forgive_targets(self) -> None:
        for target in self.world.targets.values():
            target.forgive()

    def set_clock(self) -> None:
        self.world.clock.step(self.dice.choice((-3600, 3600)))

    def rot(self) -> None:
        """A bit changes on one target, where the other one has the same object whole."""
        a, b = self.world.stored(A), self.world.stored(B)
        same = sorted(name for name in a if b.get(name) == a[name])
        if same:
            self.rotted = True
            self.world.rot(A, self.dice.choice(same), self.dice.randrange(1 << 20))
            if self.dice.random() < 0.7:
                self.world.verify_all()

    def rot_here(self) -> None:
        """A pack on the local disk is not what it was."""
        here = [name for name in self.world.files_in("packs") if name.endswith(".pack")]
        if not here:
            return
        path = self.world.home / "packs" / self.dice.choice(here)
        match self.dice.randrange(3):
            case 0:
                path.unlink()
            case 1:
                os.truncate(path, self.dice.randrange(path.stat().st_size))
            case _:
                data = bytearray(path.read_bytes())
                data[self.dice.randrange(len(data))] ^= 0xFF
                path.write_bytes(data)

    def seal_fate(self) -> None:
        point = self.dice.choice(("", "", *POINTS)) if self.dice.random() < 0.7 else ""
        self.world.fate.seal(self.dice.randrange(1, 12 if not point else 4), point)

    def meddle(self) -> None:
        """The next time the pipeline is in the middle of something, somebody changes a file."""
        deed = self.dice.choice((self.patch, self.patch, self.write, self.cut, self.rename, self.remove, self.read))

        def meanwhile() -> None:
            if not self.possible:  # else a client is at work already: there is one at a time here
                self.trail.append(f"meanwhile {deed.__name__}")
                deed()
                self.possible = {}

        self.world.fate.meanwhile[self.dice.choice(self.middles)] = meanwhile

    def restart(self) -> None:
        if not self.open:
            self.world.fate.spare()
            self.world.stop()
            self.world.begin()

    # -- the end ---------------------------------------------------------------------------------------------------

    def end_well(self) -> None:
        """Everything is well again: all is copied everywhere, nothing is left over, and nothing was lost."""
        world = self.world
        for name in sorted(self.open):
            world.fs.release(self.open.pop(name))
        self.forgive_targets()
        world.clock.advance(300)
        world.verify_all()
        world.settle()
        assert world.names() == set(self.expected)
        for name, data in self.expected.items():
            assert world.read(name) == data
        world.settle()
        assert world.counts() == world.recounted()
        for _ in range(100):
            world.tiering.tend()
        if self.rots_here:
            assert world.uses() >= world.sealed()
        else:
            assert world.uses() == world.sealed() | world.kept()
            assert world.kept() == world.remembered(), "a version that was sealed is lost"
        for name in self.expected:
            assert world.evict(name), name
        for target in (A, B):
            there, known = world.stored(target).keys(), world.packs_known()
            # a pack that was given up stays where a target has it whole: nothing there said that it is wrong
            assert there >= known if self.rots_here else there == known, "an object that nobody knows, or none"
        both = world.packs_known()
        assert {name: world.stored(A)[name] for name in both} == {name: world.stored(B)[name] for name in both}
        for name, data in self.expected.items():
            assert world.read(name) == data, f"{name!r} comes back wrong from its targets"
        assert world.files_in("packs") == []
        world.fs.reap()
        local = sum(world.state(name) is not FileState.STUB for name in self.expected)
        assert len(world.files_in("spool")) == local
        world.stop()


@pytest.mark.parametrize("number", range(30))
def test_a_random_life_loses_nothing_and_serves_no_wrong_byte(home: Path, number: int) -> None:
    life = run(Life, home, FIXED or 1_000 + number, 400)
    assert life.crashes


def test_a_life_that_nobody_has_seen_before(home: Path) -> None:
    run(Life, home, FIXED or random.SystemRandom().randrange(1 << 32), 400)


class RottingLife(Life):
    """One in which packs also rot on the local disk."""

    rots_here = True

    def __init__(self, home: Path, seed: int) -> None:
        super().__init__(home, seed)
        self.steps.append((1, self.rot_here))


@pytest.mark.parametrize("number", range(10))
def test_packs_that_rot_on_the_local_disk_cost_no_file(home: Path, number: int) -> None:
    run(RottingLife, home, FIXED or 3_000 + number, 400)


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_many_lives(home: Path) -> None:
    dice = soak_dice()
    for number in range(1_000):
        made = home / f"{number}"
        made.mkdir()
        run(Life, made, dice.randrange(1 << 32), 500)
        shutil.rmtree(made)
