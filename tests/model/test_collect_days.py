"""Days on which something is not needed any more: see `pipelineworld`."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import pytest

from tests.model.collectworld import AFTER_SECONDS, Collecting
from tests.model.pipelineworld import Crash
from tests.model.test_manifest_model import A, B, Rebuilt
from vnafs.domain.errors import TargetRefused
from vnafs.domain.files import FileState
from vnafs.domain.ids import ObjectName
from vnafs.index.condemned import Stage
from vnafs.targets.faulty import Fault
from vnafs.upkeep.collect import LOOK_SECONDS

ROUND_SECONDS = LOOK_SECONDS + 200
"""One look at all packs."""


@pytest.fixture
def world(home: Path) -> Collecting:
    """Twelve files, three to a pack, on two targets; nothing is kept."""
    return filled(Collecting(home, pack_target_bytes=64 * 1024))


def filled(world: Collecting) -> Collecting:
    world.keep(0)
    for number in range(12):
        world.write(b"%d" % number, data(number))
    world.clock.advance(20)
    world.settle()
    world.manifests.step()
    return world


def data(number: int) -> bytes:
    return random.Random(number).randbytes(20_000)


def remove_all(world: Collecting) -> None:
    for name in sorted(world.names()):
        world.unlink(name)
    world.expire()


def test_what_nobody_needs_goes_from_here_and_from_every_target(world: Collecting) -> None:
    assert world.object_count(A) == world.object_count(B) > 2
    remove_all(world)
    world.collect(2 * ROUND_SECONDS)
    assert world.object_count(A) == world.object_count(B) == 0
    assert world.packs_known() == set()
    assert world.files_in("packs") == []
    assert world.counts() == world.recounted()
    assert not world.transfers_waiting()
    assert world.collector.collected.spared == 0
    assert sum(world.stages().values()) <= 1, "only the highest number is remembered, so that it is not used again"


def test_nothing_goes_before_its_time(world: Collecting) -> None:
    remove_all(world)
    before = world.object_count(A)
    world.clock.advance(100)
    world.collector.step()
    assert world.stages()[Stage.CONDEMNED] == before
    world.collect(AFTER_SECONDS - 100)
    assert world.object_count(A) == before
    assert len(world.packs_known()) == before
    world.collect(200)
    assert not world.packs_known()


def test_what_is_needed_stays(world: Collecting) -> None:
    world.collect(3 * ROUND_SECONDS)
    assert world.stages() == dict.fromkeys(Stage, 0)
    for number in range(12):
        assert world.evict(b"%d" % number)
        assert world.read(b"%d" % number) == data(number)


def test_what_is_kept_stays_until_its_time_is_over(world: Collecting) -> None:
    world.keep(10 * int(ROUND_SECONDS))
    for number in range(12):
        assert world.evict(b"%d" % number)
    remove_all(world)
    world.collect(3 * ROUND_SECONDS)
    assert world.object_count(A) > 2
    world.fs.versions.undelete(b"share/5")
    assert world.read(b"5") == data(5)


def test_a_pack_of_which_little_is_needed_is_packed_again(world: Collecting) -> None:
    before = world.stored(A)
    for number in range(12):
        assert world.evict(b"%d" % number)
        if number % 3:
            world.unlink(b"%d" % number)
    world.collect(3 * ROUND_SECONDS)
    assert world.collector.collected.repacked >= 3
    assert len(set(before) & set(world.stored(A))) <= 1, "none but one that had only files that are needed"
    assert world.stored(A) == world.stored(B)
    for number in range(0, 12, 3):
        assert world.state(b"%d" % number) is FileState.STUB
        assert world.read(b"%d" % number) == data(number)
    assert world.counts() == world.recounted()


def test_an_archive_is_rebuilt_after_collecting(world: Collecting, tmp_path: Path) -> None:
    for number in range(12):
        if number % 3:
            world.unlink(b"%d" % number)
    world.collect(3 * ROUND_SECONDS)
    other = Rebuilt(tmp_path, world, B)
    assert not other.report.problems
    assert not other.report.packs_missing
    for number in range(0, 12, 3):
        assert other.read(b"%d" % number) == data(number)


def test_what_is_written_again_while_its_pack_is_condemned_is_packed_again(world: Collecting) -> None:
    remove_all(world)
    world.collect(ROUND_SECONDS)
    assert world.stages()[Stage.CONDEMNED]
    world.write(b"again", data(3))
    world.clock.advance(20)
    world.settle()
    assert world.evict(b"again")
    world.collect(2 * ROUND_SECONDS)
    assert world.object_count(A) == 1
    assert world.read(b"again") == data(3)


def test_a_target_that_is_away_keeps_its_objects_until_it_is_back(world: Collecting) -> None:
    remove_all(world)
    world.collect(ROUND_SECONDS)
    there = world.object_count(B)
    world.targets[B].die(1e9)
    world.collect(2 * ROUND_SECONDS)
    assert world.object_count(A) == 0
    assert world.object_count(B) == there
    world.targets[B].forgive()
    world.collect(ROUND_SECONDS)
    assert world.object_count(B) == 0


def test_a_target_that_refuses_is_asked_again_and_goes_on_taking_packs(world: Collecting) -> None:
    refused: list[ObjectName] = []
    delete = world.targets[A].delete

    def refuse(name: ObjectName) -> None:
        if name.startswith("packs/"):
            refused.append(name)
            raise TargetRefused(target="a", why="it is locked")
        delete(name)

    remove_all(world)
    world.targets[A].delete = refuse  # type: ignore[method-assign]
    world.collect(2 * ROUND_SECONDS)
    assert refused
    assert len(refused) <= 3 * len(set(refused)), "once an hour"
    assert world.object_count(B) == 0
    world.write(b"new", b"bytes")
    world.clock.advance(20)
    for _ in range(20):
        world.tiering.step()
        world.clock.advance(2)
    assert world.standing(b"new")[2] == 2
    world.targets[A].delete = delete  # type: ignore[method-assign]
    world.collect(ROUND_SECONDS)
    assert world.object_count(A) == 1


def test_a_target_that_charges_for_longer_keeps_them_until_that_is_over(world: Collecting) -> None:
    Collecting.storage_seconds_min = 6 * ROUND_SECONDS
    try:
        remove_all(world)
        world.collect(2 * ROUND_SECONDS)
        plan = world.collector.forecast()
        assert world.packs_known() == set()
        assert plan.packs == 0
        assert world.object_count(A) > 2
        world.collect(6 * ROUND_SECONDS)
        assert world.object_count(A) == 0
    finally:
        Collecting.storage_seconds_min = 0.0


def test_a_plan_says_what_would_go_and_what_it_would_cost(world: Collecting) -> None:
    Collecting.storage_seconds_min = 1e6
    try:
        remove_all(world)
        world.clock.advance(100)
        plan = world.collector.forecast()
        assert plan.dead == plan.packs == world.object_count(A)
        assert plan.early.keys() == {1, 2}
        assert plan.early[1][0] == plan.dead
        assert 0.9e6 * plan.dead_bytes < plan.early[1][1] < 1e6 * plan.dead_bytes
    finally:
        Collecting.storage_seconds_min = 0.0


def test_a_repository_whose_tripwire_was_touched_loses_nothing(world: Collecting) -> None:
    repository = world.fs.repositories.named("share")
    remove_all(world)
    world.collect(ROUND_SECONDS)
    world.fs._core.repositories[repository.id] = dataclasses.replace(repository, tripped_ns=1, tripped_why="x")
    world.fs._core.tripped.append(repository.id)
    world.fs.repositories.save_tripped()
    before = world.object_count(A)
    world.collect(3 * ROUND_SECONDS)
    assert world.object_count(A) == before
    assert world.collector.forecast().frozen == ("share",)
    world.fs.repositories.set(repository, reset_tripwire=True)
    world.collect(2 * ROUND_SECONDS)
    assert world.object_count(A) == 0


def test_nothing_is_removed_that_no_manifest_told_the_target_of(world: Collecting) -> None:
    remove_all(world)
    before = world.object_count(A)
    world.manifests.step = lambda: True  # type: ignore[method-assign]
    world.collect(3 * ROUND_SECONDS)
    assert world.packs_known() == set()
    assert world.object_count(A) == before


def test_a_use_that_was_lost_costs_no_byte(world: Collecting) -> None:
    """The tree's own rows have the last word."""
    for number in range(12):
        assert world.evict(b"%d" % number)
    with world.writing() as tx:
        for key, _ in list(tx.scan(b"N", b"O")):
            tx.delete(key)
    world.collect(3 * ROUND_SECONDS)
    assert world.collector.collected.spared
    for number in range(12):
        assert world.read(b"%d" % number) == data(number)


def test_bytes_that_a_file_had_before_it_was_opened_again_stay(world: Collecting) -> None:
    """A restore falls back to them while the new ones have no copy."""
    name = b"0"
    handle = world.open(name)
    world.fs.write(handle, 0, b"new")
    for number in range(1, 12):
        world.unlink(b"%d" % number)
    world.collect(3 * ROUND_SECONDS)
    other_names = world.object_count(A)
    assert other_names
    world.fs.release(handle)
    world.clock.advance(20)
    world.settle()
    world.collect(2 * ROUND_SECONDS)
    assert world.evict(name)
    assert world.read(name) == b"new" + data(0)[3:]


def test_emptying_a_pack_that_cannot_be_read_is_given_up(world: Collecting) -> None:
    for number in range(12):
        assert world.evict(b"%d" % number)
        if number % 3:
            world.unlink(b"%d" % number)
    world.expire()
    for target in world.targets.values():
        target.script(Fault(operation="get", status=500, times=100_000))
    world.collect(3 * ROUND_SECONDS)
    assert world.stages()[Stage.CONDEMNED] == 0
    for target in world.targets.values():
        target.forgive()
    for number in range(0, 12, 3):
        assert world.read(b"%d" % number) == data(number)


ONCE = ("collect.walked", "collect.removed", "collect.asked")
EACH = ("collect.condemned", "collect.repacked", "collect.moved", "collect.deleted")


@pytest.mark.parametrize(("point", "count"), [(point, 1) for point in (*ONCE, *EACH)] + [(point, 3) for point in EACH])
def test_a_death_at_any_step_costs_nothing_and_the_next_life_goes_on(world: Collecting, point: str, count: int) -> None:
    for number in range(12):
        assert world.evict(b"%d" % number)
        if number % 3:
            world.unlink(b"%d" % number)
    world.expire()
    world.fate.seal(count, point)
    with pytest.raises(Crash):
        world.collect(4 * ROUND_SECONDS)
    world.die()
    world.begin()
    assert world.counts() == world.recounted()
    world.collect(3 * ROUND_SECONDS)
    for number in range(0, 12, 3):
        assert world.read(b"%d" % number) == data(number)
    assert set(world.stored(A)) == set(world.stored(B)) == world.packs_known()
    assert world.removals_open() == 0


def test_a_clone_that_was_overtaken_removes_nothing(world: Collecting) -> None:
    remove_all(world)
    world.collect(ROUND_SECONDS)
    before = world.stored(A)
    world.manifests.rival = "somebody else wrote there"
    world.collect(3 * ROUND_SECONDS)
    assert world.stored(A) == before


def test_the_time_between_is_kept_whatever_the_clock_is_set_to(world: Collecting) -> None:
    remove_all(world)
    world.collect(ROUND_SECONDS)
    world.clock.step(-10 * AFTER_SECONDS)
    before = world.object_count(A)
    world.collect(AFTER_SECONDS)
    assert world.object_count(A) == before
