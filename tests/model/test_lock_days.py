"""Credentials that may not delete, and locks that must not run out: see `pipelineworld`."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import pytest

from tests.model.test_manifest_model import Recorded
from tests.model.test_scrub_days import Scrubbed
from vnafs.domain.clock import NANOSECONDS, Instant
from vnafs.domain.errors import ObjectLocked
from vnafs.domain.files import FileState
from vnafs.domain.ids import Inode, ObjectName, TargetName, pack_object_name
from vnafs.domain.locks import Lock, LockMode
from vnafs.domain.retention import RetentionMode
from vnafs.index import condemned, contents, packs
from vnafs.pipeline import doomed
from vnafs.targets.body import BytesBody
from vnafs.upkeep.renewal import AWAY_SECONDS, Renewal
from vnafs.upkeep.retained import Retained

A, B = TargetName("a"), TargetName("b")
DAY = 86_400.0
LOCK = Lock(int(30 * DAY))


def filled(world: Recorded) -> None:
    for number in range(12):
        world.write(b"%d" % number, random.Random(number).randbytes(20_000))
    world.clock.advance(20)
    world.settle()
    assert world.manifests.step()


def pass_on(world: Recorded, seconds: float) -> None:
    """As time passes, while something waits that cannot be done."""
    for _ in range(20):
        world.clock.advance(seconds / 20)
        while world.tiering.step():
            pass


# -- what may not be deleted ---------------------------------------------------------------------------------


@pytest.fixture
def world(home: Path) -> Scrubbed:
    made = Scrubbed(home, pack_target_bytes=64 * 1024)
    filled(made)
    return made


def why(world: Recorded, name: TargetName) -> str:
    return next(replicator.why for replicator in world.tiering.replicators() if replicator.name == name)


def test_what_is_wrong_and_may_not_be_deleted_is_told_and_not_read_again_and_again(world: Scrubbed) -> None:
    good = world.stored(A)
    rotten = next(iter(good))
    world.rot(A, rotten, 5_000)
    world.stores[A].may_delete = False
    world.verify_all()
    pass_on(world, 120)
    assert "1 objects there are wrong and cannot be replaced" in why(world, A)
    assert "removal_credentials_file" in why(world, A)
    assert all(replicator.health.reachable for replicator in world.tiering.replicators())
    world.targets[A].calls.clear()
    for _ in range(50):
        world.clock.advance(60)
        world.tiering.step()
    assert world.targets[A].calls.count("delete") == 0
    world.write(b"new", b"goes there all the same" * 100)
    pass_on(world, 120)
    assert world.standing(b"new") == (FileState.REPLICATED, True, 2)
    assert world.stored(B)[rotten] == good[rotten]


def test_what_stays_is_replaced_within_an_hour_of_the_right_to_delete_and_at_once_when_asked(world: Scrubbed) -> None:
    good = world.stored(A)
    for asked in (False, True):
        rotten = next(iter(good))
        world.rot(A, rotten, 5_000)
        world.stores[A].may_delete = False
        world.verify_all()
        pass_on(world, 120)
        assert why(world, A)
        world.stores[A].may_delete = True
        if asked:
            for replicator in world.tiering.replicators():
                replicator.hurry()
        pass_on(world, 120 if asked else 3_700)
        assert world.stored(A) == good
        assert why(world, A) == ""
    assert all(world.standing(b"%d" % number) == (FileState.REPLICATED, True, 2) for number in range(12))


def test_a_manifest_that_stays_wrong_is_told_and_the_others_are_looked_at(world: Scrubbed) -> None:
    names = [name for name in world.stores[A].list("manifests/") if name.endswith(".snapshot")]
    world.rot(A, names[-1], 200)
    world.stores[A].may_delete = False
    world.clock.advance(20_000)
    world.scrub_all()
    assert world.scrub.findings.manifests_damaged == 1
    assert world.scrub.findings.manifests > 3


# -- locks that are renewed ----------------------------------------------------------------------------------


class Locked(Recorded):
    """An archive whose targets lock what is put."""

    lock = LOCK

    def begin(self) -> None:
        super().begin()
        self.renewal = Renewal(
            self._store,
            holders=self.tiering.replicators,
            needed=self.manifests.needed,
            retained=Retained(self._store, self._namespace).until,
            clock=self.clock,
            fatal=_raise,
        )

    def renew_all(self) -> None:
        """Until nothing is due."""
        idle = 0
        while idle < 3:
            before = sum(row.looked_at for row in self.renewal.progress.values())
            self.renewal.step()
            idle = 0 if sum(row.looked_at for row in self.renewal.progress.values()) > before else idle + 1

    def shortest_seconds(self, target: TargetName, prefix: str = "") -> float:
        found = [self.stores[target].retained(name) or 0 for name in self.stores[target].list(prefix)]
        return (min(found) - self.clock.now()) / NANOSECONDS

    def needed(self, target: TargetName) -> set[ObjectName]:
        number = next(r.number for r in self.tiering.replicators() if r.name == target)
        return {*self.stored(target), *self.manifests.needed(number), *self.stores[target].list("keys/")}


def _raise(problem: BaseException) -> None:
    raise problem


@pytest.fixture(params=[False, True], ids=["plain", "encrypted"])
def locked(request: pytest.FixtureRequest, home: Path) -> Locked:
    made = Locked(home, pack_target_bytes=64 * 1024, encrypted=request.param)
    filled(made)
    return made


def test_what_is_needed_is_locked_for_ever_whatever_happens_to_the_process(locked: Locked) -> None:
    for day in range(75):
        locked.clock.advance(DAY)
        if day % 7 == 0:
            locked.stop()
            locked.begin()
        if day == 50:
            locked.targets[A].die(4 * DAY)
        locked.renew_all()
        locked.clock.advance(AWAY_SECONDS)
        for target in (A, B):
            assert locked.needed(target)
            for name in locked.needed(target):
                until = locked.stores[target].retained(name)
                assert until is not None
                assert until > locked.clock.now(), (day, name)
                with pytest.raises(ObjectLocked):
                    locked.stores[target].delete(name)


def test_locks_that_are_long_enough_are_left_alone_and_none_is_shortened(locked: Locked) -> None:
    locked.renew_all()
    assert [row.renewed for row in locked.renewal.progress.values()] == [0, 0]
    looked_at = [row.looked_at for row in locked.renewal.progress.values()]
    assert all(number > 4 for number in looked_at)
    locked.renew_all()
    assert [row.looked_at for row in locked.renewal.progress.values()] == looked_at
    locked.clock.advance(16 * DAY)
    locked.renew_all()
    for target in (A, B):
        assert locked.shortest_seconds(target, "packs/") > 29 * DAY


def test_a_walk_goes_on_where_it_was_after_a_restart(locked: Locked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vnafs.upkeep.renewal.PACKS_AT_ONCE", 2)
    packs = len(locked.stored(A))
    assert packs >= 4
    for _ in range(packs - 1):
        locked.renewal.step()
    locked.stop()
    locked.begin()
    locked.renewal.step()
    locked.targets[A].calls.clear()
    locked.renew_all()
    assert locked.targets[A].calls.count("retained") < len(locked.needed(A)) - 1


def test_what_was_put_before_locks_were_wanted_is_locked_too(locked: Locked) -> None:
    for store in locked.stores.values():
        store._until.clear()
    locked.renew_all()
    for target in (A, B):
        for name in locked.needed(target):
            until = locked.stores[target].retained(name)
            assert until is not None
            assert until - locked.clock.now() > 29 * DAY * NANOSECONDS


def test_what_is_no_longer_known_is_not_renewed(locked: Locked) -> None:
    stray = ObjectName("packs/00/00.pack")
    locked.stores[A].put(stray, BytesBody(b"stray"))
    for _ in range(5):
        locked.clock.advance(8 * DAY)
        locked.renew_all()
    locked.stores[A].delete(stray)


def test_a_dead_target_holds_up_no_other_and_is_told(locked: Locked) -> None:
    locked.targets[A].die(40 * DAY)
    locked.clock.advance(16 * DAY)
    locked.renew_all()
    assert "no answer" in locked.renewal.progress[A].why
    assert locked.renewal.progress[B].why == ""
    assert locked.shortest_seconds(B, "packs/") > 29 * DAY


def test_an_object_that_is_gone_is_no_end_of_the_walk(locked: Locked) -> None:
    first = next(iter(locked.stored(A)))
    locked.clock.advance(31 * DAY)
    locked.stores[A].delete(first)
    locked.renew_all()
    assert locked.shortest_seconds(A, "packs/") > 29 * DAY


@pytest.mark.parametrize("mode", list(RetentionMode)[1:])
@pytest.mark.parametrize("firm", list(LockMode))
def test_packs_of_a_committed_file_are_locked_until_its_date_and_no_others(
    home: Path, mode: RetentionMode, firm: LockMode
) -> None:
    locked = Locked(home, pack_target_bytes=16 * 1024)
    locked.lock = dataclasses.replace(LOCK, mode=firm)
    locked.stop()
    locked.begin()
    filled(locked)
    repository = locked.fs.repositories.named("share")
    locked.fs.repositories.set(dataclasses.replace(repository, retention=mode, retention_seconds=int(DAY)))
    locked.fs.retentions.retain([(locked.inode(b"3"), Inode(0))], seconds=int(900 * DAY))
    locked.clock.advance(8 * DAY)
    locked.renew_all()
    left = [(locked.stores[A].retained(name) or 0) - locked.clock.now() for name in locked.stored(A)]
    long = [seconds for seconds in left if seconds > 800 * DAY * NANOSECONDS]
    may_be_shortened = mode is RetentionMode.GOVERNANCE and firm is LockMode.COMPLIANCE
    assert len(long) in ({0} if may_be_shortened else {1, 2}), "the one with its bytes, and the one with its recipe"
    assert len(left) > 2
    locked.renew_all()
    assert max(row.renewed for row in locked.renewal.progress.values()) < len(left)


def test_the_lock_of_a_pack_that_is_about_to_be_collected_runs_out(home: Path) -> None:
    locked = Locked(home, pack_target_bytes=64 * 1024)
    filled(locked)
    with locked.reading() as reader:
        found = next(packs.every(reader))
    with locked.writing() as tx:
        for number in doomed.used(tx, found):
            for inode, version in list(contents.uses(tx, number)):
                contents.drop_use(tx, number, inode, version)
        row = condemned.Condemned(found.id, found.sha256, found.size_bytes, condemned.Stage.CONDEMNED, Instant(1))
        condemned.put(tx, found.number, row)
    for _ in range(5):
        locked.clock.advance(8 * DAY)
        locked.renew_all()
    locked.stores[A].delete(pack_object_name(found.id))
    others = set(locked.stored(A))
    assert others
    for name in others:
        with pytest.raises(ObjectLocked):
            locked.stores[A].delete(name)
