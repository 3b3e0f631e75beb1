"""Random lives of a tree whose moments are remembered by a reference: each can be seen under `.as-of` and gone back to,
and from there one can go forth again. Crashes come in the middle of it.

    VNAFS_SEED=… pytest tests/model/test_past_model.py
"""

from __future__ import annotations

import os
import random
import stat
from pathlib import Path

import pytest

from tests.model.treecheck import check_tree
from tests.seeds import soak_dice
from tests.semantics.trees import ALICE, Tree
from tests.unit.fs.test_rollback import Crash, Fate, Shape, drain, files, moment, roll, settle, shape
from vnafs.domain.clock import NANOSECONDS
from vnafs.domain.errors import VnaError
from vnafs.domain.files import FileState
from vnafs.domain.ids import Inode, RepositoryId
from vnafs.fs.asof import AS_OF, name_of
from vnafs.fs.recall import RecallNeeded
from vnafs.fs.settings import Settings

FIXED = int(os.environ.get("VNAFS_SEED", "0"))


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return a_tree(tmp_path)


def a_tree(folder: Path) -> Tree:
    return Tree(folder, settings=Settings(reserve_bytes=0, quiet_seconds=1), faults=Fate())


def seen_then(tree: Tree, moment_ns: int) -> Shape:
    """As `shape`, of a moment, through `.as-of`; without what differs there: write permissions, link counts."""
    above = tree.fs.find(tree.r, AS_OF)
    assert above is not None
    top = tree.fs.find(above.inode, name_of(moment_ns // NANOSECONDS))
    assert top is not None
    return _seen(tree, top.inode, b"")


def _seen(tree: Tree, folder: Inode, path: bytes) -> Shape:
    found: Shape = {}
    for _, name, attributes in tree.fs.listing(folder, 2):
        below = path + b"/" + name
        shown: list[object] = [attributes.mode, attributes.uid]
        if stat.S_ISREG(attributes.mode):
            shown += [bytes.fromhex(tree.fs.getxattr(attributes.inode, b"user.vna.sha256").decode())]
            shown += [attributes.mtime_ns, attributes.size_bytes]
        elif stat.S_ISLNK(attributes.mode):
            shown.append(tree.fs.readlink(attributes.inode))
        found[below] = tuple(shown)
        if stat.S_ISDIR(attributes.mode):
            found |= _seen(tree, attributes.inode, below)
    return found


def without_what_differs(found: Shape) -> Shape:
    """What `seen_then` shows of what `shape` has."""
    return {
        path: (mode & ~0o222, *rest[: 4 if stat.S_ISREG(mode) else None])
        for path, (mode, *rest) in found.items()
        if isinstance(mode, int)
    }


class Life:
    """Random changes; everything is sealed before a moment is remembered, so that all of it is kept.

    Some of it is packed then, the rest perhaps after it was overwritten or removed.
    """

    def __init__(self, tree: Tree, seed: int) -> None:
        self.tree = tree
        self.dice = random.Random(seed)
        self.moments: list[tuple[int, Shape]] = []

    def folders(self) -> list[Inode]:
        found = [self.tree.r]
        for folder in found:
            found += [seen.inode for _, _, seen in self.tree.fs.listing(folder, 2) if stat.S_ISDIR(seen.mode)]
        return found

    def step(self) -> None:
        tree, dice = self.tree, self.dice
        tree.clock.sleep(dice.choice((0.001, 2)))
        one, two = dice.choice(self.folders()), dice.choice(self.folders())
        a, b = (bytes([97 + dice.randrange(6)]) for _ in range(2))
        what = dice.randrange(10)
        try:
            if what < 2:
                self.write(one, a)
            elif what == 2:
                tree.fs.mkdir(one, a, dice.choice((0o700, 0o755)), ALICE)
            elif what == 3:
                tree.fs.unlink(one, a)
            elif what == 4:
                tree.fs.rmdir(one, a)
            elif what < 7:
                tree.fs.rename(one, a, two, b, dice.choice((0, 0, 1, 2)))
            elif what == 7:
                tree.fs.link(tree.fs.lookup(one, a).inode, two, b)
            elif what == 8:
                tree.fs.symlink(one, a, b"to " + b, ALICE)
            else:
                settle(tree)
        except VnaError:
            pass  # names that are there, or are not

    def write(self, folder: Inode, name: bytes) -> None:
        tree = self.tree
        flags = os.O_RDWR | self.dice.choice((0, os.O_TRUNC))
        try:
            handle, _ = tree.fs.create(folder, name, 0o644, flags, ALICE)
        except RecallNeeded as needed:
            tree.recall(needed)
            handle, _ = tree.fs.create(folder, name, 0o644, flags, ALICE)
        tree.fs.write(handle, 0, self.dice.randbytes(self.dice.choice((3, 5))))
        tree.fs.release(handle)

    def seal(self) -> None:
        """Everything is sealed, and some of it packed."""
        for inode in files(self.tree):
            if self.tree.fs.facts(inode).state is FileState.OPEN:
                self.tree.advance(inode, self.dice.choice((FileState.SEALED, FileState.PACKED)))

    def remember(self) -> None:
        """A whole second at which everything is sealed."""
        tree = self.tree
        self.seal()
        check_tree(tree.engine, tree.spool)
        tree.clock.wall += NANOSECONDS - tree.clock.wall % NANOSECONDS
        self.moments.append((moment(tree), shape(tree)))

    def look_back(self) -> None:
        when, then = self.dice.choice(self.moments)
        if self.tree.left() and self.dice.random() < 0.5:
            self.tree.crash()
        self.tree.pack_left()
        assert seen_then(self.tree, when) == without_what_differs(then)

    def go_back(self) -> None:
        when, then = self.dice.choice(self.moments)
        tree = self.tree
        now = tree.clock.now()
        tree.clock.sleep(1)
        seen = shape(tree)
        fate = tree.faults
        assert isinstance(fate, Fate)
        fate.left = self.dice.choice((-1, 0, 1, 2, 3))
        number = RepositoryId(tree.r)
        tree.fs.rollbacks.begin(number, when)
        while tree.fs.repositories.get(number).rolling_to_ns:
            try:
                tree.fs.rollbacks.step()
            except Crash:
                tree.crash()
            if tree.left() and self.dice.random() < 0.3:
                tree.pack_left()
        fate.left = -1
        assert shape(tree) == then
        check_tree(tree.engine, tree.spool)
        if self.dice.random() < 0.5:
            drain(tree)
            check_tree(tree.engine, tree.spool)
        if self.dice.random() < 0.5:
            tree.clock.sleep(1)
            roll(tree, now)
            assert shape(tree) == seen
            check_tree(tree.engine, tree.spool)


def live(tree: Tree, seed: int, days: int) -> None:
    """Run a life; a failure says how to repeat it."""
    life = Life(tree, seed)
    try:
        for _ in range(days):
            for _ in range(40):
                life.step()
            life.remember()
            life.look_back()
            life.go_back()
            life.look_back()
    except BaseException as problem:
        problem.add_note(f"VNAFS_SEED={seed}")
        raise


@pytest.mark.parametrize("number", range(8))
def test_every_moment_of_a_random_life_can_be_seen_and_gone_back_to(tree: Tree, number: int) -> None:
    live(tree, FIXED or number, 10)


def test_moments_of_a_life_that_nobody_has_seen_before(tree: Tree) -> None:
    live(tree, FIXED or random.randrange(1 << 32), 10)


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_moments_of_many_lives(tmp_path: Path) -> None:
    dice = soak_dice()
    for number in range(500):
        made = tmp_path / str(number)
        made.mkdir()
        live(a_tree(made), dice.randrange(1 << 32), 20)
