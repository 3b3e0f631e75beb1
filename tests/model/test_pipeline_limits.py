"""Days on which something rots, fills up, hangs or piles up behind the tree: see `pipelineworld`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.model.pipelineworld import QUIET_SECONDS, Crash, World
from tests.model.test_pipeline_days import pass_time, until_replicated
from vnafs.content.splitters.chunks import LARGE_FILE
from vnafs.domain.faults import RARE_POINTS
from vnafs.domain.files import FileState
from vnafs.domain.ids import ContentNumber, PackNumber, Span, TargetName
from vnafs.index import condemned, contents, counts, feeds, packs, recount
from vnafs.pipeline.replicate import BACKOFF_SECONDS_MAX
from vnafs.pipeline.uses import is_named
from vnafs.targets.faulty import Fault

A, B = TargetName("a"), TargetName("b")
ALWAYS = 100_000
MEBIBYTE = 1024 * 1024
TWO_MINUTES = 2 * BACKOFF_SECONDS_MAX


@pytest.fixture
def world(home: Path) -> World:
    return World(home, pack_target_bytes=32 * MEBIBYTE)


# -- packs that rot before any target has them -------------------------------------------------------------------------


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 0xFF
    path.write_bytes(data)


def cut_short(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


ROT: dict[str, Callable[[Path], None]] = {"a bit": flip, "its end": cut_short, "all of it": Path.unlink}


def the_pack(world: World) -> Path:
    (name,) = world.files_in("packs")
    return world.home / "packs" / name


def unreachable(world: World) -> None:
    for target in world.targets.values():
        target.script(Fault(status=503, times=ALWAYS))


def forgive(world: World) -> None:
    for target in world.targets.values():
        target.forgive()


def packed_for_dead_targets(world: World, files: dict[bytes, bytes]) -> None:
    unreachable(world)
    for name, data in files.items():
        world.write(name, data)
    pass_time(world, QUIET_SECONDS + 13)
    assert {world.state(name) for name in files} == {FileState.PACKED}


def is_well(world: World, files: dict[bytes, bytes]) -> None:
    """Everything is copied everywhere, nothing is left over, and it comes back from the targets."""
    for name in files:
        until_replicated(world, name, TWO_MINUTES)
    world.settle()
    assert world.counts() == world.recounted()
    for target in (A, B):
        assert world.stored(target).keys() == world.packs_known()
    assert world.files_in("packs") == []
    for name, data in files.items():
        assert world.evict(name), name
        assert world.read(name) == data


@pytest.mark.parametrize("what", ROT)
def test_files_of_a_pack_that_rots_before_its_first_upload_are_packed_again(world: World, what: str) -> None:
    files = {b"one": os.urandom(50_000), b"two": os.urandom(2_000), b"none": b""}
    packed_for_dead_targets(world, files)
    ROT[what](the_pack(world))
    forgive(world)
    is_well(world, files)


def test_pieces_of_a_pack_that_rotted_are_used_no_more(world: World) -> None:
    """Files in later packs that share bytes with it are packed again as well, and those that share none are not."""
    shared = os.urandom(4 * MEBIBYTE)
    files = {b"first": shared}
    packed_for_dead_targets(world, files)
    rotten = the_pack(world)
    packed_for_dead_targets(world, {b"leans": shared + b"more", b"alone": os.urandom(10_000)})
    flip(rotten)
    with world.reading() as reader:
        assert any(pack.leans_on for pack in packs.every(reader)), "nothing leans on it: this tests nothing"
        kept = packs.last_number(reader)
    forgive(world)
    pass_time(world, TWO_MINUTES)
    with world.reading() as reader:
        leaning = [number for pack in packs.every(reader) for number in pack.leans_on]
        assert condemned.find(reader, PackNumber(1)) is not None
        assert PackNumber(1) not in leaning
        assert packs.get(reader, kept) is not None
        assert {c.home for c in contents.every(reader)} >= {kept}
    is_well(world, {**files, b"leans": shared + b"more"})


@pytest.mark.parametrize("point", [point for point in RARE_POINTS if point.startswith("condemn.")])
@pytest.mark.parametrize("what", ["a bit", "all of it"])
def test_death_while_a_pack_is_given_up_is_made_good(world: World, point: str, what: str) -> None:
    shared = os.urandom(4 * MEBIBYTE)
    files = {b"one": shared, b"two": os.urandom(2_000)}
    packed_for_dead_targets(world, files)
    rotten = the_pack(world)
    packed_for_dead_targets(world, {b"leans": shared + b"more"})
    ROT[what](rotten)
    forgive(world)
    world.fate.seal(1, point)
    with pytest.raises(Crash):
        pass_time(world, TWO_MINUTES)
    world.die()
    world.begin()
    assert world.counts() == world.recounted()
    is_well(world, {**files, b"leans": shared + b"more"})


def test_what_was_written_meanwhile_is_not_taken_back(world: World) -> None:
    packed_for_dead_targets(world, {b"file": os.urandom(50_000), b"removed": os.urandom(5_000)})
    flip(the_pack(world))
    world.patch(b"file", 0, b"new")
    world.unlink(b"removed")
    expected = world.read(b"file")
    forgive(world)
    is_well(world, {b"file": expected})


def test_a_local_file_that_rots_after_the_first_target_has_the_pack_is_not_needed(world: World) -> None:
    world.targets[B].script(Fault(status=503, times=ALWAYS))
    data = os.urandom(50_000)
    world.write(b"file", data)
    until_replicated(world, b"file", 60)
    known = world.packs_known()
    flip(the_pack(world))
    forgive(world)
    is_well(world, {b"file": data})
    assert world.packs_known() == known, "it was packed again"


def test_a_pack_that_a_stub_needs_is_never_given_up(world: World) -> None:
    """It should not be: local bytes go only after a verified copy. What is left of it may still be read."""
    world.targets[B].script(Fault(status=503, times=ALWAYS))
    data = os.urandom(50_000)
    world.write(b"file", data)
    until_replicated(world, b"file", 60)
    assert world.evict(b"file")
    (name,) = world.stored(A)
    world.rot(A, name, 20_000)
    flip(the_pack(world))
    world.verify_all()
    forgive(world)
    pass_time(world, TWO_MINUTES)
    assert world.packs_known() == {name}
    assert world.state(b"file") is FileState.STUB
    assert [inode for inode, _ in world.stubs_without_copy()] == [world.inode(b"file")]


def test_a_pack_that_was_lost_everywhere_is_made_again_while_its_files_are_here(home: Path) -> None:
    world = World(home, target_names=("a",))
    data = os.urandom(50_000)
    world.write(b"file", data)
    until_replicated(world, b"file", 60)
    (name,) = world.stored(A)
    world.rot(A, name, 20_000)
    world.verify_all()
    pass_time(world, TWO_MINUTES)
    until_replicated(world, b"file", TWO_MINUTES)
    assert name not in world.stored(A)
    assert world.evict(b"file")
    assert world.read(b"file") == data


# -- counts ------------------------------------------------------------------------------------------------------------


def test_counts_follow_what_becomes_of_packs(world: World) -> None:
    world.targets[B].script(Fault(status=503, times=ALWAYS))
    world.write(b"file", os.urandom(50_000))
    until_replicated(world, b"file", 60)
    known = world.counts()
    assert known[counts.PACKS].rows == known[counts.LOCAL].rows == known[counts.held(1)].rows == 1
    assert known[counts.verified(1)].rows == known[counts.waiting(2)].rows == 1
    assert known[counts.CONTENTS] == counts.Count(1, 50_000)
    forgive(world)
    pass_time(world, TWO_MINUTES)
    known = world.counts()
    assert known[counts.held(2)].rows == 1
    assert counts.LOCAL not in known
    assert counts.waiting(2) not in known
    world.tiering.retire(B)
    assert world.counts()[counts.held(1)].rows == 1
    assert world.counts() == world.recounted()


def test_an_archive_from_before_there_were_counts_gets_them(world: World) -> None:
    world.write(b"file", os.urandom(50_000))
    until_replicated(world, b"file", 60)
    right = world.counts()
    with world.writing() as tx:
        for name in right:
            counts.put(tx, name, counts.NONE)
        counts.put(tx, counts.held(7), counts.Count(3, 3))
        assert recount.correct(tx)
    assert world.counts() == right


# -- packs that wait ---------------------------------------------------------------------------------------------------


def test_packs_for_dead_targets_stop_at_their_limit_however_many_files_were_found(home: Path) -> None:
    limit, size = 200_000, 50_000
    world = World(home, pack_target_bytes=32 * MEBIBYTE, waiting_bytes_max=limit)
    unreachable(world)
    files = {b"%d" % number: os.urandom(size) for number in range(20)}
    for name, data in files.items():
        world.write(name, data)
    pass_time(world, 60)
    waiting = sum((world.home / "packs" / name).stat().st_size for name in world.files_in("packs"))
    assert limit < waiting < limit + 2 * size
    assert "wait for targets" in world.tiering.stalled
    assert sum(world.state(name) is FileState.OPEN for name in files) == 20 - waiting // size
    forgive(world)
    is_well(world, files)
    assert not world.tiering.stalled


def test_packs_that_one_target_has_make_room_for_others(home: Path) -> None:
    world = World(home, waiting_bytes_max=200_000)
    world.targets[B].script(Fault(status=503, times=ALWAYS))
    files = {b"%d" % number: os.urandom(50_000) for number in range(20)}
    for name, data in files.items():
        world.write(name, data)
        pass_time(world, QUIET_SECONDS)
    for name in files:
        until_replicated(world, name, TWO_MINUTES)
    assert sum((world.home / "packs" / name).stat().st_size for name in world.files_in("packs")) < 400_000
    forgive(world)
    is_well(world, files)


# -- parts of large stubs ----------------------------------------------------------------------------------------------


def on_disk(world: World, folder: str) -> int:
    return sum((world.home / folder / name).stat().st_blocks * 512 for name in world.files_in(folder))


def test_parts_of_large_stubs_take_no_more_than_their_limit_and_the_longest_unused_goes_first(home: Path) -> None:
    limit = 12 * MEBIBYTE
    world = World(home, pack_target_bytes=32 * MEBIBYTE, parts_bytes_max=limit)
    files = {b"%d" % number: os.urandom(8 * MEBIBYTE) for number in range(4)}
    for name, data in files.items():
        world.write(name, data)
    pass_time(world, 60)
    for name in files:
        assert world.evict(name)
    paths: dict[bytes, str] = {}

    def ensure(name: bytes, offset: int) -> None:
        facts = world.fs.facts(world.inode(name))
        assert facts.sha256 is not None
        span = Span(offset, 4096)
        paths[name], _ = world.tiering.recaller.ensure(facts.inode, facts.version, facts.sha256, facts.repository, span)
        with open(paths[name], "rb") as file:
            file.seek(offset)
            assert file.read(4096) == files[name][offset : offset + 4096]
        assert on_disk(world, "staging") <= limit + MEBIBYTE

    for name in files:
        for offset in range(0, 8 * MEBIBYTE, 256 * 1024):
            ensure(name, offset)
            ensure(b"0", 0)
    assert os.path.exists(paths[b"0"])
    assert os.path.exists(paths[b"3"])
    assert not os.path.exists(paths[b"1"])


def test_a_stub_larger_than_the_limit_of_parts_is_read_all_the_same(home: Path) -> None:
    world = World(home, pack_target_bytes=32 * MEBIBYTE, parts_bytes_max=4 * MEBIBYTE)
    data = os.urandom(16 * MEBIBYTE)
    world.write(b"file", data)
    pass_time(world, 60)
    assert world.evict(b"file")
    facts = world.fs.facts(world.inode(b"file"))
    assert facts.sha256 is not None
    # a read over a border between two pieces needs both at once, whatever the limit
    bytes_max = max(4 * MEBIBYTE, 2 * LARGE_FILE.bytes_max)
    for offset in range(0, len(data), 128 * 1024):
        path, _ = world.tiering.recaller.ensure(
            facts.inode, facts.version, facts.sha256, facts.repository, Span(offset, 128 * 1024)
        )
        with open(path, "rb") as file:
            file.seek(offset)
            assert file.read(128 * 1024) == data[offset : offset + 128 * 1024]
        assert on_disk(world, "staging") <= bytes_max + MEBIBYTE


# -- who uses what -----------------------------------------------------------------------------------------------------


def test_versions_that_are_kept_go_on_using_their_content_until_they_are_not(world: World) -> None:
    world.keep(1_000)
    for name in (b"stays", b"patched", b"removed"):
        world.write(name, os.urandom(5_000))
    pass_time(world, 30)
    before = world.uses()
    world.patch(b"patched", 0, b"new")
    world.unlink(b"removed")
    pass_time(world, 30)
    assert len(world.kept()) == 2
    assert world.uses() == before | world.sealed() == world.kept() | world.sealed()
    world.stop()
    world.begin()
    pass_time(world, 30)
    assert world.uses() == world.kept() | world.sealed(), "a start looks at every use"
    world.clock.advance(1_000)
    while world.fs.upkeep():
        pass
    pass_time(world, 30)
    assert not world.kept()
    assert world.uses() == world.sealed()


def test_a_file_that_is_removed_before_its_pack_is_recorded_is_kept(world: World) -> None:
    world.write(b"file", b"bytes" * 1_000)
    world.fate.meanwhile["pack.indexed"] = lambda: world.unlink(b"file")
    pass_time(world, 60)
    assert len(world.kept()) == 1
    assert world.uses() == world.kept()


def test_what_was_undeleted_is_read_and_uses_its_content(world: World) -> None:
    data = os.urandom(5_000)
    world.write(b"file", data)
    pass_time(world, 30)
    world.unlink(b"file")
    world.fs.versions.undelete(b"share/file")
    pass_time(world, 1)
    assert world.uses() == world.sealed() | world.kept()
    assert len(world.sealed()) == len(world.kept()) == 1
    assert world.read(b"file") == data
    world.keep(0)
    while world.fs.upkeep():
        pass
    pass_time(world, 1)
    assert world.uses() == world.sealed()


def test_whoever_wants_to_remove_a_content_is_told_who_has_it(world: World) -> None:
    def named() -> bool:
        with world.reading() as reader:
            return is_named(reader, world.namespace(), ContentNumber(1))

    world.write(b"file", b"bytes" * 1_000)
    pass_time(world, 30)
    assert named()
    world.unlink(b"file")
    pass_time(world, 1)
    assert named(), "it is kept"
    world.fs.versions.undelete(b"share/file")
    world.keep(0)
    assert named(), "it came back"
    pass_time(world, 1)
    while world.fs.upkeep():
        pass
    assert named(), "and the store has heard of it"
    world.unlink(b"file")
    pass_time(world, 1)
    assert not named()


def test_versions_that_are_no_more_use_nothing(world: World) -> None:
    world.keep(0)
    for name in (b"stays", b"patched", b"cut", b"removed", b"replaced"):
        world.write(name, os.urandom(5_000))
    pass_time(world, 30)
    assert len(world.uses()) == 5
    assert world.evict(b"cut")
    world.patch(b"patched", 0, b"new")
    world.cut(b"cut", 0)
    world.unlink(b"removed")
    world.write(b"new", b"other")
    world.rename(b"new", b"replaced")
    pass_time(world, 1)
    assert {inode for inode, _, _ in world.uses()} == {world.inode(b"stays")}
    pass_time(world, 30)
    assert world.uses() == world.sealed()


def test_a_follower_that_the_feed_has_overtaken_looks_at_every_use(world: World) -> None:
    world.keep(0)
    for number in range(300):
        world.write(b"%d" % number, b"%d" % number)
    pass_time(world, 30)
    world.stop()
    for number in range(0, 300, 2):
        world.unlink(b"%d" % number)
    world.feed(lambda tx: feeds.trim(tx, 10, 100_000))
    world.begin()
    pass_time(world, 10)
    assert world.uses() == world.sealed()
    world.unlink(b"1")
    pass_time(world, 1)
    assert world.uses() == world.sealed(), "it follows again"


def test_a_version_that_was_packed_and_changed_before_the_tree_heard_of_it_uses_nothing(world: World) -> None:
    world.keep(0)
    world.write(b"file", b"first" * 1_000)
    world.fate.meanwhile["pack.indexed"] = lambda: world.patch(b"file", 0, b"second")
    until_replicated(world, b"file", 60)
    assert world.uses() == world.sealed()
