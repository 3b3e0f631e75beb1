"""Random damage to every class of file, on targets and here: all of it found, none of it served, all of it mended.

In each round some objects are hit, by a flipped bit, a cut or removal, but never both copies of one: then a period of
scrubbing passes, and everything must be as it was before. `make soak` runs ten thousand hits.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.model.pipelineworld import RECOVERY
from tests.model.test_scrub_days import PERIOD_SECONDS, A, B, Scrubbed
from tests.seeds import soak_dice
from vnafs.content import keyring
from vnafs.domain.files import FileState
from vnafs.domain.ids import ObjectName, TargetName
from vnafs.pipeline.keys import AGAIN_SECONDS, unlocked_from
from vnafs.upkeep.plan import Source, secrets_of

FILES = 24
FIXED = int(os.environ.get("VNAFS_SEED", "0"))


class Damaged:
    """An archive on two targets, and what is done to it."""

    def __init__(self, home: Path, dice: random.Random, *, encrypted: bool) -> None:
        self.dice = dice
        self.encrypted = encrypted
        self.world = Scrubbed(home, pack_target_bytes=64 * 1024, encrypted=encrypted)
        self.expected = {b"%d" % n: dice.randbytes(dice.randrange(1, 30_000)) for n in range(FILES)}
        for name, data in self.expected.items():
            self.world.write(name, data)
        self.settle()
        self.hits = 0
        self.classes: set[str] = set()

    def settle(self) -> None:
        world = self.world
        for _ in range(4):
            world.clock.advance(70)
            world.settle()
            while not all(world.sent(target) for target in (A, B)):
                world.manifests.step()
                world.clock.advance(70)

    # -- hits --------------------------------------------------------------------------------------------------

    def broken(self, data: bytes) -> bytes | None:
        """None: it is gone."""
        match self.dice.randrange(8):
            case 0:
                return None
            case 1 | 2:
                return data[: self.dice.randrange(len(data))]
            case _:
                at = self.dice.randrange(len(data))
                return data[:at] + bytes([data[at] ^ 1 << self.dice.randrange(8)]) + data[at + 1 :]

    def hit_object(self, target: TargetName, name: ObjectName) -> None:
        store = self.world.stores[target]
        data = self.broken(b"".join(store.get(name)))
        if data is None:
            store.delete(name)
        else:
            store.replace(name, data)
        self.hits += 1
        self.classes.add(name.split("/")[-2] if name.startswith("manifests/s") else name.split("/")[0])

    def hit_targets(self, count: int) -> None:
        names = sorted(self.needed())
        for name in self.dice.sample(names, min(count, len(names) // 2)):
            self.hit_object(self.dice.choice((A, B)), name)

    def needed(self) -> set[ObjectName]:
        """What a target has that anybody would miss."""
        found: set[ObjectName] = set()
        for send in self.world.manifests._current():
            found.update(send.needed())
        found.update(name for name in self.world.stores[A].list("packs/"))
        if self.encrypted:
            found.add(max(self.world.stores[A].list("keys/")))
        return found

    def hit_local(self) -> None:
        for name in self.dice.sample(sorted(self.expected), 2):
            if self.world.state(name) is FileState.REPLICATED and len(self.expected[name]) > 2_000:
                self.world.rot_local(name)
                self.hits += 1
                self.classes.add("spool")

    # -- after a period ------------------------------------------------------------------------------------------

    def mended(self) -> None:
        world = self.world
        world.clock.advance(max(PERIOD_SECONDS, AGAIN_SECONDS) + 1)
        world.scrub._files_not_before = world.scrub._packs_not_before = world.scrub._manifests_not_before = 0.0
        world.scrub_all()
        self.settle()
        world.scrub_all()  # local bytes that waited for their copies
        assert world.stored(A) == world.stored(B)
        for name in self.needed():
            assert b"".join(world.stores[A].get(name)) == b"".join(world.stores[B].get(name)), name
        for name, data in self.expected.items():
            assert world.read(name) == data, name

    def some_evicted(self) -> None:
        for name in self.dice.sample(sorted(self.expected), FILES // 2):
            self.world.evict(name)


def damage(home: Path, seed: int, hits: int) -> Damaged:
    life = Damaged(home, random.Random(seed), encrypted=seed % 2 == 1)
    random.seed(seed)
    try:
        while life.hits < hits:
            life.some_evicted()
            life.hit_targets(life.dice.randrange(1, 30))
            life.hit_local()
            life.mended()
        for target in (A, B):
            unlocked = unlocked_from(life.world.stores[target], RECOVERY)
            secrets = None if unlocked is None else secrets_of(unlocked)
            assert Source(life.world.stores[target], secrets).plan().problems == ()
    except BaseException as problem:
        problem.add_note(f"VNAFS_SEED={seed}, after {life.hits} hits")
        raise
    return life


@pytest.mark.parametrize("number", range(2))
def test_all_damage_is_found_and_mended_and_none_is_served(home: Path, number: int) -> None:
    life = damage(home, FIXED or 9_000 + number, 150)
    assert {"packs", "segments", "snapshots", "manifests", "spool"} <= life.classes | {"keys"}
    assert life.encrypted is ("keys" in life.classes)
    assert keyring.KEYRINGS == "keys/"


@pytest.mark.soak
def test_ten_thousand_hits(home: Path) -> None:
    dice = soak_dice()
    for _ in range(4):
        folder = home / str(seed := dice.randrange(1 << 30))
        folder.mkdir()
        damage(folder, seed, 2_500)
