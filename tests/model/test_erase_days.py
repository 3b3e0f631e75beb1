"""Days on which files are erased for good: see `eraseworld`."""

from __future__ import annotations

import dataclasses
import hashlib
import random
from pathlib import Path

import pytest

from tests.model.collectworld import AFTER_SECONDS, YOUNG_SECONDS, Collecting
from tests.model.eraseworld import Erases
from tests.model.pipelineworld import Crash
from tests.model.test_manifest_model import A, B, Rebuilt
from vnafs.content import manifest
from vnafs.domain.clock import NANOSECONDS
from vnafs.domain.errors import NotFound, TargetUnavailable
from vnafs.domain.files import FileState
from vnafs.domain.ids import Inode, ObjectName, RepositoryId, TargetName
from vnafs.domain.locks import Lock
from vnafs.receipts import jws, keys, page
from vnafs.upkeep.certify import Certifier
from vnafs.upkeep.signing import Signing

MARK = random.Random(4711).randbytes(64)
OTHERS = [b"%d" % number for number in range(12)]


@pytest.fixture
def world(home: Path) -> Erases:
    """Twelve files, three to a pack, and one that bears a mark, on two targets."""
    return filled(Erases(home, pack_target_bytes=64 * 1024))


def filled(world: Erases) -> Erases:
    world.keep(100_000)
    for number, name in enumerate(OTHERS):
        if number == 5:
            world.write(b"doe", marked())
        world.write(name, data(number))
    world.clock.advance(20)
    world.settle()
    world.manifests.step()
    return world


def data(number: int) -> bytes:
    return random.Random(number).randbytes(20_000)


def marked(seed: int = 0) -> bytes:
    """Incompressible, with the mark every so often: it stands in each piece."""
    dice = random.Random(1000 + seed)
    return b"".join(dice.randbytes(1000) + MARK for _ in range(20))


def others_are_there(world: Erases) -> None:
    for number, name in enumerate(OTHERS):
        assert world.evict(name)
        assert world.read(name) == data(number)


def test_nothing_of_an_erased_file_is_left_anywhere_and_all_else_is_there(world: Erases) -> None:
    assert world.has_bytes(MARK)
    number = world.erase(b"doe")
    world.until_complete(number)
    assert world.has_bytes(MARK) == []
    assert {there.why for there in world.there(number).values()} == {""}
    others_are_there(world)
    assert world.counts() == world.recounted()
    assert world.object_count(A) == world.object_count(B) == len(world.packs_known())


@pytest.mark.parametrize("encrypted", [False, True])
def test_no_manifest_on_any_target_names_an_erased_file(home: Path, encrypted: bool) -> None:
    world = filled(Erases(home, pack_target_bytes=64 * 1024, encrypted=encrypted))
    world.rename(b"doe", b"another-name-of-doe")
    world.manifests.step()
    assert all(names_told(world, target, b"doe") for target in (A, B))
    number = world.erase(b"another-name-of-doe")
    world.until_complete(number)
    assert not any(names_told(world, target, b"doe") for target in (A, B))
    others_are_there(world)


def names_told(world: Erases, target: TargetName, part: bytes) -> list[ObjectName]:
    """Manifests on a target of which some row has these bytes in it."""
    found = []
    for name in world.stores[target].list("manifests/"):
        _, rows = manifest.decode(b"".join(world.stores[target].get(name)), world.secrets(target))
        if any(part in row.key or part in row.value for row in rows):
            found.append(name)
    return found


def test_an_encrypted_archive_erases_as_well(home: Path) -> None:
    world = filled(Erases(home, pack_target_bytes=64 * 1024, encrypted=True))
    before = set(world.stored(A))
    number = world.erase(b"doe")
    world.until_complete(number)
    assert before - set(world.stored(A))
    _, _, found = world.eraser.standing(number)
    assert found["packs"] == len(before - set(world.stored(B)))
    others_are_there(world)


def test_it_goes_without_the_time_that_collecting_takes(world: Erases) -> None:
    before = set(world.stored(A))
    number = world.erase(b"doe")
    world.collect(7 * 61)
    assert before - set(world.stored(A))
    assert YOUNG_SECONDS < 7 * 61 < AFTER_SECONDS
    world.until_complete(number)


def test_it_goes_where_nothing_is_collected(home: Path) -> None:
    class NotCollecting(Erases):
        after_seconds = 0.0

    world = filled(NotCollecting(home, pack_target_bytes=64 * 1024))
    world.unlink(b"11")
    number = world.erase(b"doe")
    world.until_complete(number)
    assert world.has_bytes(MARK) == []
    for name in OTHERS[:11]:
        assert world.evict(name)
        assert world.read(name) == data(int(name))


def test_kept_versions_go_too_also_of_what_was_deleted_before(world: Erases) -> None:
    world.write(b"doe", marked(1))
    world.clock.advance(20)
    world.settle()
    inode = world.inode(b"doe")
    world.write(b"gone", marked(2))
    world.clock.advance(20)
    world.settle()
    gone = world.inode(b"gone")
    world.unlink(b"gone")
    world.collect(61)
    number = world.erase(b"doe", past=(gone,))
    for path in (b"share/doe", b"share/gone"):
        with pytest.raises(NotFound):
            world.fs.versions.undelete(path)
    world.until_complete(number)
    assert world.has_bytes(MARK) == []
    _, _, found = world.eraser.standing(number)
    assert len(found["contents"]) == 3
    assert inode not in {past.inode for past in world.past()}


def test_bytes_that_another_file_has_stay_and_that_is_said(world: Erases) -> None:
    world.write(b"twin", marked())
    world.clock.advance(20)
    world.settle()
    number = world.erase(b"doe")
    world.until_complete(number)
    _, _, found = world.eraser.standing(number)
    assert [content["also_of_other_files"] for content in found["contents"]] == [True]
    assert found["packs"] == 0
    assert world.evict(b"twin")
    assert world.read(b"twin") == marked()


def test_a_stub_goes_with_all_that_was_fetched_of_it(world: Erases) -> None:
    assert world.evict(b"doe")
    assert world.read(b"doe") == marked()
    assert world.evict(b"doe")
    assert world.state(b"doe") is FileState.STUB
    number = world.erase(b"doe")
    world.until_complete(number)
    assert world.has_bytes(MARK) == []


def test_a_large_stub_of_which_parts_were_read_goes_with_them(world: Erases) -> None:
    big = b"".join(marked(seed) for seed in range(6))
    world.write(b"big", big)
    world.clock.advance(20)
    world.settle()
    assert world.evict(b"big")
    assert world.read(b"big") == big
    assert world.files_in("staging")
    number = world.erase(b"big", b"doe")
    world.until_complete(number)
    assert world.has_bytes(MARK) == []


def test_a_target_that_is_away_is_waited_for(world: Erases) -> None:
    world.targets[B].die(1e9)
    number = world.erase(b"doe")
    world.collect(5000)
    assert not world.erasing(number).completed
    # it has copies of what was packed beside the erased bytes, and must not become poorer
    assert not any(there.proven for there in world.there(number).values())
    assert world.eraser.standing(number)[2]["packs_left"]
    world.targets[B].forgive()
    world.until_complete(number)
    assert world.has_bytes(MARK) == []


def test_what_is_locked_stays_until_then_and_says_so(home: Path) -> None:
    class Locked(Erases):
        lock = Lock(20_000)

    world = filled(Locked(home, pack_target_bytes=64 * 1024))
    number = world.erase(b"doe")
    world.collect(5000)
    there = world.there(number)
    assert not any(one.proven for one in there.values())
    assert all(one.until > world.clock.now() for one in there.values())
    assert all(one.until < world.clock.now() + 20_000 * NANOSECONDS for one in there.values())
    assert "objects with bytes of it" in there[1].why
    world.until_complete(number, 60_000)
    assert world.has_bytes(MARK) == []
    others_are_there(world)


def test_status_says_how_many_erasures_are_pending_and_which_target_the_oldest_waits_for(home: Path) -> None:
    world = filled(Erases(home, pack_target_bytes=64 * 1024))
    assert world.pending() is None
    world.trims = False
    first = world.erase(b"doe")
    found = world.pending()
    assert found is not None
    assert (found.count, found.oldest.number, found.is_frozen) == (1, first, False)
    assert [(one.target, one.why) for one in found.targets] == [(A, ""), (B, "")], "nobody has looked yet"
    world.collect(5000)
    world.clock.advance(60)
    second = world.fs.erasures.begin(RepositoryId(world.share), "asked for").number
    world.fs.fold()
    found = world.pending()
    assert found is not None
    assert (found.count, found.oldest.number, found.packs_left) == (2, first, 0)
    assert [one.target for one in found.targets] == [A, B]
    assert all("manifests up to number" in one.why for one in found.targets)
    world.trims = True
    world.until_complete(first)
    world.until_complete(second)
    assert world.pending() is None


def test_status_names_the_one_target_that_does_not_say_whether_it_is_without_it(world: Erases) -> None:
    number = world.erase(b"doe")
    for _ in range(100):
        world.collect(60)
        if not world.eraser.standing(number)[2]["packs_left"]:
            break
    exists = world.targets[B].exists

    def away(name: ObjectName) -> bool:
        raise TargetUnavailable(target="b", why="no route")

    world.targets[B].exists = away  # type: ignore[method-assign]
    world.collect(5000)
    found = world.pending()
    assert found is not None
    assert [one.target for one in found.targets] == [B]
    assert "no route" in found.targets[0].why
    world.targets[B].exists = exists  # type: ignore[method-assign]
    world.until_complete(number)
    assert world.pending() is None


def test_what_a_target_charges_for_holds_nothing_back(world: Erases) -> None:
    Collecting.storage_seconds_min = 1e6
    try:
        world.until_complete(world.erase(b"doe"))
        assert world.has_bytes(MARK) == []
    finally:
        Collecting.storage_seconds_min = 0.0


def test_a_copy_of_it_that_was_on_its_way_out_before_is_waited_for_and_hastened(world: Erases) -> None:
    """The file was packed again earlier; the old pack has its bytes still, and no row tells."""
    Collecting.storage_seconds_min = 1e6
    try:
        world.keep(0)
        for name in OTHERS:
            world.unlink(name)
        world.collect(3 * AFTER_SECONDS + 8000)
        assert world.collector.collected.repacked
        assert len([place for place in world.has_bytes(MARK) if place.startswith("a:packs")]) == 2
        number = world.erase(b"doe")
        world.until_complete(number)
        assert world.has_bytes(MARK) == []
    finally:
        Collecting.storage_seconds_min = 0.0


def test_nothing_is_proven_while_manifests_name_it(world: Erases) -> None:
    world.trims = False
    number = world.erase(b"doe")
    world.collect(5000)
    assert not world.erasing(number).completed
    assert "manifests up to number" in world.there(number)[1].why
    assert [place for place in world.has_bytes(MARK) if ":packs" in place] == []
    world.trims = True
    world.until_complete(number)


@pytest.mark.parametrize("target", [A, B])
def test_an_archive_that_is_rebuilt_has_none_of_it_and_all_else(world: Erases, tmp_path: Path, target: str) -> None:
    number = world.erase(b"doe")
    world.until_complete(number)
    world.manifests.step()
    other = Rebuilt(tmp_path, world, target)  # type: ignore[arg-type]
    assert not other.report.problems
    assert not other.report.packs_missing
    for at, name in enumerate(OTHERS):
        assert other.read(name) == data(at)
    with pytest.raises(NotFound):
        other.inode(b"doe")


def erase_all_of_it(world: Erases, number: int) -> None:
    world.fs.erasures.add(number, world.wanted(b"doe"))
    world.fs.erasures.finish(number)
    world.expire()
    world.until_complete(number)


POINTS = ("erase.condemned", "collect.walked", "collect.removed", "collect.asked", "collect.deleted", "collect.moved")


@pytest.mark.parametrize("point", [*POINTS, "collect.repacked", "erase.proven", "manifest.recorded", "erase.swept"])
def test_a_death_at_any_step_costs_nothing_and_the_next_life_goes_on(world: Erases, point: str) -> None:
    world.write(b"doe", marked(1))
    world.clock.advance(20)
    world.settle()
    world.fate.seal(1, point)
    number = world.fs.erasures.begin(world.fs.repositories.named("share").id, "asked for").number
    with pytest.raises(Crash):
        erase_all_of_it(world, number)
    world.die()
    world.begin()
    world.until_complete(number)
    assert world.has_bytes(MARK) == []
    others_are_there(world)
    assert world.counts() == world.recounted()
    assert world.removals_open() == 0


@pytest.mark.parametrize("seed", range(16))
def test_deaths_at_any_moment_cost_nothing(world: Erases, seed: int) -> None:
    dice = random.Random(seed)
    world.write(b"doe", marked(1))
    world.clock.advance(20)
    world.settle()
    number = world.fs.erasures.begin(world.fs.repositories.named("share").id, "asked for").number
    world.fs.erasures.add(number, world.wanted(b"doe"))
    world.fs.erasures.finish(number)
    deaths = 0
    while not world.erasing(number).completed:
        world.fate.seal(dice.randrange(1, 60))
        try:
            world.expire()
            world.until_complete(number, 3_000)
        except Crash:
            deaths += 1
            world.die()
            world.begin()
        except AssertionError:
            assert deaths < 40
    assert deaths
    world.fate.spare()
    assert world.has_bytes(MARK) == []
    others_are_there(world)
    assert world.counts() == world.recounted()


def test_nothing_goes_while_a_tripwire_is_touched_and_all_of_it_once_it_is_reset(world: Erases) -> None:
    number = world.erase(b"doe")
    repository = world.fs.repositories.named("share")
    world.fs._core.repositories[repository.id] = dataclasses.replace(repository, tripped_ns=1, tripped_why="x")
    world.fs._core.tripped.append(repository.id)
    world.fs.repositories.save_tripped()
    world.collect(5000)
    assert [place for place in world.has_bytes(MARK) if place.startswith("a:packs")]
    assert world.eraser.standing(number)[2]["waits"]
    found = world.pending()
    assert found is not None
    assert found.is_frozen
    world.fs.repositories.set(repository, reset_tripwire=True)
    world.until_complete(number)
    assert world.has_bytes(MARK) == []


def test_what_was_brought_back_is_another_file_and_stays(world: Erases) -> None:
    inode = world.inode(b"doe")
    world.collect(61)
    world.unlink(b"doe")
    world.fs.versions.undelete(b"share/doe")
    number = world.erase(past=(inode,))
    world.until_complete(number)
    assert world.read(b"doe") == marked()
    assert Inode(world.inode(b"doe")) != inode


class RebuiltErases(Rebuilt, Erases):
    """A new archive from one target alone, in which the same goes on."""


def test_an_archive_that_is_rebuilt_in_the_middle_goes_on_with_it(world: Erases, tmp_path: Path) -> None:
    number = world.erase(b"doe")
    assert world.eraser.step()
    assert world.manifests.step()
    other = RebuiltErases(tmp_path, world, A)
    assert other.has_bytes(MARK)
    with pytest.raises(NotFound):
        other.inode(b"doe")
    other.settle()
    other.until_complete(number)
    assert other.has_bytes(MARK) == []
    for at, name in enumerate(OTHERS):
        assert other.read(name) == data(at)


def test_an_object_that_no_row_tells_of_after_a_rebuild_is_removed_all_the_same(world: Erases, tmp_path: Path) -> None:
    """The rows of its pack were gone, and the target had not let it go yet."""
    world.stores[A].may_delete = False
    number = world.erase(b"doe")
    world.collect(5000)
    assert world.has_bytes(MARK)
    assert "objects with bytes of it" in world.there(number)[1].why
    assert world.manifests.step()
    other = RebuiltErases(tmp_path, world, A)
    other.settle()
    other.stores[A].may_delete = True
    other.until_complete(number)
    assert other.has_bytes(MARK) == []


def test_what_was_forgotten_of_an_old_pack_goes_with_the_packs_that_a_content_leans_on(world: Erases) -> None:
    """A content whose pieces lie in another file's pack: that pack is emptied too, and the other file stays."""
    world.write(b"longer", marked() + b"more")
    world.clock.advance(20)
    world.settle()
    number = world.erase(b"doe", b"longer")
    world.until_complete(number)
    assert world.has_bytes(MARK) == []
    others_are_there(world)


def test_the_certificate_says_what_is_pending_and_what_is_complete(home: Path, tmp_path: Path) -> None:
    class Locked(Erases):
        lock = Lock(20_000)

    world = filled(Locked(home, pack_target_bytes=64 * 1024))
    signing = Signing(world._store, str(tmp_path), None, clock=world.clock)
    certifier = Certifier(world.eraser, archive=b"a" * 16, signing=signing, service=None, clock=world.clock)
    number = world.erase(b"doe")
    world.collect(5000)
    pending = jws.unverified(certifier.certify(number).envelope)
    assert pending["complete"] is False
    assert pending["completed"] is None
    assert all(target["locked_until"] and target["proven"] is None for target in pending["targets"])
    world.until_complete(number, 60_000)
    issued = certifier.certify(number)
    done = jws.opened(issued.envelope, keys.ensure(str(tmp_path))[0].public_key())
    assert done["complete"] is True
    assert [target["name"] for target in done["targets"]] == ["a", "b"]
    assert all(target["proven"] and not target["why"] for target in done["targets"])
    [content] = done["contents"]
    assert content == {
        "sha256": hashlib.sha256(marked()).hexdigest(),
        "size_bytes": len(marked()),
        "also_of_other_files": False,
    }
    assert "doe" not in str(done)
    assert page.envelope_of(page.render(issued.envelope)) == issued.envelope
