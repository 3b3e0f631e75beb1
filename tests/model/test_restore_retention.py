"""What is retained and held comes back from one target alone, and so does the clock that it is judged by."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import pytest

from tests.model.test_manifest_model import A, Rebuilt, Recorded, carried, settled, silent
from tests.model.test_restore_past import recorded, restored
from vnafs.content.manifest import NAMESPACE, STORE
from vnafs.domain.errors import Held, Retained, VnaError
from vnafs.domain.ids import Inode, RepositoryId
from vnafs.domain.retention import RetentionMode
from vnafs.fs.caller import Caller
from vnafs.index import audits, holds, retentions, steady
from vnafs.index.engine import Engine, prefix_stop
from vnafs.index.engines.memory import MemoryEngine
from vnafs.upkeep import restore

DAY = 86400
NS = 10**9
SOMEBODY = Caller(0, 0)


@pytest.fixture
def world(home: Path) -> Recorded:
    made = Recorded(home)
    rules(made, retention=RetentionMode.GOVERNANCE, retention_seconds=10 * DAY)
    return made


def rules(world: Recorded, **changes: object) -> None:
    known = world.fs.repositories.get(RepositoryId(world.share))
    world.fs.repositories.set(dataclasses.replace(known, **changes), reason="why")  # type: ignore[arg-type]


def retain(world: Recorded, inode: Inode, days: int) -> None:
    world.fs.retentions.retain([(inode, Inode(0))], seconds=days * DAY)


def test_a_restored_archive_refuses_what_the_first_one_did(world: Recorded, tmp_path: Path) -> None:
    for name in (b"retained", b"held", b"free", b"short"):
        world.write(name, b"bytes of " + name)
    settled(world)
    folder = world.fs.mkdir(world.share, b"folder", 0o755, SOMEBODY).inode
    world.fs.rename(world.share, b"held", folder, b"held")
    deep = world.fs.mkdir(world.share, b"above", 0o755, SOMEBODY).inode
    world.fs.rename(world.share, b"retained", deep, b"retained")
    inode = world.fs.lookup(deep, b"retained").inode
    retain(world, inode, 20)
    retain(world, world.inode(b"short"), 20)
    world.fs.retentions.retain([(world.inode(b"short"), Inode(0))], seconds=DAY, shorten=True, reason="a mistake")
    world.fs.retentions.hold(folder, "case 7", "a letter")
    world.fs.retentions.hold(inode, "over", "another letter")
    assert world.manifests.step()
    world.fs.retentions.release(inode, "over", "the end")
    rules(world, autocommit_seconds=60)
    for _ in range(5):
        world.manifests.step()
        world.clock.advance(61)
    assert world.sent(A)
    then = world.fs._core.time.now()
    made = restored(world, tmp_path / "made")
    assert protected(made) == protected(world)
    assert [hold.name for hold in made.fs.retentions.holds()] == ["case 7"]
    for call in (
        lambda: made.fs.unlink(deep, b"retained"),
        lambda: made.fs.rename(made.share, b"above", made.share, b"elsewhere"),
    ):
        with pytest.raises(Retained):
            call()
    with pytest.raises(Held):
        made.fs.unlink(folder, b"held")
    assert then - 2 * 3600 * NS < made.fs._core.time.now() <= then + 2 * 3600 * NS
    free = made.inode(b"free")
    while made.fs.upkeep():
        pass
    made.clock.advance(120)
    made.fs.upkeep()
    assert made.fs.retentions.of(free).retention is not None, "who waited to be committed is found again"
    with pytest.raises(Retained):
        made.unlink(b"free")


def test_a_restore_on_a_machine_whose_clock_was_turned_ends_no_retention(world: Recorded, tmp_path: Path) -> None:
    world.write(b"f", b"bytes")
    retain(world, world.inode(b"f"), 20)
    recorded(world)
    folder = tmp_path / "made"
    folder.mkdir()
    world.clock.step(1000 * DAY)
    made = Rebuilt(folder, world, A)
    made.clock.step(1000 * DAY)
    made.stop()
    made.begin()
    with pytest.raises(Retained):
        made.unlink(b"f")
    made.clock.advance(21 * DAY)
    made.unlink(b"f")


@pytest.mark.parametrize("seed", range(6))
def test_manifests_carry_every_change_of_retention_and_holds(home: Path, seed: int) -> None:
    dice = random.Random(seed)
    world = Recorded(home)
    rules(world, retention=RetentionMode.GOVERNANCE, retention_seconds=DAY)
    names = [b"%d" % number for number in range(6)]
    compared = 0
    for step in range(120):
        name = dice.choice(names)
        what = dice.randrange(9)
        try:
            if what < 2:
                world.write(name, dice.randbytes(5))
            elif what == 2:
                world.unlink(name)
            elif what == 3:
                retain(world, world.inode(name), dice.randrange(1, 5))
            elif what == 4:
                world.fs.retentions.retain(
                    [(world.inode(name), Inode(0))], seconds=60, shorten=True, reason=f"step {step}"
                )
            elif what == 5:
                world.fs.retentions.hold(world.inode(name), dice.choice("xy"), "why")
            elif what == 6:
                world.fs.retentions.release(world.inode(name), dice.choice("xy"), "why")
            elif what == 7:
                world.clock.advance(dice.choice((61, DAY)))
                world.fs.upkeep()
            else:
                world.settle()
        except VnaError:
            pass  # refused, or not there
        if step % 10 == 9:
            compared += compare(world)
    assert compared > 4
    assert protected(world)[2], "nothing was ever noted"


def compare(world: Recorded) -> bool:
    for _ in range(6):
        world.clock.advance(61)
        world.manifests.step()
        if world.sent(A):
            break
    else:
        return False
    engines: dict[bytes, Engine] = {NAMESPACE: MemoryEngine(), STORE: MemoryEngine()}
    restore.load(world.stores[A], engines, silent, None)
    there, here = carried(engines)[NAMESPACE], carried(world.engines())[NAMESPACE]
    assert there == here
    return True


def protected(world: Recorded) -> tuple[object, object, object]:
    """All rows of retention, holds and audit."""
    with world._namespace.read() as reader:
        return list(retentions.every(reader)), list(holds.every(reader)), list(audits.every(reader))


def test_what_manifests_carry_of_the_clock_moves_once_an_hour(world: Recorded) -> None:
    with world._namespace.read() as reader:
        before = dict(reader.scan(b"Mretention_time", prefix_stop(b"Mretention_time")))
    world.clock.advance(120)
    world.fs.upkeep()
    with world._namespace.read() as reader:
        assert dict(reader.scan(b"Mretention_time", prefix_stop(b"Mretention_time"))) == before
        assert steady.now(reader)
    world.clock.advance(3600)
    world.fs.upkeep()
    with world._namespace.read() as reader:
        assert dict(reader.scan(b"Mretention_time", prefix_stop(b"Mretention_time"))) != before
