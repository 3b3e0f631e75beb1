"""Random I/O on files that are sealed, evicted and recalled meanwhile: no step ever sees a wrong byte."""

from __future__ import annotations

import collections
import random
import time
from pathlib import Path

import pytest

from tests.seeds import soak_dice
from tests.system.archives import AT_ONCE, Archive, an_archive, until, with_engine
from tests.system.load import Daemons
from tests.system.shadowed import Shadowed

pytestmark = [pytest.mark.system, pytest.mark.xdist_group("suites")]

STATES = ("open", "sealed", "packed", "replicated", "stub")
FILES = 6
DEEDS_MAX = 60
"""Before a file is left alone."""
DEEDS_A_LOOK = 25


class Desk:
    """Some files are worked on; the others rest until tiering has come as far with them as the dice say."""

    def __init__(self, archive: Archive, dice: random.Random, *, allocates: bool) -> None:
        self.archive = archive
        self.dice = dice
        self.ask = Daemons(archive)
        self.files = [Shadowed(archive.share / f"file-{n}", dice, allocates=allocates) for n in range(FILES)]
        self.deeds_left = {file: dice.randrange(DEEDS_MAX) for file in self.files}
        self.rests_until: dict[Shadowed, str] = {}
        self.woken: collections.Counter[str] = collections.Counter()
        """How often a file was worked on again in each state."""

    def work(self, seconds: float) -> None:
        """For so long, but at least until a stub was worked on."""
        ends = time.monotonic() + seconds
        while time.monotonic() < ends or not self.woken["stub"]:
            for _ in range(DEEDS_A_LOOK):
                awake = [file for file in self.files if file not in self.rests_until]
                if not awake:
                    break
                self._deed(self.dice.choice(awake))
            for file in list(self.rests_until):
                self._look(file)

    def _deed(self, file: Shadowed) -> None:
        file.step()
        self.deeds_left[file] -= 1
        if self.deeds_left[file] <= 0:
            file.let_go()
            self.rests_until[file] = self.dice.choice(["open", "sealed", "packed", "replicated", *["stub"] * 6])

    def _look(self, file: Shadowed) -> None:
        state, wanted = self.archive.state(file.path), self.rests_until[file]
        if state == "replicated" and wanted == "stub":
            self.ask.evict(file.path)
            state = self.archive.state(file.path)
        if STATES.index(state) >= STATES.index(wanted) or not file.bytes:
            del self.rests_until[file]
            self.woken[state] += 1
            self.deeds_left[file] = self.dice.randrange(1, DEEDS_MAX)

    def check(self) -> None:
        """All of it from the targets."""
        self.let_go()
        until(self.ask.all_done, lambda: f"all have copies\n{self.archive.tail()}", 60)
        full = [file for file in self.files if file.bytes]
        self.ask.evict_all(*(file.path for file in full))
        for file in full:
            assert self.archive.state(file.path) == "stub"
        for file in self.files:
            file.check()

    def let_go(self) -> None:
        for file in self.files:
            file.let_go()


def random_io(archive: Archive, dice: random.Random, *, engine: str, seconds: float) -> None:
    """Work and check."""
    desk = Desk(archive, dice, allocates=engine == "kernel")
    try:
        desk.work(seconds)
        desk.check()
    finally:
        desk.let_go()
        desk.ask.close()


def test_random_io_never_meets_a_wrong_byte(site: Archive, fuse: str) -> None:
    seed = random.SystemRandom().randrange(1 << 31)
    print("seed", seed)
    random_io(site, random.Random(seed), engine=fuse, seconds=3.0)


@pytest.mark.soak
def test_half_an_hour_of_random_io(tmp_path: Path, fuse: str) -> None:
    with an_archive(tmp_path, settings=with_engine(AT_ONCE, fuse)) as archive:
        random_io(archive, soak_dice(), engine=fuse, seconds=1800.0)
