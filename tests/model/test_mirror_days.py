"""What becomes of a plain mirror on good days and bad ones: see `mirrorworld`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tests.model.mirrorworld import Mirrored
from tests.model.pipelineworld import SOMEBODY
from vnafs.domain.repositories import OnTrip
from vnafs.fs.attributes import AttributeChanges
from vnafs.index import feeds, meta
from vnafs.targets.faulty import Fault
from vnafs.upkeep.mirroring import FOUND_AT_ONCE, MirrorRules


@pytest.fixture
def world(tmp_path: Path) -> Mirrored:
    return Mirrored(tmp_path)


def rules(**words: object) -> MirrorRules:
    return dataclasses.replace(MirrorRules("memory:", harm_seconds=0.0, transfers_max=2), **words)


def test_every_file_lies_under_its_own_path(world: Mirrored) -> None:
    world.put(world.folder(b"patient", b"study"), b"slice.dcm", b"pixels")
    world.settled()
    assert world.objects() == {"share/patient/study/slice.dcm": b"pixels"}
    world.check()


def test_what_is_not_sealed_is_not_mirrored_and_said_to_come(world: Mirrored) -> None:
    world.put(world.share, b"a", b"new")
    world.mirror()
    assert world.objects() == {}
    assert '"pending":true' in world.place.objects["share/.vna-metadata.jsonl"].decode()
    world.settled()
    world.check()


def test_an_overwritten_file_keeps_its_old_bytes_on_the_mirror_until_the_new_ones_are_sealed(world: Mirrored) -> None:
    world.write(b"a", b"one")
    world.settled()
    world.write(b"a", b"two!")
    world.mirror()
    assert world.objects() == {"share/a": b"one"}
    world.settled()
    assert world.objects() == {"share/a": b"two!"}
    world.check()


def test_a_stub_is_mirrored_from_packs_without_charging_a_budget(world: Mirrored) -> None:
    world.write(b"a", b"x" * 300_000)
    world.seal()
    assert world.evict(b"a")
    repository = world.fs.repositories.named("share")
    world.fs.repositories.set(dataclasses.replace(repository, recall_bytes_per_day=1, recall_requests_per_day=1))
    for name in world.files_in("packs"):
        (world.home / "packs" / name).unlink()
    world.settled()
    assert world.objects() == {"share/a": b"x" * 300_000}
    assert world.tiering.budgets.used(repository.id).requests == 0
    world.check()


def test_local_bytes_that_rotted_are_not_mirrored_those_from_packs_are(world: Mirrored) -> None:
    world.write(b"a", b"right" * 1000)
    world.seal()
    inode = world.inode(b"a")
    with open(world.fs.local_path(inode, world.fs.facts(inode).version), "r+b") as file:
        file.write(b"wrong")
    world.mirror()
    assert world.objects() == {"share/a": b"right" * 1000}


def test_a_folder_that_moves_takes_everything_along(world: Mirrored) -> None:
    study = world.folder(b"p", b"study")
    for number in range(5):
        world.put(study, b"%d" % number, b"x%d" % number)
    world.settled()
    world.fs.rename(world.share, b"p", world.share, b"q", 0)
    world.settled()
    assert set(world.objects()) == {f"share/q/study/{number}" for number in range(5)}
    world.check()


def test_a_folder_that_moves_is_copied_where_it_is_and_not_sent_again(tmp_path: Path) -> None:
    world = Mirrored(tmp_path, rules(harm_seconds=60.0))
    study = world.folder(b"p", b"study")
    for number in range(5):
        world.put(study, b"%d" % number, b"x%d" % number * 1000)
    world.settled()
    assert world.place.copied == []
    world.fs.rename(world.share, b"p", world.share, b"q", 0)
    world.settled()
    assert sorted(world.place.copied) == [f"share/q/study/{number}" for number in range(5)]
    assert set(world.objects()) == set(world.place.copied)
    world.check()


def test_what_was_overwritten_since_is_put_and_not_copied(tmp_path: Path) -> None:
    world = Mirrored(tmp_path, rules(harm_seconds=60.0))
    world.write(b"a", b"old" * 1000)
    world.settled()
    world.write(b"a", b"new" * 1000)
    world.fs.rename(world.share, b"a", world.share, b"b", 0)
    world.settled()
    assert world.place.copies_asked == 0
    assert world.objects() == {"share/b": b"new" * 1000}
    world.check()


@pytest.mark.parametrize("bad", [{"cut_at": 0}, {"wrong_byte_at": 0}, {"status": 403}, {"lost_reply": True}])
def test_a_copy_that_fails_becomes_a_put(tmp_path: Path, bad: dict[str, int]) -> None:
    world = Mirrored(tmp_path, rules(harm_seconds=60.0))
    world.write(b"a", b"bytes" * 1000)
    world.settled()
    world.faulty.bad.script(Fault(operation="copy", **bad))
    world.fs.rename(world.share, b"a", world.share, b"b", 0)
    world.settled()
    assert world.place.puts.count("share/b") == (1 if not {"wrong_byte_at", "lost_reply"} & set(bad) else 2)
    assert world.objects() == {"share/b": b"bytes" * 1000}
    world.check()


def test_what_happens_in_a_folder_while_it_moves_is_not_lost(world: Mirrored) -> None:
    study = world.folder(b"p", b"study")
    world.put(study, b"old", b"1")
    world.settled()
    world.fs.rename(world.share, b"p", world.share, b"q", 0)
    world.mirroring.step()
    world.put(study, b"new", b"2")
    world.mirroring.step()
    world.fs.rename(world.share, b"q", world.share, b"r", 0)
    world.fs.unlink(study, b"old")
    world.settled()
    assert set(world.objects()) == {"share/r/study/new"}
    world.check()


def test_hard_links_are_objects_of_their_own(world: Mirrored) -> None:
    world.write(b"a", b"both")
    world.fs.link(world.inode(b"a"), world.folder(b"d"), b"b")
    world.settled()
    assert world.objects() == {"share/a": b"both", "share/d/b": b"both"}
    world.check()
    world.write(b"a", b"changed")
    world.settled()
    assert world.objects() == {"share/a": b"changed", "share/d/b": b"changed"}
    world.check()
    world.unlink(b"a")
    world.settled()
    world.check()


def test_a_file_may_become_a_folder_and_a_folder_a_file(world: Mirrored) -> None:
    world.write(b"a", b"file")
    world.put(world.folder(b"b"), b"in", b"2")
    world.settled()
    world.unlink(b"a")
    world.put(world.folder(b"a"), b"in", b"1")
    world.fs.unlink(world.folder(b"b"), b"in")
    world.fs.rmdir(world.share, b"b")
    world.write(b"b", b"file")
    world.settled()
    assert world.objects() == {"share/a/in": b"1", "share/b": b"file"}
    world.check()


def test_attributes_links_and_xattrs_are_told(world: Mirrored) -> None:
    world.write(b"a", b"1")
    world.fs.symlink(world.share, b"l\xff", b"../else%\xfe", SOMEBODY)
    world.settled()
    world.fs.setxattr(world.inode(b"a"), b"user.one%", b"\0\xff")
    world.fs.setattr(world.inode(b"a"), AttributeChanges(mode=0o600), SOMEBODY)
    world.settled()
    world.check()


HOSTILE = [
    b"with space",
    b" lead",
    b"trail ",
    b"trail.",
    b"...",
    b"%41",
    b"%",
    b"A",
    b"\xff\xfe",
    b"\xed\xa0\x80",
    b"back\\slash",
    b"tab\tnew\nline\rbell\x07\x7f",
    "ümläut\u0085\ufffe".encode(),
    b".vna-metadata.jsonl",
    b".vnafs-mirror.json",
    b"%2Evna-metadata.jsonl",
    b"a?b#c&d=e+f;g:h*i|j\"k<l>'m`n",
    b"n" * 255,
    b"\xfe" * 255,
    "日本".encode() * 40,
]


def test_hostile_names_come_back_as_they_were(world: Mirrored) -> None:
    for number, name in enumerate(HOSTILE):
        world.put(world.share, name, b"f%d" % number)
        if not name.startswith(b"n"):
            world.put(world.folder(b"d", name), name, b"d%d" % number)
    deep = world.folder(*[b"%03d" % n + b"x" * 100 for n in range(12)])
    world.put(deep, b"leaf", b"far down")
    world.settled()
    world.check()
    assert all(len(name.encode()) <= 900 for name in world.place.objects)
    world.fs.rename(world.share, b"d", world.share, b"\xff", 0)
    world.settled()
    world.check()


# -- bad days ------------------------------------------------------------------------------------------------------


def test_a_dead_mirror_holds_up_nobody_and_catches_up(world: Mirrored) -> None:
    world.settled()
    world.faulty.bad.die(500)
    for number in range(10):
        world.write(b"%d" % number, b"x%d" % number)
    world.seal()
    for _ in range(50):
        world.mirroring.step()
    standing = world.mirroring.standing()
    assert not standing.reachable
    assert "scripted" in standing.why
    assert standing.waiting >= 10
    world.clock.advance(5.0)
    assert world.mirroring.standing().oldest_seconds >= 5
    world.mirror()
    world.check()


def test_one_name_that_is_refused_holds_up_no_other(world: Mirrored) -> None:
    world.place.refused.add("share/0")
    for number in range(10):
        world.write(b"%d" % number, b"x%d" % number)
    world.seal()
    for _ in range(300):
        if not world.mirroring.step():
            world.clock.advance(1.0)
    assert set(world.objects()) == {f"share/{number}" for number in range(1, 10)}
    standing = world.mirroring.standing()
    assert (standing.failing, standing.reachable) == (1, True)
    assert "not this one" in standing.why
    world.place.refused.clear()
    world.settled()
    world.check()


def test_a_clock_that_is_set_back_by_hours_delays_nothing_for_hours(tmp_path: Path) -> None:
    world = Mirrored(tmp_path, rules(harm_seconds=60.0))
    world.write(b"a", b"1")
    world.settled()
    world.unlink(b"a")
    world.write(b"b", b"2")
    world.seal()
    world.faulty.bad.script(Fault(operation="replace", cut_at=1))
    for _ in range(20):
        world.mirroring.step()
    world.clock.step(-7200)
    world.mirror(seconds_max=300)
    world.check()


def test_wrong_bytes_on_the_mirror_are_put_again(world: Mirrored) -> None:
    world.faulty.bad.script(Fault(operation="replace", wrong_byte_at=0, times=3))
    world.write(b"a", b"right")
    world.settled()
    assert world.objects() == {"share/a": b"right"}
    world.check()


def test_a_cursor_that_fell_behind_walks_over_everything(world: Mirrored) -> None:
    world.put(world.folder(b"d"), b"a", b"1")
    world.write(b"gone", b"1")
    world.settled()
    world.unlink(b"gone")
    world.put(world.folder(b"d", b"e"), b"b", b"2")
    world.seal()
    world.feed(lambda tx: feeds.trim(tx, 1, 100_000))
    world.settled()
    assert set(world.objects()) == {"share/d/a", "share/d/e/b"}
    world.check()


def test_a_first_mirror_of_a_full_archive_goes_on_where_it_was_killed(tmp_path: Path) -> None:
    world = Mirrored(tmp_path)
    for number in range(40):
        world.put(world.folder(b"%d" % (number % 4)), b"%d" % number, b"x%d" % number)
    world.seal()
    for _ in range(4):
        world.mirroring.step()
    world.die()
    world.begin()
    world.settled()
    world.check()
    assert len([name for name in world.place.puts if not name.endswith(".jsonl")]) <= 40 + 4


def test_rows_that_were_lost_are_found_on_the_mirror(world: Mirrored) -> None:
    world.put(world.folder(b"d"), b"a", b"1")
    world.put(world.folder(b"d"), b"b", b"2")
    world.put(world.folder(*[b"%03d" % n + b"x" * 100 for n in range(12)]), b"leaf", b"far down")
    world.settled()
    world.fs.unlink(world.folder(b"d"), b"b")
    foreign = ["share/", "share//x", "share/\udcff", "share/..", "./a", "share/%41", "share/a\\b"]
    world.place.objects |= dict.fromkeys(foreign, b"somebody's")
    world.place.objects["other/stray"] = b"nobody's"
    world.rows = type(world.rows)()
    world.begin()
    world.settled()
    assert "share/d/b" not in world.objects()
    assert "other/stray" not in world.objects()
    assert [world.place.objects.pop(name) for name in foreign] == [b"somebody's"] * len(foreign)
    world.check()


def test_however_many_names_are_found_on_the_mirror_none_of_them_is_passed_over(world: Mirrored) -> None:
    world.write(b"a", b"1")
    world.settled()
    world.place.objects |= {f"share/gone{number:04d}": b"of rows that were lost" for number in range(2 * FOUND_AT_ONCE)}
    world.rows = type(world.rows)()
    world.begin()
    world.settled()
    assert world.objects() == {"share/a": b"1"}


def test_a_mirror_that_is_ahead_of_an_archive_that_went_on_from_the_past_becomes_like_it(world: Mirrored) -> None:
    world.write(b"same", b"0")
    world.write(b"overwritten", b"1")
    world.write(b"removed", b"2")
    world.settled()
    world.place.objects["share/overwritten"] = b"of a future that was lost"
    world.place.objects["share/made"] = b"then, too"
    world.place.objects["share/d/made"] = b"then, too"
    del world.place.objects["share/removed"]
    world.feed(lambda tx: meta.set_int(tx, meta.EPOCH, 7))
    world.die()
    world.begin()
    world.settled()
    assert world.objects() == {"share/same": b"0", "share/overwritten": b"1", "share/removed": b"2"}
    world.check()


def test_a_place_that_is_not_this_mirror_any_more_is_left_alone(world: Mirrored) -> None:
    world.write(b"a", b"1")
    world.settled()
    world.place.objects.clear()
    world.place.is_marked = False
    world.die()
    world.begin()
    world.write(b"b", b"1")
    world.seal()
    for _ in range(20):
        world.mirroring.step()
    assert world.place.objects == {}
    assert not world.mirroring.standing().reachable


# -- an attack -----------------------------------------------------------------------------------------------------


def trip(world: Mirrored, *, since_ns: int = 1) -> None:
    """The tripwire of the only repository, touched or reset."""
    repository = world.fs.repositories.named("share")
    if not since_ns:
        world.fs.repositories.set(repository, reset_tripwire=True)
        return
    core = world.fs._core
    core.repositories[repository.id] = dataclasses.replace(repository, tripped_ns=since_ns, tripped_why="test")
    with core.change() as change:
        change.put_rules(core.repositories[repository.id])


def test_a_tripwire_freezes_what_is_on_the_mirror_until_it_is_reset(world: Mirrored) -> None:
    world.write(b"overwritten", b"good")
    world.write(b"removed", b"good")
    world.settled()
    described = world.place.objects["share/.vna-metadata.jsonl"]
    trip(world)
    world.write(b"overwritten", b"encrypted")
    world.unlink(b"removed")
    world.write(b"new", b"ransom note")
    world.settled()
    assert world.objects() == {
        "share/overwritten": b"good",
        "share/removed": b"good",
        "share/new": b"ransom note",
    }
    assert world.place.objects["share/.vna-metadata.jsonl"] == described
    assert world.mirroring.standing().held == 3
    trip(world, since_ns=0)
    world.settled()
    assert world.objects() == {"share/overwritten": b"encrypted", "share/new": b"ransom note"}
    assert world.mirroring.standing().held == 0
    world.check()


def test_overwriting_and_removing_waits_so_that_a_tripwire_comes_in_time(tmp_path: Path) -> None:
    world = Mirrored(tmp_path, rules(harm_seconds=60.0))
    world.write(b"a", b"good")
    world.write(b"b", b"good")
    world.settled()
    world.write(b"a", b"encrypted")
    world.unlink(b"b")
    world.seal()
    for _ in range(30):
        world.mirroring.step()
    world.clock.advance(30.0)
    for _ in range(30):
        world.mirroring.step()
    assert world.objects() == {"share/a": b"good", "share/b": b"good"}
    trip(world)
    world.clock.advance(60.0)
    world.mirror()
    assert world.objects() == {"share/a": b"good", "share/b": b"good"}
    trip(world, since_ns=0)
    world.settled()
    world.check()


def test_an_off_tripwire_freezes_nothing(world: Mirrored) -> None:
    world.write(b"a", b"1")
    world.settled()
    trip(world)
    world.fs.repositories.set(dataclasses.replace(world.fs.repositories.named("share"), tripwire=OnTrip.OFF))
    world.unlink(b"a")
    world.settled()
    world.check()


def test_a_mirror_that_keeps_removed_files_says_which_they_are(tmp_path: Path) -> None:
    world = Mirrored(tmp_path, rules(keeps_removed=True))
    world.write(b"a", b"1")
    world.put(world.folder(b"d"), b"in", b"2")
    world.settled()
    world.unlink(b"a")
    world.fs.unlink(world.folder(b"d"), b"in")
    world.fs.rmdir(world.share, b"d")
    world.settled()
    assert world.objects() == {"share/a": b"1", "share/d/in": b"2"}
    assert '"removed":true' in world.place.objects["share/.vna-metadata.jsonl"].decode()
    world.write(b"a", b"again")
    world.settled()
    assert world.objects() == {"share/a": b"again", "share/d/in": b"2"}
    assert '"removed":true' not in world.place.objects["share/.vna-metadata.jsonl"].decode()


# -- what is chosen ------------------------------------------------------------------------------------------------


def test_an_encrypted_repository_is_mirrored_only_when_that_is_said(tmp_path: Path) -> None:
    world = Mirrored(tmp_path, encrypted=True)
    world.write(b"a", b"secret")
    world.seal()
    world.mirror()
    assert world.objects() == {}
    every = world.fs.repositories.list()
    assert world.mirroring.left_out(every) == ["share"]
    world.rules = rules(plain=True)
    world.die()
    world.begin()
    assert world.evict(b"a")
    world.settled()
    assert world.objects() == {"share/a": b"secret"}
    assert world.mirroring.left_out(every) == []
    assert world.mirroring.in_plain(every) == ["share"]
    world.check()


def test_repositories_are_chosen_come_and_go(tmp_path: Path) -> None:
    world = Mirrored(tmp_path, rules(repositories=("share", "later")))
    world.fs.repositories.add("other")
    world.put(world.fs.lookup(1, b"other").inode, b"a", b"1")
    world.write(b"b", b"2")
    world.settled()
    assert world.objects() == {"share/b": b"2"}
    world.fs.repositories.add("later")
    world.put(world.fs.lookup(1, b"later").inode, b"c", b"3")
    world.settled()
    assert world.objects() == {"share/b": b"2", "later/c": b"3"}
    world.check()
    world.rules = rules(repositories=("other",))
    world.die()
    world.begin()
    world.settled()
    assert world.objects() == {"other/a": b"1"}
    world.check()
