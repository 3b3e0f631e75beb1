"""What collecting must not do to others, and what others must not do to it: see `pipelineworld`."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.model import collectworld
from tests.model.collectworld import AFTER_SECONDS, Collecting
from tests.model.test_collect_days import ROUND_SECONDS, data, filled, remove_all
from tests.model.test_manifest_model import A, B, Rebuilt
from vnafs.domain.clock import Instant
from vnafs.domain.errors import NoSpace, TargetUnavailable, VnaError
from vnafs.domain.files import FileState, Fingerprint
from vnafs.domain.ids import ObjectName, PackNumber, TargetName, pack_object_name
from vnafs.domain.recipes import Recipe
from vnafs.index import condemned, contents, copies, counts, packs, protections, recount
from vnafs.index.condemned import Stage
from vnafs.index.protections import Frozen, Protection
from vnafs.pipeline import doomed
from vnafs.targets.port import Body
from vnafs.upkeep import collect
from vnafs.upkeep.named import named as everywhere_named

YEAR_SECONDS = 365 * 86400.0


def ask_to_remove_all(world: Collecting) -> None:
    """Every file is gone, every pack collected, and its removal asked of the targets, which have not been told yet."""
    remove_all(world)
    world.collect(ROUND_SECONDS)
    world.clock.advance(AFTER_SECONDS)
    while world.collector.step():
        pass
    world.manifests.step()
    world.collector.step()


@pytest.fixture
def world(home: Path) -> Collecting:
    return filled(Collecting(home, pack_target_bytes=64 * 1024))


def thin_out(world: Collecting, count: int = 12) -> None:
    """All are stubs, and two of three are gone."""
    for number in range(count):
        assert world.evict(b"%d" % number)
        if number % 3:
            world.unlink(b"%d" % number)
    world.expire()


def refuse_packs(
    world: Collecting, target: TargetName, *, besides: set[ObjectName] = frozenset()
) -> Callable[[], None]:  # type: ignore[assignment]
    """A target takes manifests and no more packs; returns what ends that."""
    put = world.targets[target].put

    def refuse(name: ObjectName, body: Body) -> Any:
        if name.startswith("packs/") and name not in besides:
            raise TargetUnavailable(target=target, why="too large for this line today")
        return put(name, body)

    world.targets[target].put = refuse  # type: ignore[method-assign]

    def end() -> None:
        world.targets[target].put = put  # type: ignore[method-assign]

    return end


def test_a_file_that_takes_hours_to_pack_is_packed(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first packs have no content yet; nobody must take them for dead."""
    monkeypatch.setattr(collectworld, "YOUNG_SECONDS", 3600.0)
    monkeypatch.setattr(collectworld, "AFTER_SECONDS", 7 * 86400.0)
    world = Collecting(home, pack_target_bytes=64 * 1024)
    reach = world.fate.reach

    def slow(point: str) -> None:
        reach(point)
        if point == "pack.appended":
            while world.tiering._recorder.record_next():
                pass
            world.clock.advance(1200)
            for _ in range(3):
                world.collector.step()

    world.fate.reach = slow  # type: ignore[method-assign]
    world.write(b"large", random.Random(1).randbytes(8_000_000))
    for _ in range(20):
        world.clock.advance(30)
        world.tiering.step()
    assert world.state(b"large") >= FileState.PACKED


def test_emptying_a_pack_leaves_no_target_poorer(world: Collecting, tmp_path: Path) -> None:
    thin_out(world)
    refuse_packs(world, B, besides=set(world.stored(B)))
    world.collect(4 * ROUND_SECONDS)
    other = Rebuilt(tmp_path, world, B)
    for number in range(0, 12, 3):
        assert other.read(b"%d" % number) == data(number)


def test_a_target_that_is_away_holds_up_no_other(world: Collecting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect, "ASKED_AT_ONCE", 2)
    remove_all(world)
    world.collect(ROUND_SECONDS)
    world.targets[B].die(1e9)
    world.collect(3 * ROUND_SECONDS)
    assert world.object_count(A) == 0


def test_what_a_file_that_stays_open_has_again_costs_no_walk_each_step(
    world: Collecting, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove_all(world)
    world.collect(ROUND_SECONDS)
    with world.reading() as reader:
        number, _ = next(condemned.in_stage(reader, Stage.CONDEMNED))
        pack = packs.get(reader, number)
        assert pack is not None
        one = next(contents.of_pack(reader, pack.contents_first, pack.contents_count))
    world.tiering.protector.step = lambda: False  # type: ignore[method-assign]
    world.write(b"open", b"x")
    world.open(b"open")
    facts = world.fs.facts(world.inode(b"open"))
    frozen = Frozen(facts.version, one.sha256, Instant(1), Fingerprint(1, 1, 1))
    with world.writing() as tx:
        protections.put(tx, Protection(facts.inode, facts.repository, facts.version, Instant(1), coming=frozen))
    walks = 0
    named = everywhere_named

    def counted(*words: Any) -> Any:
        nonlocal walks
        walks += 1
        return named(*words)

    monkeypatch.setattr(collect, "named", counted)
    for _ in range(70):
        world.clock.advance(30)
        world.collector.step()
    assert 0 < walks <= 3
    with world.reading() as reader:
        assert packs.get(reader, number) is not None


@pytest.mark.parametrize("number", [0, 3, 6, 9])
def test_a_recipe_that_was_being_read_while_its_pack_went_is_not_kept(world: Collecting, number: int) -> None:
    thin_out(world)
    recaller = world.tiering.recaller
    read = recaller._read_recipe
    once = [True]

    def slow(home: packs.Pack, content: contents.Content, *, recalls: bool) -> Recipe:
        found = read(home, content, recalls=recalls)
        if once:
            once.clear()
            world.collect(4 * ROUND_SECONDS)
        return found

    recaller._read_recipe = slow  # type: ignore[method-assign]
    recaller._recipes.clear()
    facts = world.fs.facts(world.inode(b"%d" % number))
    assert facts.sha256 is not None
    with contextlib.suppress(VnaError):  # it went in the middle; whoever asks again gets it
        recaller.check(facts.sha256, facts.repository)
    assert world.collector.collected.removed
    assert world.read(b"%d" % number) == data(number)


def test_a_pack_that_is_given_up_and_collected_at_once_is_counted_once(home: Path) -> None:
    world = Collecting(home, pack_target_bytes=64 * 1024)
    world.keep(0)
    for target in world.targets.values():
        target.die(1e9)
    for number in range(3):
        world.write(b"%d" % number, data(number))
    world.clock.advance(20)
    for _ in range(30):
        world.tiering.step()
        world.clock.advance(1)
    remove_all(world)
    world.clock.advance(4000)
    world.expire()
    while world.collector.step():
        pass
    assert world.stages()[Stage.CONDEMNED]
    for name in world.files_in("packs"):
        path = world.home / "packs" / name
        path.write_bytes(b"rot" + path.read_bytes()[3:])
    world.clock.advance(AFTER_SECONDS)
    fold = world.fs.fold
    once = [True]

    def slow() -> None:
        fold()
        if once:
            once.clear()
            world.collector.step()

    world.tiering._condemner._tree = type("Tree", (), {"fold": staticmethod(slow), "advance": world.fs.advance})()
    with world.reading() as reader:
        doubted = next(iter(packs.every(reader))).number
    world.tiering._condemner.doubt(doubted, is_absent=True)
    assert not once
    assert world.counts() == world.recounted()


def test_packing_again_waits_while_packs_wait_for_targets(home: Path) -> None:
    world = Collecting(home, pack_target_bytes=64 * 1024, waiting_bytes_max=100_000)
    world.keep(0)
    for number in range(45):
        world.write(b"%d" % number, data(number))
    world.clock.advance(20)
    world.settle()
    world.manifests.step()
    thin_out(world, 45)
    for target in (A, B):
        refuse_packs(world, target)
    world.clock.advance(100)
    for _ in range(100):
        world.tiering.look()
        world.collector.step()
        while world.tiering._recorder.record_next():
            pass
    assert world.collector.collected.repacked
    assert world.tiering._waiting.size_bytes() <= 100_000 + 2 * 64 * 1024


def test_a_pack_condemned_while_the_clock_was_years_ahead_goes_in_its_time(world: Collecting) -> None:
    remove_all(world)
    world.clock.advance(100)
    world.clock.step(10 * YEAR_SECONDS)
    while world.collector.step():
        pass
    assert world.stages()[Stage.CONDEMNED]
    world.clock.step(-10 * YEAR_SECONDS)
    world.collect(4 * ROUND_SECONDS)
    assert world.object_count(A) == 0


def test_a_pack_that_was_emptied_just_now_stays_for_a_while(home: Path) -> None:
    world = filled(Collecting(home, pack_target_bytes=64 * 1024, copies_min=2))
    thin_out(world)
    end = refuse_packs(world, B)
    world.collect(3 * ROUND_SECONDS)
    assert world.collector.collected.repacked
    with world.reading() as reader:
        old = [packs.get(reader, number) for number, _ in condemned.in_stage(reader, Stage.CONDEMNED)]
    names = {pack_object_name(pack.id) for pack in old if pack is not None}
    assert names
    assert names <= set(world.stored(A))
    end()
    for _ in range(60):
        world.clock.advance(3)
        for _ in range(5):
            world.tiering.step()
            world.collector.step()
        world.manifests.step()
    assert names <= set(world.stored(A)), "whoever reads from it has time to come to an end"
    world.collect(2 * ROUND_SECONDS)
    assert not names & set(world.stored(A))


def test_packing_again_charges_no_recall_budget(world: Collecting) -> None:
    thin_out(world)
    charged: list[int] = []
    world.tiering.shelf.budgets.charge = lambda _, size_bytes: charged.append(size_bytes)  # type: ignore[method-assign]
    world.collect(2 * ROUND_SECONDS)
    assert world.collector.collected.repacked
    assert not charged


def test_a_full_disk_in_the_middle_of_removing_leaves_no_local_file(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = Collecting(home, pack_target_bytes=64 * 1024)
    world.keep(0)
    for target in world.targets.values():
        target.die(1e9)
    for number in range(12):
        world.write(b"%d" % number, data(number))
    world.clock.advance(20)
    for _ in range(30):
        world.tiering.step()
        world.clock.advance(1)
    remove_all(world)
    forget = doomed.forget
    calls = 0

    def full(tx: Any, pack: packs.Pack) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise NoSpace(why="the index")
        forget(tx, pack)

    monkeypatch.setattr(doomed, "forget", full)
    world.collect(3 * ROUND_SECONDS)
    assert calls > 2
    assert not world.packs_known()
    assert world.files_in("packs") == []


def test_whoever_asks_in_the_middle_of_a_look_has_all_packs_looked_at(
    world: Collecting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collect, "PACKS_AT_ONCE", 3)
    world.clock.advance(4000)
    world.collector._look()
    remove_all(world)
    world.collector.hurry()
    while world.collector.step():
        pass
    assert world.stages()[Stage.CONDEMNED] == world.object_count(A)


def test_a_removal_that_waited_for_a_target_is_asked_for_anew(world: Collecting) -> None:
    """Somebody else may have written there since it was looked at."""
    ask_to_remove_all(world)
    assert world.transfers_waiting()
    before = world.object_count(A)
    world.clock.advance(100)
    looked = []
    leads = world.collector._leads
    world.collector._leads = lambda target: looked.append(target) or leads(target)  # type: ignore[func-returns-value]
    for _ in range(20):
        world.tiering.step()
    assert world.object_count(A) == before
    world.collect(600)
    assert looked
    assert world.object_count(A) == 0


def test_removals_are_counted_apart_from_packs_that_wait_for_a_target(world: Collecting) -> None:
    ask_to_remove_all(world)
    known = world.counts()
    assert known[counts.removing(1)].rows == known[counts.removing(2)].rows == world.object_count(A)
    assert counts.waiting(1) not in known
    assert known == world.recounted()
    world.targets[A].die(1e9)
    for _ in range(3):
        world.tiering.step()
    world.clock.advance(20)
    assert world.counts()[counts.removing(1)] == known[counts.removing(1)], "one that failed waits as what it was"
    assert world.counts() == world.recounted()
    world.targets[A].forgive()
    world.collect(ROUND_SECONDS)
    assert world.object_count(A) == 0
    assert not {counts.removing(1), counts.removing(2)} & world.counts().keys()


def test_removals_that_an_earlier_program_asked_for_are_told_apart(world: Collecting) -> None:
    ask_to_remove_all(world)
    world.targets[B].die(1e9)
    world.write(b"new", b"bytes")
    world.clock.advance(20)
    for _ in range(10):
        world.tiering.step()
        world.clock.advance(2)
    right = world.counts()
    assert right[counts.removing(2)].rows
    assert right[counts.waiting(2)].rows == 1
    with world.writing() as tx:
        for _, transfer in list(copies.transfers_after(tx, b"")):
            copies.enqueue(tx, dataclasses.replace(transfer, is_removal=False))
        assert counts.removing(2) not in counts.every(tx)
        assert recount.tell_removals_apart(tx)
    assert world.counts() == world.recounted() == right


def test_telling_removals_apart_goes_on_where_it_stopped(world: Collecting) -> None:
    with world.writing() as tx:
        for number in range(7):
            copies.enqueue(tx, copies.Transfer(1, Instant(number), PackNumber(1000 + number), 0))
        before = counts.get(tx, counts.waiting(1)).rows
    steps = 1
    with world.writing() as tx:
        while not recount.tell_removals_apart(tx, 2):
            steps += 1
        assert counts.get(tx, counts.waiting(1)).rows == before - 7
        assert counts.get(tx, counts.removing(1)).rows == 7
    assert steps == 4
    assert world.counts() == world.recounted()


def test_whoever_finds_out_that_it_was_superseded_may_be_the_collector_itself(world: Collecting) -> None:
    ended: list[bool] = []
    world.collector._leads = lambda _: ended.append(world.collector.stop()) is not None  # type: ignore[func-returns-value]
    failures: list[BaseException] = []
    world.collector._fatal = failures.append
    remove_all(world)
    world.collect(ROUND_SECONDS)
    world.clock.advance(AFTER_SECONDS)
    world.collector._remove()
    world.manifests.step()
    world.collector.start()
    world.collector._thread.join(20)
    assert not world.collector._thread.is_alive()
    assert ended
    assert not failures
    assert threading.current_thread() is not world.collector._thread
