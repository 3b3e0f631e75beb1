"""Days on which an archive is restored from a target that does not have everything."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from tests.model.pipelineworld import SOMEBODY
from tests.model.test_manifest_model import ARCHIVE, A, B, Rebuilt, Recorded, carried, load, settled
from vnafs.content import manifest
from vnafs.domain.actors import SYSTEM
from vnafs.domain.copies import CopyState
from vnafs.domain.errors import NotFound, RecallFailed
from vnafs.domain.files import FileState
from vnafs.domain.ids import ContentNumber, ObjectName, PackNumber, PieceNumber, Sha256, TargetName
from vnafs.index import contents, copies, packs, protections, unreadable
from vnafs.pipeline.held import stubs_without_copy, unreadable_stubs
from vnafs.pipeline.namespace import Namespace
from vnafs.pipeline.settings import Destination
from vnafs.targets.body import BytesBody
from vnafs.targets.faulty import Fault
from vnafs.upkeep.adopt import adopt
from vnafs.upkeep.ledger import digest_of


@pytest.fixture
def world(home: Path) -> Recorded:
    return Recorded(home)


class Restored(Rebuilt):
    """A new archive from one target alone, that can be given others again."""

    def add(self, target: TargetName) -> None:
        """The target is configured again, with all that it has."""
        self.stores[target] = self._of.stores[target]
        self.targets[target] = self._of.targets[target]
        self.targets[target].forgive()
        self.tiering.set_targets(
            {
                name: Destination(lambda _, found=found: found, f"memory://{name}", 1)
                for name, found in self.targets.items()
            }
        )

    def pass_time(self, turns: int = 12) -> None:
        """Long enough for several attempts at everything that does not work."""
        for _ in range(turns):
            self.clock.advance(61)
            for _ in range(20):
                self.tiering.step()

    def lost(self) -> set[int]:
        return {inode for inode, _ in stubs_without_copy(self._store, Namespace(self._namespace))}

    def unreadable(self) -> int:
        return sum(1 for _ in unreadable_stubs(self._store, Namespace(self._namespace)))


def only_on_b(world: Recorded, name: bytes, data: bytes) -> None:
    """A file whose only copy is on B, with a stub here; A has all manifests."""
    name_of_packs = set(world.stores[A].list("packs/"))
    world.write(name, data)
    world.targets[A].die(1e9)
    world.clock.advance(20)
    for _ in range(60):
        world.clock.advance(1)
        world.tiering.step()
    assert world.evict(name)
    world.targets[A].forgive()
    # the manifests came, the packs did not: as when they are large and the line is slow
    assert set(world.stores[A].list("packs/")) == name_of_packs
    world.clock.advance(100)
    assert world.manifests.step()


@pytest.fixture
def lagging(world: Recorded) -> Recorded:
    """Everything on both targets but one file, which only B has."""
    world.write(b"both", b"on both targets")
    settled(world)
    only_on_b(world, b"file", b"only B has this")
    return world


# -- packs that another target has ---------------------------------------------------------------------------------


def test_a_pack_that_only_another_target_has_outlives_every_look_and_is_read_there_again(
    lagging: Recorded, tmp_path: Path
) -> None:
    there = set(lagging.stored(B))
    other = Restored(tmp_path, lagging, A)
    with pytest.raises(RecallFailed):
        other.read(b"file")
    other.pass_time()
    assert other.lost() == {other.inode(b"file")}
    other.add(B)
    other.pass_time()
    assert set(lagging.stored(B)) >= there
    assert other.read(b"file") == b"only B has this"
    assert other.lost() == set()
    assert set(lagging.stored(A)) >= there, "and A was given what it lacked"


def test_adding_the_other_target_at_once_does_as_well(lagging: Recorded, tmp_path: Path) -> None:
    there = set(lagging.stored(B))
    other = Restored(tmp_path, lagging, A)
    other.add(B)
    other.pass_time()
    assert set(lagging.stored(B)) >= there
    assert other.read(b"file") == b"only B has this"


def test_nothing_new_relies_on_a_pack_that_nobody_showed(lagging: Recorded, tmp_path: Path) -> None:
    other = Restored(tmp_path, lagging, A)
    other.write(b"again", b"only B has this")
    other.clock.advance(20)
    other.pass_time()
    assert other.standing(b"again") == (FileState.REPLICATED, True, 1)
    assert other.evict(b"again")
    assert other.read(b"again") == other.read(b"file") == b"only B has this"
    assert other.counts() == other.recounted()


def test_a_whole_object_of_a_pack_that_was_given_up_stays_where_it_is(lagging: Recorded, tmp_path: Path) -> None:
    there = set(lagging.stored(B))
    other = Restored(tmp_path, lagging, A)
    other.add(B)
    other.targets[B].die(1e9)
    other.unlink(b"file")
    other.pass_time()
    with other.reading() as reader:
        assert len(list(packs.every(reader))) < len(there), "nobody needs the pack, and no target shows it"
    other.targets[B].forgive()
    other.pass_time()
    assert not other.transfers_waiting()
    assert set(lagging.stored(B)) >= there


def test_a_pack_is_not_given_up_while_a_target_that_may_have_it_is_silent(world: Recorded, tmp_path: Path) -> None:
    world.write(b"file", b"bytes")
    settled(world)
    for name in list(world.stores[B].list("packs/")):
        world.stores[B].delete(name)
    other = Restored(tmp_path, world, A)
    known = other.packs_known()
    assert other.read(b"file") == b"bytes"
    other.targets[A].die(1e9)
    other.add(B)
    other.targets[A].die(1e9)
    other.pass_time()
    assert other.packs_known() == known
    other.targets[A].forgive()
    other.pass_time()
    assert set(world.stored(B)) == set(world.stored(A)) == known


# -- files without bytes -------------------------------------------------------------------------------------------


def test_a_file_without_bytes_is_named_until_it_has_some_or_is_gone(world: Recorded, tmp_path: Path) -> None:
    world.write(b"safe", b"bytes")
    settled(world)
    for name in (b"young", b"other", b"third"):
        world.write(name, b"not yet sealed " + name)
    assert world.manifests.step()
    other = Restored(tmp_path, world, A)
    other.pass_time()
    names = (b"young", b"other", b"third")
    assert other.lost() == {other.inode(name) for name in names}
    assert other.unreadable() == 3
    other.unlink(b"other")
    other.cut(b"third", 0)
    assert other.lost() == {other.inode(b"young")}
    other.stop()
    other.begin()
    other.pass_time()
    assert other.lost() == {other.inode(b"young")}
    with other.reading() as reader:
        assert len(list(unreadable.every(reader))) == 1
    other.write(b"young", b"new bytes")
    assert other.unreadable() == 0


# -- older bytes ---------------------------------------------------------------------------------------------------


def test_a_sealed_file_whose_pack_went_nowhere_comes_back_as_it_was_protected(home: Path, tmp_path: Path) -> None:
    world = Recorded(home, unprotected_seconds_max=60.0)
    handle, _ = world.fs.create(world.share, b"log", 0o644, os.O_WRONLY, SOMEBODY)
    world.fs.write(handle, 0, b"first")
    for _ in range(20):
        world.clock.advance(30)
        for _ in range(10):
            world.tiering.step()
    with world.reading() as reader:
        protection = protections.get(reader, world.inode(b"log"))
    assert protection is not None
    assert protection.kept is not None
    for target in world.targets.values():
        target.die(1e9)
    world.fs.write(handle, 5, b" and second")
    world.fs.release(handle)
    world.clock.advance(20)
    for _ in range(40):
        world.clock.advance(1)
        world.tiering.step()
    assert world.state(b"log") is FileState.PACKED
    for target in world.targets.values():
        target.forgive()
    world.clock.advance(100)
    assert world.manifests.step()
    other = Restored(tmp_path, world, A)
    assert other.report.older_bytes == 1
    assert other.report.without_bytes == 0
    assert other.read(b"log") == b"first"


def test_a_replicated_file_that_was_only_opened_for_write_comes_back_with_its_bytes(
    world: Recorded, tmp_path: Path
) -> None:
    world.write(b"file", b"replicated")
    settled(world)
    handle = world.open(b"file")
    world.fs.write(handle, 0, b"R")
    assert world.manifests.step()
    other = Restored(tmp_path, world, A)
    assert other.report.older_bytes == 1
    assert other.report.without_bytes == 0
    assert other.read(b"file") == b"replicated"
    world.fs.release(handle)


# -- empty files ---------------------------------------------------------------------------------------------------


def test_an_empty_file_that_was_closed_is_readable_at_once(world: Recorded, tmp_path: Path) -> None:
    settled(world)
    world.write(b"empty", b"")
    world.write(b"grows", b"")
    assert world.manifests.step()
    empty = world.open(b"empty")
    assert world.manifests.step()
    world.fs.release(empty)
    grows = world.open(b"grows")
    world.fs.write(grows, 0, b"not empty any more")
    world.write(b"full", b"bytes")
    open_now, _ = world.fs.create(world.share, b"open", 0o644, os.O_WRONLY, SOMEBODY)
    world.fs.write(open_now, 0, b"bytes")
    assert world.manifests.step()
    other = Restored(tmp_path, world, A)
    assert other.report.without_bytes == 3
    assert other.read(b"empty") == b""
    for name in (b"grows", b"full", b"open"):
        with pytest.raises(RecallFailed):
            other.read(name)
    other.pass_time()
    assert other.lost() == {other.inode(name) for name in (b"grows", b"full", b"open")}
    other.stop()


# -- snapshots -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["gone", "damaged"])
def test_an_older_snapshot_is_used_when_a_run_of_the_newest_is_not_whole(world: Recorded, how: str) -> None:
    world.write(b"0", b"x")
    settled(world)
    before = set(world.stores[A].list("manifests/runs/"))
    world.write(b"1", b"y")
    world.unlink(b"0")
    settled(world)
    world.manifests.snapshot()
    world.write(b"2", b"z")
    settled(world)
    spoil(world, sorted(set(world.stores[A].list("manifests/runs/")) - before)[-1], how)
    report, engines = load(world)
    assert any("cannot be used" in problem for problem in report.problems)
    assert carried(engines) == carried(world.engines())


def test_nothing_is_left_of_a_snapshot_that_could_not_be_loaded_to_its_end(world: Recorded) -> None:
    world.write(b"old", b"x")
    settled(world)
    _, before = load(world)
    number = world.manifests.ledger.position().number
    world.write(b"new", b"y")
    settled(world)
    world.manifests.snapshot()
    world.clock.advance(100)
    assert world.manifests.step()
    _, rows = manifest.decode(b"".join(world.stores[A].get(max(world.stores[A].list("manifests/snapshots/")))))
    *_, last = (manifest.run_of(row) for row in rows if row.operation is manifest.Operation.RUN)
    spoil(world, manifest.run_name(last.sha256), "gone")
    spoil(world, manifest.segment_name(number + 1), "gone")
    report, engines = load(world)
    assert report.number == number
    assert carried(engines) == carried(before)


@pytest.mark.parametrize("how", ["gone", "damaged"])
def test_when_no_snapshot_is_whole_the_runs_are_named(world: Recorded, how: str) -> None:
    world.write(b"0", b"x")
    settled(world)
    [*names] = world.stores[A].list("manifests/runs/")
    for name in names:
        spoil(world, name, how)
    with pytest.raises(NotFound, match=r"manifests/runs/.*\.run"):
        load(world)


def spoil(world: Recorded, name: ObjectName, how: str) -> None:
    if how == "gone":
        world.stores[A].delete(name)
    else:
        world.stores[A].replace(name, b"nothing of ours")


# -- numbers that nobody had ---------------------------------------------------------------------------------------


def raise_epoch_of_head(world: Recorded, epoch: int, *, usable: bool) -> None:
    """Another run went on, was adopted, and wrote one more segment."""
    last = max(world.stores[A].list("manifests/segments/"))
    header, _ = manifest.decode(b"".join(world.stores[A].get(last)))
    previous = digest_of(b"".join(world.stores[A].get(last))) if usable else Sha256(b"\1" * 32)
    after = dataclasses.replace(header, number=header.number + 1, epoch=epoch, previous=previous)
    data = manifest.encode(after, ())
    world.stores[A].put(manifest.segment_name(after.number), BytesBody(data))


@pytest.mark.parametrize("usable", [True, False])
def test_the_epoch_after_a_restore_is_above_that_of_any_segment_there(
    world: Recorded, tmp_path: Path, usable: bool
) -> None:
    settled(world)
    raise_epoch_of_head(world, 6, usable=usable)
    other = Restored(tmp_path, world, A)
    other.write(b"new", b"x")
    assert other.inode(b"new") >> 40 == 7


def test_the_epoch_after_adopting_is_above_that_of_any_segment_there(world: Recorded) -> None:
    settled(world)
    raise_epoch_of_head(world, 6, usable=False)
    world.stop()
    places = {r.number: world.targets[r.name] for r in world.tiering.replicators()}
    assert adopt(world._namespace, world._store, places, clock=world.clock, by=SYSTEM).epoch == 7


def test_numbers_of_contents_go_on_after_those_that_a_pack_claims(world: Recorded) -> None:
    for name in (b"0", b"1"):
        world.write(name, b"bytes of " + name)
        settled(world)
    with world.writing() as tx:
        [first, last] = packs.every(tx)
        # the row with the higher number is not always the one that was recorded last
        packs.put(tx, dataclasses.replace(first, contents_first=ContentNumber(50), pieces_first=PieceNumber(70)))
        for content in list(contents.of_pack(tx, last.contents_first, last.contents_count)):
            contents.remove(tx, content)
    world.stop()
    world.begin()
    world.write(b"2", b"other bytes")
    world.clock.advance(20)
    world.settle()
    with world.reading() as reader:
        newest = next(packs.latest(reader))
    assert newest.contents_first >= 51
    assert newest.pieces_first >= 70


def test_a_pack_leans_on_no_pack_that_is_not_known(world: Recorded, tmp_path: Path) -> None:
    world.write(b"0", b"bytes")
    settled(world)
    with world.writing() as tx:
        [pack] = packs.every(tx)
        packs.put(tx, dataclasses.replace(pack, leans_on=(PackNumber(77),)))
    world.manifests.snapshot()
    assert world.manifests.step()
    other = Restored(tmp_path, world, A)
    with other.reading() as reader:
        assert [pack.leans_on for pack in packs.every(reader)] == [()]
    other.pass_time()
    assert other.state(b"0") is FileState.STUB
    assert other.lost() == set()


@pytest.mark.parametrize("ahead", [False, True])
def test_a_target_that_is_added_back_with_an_earlier_lifes_manifests_overtakes_nobody(
    lagging: Recorded, tmp_path: Path, ahead: bool
) -> None:
    if ahead:
        lagging.targets[A].die(1e9)
        for number in range(9):
            lagging.write(b"more-%d" % number, b"x")
            lagging.manifests.step()
        lagging.targets[A].forgive()
    other = Restored(tmp_path, lagging, A)
    other.manifests.step()
    other.add(B)
    for _ in range(6):
        other.pass_time()
        other.manifests.step()
    assert not other.superseded
    for target in (A, B):
        assert other.sent(target)
        report, engines = load(other, target)
        assert not report.problems
        assert carried(engines) == carried(other.engines())


def test_a_target_of_another_archive_is_refused_by_one_of_a_later_epoch_too(lagging: Recorded, tmp_path: Path) -> None:
    other = Restored(tmp_path, lagging, A)
    other.manifests.step()
    name = max(lagging.stores[B].list("manifests/segments/"))
    foreign = manifest.encode(manifest.Header(manifest.Kind.SEGMENT, b"z" * 16, number=99), ())
    lagging.stores[B].replace(name, foreign)
    other.add(B)
    other.pass_time()
    other.manifests.step()
    assert "another archive" in other.superseded


@pytest.mark.parametrize(("number", "epoch"), [((1 << 64) - 1, 0), (1 << 62, 7), (900, (1 << 32) - 1)])
def test_numbers_that_nobody_reached_do_not_stop_a_restored_archive(
    world: Recorded, tmp_path: Path, number: int, epoch: int
) -> None:
    world.write(b"file", b"bytes")
    settled(world)
    planted = manifest.encode(manifest.Header(manifest.Kind.SEGMENT, ARCHIVE, epoch=epoch, number=1), ())
    world.stores[A].put(manifest.segment_name(number), BytesBody(planted))
    other = Restored(tmp_path, world, A)
    other.write(b"new", b"more")
    settled(other)
    assert other.sent(A)
    assert other.read(b"file") == b"bytes"


def test_a_keyring_that_is_not_right_says_nothing_of_packs(home: Path, tmp_path: Path) -> None:
    world = Recorded(home, encrypted=True)
    world.write(b"file", os.urandom(5_000))
    settled(world)
    other = Restored(tmp_path, world, A)
    other.targets[A].vouches = False
    other.targets[A].script(Fault(operation="read_back", wrong_byte_at=100))
    for _ in range(3):
        other.tiering.step()
        with other._store.read() as reader:
            known = {copy.state for pack in packs.every(reader) for copy in copies.of_pack(reader, pack.number)}
        assert CopyState.DAMAGED not in known
    other.pass_time()
    assert other.standing(b"file")[2] == 1
    assert other.read(b"file") == world.read(b"file")
