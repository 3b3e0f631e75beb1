"""Manifests that nobody needs any more leave the targets: see `test_manifest_model`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.model.pipelineworld import Crash
from tests.model.test_manifest_model import A, B, Rebuilt, Recorded, carried, keep, load, reverted, rows, settled
from vnafs.content import manifest
from vnafs.domain.errors import TargetRefused
from vnafs.domain.ids import ObjectName, TargetName
from vnafs.targets.body import BytesBody
from vnafs.upkeep.send import TRIM_SECONDS

KEPT_SECONDS = 10 * TRIM_SECONDS
SECRET = b"name-of-a-patient"


@pytest.fixture
def world(home: Path) -> Recorded:
    made = Recorded(home)
    made.kept_seconds = KEPT_SECONDS
    made.stop()
    made.begin()
    return made


def days(world: Recorded, count: int) -> None:
    """Something happens each day, and a snapshot is made of it."""
    for number in range(count):
        world.write(b"%d" % (number % 7), b"day %d" % number)
        settled(world)
        world.manifests.snapshot()
        assert world.manifests.step()
        world.clock.advance(TRIM_SECONDS + 1)


def objects(world: Recorded, target: TargetName = A) -> set[ObjectName]:
    return set(world.stores[target].list("manifests/"))


def numbers(world: Recorded, prefix: str, target: TargetName = A) -> list[int]:
    return [n for name in world.stores[target].list(prefix) if (n := manifest.number_in(name)) is not None]


def test_what_is_older_than_the_time_kept_goes_and_every_state_since_is_there(world: Recorded) -> None:
    days(world, 30)
    assert 9 <= len(numbers(world, manifest.SNAPSHOTS)) <= 13
    assert min(numbers(world, manifest.SEGMENTS)) > 10
    while len(snapshots := numbers(world, manifest.SNAPSHOTS)) > 1:
        for target in (A, B):
            report, engines = load(world, target)
            assert not report.problems
            assert carried(engines) == carried(world.engines())
        for target in (A, B):
            world.stores[target].delete(manifest.snapshot_name(max(snapshots)))
    report, engines = load(world)
    assert report.number == report.head
    assert carried(engines) == carried(world.engines()), "the oldest one leads to now, too"
    assert world.manifests.oldest(1) == min(numbers(world, manifest.SEGMENTS) + snapshots)


def test_nothing_goes_while_nothing_is_old_or_nothing_may(home: Path, world: Recorded) -> None:
    days(world, 8)
    assert min(numbers(world, manifest.SEGMENTS)) == 1
    world.stop()
    world.kept_seconds = 0.0
    world.begin()
    days(world, 20)
    assert min(numbers(world, manifest.SEGMENTS)) == 1


def test_all_before_goes_when_somebody_asks_and_no_manifest_names_it_any_more(world: Recorded, tmp_path: Path) -> None:
    world.keep(0)
    world.write(SECRET, b"bytes")
    world.write(b"other", b"bytes of another")
    days(world, 3)
    assert any(named(world, target) for target in (A, B))
    world.unlink(SECRET)
    while world.fs.upkeep():
        pass
    world.manifests.trim_now()
    for _ in range(4):
        world.clock.advance(700)
        settled(world)
    for target in (A, B):
        assert not named(world, target)
        report, engines = load(world, target)
        assert not report.problems
        assert carried(engines) == carried(world.engines())
    oldest = world.manifests.oldest(1)
    assert oldest is not None
    assert oldest == min(numbers(world, manifest.SEGMENTS) + numbers(world, manifest.SNAPSHOTS)) > 3
    assert len(numbers(world, manifest.SNAPSHOTS)) == 1
    assert {path.name for path in (world.home / "manifests").rglob("*.segment")} <= {
        name.rpartition("/")[2] for name in objects(world)
    }
    other = Rebuilt(tmp_path, world, B)
    assert other.read(b"other") == b"bytes of another"


def named(world: Recorded, target: TargetName) -> bool:
    """Whether some manifest on a target tells of the secret name."""
    for name in objects(world, target):
        _, found = manifest.decode(b"".join(world.stores[target].get(name)), world.secrets(target))
        if any(SECRET in row.key or SECRET in row.value for row in found):
            return True
    return False


def test_a_target_that_lets_nothing_go_is_sent_to_all_the_same(world: Recorded) -> None:
    delete = world.targets[A].delete

    def refuse(name: ObjectName) -> None:
        raise TargetRefused(target="a", why="no right to")

    world.targets[A].delete = refuse  # type: ignore[method-assign]
    days(world, 25)
    assert world.sent(A)
    assert min(numbers(world, manifest.SEGMENTS, A)) == 1
    assert min(numbers(world, manifest.SEGMENTS, B)) > 5
    world.targets[A].delete = delete  # type: ignore[method-assign]
    days(world, 2)
    assert min(numbers(world, manifest.SEGMENTS, A)) > 5


def test_a_disk_reverted_to_before_what_was_trimmed_is_noticed_at_the_start(world: Recorded, tmp_path: Path) -> None:
    world.write(b"old", b"of both times")
    settled(world)
    before = rows(world)
    for name in ("spool", "packs", "manifests"):
        keep(world.home / name, tmp_path / name)
    days(world, 30)
    world.manifests.trim_now()
    for _ in range(4):
        world.clock.advance(700)
        settled(world)
    there = {target: objects(world, target) for target in (A, B)}
    world.stop()
    reverted(world, before)
    for name in ("spool", "packs", "manifests"):
        keep(tmp_path / name, world.home / name)
    world.begin()
    assert world.manifests.compare()
    world.clock.advance(10 * KEPT_SECONDS)
    world.manifests.step()
    assert {target: objects(world, target) for target in (A, B)} == there


def test_a_machine_that_was_overtaken_trims_nothing(world: Recorded) -> None:
    days(world, 12)
    head = max(numbers(world, manifest.SEGMENTS))
    header = manifest.Header(manifest.Kind.SEGMENT, b"a" * 16, 3, head + 7, world.clock.now())
    world.stores[A].put(manifest.segment_name(head + 7), BytesBody(manifest.encode(header, (), None)))
    there = objects(world)
    world.clock.advance(10 * KEPT_SECONDS)
    world.manifests.step()
    assert world.superseded
    assert objects(world) == there


def test_a_death_in_the_middle_leaves_what_can_be_used(world: Recorded) -> None:
    days(world, 9)
    deletes = 0
    delete = world.targets[A].delete

    def die(name: ObjectName) -> None:
        nonlocal deletes
        deletes += 1
        if deletes == 2:
            raise Crash("a delete")
        delete(name)

    world.targets[A].delete = die  # type: ignore[method-assign]
    with pytest.raises(Crash):
        days(world, 12)
    world.die()
    world.begin()
    world.targets[A].delete = delete  # type: ignore[method-assign]
    for target in (A, B):
        assert not load(world, target)[0].problems
    world.clock.advance(TRIM_SECONDS)
    settled(world)
    for target in (A, B):
        report, engines = load(world, target)
        assert not report.problems
        assert carried(engines) == carried(world.engines())
    assert min(numbers(world, manifest.SEGMENTS)) > 2
