"""Random lives of an archive that removes what nobody needs: see `test_manifest_model`.

Files are forgotten soon here, packs are small and thin ones are packed again all the time, with death at every step,
targets with bad days, bits that rot and somebody who changes files in the middle. Nothing that is acknowledged or kept
may be lost, each target alone rebuilds the archive, and in the end nothing is left that nobody needs.

    VNAFS_SEED=… pytest tests/model/test_collect_model.py
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.model.collectworld import Collecting
from tests.model.lives import run
from tests.model.pipelineworld import QUIET_SECONDS, World
from tests.model.test_manifest_model import A, B, RecordedLife
from tests.model.test_pipeline_model import MIDDLES
from tests.seeds import soak_dice
from vnafs.domain.faults import POINTS, RARE_POINTS
from vnafs.index import contents, packs

FIXED = int(os.environ.get("VNAFS_SEED", "0"))
COLLECTING = tuple(point for point in RARE_POINTS if point.startswith("collect."))


class CollectedLife(RecordedLife):
    """A random life with a collector in it."""

    middles = (*MIDDLES, *COLLECTING)

    def __init__(self, home: Path, seed: int) -> None:
        super().__init__(home, seed)
        # one thread records here: a file of more pieces than packs may wait would wait for itself
        self.contents = [data for data in self.contents if len(data) < 100_000]
        self.contents += [self.dice.randbytes(self.dice.choice((5_000, 60_000))) for _ in range(20)]
        self.steps += [(25, self.collect), (8, self.expire), (6, self.wait_long), (1, self.trim)]
        self.world.keep(self.dice.choice((0, 60, 2_000)))
        self.removed = 0

    def made(self, home: Path) -> World:
        chosen = {
            "live_percent_min": self.dice.choice((0.0, 40.0, 80.0)),
            "kept_seconds": self.dice.choice((0.0, 500.0, 20_000.0)),
        }
        kind: type[Collecting] = type("Chosen", (Collecting,), chosen)
        return kind(home, pack_target_bytes=96 * 1024, copies_min=self.copies_min, encrypted=self.encrypted)

    @property
    def collecting(self) -> Collecting:
        assert isinstance(self.world, Collecting)
        return self.world

    def collect(self) -> None:
        for _ in range(self.dice.randrange(1, 4)):
            self.collecting.collector.step()
        self.removed = max(self.removed, self.collecting.collector.collected.removed)

    def trim(self) -> None:
        self.collecting.manifests.trim_now()

    def wait_long(self) -> None:
        self.world.clock.advance(self.dice.choice((60.0, 600.0, 4_000.0)))

    def seal_fate(self) -> None:
        point = self.dice.choice(("", *POINTS, *COLLECTING, *COLLECTING, *COLLECTING))
        self.world.fate.seal(self.dice.randrange(1, 12 if not point else 3), point)

    def end_well(self) -> None:
        """What nobody needs is gone, before the rest is looked at."""
        world = self.collecting
        for name in sorted(self.open):
            world.fs.release(self.open.pop(name))
        self.forgive_targets()
        world.clock.advance(QUIET_SECONDS + 300)
        world.verify_all()
        world.settle()
        world.keep(0)
        world.clock.advance(4_000)
        world.collect()
        world.collect()
        self.removed = max(self.removed, world.collector.collected.removed)
        assert world.removals_open() == 0
        with world.reading() as reader:
            for pack in packs.every(reader):
                used = contents.used_of_run(reader, pack.contents_first, pack.contents_count)
                leaning = [one for one in contents.leaning_on(reader, pack.number) if contents.is_used(reader, one)]
                assert used or leaning, "nobody needs it, and it is still there"
        for target in (A, B):
            assert set(world.stored(target)) == world.packs_known()
        super().end_well()


@pytest.mark.parametrize("number", range(12))
def test_an_archive_that_collects_loses_nothing_and_leaves_nothing(home: Path, number: int) -> None:
    life = run(CollectedLife, home, FIXED or 9_000 + number, 400)
    assert life.crashes
    assert life.removed or FIXED


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_many_lives_that_collect(home: Path) -> None:
    dice = soak_dice()
    for number in range(400):
        made = home / f"{number}"
        made.mkdir()
        run(CollectedLife, made, dice.randrange(1 << 32), 400)
        shutil.rmtree(made)
