"""Random lives of a tree with a plain mirror: clients in folders, tiering and mirroring step by step, a mirror with bad
days, a feed that is trimmed, and death at any fault point. After a quiet while the mirror is the tree, exactly.

Every run is given by its seed, which a failure names:

    VNAFS_SEED=… pytest tests/model/test_mirror_model.py
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.model.lives import run
from tests.model.mirrorworld import Mirrored
from tests.model.pipelineworld import SOMEBODY, Crash
from tests.seeds import soak_dice
from vnafs.domain.errors import FileSystemError
from vnafs.domain.faults import RARE_POINTS
from vnafs.domain.ids import Inode
from vnafs.fs.attributes import AttributeChanges
from vnafs.fs.core import NO_INODE
from vnafs.index import feeds, meta
from vnafs.targets.faulty import Fault
from vnafs.upkeep.mirroring import MirrorRules

FIXED = int(os.environ.get("VNAFS_SEED", "0"))
NAMES = [b"a", b"b", b"c.dcm", b"d ", b"%e", b"\xff", b".vna-metadata.jsonl", b"n" * 250]
POINTS = [point for point in RARE_POINTS if point.startswith("mirror.")]
RENAME_EXCHANGE = 2


class Life:
    """One random life."""

    def __init__(self, home: Path, seed: int) -> None:
        self.dice = random.Random(seed)
        random.seed(seed)  # the jitter of back-offs
        harm_seconds = self.dice.choice((0.0, 0.0, 20.0))
        self.world = Mirrored(
            home, MirrorRules("memory:", harm_seconds=harm_seconds, transfers_max=self.dice.randrange(1, 4))
        )
        self.contents = [b"", b"x", b"same " * 100, self.dice.randbytes(5_000)]
        self.crashes = 0
        self.epoch = 0
        self.trail: list[str] = []
        self.steps: list[tuple[int, Callable[[], None]]] = [
            (10, self.write),
            (6, self.make_folder),
            (8, self.rename),
            (2, self.exchange),
            (3, self.link),
            (2, self.symlink),
            (5, self.unlink),
            (3, self.remove_folder),
            (3, self.attributes),
            (20, self.tier),
            (40, self.mirror),
            (10, self.pass_time),
            (3, self.evict),
            (4, self.fault),
            (6, self.seal_fate),
            (1, self.trim),
            (1, self.restart),
            (1, self.lose_rows),
            (1, self.come_from_the_past),
        ]

    def live(self, steps: int) -> None:
        weights = [weight for weight, _ in self.steps]
        for _ in range(steps):
            (step,) = self.dice.choices([step for _, step in self.steps], weights)
            self.trail.append(step.__name__)
            try:
                step()
            except Crash as crash:
                self.come_back(crash)
            except FileSystemError as problem:  # no such name, a full folder and so on: what clients hear
                self.trail.append(type(problem).__name__)
        self.world.fate.spare()
        self.world.faulty.bad.forgive()
        self.world.settled()
        self.world.check()
        self.world.stop()

    def come_back(self, crash: Crash) -> None:
        self.crashes += 1
        self.trail.append(f"crash at {crash}")
        self.world.die()
        self.world.begin()

    # -- clients ---------------------------------------------------------------------------------------------------

    def folders(self) -> list[Inode]:
        tree = self.world.tree()
        return [found["inode"] for found in tree.values() if found["type"] == "directory"]

    def somewhere(self) -> tuple[Inode, bytes]:
        return self.dice.choice(self.folders()), self.dice.choice(NAMES)

    def something(self) -> tuple[Inode, bytes]:
        """A name that there is, if there are any."""
        folder = self.dice.choice(self.folders())
        names = [name for _, name, _ in self.world.fs.listing(folder, 0) if name not in (b".", b"..")]
        return folder, self.dice.choice(names or NAMES)

    def write(self) -> None:
        self.world.put(*self.somewhere(), self.dice.choice(self.contents))

    def make_folder(self) -> None:
        folder, name = self.somewhere()
        self.world.fs.mkdir(folder, name, 0o755, SOMEBODY)

    def rename(self) -> None:
        self.world.fs.rename(*self.something(), *self.somewhere(), 0)

    def exchange(self) -> None:
        self.world.fs.rename(*self.something(), *self.something(), RENAME_EXCHANGE)

    def link(self) -> None:
        folder, name = self.something()
        self.world.fs.link(self.world.fs.lookup(folder, name).inode, *self.somewhere())

    def symlink(self) -> None:
        self.world.fs.symlink(*self.somewhere(), b"../to \xfe%", SOMEBODY)

    def unlink(self) -> None:
        self.world.fs.unlink(*self.something())

    def remove_folder(self) -> None:
        self.world.fs.rmdir(*self.something())

    def attributes(self) -> None:
        folder, name = self.something()
        inode = self.world.fs.lookup(folder, name).inode
        if inode == NO_INODE:
            return
        if self.dice.random() < 0.5:
            self.world.fs.setxattr(inode, b"user.x", self.dice.choice((b"1", b"2")))
        else:
            self.world.fs.setattr(inode, AttributeChanges(mode=self.dice.choice((0o600, 0o640))), SOMEBODY)

    # -- behind them -----------------------------------------------------------------------------------------------

    def tier(self) -> None:
        self.world.tiering.step()

    def mirror(self) -> None:
        for _ in range(self.dice.randrange(1, 6)):
            self.world.mirroring.step()

    def pass_time(self) -> None:
        self.world.clock.advance(self.dice.choice((0.5, 3.0, 12.0)))

    def evict(self) -> None:
        inodes = [found["inode"] for found in self.world.tree().values() if found["type"] == "file"]
        if inodes:
            self.world.tiering.evictor.evict_many([self.dice.choice(inodes)])

    def fault(self) -> None:
        bad = self.world.faulty.bad
        match self.dice.randrange(8):
            case 0:
                bad.die(self.dice.choice((2.0, 20.0)))
            case 1:
                bad.script(Fault(status=503, times=2))
            case 2:
                bad.script(Fault(operation="replace", cut_at=1))
            case 3:
                bad.script(Fault(lost_reply=True, times=self.dice.randrange(1, 3)))
            case 4:
                bad.script(Fault(operation="replace", wrong_byte_at=0))
            case 5:
                bad.script(Fault(status=403))
            case 6:
                bad.script(Fault(operation="copy", cut_at=1))
            case 7:
                bad.script(Fault(operation="copy", wrong_byte_at=0))

    def seal_fate(self) -> None:
        point = self.dice.choice(("", *POINTS))
        self.world.fate.seal(self.dice.randrange(1, 8), point)

    def trim(self) -> None:
        keep = self.dice.randrange(1, 10)
        self.world.feed(lambda tx: feeds.trim(tx, keep, 100_000))

    def restart(self) -> None:
        self.world.stop()
        self.world.die()
        self.world.begin()

    def lose_rows(self) -> None:
        """The archive was restored: nothing is known of its mirror."""
        if self.dice.random() < 0.3:
            self.world.rows = type(self.world.rows)()
            self.restart()

    def come_from_the_past(self) -> None:
        """The archive was adopted in an older state: the mirror went on without it."""
        if self.dice.random() < 0.3:
            objects = self.world.place.objects
            for name in sorted(objects):
                if self.dice.random() < 0.3 and not name.endswith(".jsonl"):
                    objects[name] = b"of another future"
                elif self.dice.random() < 0.1:
                    del objects[name]
            self.epoch += 1
            self.world.feed(lambda tx: meta.set_int(tx, meta.EPOCH, self.epoch))
            self.restart()


@pytest.mark.parametrize("number", range(20))
def test_after_a_quiet_while_a_mirror_is_the_tree(home: Path, number: int) -> None:
    assert run(Life, home, FIXED or 5_000 + number, 300).crashes


def test_a_life_that_nobody_has_seen_before(home: Path) -> None:
    run(Life, home, FIXED or random.SystemRandom().randrange(1 << 32), 300)


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_many_lives(home: Path) -> None:
    dice = soak_dice()
    for number in range(300):
        made = home / f"{number}"
        made.mkdir()
        run(Life, made, dice.randrange(1 << 32), 400)
        shutil.rmtree(made)
