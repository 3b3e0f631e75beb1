"""Days of files that nobody ever closes, step by step on a whole archive in one process: see `pipelineworld`."""

from __future__ import annotations

import contextlib
import itertools
import os
from pathlib import Path

import pytest

from tests.model.pipelineworld import QUIET_SECONDS, SOMEBODY, Crash, World
from vnafs.domain.clock import NANOSECONDS
from vnafs.domain.errors import NoSpace
from vnafs.domain.faults import POINTS
from vnafs.domain.files import FileState
from vnafs.domain.ids import TargetName
from vnafs.fs.fences import WritersHeld
from vnafs.fs.handles import Handle
from vnafs.index import contents, protections
from vnafs.pipeline.protect import AsOf, copy_as_of
from vnafs.targets.faulty import Fault

A, B = TargetName("a"), TargetName("b")
ALWAYS = 100_000
AGE_SECONDS = 60.0
COPIED_SECONDS = AGE_SECONDS + 30
"""Found, copied, its pack closed by age, replicated, and seen to be."""


@pytest.fixture
def world(home: Path) -> World:
    return World(home, unprotected_seconds_max=AGE_SECONDS)


def pass_time(world: World, seconds: float, each: float = 2.0) -> None:
    passed = 0.0
    while passed < seconds:
        while world.tiering.step():
            pass
        world.clock.advance(each)
        passed += each
    while world.tiering.step():
        pass


def opened(world: World, name: bytes, data: bytes) -> Handle:
    """A file that stays open."""
    handle, _ = world.fs.create(world.share, name, 0o644, os.O_RDWR, SOMEBODY)
    world.fs.write(handle, 0, data)
    return handle


def as_of(world: World, name: bytes) -> AsOf | None:
    return copy_as_of(world._store, world.inode(name))


def bytes_of(world: World, name: bytes, found: AsOf) -> bytes:
    """What the targets have of it."""
    facts = world.fs.facts(world.inode(name))
    staged = world.tiering.recaller.recall(facts.inode, found.frozen.version, found.frozen.sha256, facts.repository)
    data = Path(staged).read_bytes()
    os.unlink(staged)
    return data


def local_path(world: World, name: bytes) -> Path:
    inode = world.inode(name)
    return Path(world.fs.local_path(inode, world.fs.facts(inode).version))


def rows(world: World) -> list[protections.Protection]:
    with world._store.read() as reader:
        return list(protections.every(reader))


def test_a_file_that_stays_open_is_copied_and_stays_open(world: World) -> None:
    handle = opened(world, b"file", b"first" * 1_000)
    pass_time(world, AGE_SECONDS - 10)
    assert as_of(world, b"file") is None
    pass_time(world, COPIED_SECONDS - AGE_SECONDS + 10)
    found = as_of(world, b"file")
    assert found is not None
    assert {copy.target for copy in found.copies} == {A, B}
    assert 0 <= (world.clock.now() - found.frozen.taken) / NANOSECONDS < 40
    assert bytes_of(world, b"file", found) == b"first" * 1_000
    assert world.state(b"file") is FileState.OPEN
    assert not world.evict(b"file")
    assert world.files_in("frozen") == []
    # and then it lives on as any other
    world.fs.write(handle, 0, b"second")
    world.fs.release(handle)
    pass_time(world, QUIET_SECONDS + 30)
    assert world.state(b"file") is FileState.REPLICATED
    assert as_of(world, b"file") is None
    assert world.evict(b"file")
    assert world.read(b"file") == b"second" + (b"first" * 1_000)[6:]


def test_the_copy_is_noted_as_one_of_an_open_file_and_as_nobodys_sealed_bytes(world: World) -> None:
    opened(world, b"file", b"data" * 1_000)
    pass_time(world, COPIED_SECONDS)
    [row] = rows(world)
    assert row.kept is not None
    with world._store.read() as reader:
        content = contents.find(reader, row.kept.sha256, row.repository)
        assert content is not None
        assert list(contents.uses(reader, content.number)) == []


def test_it_is_copied_again_only_while_it_changes(world: World) -> None:
    handle = opened(world, b"file", b"0" * 10_000)
    pass_time(world, COPIED_SECONDS)
    first = as_of(world, b"file")
    pass_time(world, 5 * AGE_SECONDS)
    assert as_of(world, b"file") == first
    taken = []
    for number in range(1, 4):
        world.fs.write(handle, 0, b"%d" % number)
        pass_time(world, COPIED_SECONDS)
        found = as_of(world, b"file")
        assert found is not None
        taken.append(found.frozen.taken)
        assert bytes_of(world, b"file", found)[:1] == b"%d" % number
    assert sorted(set(taken)) == taken


def test_a_file_written_again_and_again_that_is_never_quiet_is_copied_too(world: World) -> None:
    world.write(b"file", b"0")
    for number in range(int(COPIED_SECONDS / 4)):
        world.patch(b"file", 0, b"%d" % (number % 10))
        pass_time(world, QUIET_SECONDS - 1, each=1.0)
        assert world.state(b"file") is FileState.OPEN
    assert as_of(world, b"file") is not None


def test_empty_files_files_without_a_name_and_files_soon_closed_are_left_alone(world: World) -> None:
    opened(world, b"empty", b"")
    opened(world, b"unnamed", b"data")
    world.unlink(b"unnamed")
    closed = opened(world, b"closed", b"other data")
    pass_time(world, AGE_SECONDS / 2)
    world.fs.release(closed)
    packs = None
    for _ in range(4):
        pass_time(world, AGE_SECONDS)
        packs = packs or world.packs_known()
        assert world.packs_known() == packs  # the closed one's
    assert as_of(world, b"empty") is None
    assert [row.inode for row in rows(world)] == [world.inode(b"empty")]


def test_a_file_that_goes_away_is_forgotten(world: World) -> None:
    handle = opened(world, b"file", b"data")
    pass_time(world, COPIED_SECONDS)
    assert len(rows(world)) == 1
    world.unlink(b"file")
    pass_time(world, AGE_SECONDS / 2)
    assert rows(world) == []
    world.fs.release(handle)


def test_while_targets_are_down_one_copy_waits_and_the_last_good_one_is_not_forgotten(world: World) -> None:
    handle = opened(world, b"file", b"good" * 1_000)
    pass_time(world, COPIED_SECONDS)
    good = as_of(world, b"file")
    for target in world.targets.values():
        target.script(Fault(status=503, times=ALWAYS))
    for number in range(6):
        world.fs.write(handle, 0, b"%d" % number)
        pass_time(world, COPIED_SECONDS)
        assert as_of(world, b"file") == good
    [row] = rows(world)
    assert row.coming is not None
    assert len(world.files_in("packs")) <= 1
    for target in world.targets.values():
        target.forgive()
    pass_time(world, 3 * AGE_SECONDS + 120)
    found = as_of(world, b"file")
    assert found is not None
    assert bytes_of(world, b"file", found)[:1] == b"5"


def test_a_copy_whose_pack_rots_before_any_target_has_it_is_made_again(world: World) -> None:
    opened(world, b"file", os.urandom(10_000))
    for target in world.targets.values():
        target.script(Fault(status=503, times=ALWAYS))
    pass_time(world, COPIED_SECONDS)
    [rotten] = [world.home / "packs" / name for name in world.files_in("packs")]
    data = bytearray(rotten.read_bytes())
    data[1_000] ^= 1
    rotten.write_bytes(data)
    for target in world.targets.values():
        target.forgive()
    pass_time(world, 3 * AGE_SECONDS + 120)
    found = as_of(world, b"file")
    assert found is not None
    assert bytes_of(world, b"file", found) == local_path(world, b"file").read_bytes()
    assert world.stored(A).keys() == world.stored(B).keys() == world.packs_known()


def test_without_a_target_nothing_is_copied(home: Path) -> None:
    world = World(home, unprotected_seconds_max=AGE_SECONDS, target_names=())
    opened(world, b"file", b"data")
    pass_time(world, 3 * AGE_SECONDS)
    assert world.packs_known() == set()
    assert world.tiering.protector.standing.without_copy == 1


def test_other_files_are_sealed_as_if_nothing_was(world: World) -> None:
    handles = [opened(world, b"open-%d" % number, os.urandom(50_000)) for number in range(5)]
    pass_time(world, AGE_SECONDS - 10)
    world.write(b"other", b"data")
    passed = 0.0
    while world.state(b"other") is not FileState.REPLICATED:
        pass_time(world, 1.0, each=1.0)
        passed += 1
        assert passed < QUIET_SECONDS + 15
    pass_time(world, 60)
    assert all(as_of(world, b"open-%d" % number) for number in range(len(handles)))


@pytest.mark.parametrize("hours", [-1, 1])
def test_an_hours_step_of_the_clock_leaves_nothing_unprotected(world: World, hours: int) -> None:
    handle = opened(world, b"file", b"0" * 10_000)
    pass_time(world, 20)
    world.clock.step(3600 * hours)
    pass_time(world, COPIED_SECONDS)
    assert as_of(world, b"file") is not None
    world.fs.write(handle, 0, b"1")
    world.clock.step(3600 * hours)
    pass_time(world, COPIED_SECONDS)
    found = as_of(world, b"file")
    assert found is not None
    assert bytes_of(world, b"file", found)[:1] == b"1"


def test_status_tells_no_copy_at_all_from_a_copy_as_it_was(world: World) -> None:
    handle = opened(world, b"file", b"0" * 10_000)
    pass_time(world, AGE_SECONDS - 15)
    standing = world.tiering.protector.standing
    assert (standing.without_copy, standing.with_copy) == (1, 0)
    assert AGE_SECONDS - 35 < standing.without_copy_oldest_seconds < AGE_SECONDS
    pass_time(world, COPIED_SECONDS - AGE_SECONDS + 15)
    standing = world.tiering.protector.standing
    assert (standing.without_copy, standing.with_copy, standing.copy_oldest_seconds) == (0, 1, 0.0)
    world.fs.write(handle, 0, b"1")
    pass_time(world, 10)
    assert world.tiering.protector.standing.copy_oldest_seconds > 20


# -- writers that never pause ------------------------------------------------------------------------------------------


class Busy:
    """Writes each time anybody waits; notes how often it had to wait itself."""

    def __init__(self, world: World, handle: Handle) -> None:
        self._world = world
        self._handle = handle
        self._sleep = world.clock.sleep
        self.held = 0
        self.wrote = 0
        world.clock.sleep = self.sleep  # type: ignore[method-assign] # somebody else's turn

    def sleep(self, seconds: float) -> None:
        try:
            self.write()
        except WritersHeld:
            self.held += 1
        self._sleep(seconds)

    def write(self) -> None:
        self._world.fs.write(self._handle, 0, b"%08d" % (self.wrote + 1))
        self.wrote += 1


def test_a_file_that_is_never_left_alone_is_copied_while_its_writers_wait(world: World) -> None:
    handle = opened(world, b"file", b"x" * 10_000)
    busy = Busy(world, handle)
    pass_time(world, COPIED_SECONDS)
    found = as_of(world, b"file")
    assert found is not None
    assert busy.held
    number = int(bytes_of(world, b"file", found)[:8])
    assert 0 < number <= busy.wrote
    busy.write()  # nobody holds it any more


def test_writers_are_held_only_now_and_then_when_it_never_suffices(world: World) -> None:
    handle = opened(world, b"file", b"x" * 10_000)
    busy = Busy(world, handle)
    local = local_path(world, b"file")
    asked: list[float] = []

    def touch() -> None:
        asked.append(world.clock.monotonic())
        world.fate.meanwhile["protect.held"] = touch

    world.fate.meanwhile["protect.held"] = touch
    sleep = busy.sleep

    def and_stores_of_a_mapping(seconds: float) -> None:
        sleep(seconds)
        os.utime(local)

    world.clock.sleep = and_stores_of_a_mapping  # type: ignore[method-assign] # as above
    pass_time(world, AGE_SECONDS + 300)
    assert as_of(world, b"file") is None
    assert len(asked) >= 2
    assert all(later - earlier > 30 for earlier, later in itertools.pairwise(asked))
    assert world.files_in("frozen") == []
    busy.write()


def test_a_full_disk_delays_the_copy_and_nothing_else(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    opened(world, b"file", b"data")
    copies = world.tiering.protector._copies

    def full(wanted_bytes: int) -> None:
        raise NoSpace(why="the test filled the disk")

    with monkeypatch.context() as patched:
        patched.setattr(copies, "_claim", full)
        pass_time(world, COPIED_SECONDS)
        assert as_of(world, b"file") is None
        world.write(b"other", b"data of another")
        pass_time(world, QUIET_SECONDS + 20)
        assert world.state(b"other") is FileState.REPLICATED
    pass_time(world, COPIED_SECONDS)
    assert as_of(world, b"file") is not None


# -- death -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("point", [point for point in POINTS if point.startswith("protect.")])
def test_killed_at(world: World, point: str) -> None:
    handle = opened(world, b"file", b"x" * 10_000)
    if point == "protect.held":
        Busy(world, handle)
    world.fate.seal(1, point)
    with pytest.raises(Crash, match=point):
        pass_time(world, COPIED_SECONDS)
    world.die()
    with contextlib.suppress(AttributeError):
        del world.clock.sleep
    world.begin()
    assert world.files_in("frozen") == []
    assert world.state(b"file") is FileState.OPEN
    # its writer comes back and keeps it open again
    world.open(b"file")
    pass_time(world, COPIED_SECONDS)
    found = as_of(world, b"file")
    assert found is not None
    assert bytes_of(world, b"file", found) == local_path(world, b"file").read_bytes()
    assert world.stored(A).keys() == world.stored(B).keys() == world.packs_known()
