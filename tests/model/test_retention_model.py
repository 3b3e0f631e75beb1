"""Random lives of a tree in which files are committed and held, beside a reference that knows only names and dates.

Whatever the operations try, a file that the reference says is retained keeps its names, its place, bytes, times, mode,
owner and attributes, and one that is held its names and bytes; what the reference says is free can be removed. The
machine's clock is turned at random, the machine is booted, processes die between any two operations.

    VNAFS_SEED=… pytest tests/model/test_retention_model.py
"""

from __future__ import annotations

import dataclasses
import os
import random
from pathlib import Path

import pytest

from tests.model.treecheck import check_tree
from tests.seeds import soak_dice
from tests.semantics.trees import ALICE, Tree
from vnafs.domain.errors import Committed, Held, NotPermitted, Retained, VnaError
from vnafs.domain.files import FileState, Verdict
from vnafs.domain.ids import Inode, RepositoryId
from vnafs.domain.retention import RetentionMode
from vnafs.fs.attributes import AttributeChanges
from vnafs.fs.recall import RecallNeeded
from vnafs.fs.settings import Settings
from vnafs.index import inodes

FIXED = int(os.environ.get("VNAFS_SEED", "0"))
NS = 10**9
HOUR = 3600
NAMES = [b"a", b"b", b"c", b"d", b"e"]
LIVES = 20
STEPS = 700

Path_ = tuple[bytes, ...]


@dataclasses.dataclass
class Promise:
    """What the reference knows of one committed file."""

    until_ns: int
    """By time that really passed: the wall clock nobody turned."""
    paths: set[Path_]
    looks: tuple[object, ...]


class Life:
    """Draws operations; *passed_ns* is the time that really passed."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.dice = random.Random(seed)
        self.tree = Tree(folder, settings=Settings(reserve_bytes=0, quiet_seconds=1))
        self.number = RepositoryId(self.tree.r)
        self.rules(retention=RetentionMode.GOVERNANCE, retention_seconds=5 * HOUR)
        self.promises: dict[Inode, Promise] = {}
        self.holds: dict[tuple[Inode, str], set[Inode]] = {}
        self.boots = 0
        self.refused = {Retained: 0, Committed: 0, Held: 0}
        self.removed_after = 0
        self.done = 0
        self.crash(boots=True)

    def rules(self, **changes: object) -> None:
        known = self.tree.fs.repositories.get(self.number)
        self.tree.fs.repositories.set(dataclasses.replace(known, **changes), reason="a test")  # type: ignore[arg-type]

    # -- what there is ----------------------------------------------------------------------------------------------

    def paths(self) -> dict[Path_, Inode]:
        found: dict[Path_, Inode] = {}
        waiting: list[tuple[Path_, Inode]] = [((), self.tree.r)]
        while waiting:
            path, inode = waiting.pop()
            for _, name, shown in self.tree.fs.listing(inode, 2):
                found[(*path, name)] = shown.inode
                if shown.mode >> 12 == 4:
                    waiting.append(((*path, name), shown.inode))
        return found

    def looks(self, inode: Inode) -> tuple[object, ...]:
        tree = self.tree
        shown = tree.stat(inode)
        try:
            data = tree.read(inode)
        except RecallNeeded as needed:
            tree.recall(needed)
            data = tree.read(inode)
        names = tree.fs.listxattr(inode)
        values = tuple((name, tree.fs.getxattr(inode, name)) for name in names)
        return data, shown.mode, shown.uid, shown.gid, shown.mtime_ns, values

    def folders(self) -> list[Inode]:
        kinds = {inode: self.tree.stat(inode).mode >> 12 for inode in self.paths().values()}
        return [self.tree.r, *(inode for inode, kind in kinds.items() if kind == 4)]

    def some_file(self) -> tuple[Path_, Inode] | None:
        files = [(path, inode) for path, inode in self.paths().items() if self.tree.stat(inode).mode >> 12 == 8]
        return self.dice.choice(files) if files else None

    # -- operations ---------------------------------------------------------------------------------------------------

    def step(self) -> None:
        operations = (
            (10, self.write), (3, self.mkdir), (8, self.unlink), (2, self.rmdir), (8, self.rename), (9, self.link),
            (6, self.change), (4, self.retain), (4, self.convention), (1, self.shorten), (2, self.hold),
            (2, self.release), (6, self.tier), (4, self.pass_time), (1, self.turn), (1, self.crash), (1, self.boot),
            (1, self.undelete), (1, self.roll), (2, self.autocommit),
        )  # fmt: skip
        operation = self.dice.choices([call for _, call in operations], [weight for weight, _ in operations])[0]
        try:
            operation()
            self.done += 1
        except (Retained, Committed, Held) as refused:
            self.refused[type(refused)] += 1
        except VnaError:
            pass  # names that are there, or are not
        self.notice()

    def place(self) -> tuple[Inode, bytes]:
        return self.dice.choice(self.folders()), self.dice.choice(NAMES)

    def write(self) -> None:
        tree, (parent, name) = self.tree, self.place()
        try:
            handle, _ = tree.fs.create(parent, name, 0o644, os.O_WRONLY | self.dice.choice((0, os.O_TRUNC)), ALICE)
        except RecallNeeded as needed:
            tree.recall(needed)
            return
        tree.fs.write(handle, 0, self.dice.randbytes(6))
        tree.fs.release(handle)

    def mkdir(self) -> None:
        self.tree.fs.mkdir(*self.place(), 0o755, ALICE)

    def unlink(self) -> None:
        parent, name = self.place()
        self.tree.fs.unlink(parent, name)

    def rmdir(self) -> None:
        self.tree.fs.rmdir(*self.place())

    def rename(self) -> None:
        self.tree.fs.rename(*self.place(), *self.place(), self.dice.choice((0, 0, 1, 2)))

    def link(self) -> None:
        one = self.some_file()
        if one is not None:
            self.tree.fs.link(one[1], *self.place())

    def change(self) -> None:
        one = self.some_file()
        if one is None:
            return
        inode, dice = one[1], self.dice
        what = dice.randrange(5)
        if what == 0:
            self.tree.fs.setxattr(inode, b"user.x", dice.randbytes(2))
        elif what == 1:
            self.tree.fs.removexattr(inode, b"user.x")
        else:
            changes = {2: {"mode": 0o600 | dice.randrange(8)}, 3: {"mtime_ns": dice.randrange(9)}, 4: {"size_bytes": 2}}
            try:
                self.tree.fs.setattr(inode, AttributeChanges(**changes[what]), ALICE)
            except RecallNeeded as needed:
                self.tree.recall(needed)

    def retain(self) -> None:
        one = self.some_file()
        if one is None:
            return
        path, inode = one
        parent = self.paths().get(path[:-1], self.tree.r)
        length = self.dice.randrange(1, 40) * HOUR
        if self.tree.fs.retentions.retain([(inode, parent)], seconds=length)[0]:
            self.promised(inode, self.tree.clock.passed * NS + length * NS)

    def convention(self) -> None:
        one = self.some_file()
        if one is None or self.tree.fs.retentions.of(one[1]).retention is not None:
            return
        length = self.dice.randrange(1, 40) * HOUR
        start = self.tree.fs._core.time.latest()
        self.tree.fs.setattr(one[1], AttributeChanges(atime_ns=start + length * NS), ALICE)
        for mode in (0o644, 0o444):  # what came back from the past may have no write bits
            self.tree.fs.setattr(one[1], AttributeChanges(mode=mode), ALICE)
        assert self.tree.fs.retentions.of(one[1]).retention is not None
        self.promised(one[1], self.tree.clock.passed * NS + length * NS)

    def promised(self, inode: Inode, until_ns: float) -> None:
        known = self.promises.get(inode)
        until = max(int(until_ns), 0 if known is None else known.until_ns)
        paths = {path for path, other in self.paths().items() if other == inode}
        self.promises[inode] = Promise(until, paths, self.looks(inode))

    def shorten(self) -> None:
        one = self.some_file()
        if one is not None and self.tree.fs.retentions.of(one[1]).retention is not None:
            length = self.dice.randrange(1, 5) * HOUR
            changed = self.tree.fs.retentions.retain([(one[1], Inode(0))], seconds=length, shorten=True, reason="why")
            if changed[0] and one[1] in self.promises:
                del self.promises[one[1]]
                self.promised(one[1], self.tree.clock.passed * NS + length * NS)

    def hold(self) -> None:
        found = self.paths()
        if not found or len(self.holds) > 3:
            return
        path, inode = self.dice.choice(list(found.items()))
        name = self.dice.choice(("x", "y"))
        self.tree.fs.retentions.hold(inode, name, "why")
        covered = {other for at, other in found.items() if at[: len(path)] == path}
        covered |= {inode} | {other for at, other in found.items() if other in covered}
        self.holds[inode, name] = self.holds.get((inode, name), set()) | covered

    def release(self) -> None:
        if self.holds:
            inode, name = self.dice.choice(list(self.holds))
            self.tree.fs.retentions.release(inode, name, "why")
            del self.holds[inode, name]

    def tier(self) -> None:
        one = self.some_file()
        if one is not None and self.tree.fs.facts(one[1]).state is not FileState.STUB:
            verdict = self.tree.advance(one[1])
            if verdict is Verdict.DONE and self.dice.random() < 0.3:
                self.tree.evict(one[1])

    def pass_time(self) -> None:
        self.tree.clock.sleep(self.dice.choice((1, 100, HOUR, 6 * HOUR)))
        self.tree.fs.upkeep()

    def turn(self) -> None:
        self.tree.clock.wall += self.dice.choice((-30, -1, 1, 30, 10_000)) * HOUR * NS
        self.tree.clock.wall = max(self.tree.clock.wall, 1_600_000_000 * NS)

    def crash(self, *, boots: bool = False) -> None:
        self.boots += boots
        self.tree.crash(boot_id=f"boot {self.boots}")

    def boot(self) -> None:
        self.crash(boots=True)

    def undelete(self) -> None:
        path = self.dice.choice([(self.dice.choice(NAMES),), (self.dice.choice(NAMES), self.dice.choice(NAMES))])
        self.tree.fs.versions.undelete(b"/".join((b"r", *path)), replace=self.dice.random() < 0.7)

    def roll(self) -> None:
        fs = self.tree.fs
        at = self.tree.clock.now() - self.dice.randrange(1, 20) * HOUR * NS
        fs.rollbacks.begin(self.number, at)
        while fs.repositories.get(self.number).rolling_to_ns:
            fs.rollbacks.step()

    def autocommit(self) -> None:
        seconds = self.dice.choice((0, HOUR, 2 * HOUR))
        self.rules(autocommit_seconds=seconds)
        while self.tree.fs.retentions.step():
            pass

    # -- what was promised ------------------------------------------------------------------------------------------

    def notice(self) -> None:
        """The reference and the tree agree."""
        now = self.tree.clock.passed * NS
        found = self.paths()
        there = set(found.values())
        for inode, promise in list(self.promises.items()):
            if promise.until_ns <= now:
                if inode not in there:
                    self.removed_after += 1
                    del self.promises[inode]
                continue
            for path in promise.paths:
                assert found.get(path) == inode, f"{inode} is not at {path} any more"
            assert self.looks(inode) == promise.looks, f"{inode} was changed"
        for covered in self.holds.values():
            assert covered <= there, f"{covered - there} went under a hold"

    def settle(self) -> None:
        """In the end, when nothing is retained and held any more, everything can be removed."""
        tree = self.tree
        for inode, name in self.holds:
            tree.fs.retentions.release(inode, name, "the end")
        self.holds.clear()
        tree.clock.wall = max(tree.clock.wall, tree.fs._core.time.latest())
        for _ in range(1000):
            tree.clock.sleep(1000 * HOUR)
            if not any(tree.fs.retentions.of(inode).retention and not tree.fs.retentions.of(inode).is_over
                       for inode in self.paths().values()):  # fmt: skip
                break
        for path, inode in sorted(self.paths().items(), key=lambda item: -len(item[0])):
            parent = self.paths().get(path[:-1], tree.r)
            if tree.stat(inode).mode >> 12 == 4:
                tree.fs.rmdir(parent, path[-1])
            else:
                tree.fs.unlink(parent, path[-1])
        with tree.engine.read() as reader:
            for table in (b"G", b"H", b"N", b"W"):  # a rollback may have left something where it waits to be copied
                for key, _ in reader.scan(table, bytes([table[0] + 1])):
                    assert inodes.find(reader, Inode(int.from_bytes(key[1:9], "big"))) is not None


@pytest.mark.parametrize("life", range(LIVES))
def test_nothing_that_is_retained_or_held_is_ever_changed_or_lost(tmp_path: Path, life: int) -> None:
    seed = FIXED or 4200 + life
    world = Life(tmp_path, seed)
    for _ in range(STEPS):
        world.step()
    check_tree(world.tree.engine, world.tree.spool)
    assert world.refused[Retained] > 10, "the life tried too little"
    assert world.done > STEPS // 5
    world.settle()


@pytest.mark.soak
def test_for_a_long_time(tmp_path: Path) -> None:
    dice = soak_dice()
    for number in range(100):
        folder = tmp_path / str(number)
        folder.mkdir()
        seed = dice.randrange(1 << 32)
        print("seed", seed)
        world = Life(folder, seed)
        for _ in range(STEPS):
            world.step()
        world.settle()


def test_a_refusal_is_a_permission_error() -> None:
    assert all(issubclass(kind, NotPermitted) for kind in (Retained, Committed, Held))
