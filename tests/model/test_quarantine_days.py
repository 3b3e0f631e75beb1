"""Days on which something is damaged, mended, and what it was is still there to look at: see `pipelineworld`."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.model.eraseworld import Erases
from tests.model.pipelineworld import QUARANTINE_KEPT_SECONDS, Crash, World
from tests.model.test_erase_days import MARK, OTHERS, data, filled, others_are_there
from tests.model.test_pipeline_days import pass_time
from tests.model.test_pipeline_limits import (
    ROT,
    TWO_MINUTES,
    flip,
    forgive,
    is_well,
    packed_for_dead_targets,
    the_pack,
)
from tests.model.test_scrub_days import PERIOD_SECONDS, A, B, Scrubbed
from vnafs.domain.files import FileState
from vnafs.domain.ids import ObjectName, TargetName, pack_object_name
from vnafs.index import contents, packs
from vnafs.local.quarantine import About, Kind
from vnafs.targets.faulty import Fault

FILES = 12
ALWAYS = 100_000


def written(made: Scrubbed) -> Scrubbed:
    for number in range(FILES):
        made.write(b"%d" % number, random.Random(number).randbytes(20_000))
    made.clock.advance(20)
    made.settle()
    return made


@pytest.fixture
def world(home: Path) -> Scrubbed:
    return written(Scrubbed(home, pack_target_bytes=64 * 1024))


def mended(world: Scrubbed) -> None:
    """A period passes; then all copies are right, and so is what is read."""
    world.clock.advance(PERIOD_SECONDS + 1)
    world.scrub_all()
    world.clock.advance(120)
    world.settle()
    assert world.stored(A) == world.stored(B)
    assert world.counts() == world.recounted()
    for number in range(FILES):
        assert world.evict(b"%d" % number)
        assert world.read(b"%d" % number) == random.Random(number).randbytes(20_000)


def kept(world: World) -> list[tuple[str, bytes]]:
    """Where each thing in quarantine was, and its bytes."""
    quarantine = world.tiering.quarantine
    return [(one.about.origin, Path(quarantine.path(one.id)).read_bytes()) for one in quarantine.every()]


def at(world: World, target: TargetName, name: ObjectName) -> bytes:
    return b"".join(world.stores[target].get(name))


# -- copies on targets -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["a bit", "cut short", "emptied", "other bytes"])
@pytest.mark.parametrize("vouches", [True, False])
def test_a_damaged_copy_is_mended_and_kept_as_it_was(world: Scrubbed, how: str, vouches: bool) -> None:
    name = sorted(world.stored(A))[1]
    right = at(world, A, name)
    damaged = {
        "a bit": right[:77] + bytes([right[77] ^ 1]) + right[78:],
        "cut short": right[:-9],
        "emptied": b"",
        "other bytes": b"not a pack" * 10_000,
    }[how]
    world.stores[A].replace(name, damaged)
    world.targets[A].vouches = vouches
    mended(world)
    assert kept(world) == [("target a", damaged)]
    (one,) = world.tiering.quarantine.every()
    assert pack_object_name(bytes.fromhex(one.about.name)) == name  # type: ignore[arg-type]
    assert one.about.expected_sha256 == hashlib.sha256(right).digest()
    assert "does not match its checksum" in one.about.why


def test_both_copies_of_different_packs_are_kept(world: Scrubbed) -> None:
    first, second, *_ = sorted(world.stored(A))
    world.rot(A, first, 500)
    world.rot(B, second, 600)
    expected = {("target a", at(world, A, first)), ("target b", at(world, B, second))}
    mended(world)
    assert set(kept(world)) == expected


def test_of_a_copy_that_is_gone_nothing_is_kept(world: Scrubbed) -> None:
    world.stores[A].delete(sorted(world.stored(A))[0])
    mended(world)
    assert kept(world) == []


def test_a_damaged_manifest_is_mended_and_kept_as_it_was(world: Scrubbed) -> None:
    world.manifests.snapshot()
    while not world.sent(A):
        world.manifests.step()
        world.clock.advance(70)
    name = next(name for name in world.stores[A].list("manifests/") if name.endswith(".snapshot"))
    right = at(world, A, name)
    world.rot(A, name, 200)
    damaged = at(world, A, name)
    mended(world)
    assert at(world, A, name) == right
    assert kept(world) == [("target a", damaged)]
    assert world.tiering.quarantine.every()[0].about.name == name


def test_bytes_that_were_garbled_on_their_way_to_us_are_not_kept(world: Scrubbed) -> None:
    world.targets[A].vouches = False
    world.targets[A].script(Fault(operation="read_back", wrong_byte_at=100))
    mended(world)
    assert world.scrub.findings.copies_damaged == 1
    assert kept(world) == []


def test_a_target_that_garbles_all_that_it_takes_pushes_nothing_out(world: Scrubbed) -> None:
    world.rot(A, sorted(world.stored(A))[0], 500)
    mended(world)
    before = kept(world)
    assert len(before) == 1
    world.targets[A].vouches = False
    world.targets[A].script(Fault(operation="read_back", wrong_byte_at=100, times=10))
    world.write(b"new", os.urandom(30_000))
    world.clock.advance(20)
    world.settle()
    assert world.targets[A].calls.count("delete") > 10
    assert kept(world) == before


def test_what_may_not_be_deleted_is_kept_once(world: Scrubbed) -> None:
    name = sorted(world.stored(A))[0]
    world.rot(A, name, 500)
    damaged = at(world, A, name)
    world.stores[A].may_delete = False
    world.clock.advance(PERIOD_SECONDS + 1)
    world.scrub_all()
    for _ in range(20):
        world.clock.advance(1800)
        world.tiering.step()
    assert kept(world) == [("target a", damaged)]
    world.stores[A].may_delete = True
    world.clock.advance(3700)
    mended(world)
    assert kept(world) == [("target a", damaged)]


def test_it_is_kept_through_death_at_any_moment(world: Scrubbed) -> None:
    name = sorted(world.stored(A))[0]
    world.rot(A, name, 500)
    damaged = at(world, A, name)
    world.verify_all()
    world.fate.seal(1, "quarantine.described")
    with pytest.raises(Crash):
        world.settle()
    world.die()
    world.begin()
    assert at(world, A, name) == damaged
    mended(world)
    assert ("target a", damaged) in kept(world)
    world.stop()
    world.begin()
    assert ("target a", damaged) in kept(world)


# -- limits ----------------------------------------------------------------------------------------------------


def test_past_the_limit_the_oldest_go_and_mending_goes_on(home: Path) -> None:
    class Little(Scrubbed):
        quarantine_bytes_max = 200_000

    world = written(Little(home, pack_target_bytes=64 * 1024))
    names = sorted(world.stored(A))
    assert len(names) > 3
    damaged = []
    for name in names:
        world.rot(A, name, 500)
        damaged.append(("target a", at(world, A, name)))
        world.verify_all()
        world.clock.advance(120)
        world.settle()
    mended(world)
    assert kept(world) == damaged[-len(kept(world)) :]
    assert 1 < len(kept(world)) < len(damaged)
    assert sum(len(data) for _, data in kept(world)) <= 200_000


def no_folder(world: Scrubbed) -> None:
    shutil.rmtree(world.home / "quarantine")
    (world.home / "quarantine").write_bytes(b"")


def no_answer(world: Scrubbed) -> None:
    world.targets[A].script(Fault(operation="read_back", status=503, times=ALWAYS))


def too_slow(world: Scrubbed) -> None:
    world.targets[A].script(Fault(operation="read_back", slow_seconds=1_000, times=ALWAYS))


@pytest.mark.parametrize("trouble", [no_folder, no_answer, too_slow])
def test_mending_neither_fails_nor_waits_because_nothing_can_be_kept(
    world: Scrubbed, trouble: Callable[[Scrubbed], None], caplog: pytest.LogCaptureFixture
) -> None:
    world.rot(A, sorted(world.stored(A))[0], 500)
    world.rot_local(b"3")
    trouble(world)
    mended(world)
    assert [one for one in caplog.messages if one.startswith("quarantine.not_kept")]
    if trouble is not no_folder:
        assert [origin for origin, _ in kept(world)] == ["local"]


def test_what_is_old_goes_by_itself(world: Scrubbed) -> None:
    world.rot(A, sorted(world.stored(A))[0], 500)
    mended(world)
    assert kept(world)
    world.clock.advance(QUARANTINE_KEPT_SECONDS)
    world.scrub.step()
    assert kept(world) == []
    assert os.listdir(world.home / "quarantine") == []


# -- local bytes -----------------------------------------------------------------------------------------------


def test_a_rotten_local_file_is_let_go_and_kept_as_it_was(world: Scrubbed) -> None:
    world.rot_local(b"3")
    inode = world.inode(b"3")
    facts = world.fs.facts(inode)
    rotten = Path(world.fs.local_path(inode, facts.version)).read_bytes()
    world.clock.advance(PERIOD_SECONDS + 1)
    world.scrub_all()
    assert world.state(b"3") is FileState.STUB
    assert world.read(b"3") == random.Random(3).randbytes(20_000) != rotten
    assert kept(world) == [("local", rotten)]
    (one,) = world.tiering.quarantine.every()
    assert (one.about.inode, one.about.name) == (inode, f"{inode:x}.{facts.version:x}")
    assert one.about.expected_sha256 == facts.sha256


def test_a_rotten_local_file_that_waits_for_its_copies_is_kept_once(world: Scrubbed) -> None:
    world.rot_local(b"3")
    for target in (A, B):
        for name in world.stored(target):
            world.stores[target].delete(name)
        world.targets[target].script(Fault(operation="put", status=503, times=ALWAYS))
    for _ in range(3):
        world.clock.advance(PERIOD_SECONDS + 1)
        world.scrub._files_not_before = 0.0
        world.scrub_all()
    assert world.scrub.findings.files_damaged > 1
    assert world.scrub.findings.files_let_go == 0
    assert len(kept(world)) == 1


@pytest.mark.parametrize("what", ROT)
def test_a_rotten_local_pack_is_given_up_and_kept_as_it_was(home: Path, what: str) -> None:
    world = World(home)
    files = {b"one": os.urandom(50_000), b"two": os.urandom(2_000)}
    packed_for_dead_targets(world, files)
    ROT[what](the_pack(world))
    rotten = [] if what == "all of it" else [("local", the_pack(world).read_bytes())]
    forgive(world)
    is_well(world, files)
    assert kept(world) == rotten


@pytest.mark.parametrize("point", ["quarantine.described", "condemn.taken_back", "condemn.forgotten"])
def test_a_rotten_local_pack_is_kept_through_death(home: Path, point: str) -> None:
    world = World(home)
    files = {b"one": os.urandom(50_000)}
    packed_for_dead_targets(world, files)
    flip(the_pack(world))
    rotten = the_pack(world).read_bytes()
    forgive(world)
    world.fate.seal(1, point)
    with pytest.raises(Crash):
        pass_time(world, TWO_MINUTES)
    world.die()
    world.begin()
    is_well(world, files)
    assert kept(world) == [("local", rotten)]


# -- erasure ---------------------------------------------------------------------------------------------------


class ErasesScrubbed(Erases, Scrubbed):
    """Files go for good here, and damage is mended."""


@pytest.fixture
def erases(home: Path) -> ErasesScrubbed:
    made = ErasesScrubbed(home, pack_target_bytes=64 * 1024)
    filled(made)
    return made


def packs_of(world: World, name: bytes) -> set[ObjectName]:
    facts = world.fs.facts(world.inode(name))
    assert facts.sha256 is not None
    with world.reading() as reader:
        content = contents.find(reader, facts.sha256, facts.repository)
        assert content is not None
        found = [packs.get(reader, number) for number in content.packs()]
        return {pack_object_name(pack.id) for pack in found if pack is not None}


def damage_copies(world: World, names: set[ObjectName]) -> None:
    """Of packs; found and mended."""
    for name in names:
        world.rot(A, name, 10)
    world.verify_all()
    world.clock.advance(120)
    world.settle()


def in_quarantine(world: Erases) -> list[str]:
    return [place for place in world.has_bytes(MARK) if place.startswith("quarantine/")]


def test_an_erased_file_does_not_survive_in_quarantine_and_all_else_does(erases: ErasesScrubbed) -> None:
    damage_copies(erases, packs_of(erases, b"doe") | packs_of(erases, b"11"))
    erases.rot_local(b"doe")
    erases.rot_local(b"7")
    erases.clock.advance(PERIOD_SECONDS + 1)
    erases.scrub_all()
    assert len(in_quarantine(erases)) == 2
    assert len(kept(erases)) == 4
    number = erases.erase(b"doe")
    erases.until_complete(number)
    assert erases.has_bytes(MARK) == []
    assert sorted(origin for origin, _ in kept(erases)) == ["local", "target a"]
    others_are_there(erases)


def test_damaged_copies_of_packs_that_nobody_knows_any_more_go_too(erases: ErasesScrubbed) -> None:
    """The pack was packed again meanwhile: that the file was in it stands nowhere."""
    before = packs_of(erases, b"doe")
    damage_copies(erases, before)
    erases.keep(0)
    for name in OTHERS:
        erases.unlink(name)
    erases.collect(10_000)
    assert not before & packs_of(erases, b"doe"), "it is in the same pack: this tests nothing"
    assert in_quarantine(erases)
    erases.until_complete(erases.erase(b"doe"))
    assert erases.has_bytes(MARK) == []


def test_what_comes_into_quarantine_at_the_last_moment_is_not_forgotten(erases: ErasesScrubbed) -> None:
    inode = erases.inode(b"doe")
    number = erases.erase(b"doe")
    about = About(Kind.FILE, f"{inode:x}.1", "local", "it came late", erases.share, inode)

    def late() -> None:
        assert erases.tiering.quarantine.keep(about, 100, lambda: [MARK])

    erases.fate.meanwhile["erase.proven"] = late
    erases.until_complete(number)
    assert "erase.proven" not in erases.fate.meanwhile
    assert erases.has_bytes(MARK) == []


@pytest.mark.parametrize("stays", [True, False])
def test_a_kept_twin_of_erased_bytes_goes_unless_it_is_of_a_file_that_stays(
    erases: ErasesScrubbed, stays: bool
) -> None:
    erases.write(b"twin", data(3))
    erases.clock.advance(20)
    erases.settle()
    erases.rot_local(b"twin")
    erases.clock.advance(PERIOD_SECONDS + 1)
    erases.scrub_all()
    assert len(kept(erases)) == 1
    if not stays:
        erases.keep(0)
        erases.unlink(b"twin")
        erases.collect(300)
    erases.until_complete(erases.erase(b"3"))
    assert len(kept(erases)) == stays
