"""Single bad days of the pipeline, step by step on a whole archive in one process: see `pipelineworld`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.model.pipelineworld import QUIET_SECONDS, World
from vnafs.domain.errors import RecallFailed
from vnafs.domain.files import FileState
from vnafs.domain.ids import TargetName, Version
from vnafs.index import contents
from vnafs.pipeline.recall import STAGED_SECONDS_MAX
from vnafs.pipeline.replicate import BACKOFF_SECONDS_MAX
from vnafs.targets.faulty import Fault

A, B = TargetName("a"), TargetName("b")
ALWAYS = 100_000


@pytest.fixture
def world(home: Path) -> World:
    return World(home)


def pass_time(world: World, seconds: float, each: float = 1.0) -> None:
    """Time passes and the pipeline works."""
    passed = 0.0
    while passed < seconds:
        while world.tiering.step():
            pass
        world.clock.advance(each)
        passed += each
    while world.tiering.step():
        pass


def until_replicated(world: World, name: bytes, seconds_max: float) -> float:
    """How many seconds it took."""
    passed = 0.0
    while world.state(name) is not FileState.REPLICATED:
        assert passed < seconds_max, f"{world.state(name).label} after {passed} s"
        pass_time(world, 1.0)
        passed += 1.0
    return passed


# -- clocks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hours", [-1, 1])
@pytest.mark.parametrize("when", ["before it is sealed", "before it is copied", "while a target is tried again"])
def test_an_hours_step_of_the_clock_delays_nothing_for_long(world: World, hours: int, when: str) -> None:
    if when == "while a target is tried again":
        for target in world.targets.values():
            target.die(QUIET_SECONDS + 30)
    world.write(b"file", b"data" * 10_000)
    if when != "before it is sealed":
        pass_time(world, QUIET_SECONDS + 2)
        assert world.state(b"file") is not FileState.REPLICATED
    world.clock.step(3600 * hours)
    # what is there was written before the step, this after it
    world.write(b"later", b"more" * 10_000)
    limit = QUIET_SECONDS + 60 + (BACKOFF_SECONDS_MAX * 1.3 if when.startswith("while") else 0)
    until_replicated(world, b"file", limit)
    until_replicated(world, b"later", limit)
    assert world.evict(b"file")
    assert world.read(b"file") == b"data" * 10_000


def test_a_file_written_again_and_again_is_not_sealed_although_the_clock_was_set_back(world: World) -> None:
    world.write(b"file", b"0")
    world.clock.step(-3600)
    for number in range(40):
        world.patch(b"file", 0, b"%d" % (number % 10))
        pass_time(world, QUIET_SECONDS - 1)
        assert world.state(b"file") is FileState.OPEN
    until_replicated(world, b"file", 60)


# -- sealing -----------------------------------------------------------------------------------------------------------


def test_news_of_bytes_that_a_file_had_before_is_not_taken_for_news_of_those_it_has(world: World) -> None:
    """Sealed, called sealed, written again before its pack was recorded: all within one version."""
    world.write(b"file", b"first" * 1_000)
    pass_time(world, QUIET_SECONDS + 1)
    handle = world.open(b"file")
    pass_time(world, 3)  # the tree is told that it is sealed, and says that somebody writes
    world.fs.write(handle, 0, b"second")
    world.fs.release(handle)
    for _ in range(40):
        pass_time(world, 1)
        state, known, copies = world.standing(b"file")
        assert state < FileState.PACKED or known
        assert state < FileState.REPLICATED or copies
    assert world.state(b"file") is FileState.REPLICATED


def test_the_use_of_a_version_that_loss_of_power_took_back_goes_when_it_has_other_bytes(world: World) -> None:
    world.write(b"file", b"first")
    world.settle()
    inode = world.inode(b"file")
    version = world.fs.facts(inode).version
    with world.writing() as tx:
        for content in list(contents.every(tx)):
            contents.add_use(tx, content.number, inode, Version(version + 1))
    world.stop()
    world.begin()
    pass_time(world, 60)
    world.write(b"file", b"others")
    world.settle()
    pass_time(world, 60)
    assert world.fs.facts(inode).version == version + 1
    assert world.uses() == world.sealed() | world.remembered()


def test_a_large_file_that_shrinks_while_it_is_packed_is_packed_again(world: World) -> None:
    data = os.urandom(1 << 20) * 66
    world.write(b"file", data)
    world.fate.meanwhile["pack.appended"] = lambda: world.cut(b"file", 5_000_000)
    until_replicated(world, b"file", 120)
    assert world.evict(b"file")
    assert world.read(b"file") == data[:5_000_000]


def test_a_rule_that_asks_for_more_copies_is_followed(world: World) -> None:
    world.targets[B].script(Fault(status=503, times=ALWAYS))
    world.write(b"file", b"data")
    until_replicated(world, b"file", 60)
    world.require_copies(2)
    pass_time(world, 5)
    assert world.state(b"file") is FileState.PACKED
    assert not world.evict(b"file")
    world.targets[B].forgive()
    until_replicated(world, b"file", 2 * BACKOFF_SECONDS_MAX)


# -- targets -----------------------------------------------------------------------------------------------------------


def test_a_dead_target_is_asked_less_and_less_but_at_least_each_minute(world: World) -> None:
    world.targets[A].script(Fault(status=503, times=ALWAYS))
    world.write(b"file", b"data")
    pass_time(world, QUIET_SECONDS + 12)
    counts = []
    for _ in range(4):
        before = len(world.targets[A].calls)
        pass_time(world, 100)
        counts.append(len(world.targets[A].calls) - before)
    assert counts[0] > counts[-1]
    assert 1 <= counts[-1] <= 100 // (BACKOFF_SECONDS_MAX * 0.75) + 1
    assert world.state(b"file") is FileState.REPLICATED  # the other one has it


def test_a_target_is_not_asked_before_the_time_it_names(world: World) -> None:
    world.write(b"first", b"data")
    until_replicated(world, b"first", 60)
    world.targets[A].script(Fault(status=429, retry_after_seconds=40))
    world.write(b"second", b"more")
    pass_time(world, QUIET_SECONDS + 14)
    calls = len(world.targets[A].calls)
    pass_time(world, 12)
    assert len(world.targets[A].calls) == calls
    pass_time(world, 40)
    assert len(world.targets[A].calls) > calls


def test_a_pack_that_a_target_never_takes_holds_up_no_other(world: World) -> None:
    for number in range(4):
        world.write(b"%d" % number, os.urandom(2_000))
        pass_time(world, QUIET_SECONDS + 12)  # a pack each
    poisoned = min(world.stored(A))
    world.stores[A].delete(poisoned)
    world.targets[A].poison(poisoned)
    world.verify_all()
    assert world.transfers_waiting()
    world.write(b"new", os.urandom(2_000))
    pass_time(world, QUIET_SECONDS + 12 + 1.25 * BACKOFF_SECONDS_MAX)  # a whole target's worst pause at that moment
    assert world.stored(A).keys() == world.stored(B).keys() - {poisoned}
    world.targets[A].forgive()
    pass_time(world, 2 * BACKOFF_SECONDS_MAX)
    assert world.stored(A) == world.stored(B)


def test_a_copy_that_only_seemed_damaged_counts_again_although_there_is_no_other(home: Path) -> None:
    world = World(home, target_names=("a",))
    world.write(b"file", os.urandom(5_000))
    until_replicated(world, b"file", 60)
    expected = world.read(b"file")
    assert world.evict(b"file")
    world.targets[A].vouches = False
    world.targets[A].script(Fault(operation="read_back", wrong_byte_at=100))
    world.verify_all()
    assert not world.standing(b"file")[2]
    assert world.read(b"file") == expected  # each piece is compared, so even such a copy may be read
    pass_time(world, 2 * BACKOFF_SECONDS_MAX)
    assert world.standing(b"file")[2] == 1


def test_an_object_of_the_wrong_size_is_replaced(world: World) -> None:
    world.write(b"file", os.urandom(5_000))
    pass_time(world, 30)
    (name,) = world.stored(A)
    world.stores[A].replace(name, b"cut short")
    world.verify_all()
    pass_time(world, 60)
    assert world.stored(A) == world.stored(B)


def test_a_reader_is_not_kept_waiting_for_a_target_that_is_known_to_be_down(world: World) -> None:
    world.write(b"file", os.urandom(50_000))
    pass_time(world, 30)
    assert world.evict(b"file")
    world.targets[A].script(Fault(operation="put", status=503, times=ALWAYS))
    world.write(b"other", b"x")
    pass_time(world, QUIET_SECONDS + 12)
    calls = len(world.targets[A].calls)
    world.read(b"file")
    assert len(world.targets[A].calls) == calls


def test_a_stub_that_no_target_gives_back_is_refused_and_stays(world: World) -> None:
    data = os.urandom(5_000)
    world.write(b"file", data)
    pass_time(world, 30)
    assert world.evict(b"file")
    for target in world.targets.values():
        target.die(1_000)
    with pytest.raises(RecallFailed):
        world.read(b"file")
    assert world.files_in("staging") == []
    for target in world.targets.values():
        target.forgive()
    assert world.read(b"file") == data


# -- leftovers ---------------------------------------------------------------------------------------------------------


def test_staged_bytes_that_nobody_takes_go_after_a_while(world: World) -> None:
    world.write(b"file", b"data")
    until_replicated(world, b"file", 60)
    assert world.evict(b"file")
    facts = world.fs.facts(world.inode(b"file"))
    assert facts.sha256 is not None
    staged = world.tiering.recaller.recall(facts.inode, facts.version, facts.sha256, facts.repository)
    world.clock.advance(STAGED_SECONDS_MAX / 2)
    world.tiering.watch_disk()
    assert os.path.exists(staged)
    world.clock.advance(STAGED_SECONDS_MAX)
    world.tiering.watch_disk()
    assert world.files_in("staging") == []


# -- versions that are over before they are packed ---------------------------------------------------------------------


def seal(world: World, *names: bytes) -> None:
    """They are in an open pack, and the tree knows their hashes."""
    for _ in range(30):
        if all(world.state(name) is FileState.SEALED for name in names):
            return
        pass_time(world, 1)
    raise AssertionError([world.state(name) for name in names])


def end_versions(world: World) -> dict[bytes, bytes]:
    """Four files whose sealed versions end in four ways; their bytes."""
    data = {name: os.urandom(20_000) for name in (b"removed", b"replaced", b"emptied", b"patched")}
    for name, bytes_ in data.items():
        world.write(name, bytes_)
    seal(world, *data)
    world.unlink(b"removed")
    world.write(b"new", b"new")
    world.rename(b"new", b"replaced")
    world.write(b"emptied", b"encrypted")
    world.patch(b"patched", 0, b"encrypted")
    assert world.left() == 4
    return data


def bytes_kept(world: World) -> set[bytes]:
    """What every version that is kept comes back as."""
    found = set()
    for number, past in enumerate(world.past()):
        if not past.is_kept:
            continue
        name = world.past_name(
            past.inode,
        ) or next(n for n in world.names() if world.inode(n) == past.inode)
        back = b"back %d" % number
        world.fs.versions.undelete(b"share/" + name, label=f"{past.inode}.{past.version}", to=b"share/" + back)
        found.add(world.read(back))
    return found


@pytest.mark.parametrize("dies", [False, True])
def test_versions_that_were_sealed_are_kept_whoever_dies_before_their_pack_is_closed(world: World, dies: bool) -> None:
    data = end_versions(world)
    if dies:
        world.die()  # what was in the open pack is forgotten
        world.begin()
    before = world.fate.reached["seal.hashed"]
    pass_time(world, 60)
    assert world.left() == 0
    assert bytes_kept(world) >= set(data.values())
    reads = world.fate.reached["seal.hashed"] - before
    assert reads == 3 + (4 if dies else 0), "each is read once, however long its pack stays open"
    world.settle()
    world.fs._core.sync()
    world.fs.reap()
    assert not [name for name in world.files_in("spool") if name.startswith("copies/")]


def test_a_pack_that_could_not_be_written_costs_no_version(world: World) -> None:
    data = end_versions(world)
    path = next(name for name in world.files_in("packs") if name.endswith(".building"))
    (world.home / "packs" / path).unlink()
    pass_time(world, 60)
    assert world.left() == 0
    assert bytes_kept(world) >= set(data.values())


def test_a_copy_that_was_torn_is_given_up_and_never_served(world: World) -> None:
    end_versions(world)
    world.die()
    [copy] = [name for name in world.files_in("spool") if name.startswith("copies/")]
    (world.home / "spool" / copy).write_bytes(bytes(20_000))
    world.begin()
    pass_time(world, 60)
    assert world.left() == 0
    assert len(world.kept()) == 3
    assert bytes(20_000) not in bytes_kept(world)
