"""Random lives of an archive whose manifests go to its targets; from any of these it can be rebuilt at any moment.

As `test_pipeline_model`, with the recording and sending of manifests among the steps. Whenever a target has all that
was recorded, loading its manifests gives exactly the rows that there are; in the end a new archive is rebuilt from
each target alone and every file is read there.

    VNAFS_SEED=… pytest tests/model/test_manifest_model.py
"""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest

from tests.model.lives import run
from tests.model.pipelineworld import RECOVERY, Crash, World
from tests.model.test_pipeline_model import Life
from vnafs.content import manifest
from vnafs.content.manifest import NAMESPACE, STORE
from vnafs.domain.actors import Actor, Door
from vnafs.domain.errors import DaemonUnreachable, NotFound, RecallFailed, Superseded
from vnafs.domain.files import FileState
from vnafs.domain.ids import ObjectName, TargetName
from vnafs.index import feeds, inodes, meta
from vnafs.index.engine import Engine, prefix_stop
from vnafs.index.engines.memory import MemoryEngine
from vnafs.index.inodes import NOT_QUEUED
from vnafs.pipeline.keys import unlocked_from
from vnafs.targets.port import Target
from vnafs.upkeep import plan, restore
from vnafs.upkeep.adopt import adopt
from vnafs.upkeep.changes import META_NAMES, NAMESPACE_TABLES, STORE_TABLES
from vnafs.upkeep.manifests import Manifests
from vnafs.upkeep.restored import Report

FIXED = int(os.environ.get("VNAFS_SEED", "0"))
A, B = TargetName("a"), TargetName("b")
ARCHIVE = b"a" * 16


def silent(_: str, __: int, ___: int | None) -> None:
    return None


class Recorded(World):
    """An archive with manifests, recorded when a test says so."""

    superseded = ""
    kept_seconds = 0.0

    def begin(self) -> None:
        super().begin()
        with self._namespace.write() as tx:
            meta.set_bytes(tx, meta.ARCHIVE_ID, ARCHIVE)
        self.manifests = Manifests(
            str(self.home / "manifests"),
            self._store,
            self._namespace,
            archive=ARCHIVE,
            fold=self.fs.fold,
            configuration=lambda: "version = 1\n",
            places=self.tiering.replicators,
            superseded=self._supersede,
            seconds_max=60.0,
            kept_seconds=self.kept_seconds,
            keys=self.tiering.keys,
            quarantine=self.tiering.quarantine,
            clock=self.clock,
            faults=self.fate,
            fatal=_raise,
        )

    def _supersede(self, why: str) -> None:
        self.superseded = why
        self.tiering.suspend(why)
        self.fs.supersede(why)

    def stored(self, target: TargetName) -> dict[ObjectName, str]:
        return {name: sha for name, sha in super().stored(target).items() if name.startswith("packs/")}

    def sent(self, target: TargetName) -> bool:
        """Whether the target has everything that was recorded."""
        now = self.manifests.ledger.position()
        for row in self.manifests.progress():
            if row.name == target:
                return row.sent.number == now.number and row.sent.snapshot == now.snapshot is not None
        return False

    def secrets(self, target: TargetName) -> manifest.Keys | None:
        """The keys as somebody with the recovery key finds them on a target."""
        return secrets_of(self.stores[target])

    def engines(self) -> dict[bytes, Engine]:
        return {NAMESPACE: self._namespace, STORE: self._store}


def secrets_of(target: Target) -> manifest.Keys | None:
    unlocked = unlocked_from(target, RECOVERY)
    return None if unlocked is None else plan.secrets_of(unlocked)


def _raise(problem: BaseException) -> None:
    raise problem


def carried(engines: dict[bytes, Engine]) -> dict[bytes, dict[bytes, bytes]]:
    """The rows that manifests carry."""
    found: dict[bytes, dict[bytes, bytes]] = {NAMESPACE: {}, STORE: {}}
    for which, tables in ((NAMESPACE, NAMESPACE_TABLES), (STORE, STORE_TABLES)):
        with engines[which].read() as reader:
            for table in tables:
                found[which].update(reader.scan(table, prefix_stop(table)))
            for name in META_NAMES if which == NAMESPACE else ():
                value = meta.get_bytes(reader, name)
                if value is not None:
                    found[which][b"M" + name.encode()] = value
    for key, value in found[NAMESPACE].items():
        if key[:1] == b"I":  # when tiering looks at it again is of no use elsewhere
            found[NAMESPACE][key] = inodes.encode(inodes.decode(value)._replace(due=NOT_QUEUED))
    packs = {key[1:9] for key in found[STORE] if key[:1] == b"K"}
    for key in [key for key in found[STORE] if key[:1] == b"K"]:
        row = bytearray(found[STORE][key])
        row[LOCAL_AT] = 0  # whether its file is still here says nothing on a target
        found[STORE][key] = bytes(row)
    for key in [key for key in found[STORE] if key[:1] in {b"C", b"P"}]:
        home = found[STORE][key][HOME_AT[key[:1]] :][:8]
        if home not in packs:
            del found[STORE][key]  # goes with its pack when an index is rebuilt
    return found


LOCAL_AT = 1 + 16 + 32 + 8 + 8 + 4 + 8 + 8 + 4
HOME_AT = {b"C": 1 + 32 + 8 + 8, b"P": 1}


class RecordedLife(Life):
    """A random life in which manifests are recorded now and then."""

    def __init__(self, home: Path, seed: int) -> None:
        super().__init__(home, seed)
        self.compared = 0
        self.steps += [(10, self.record), (1, self.snapshot), (4, self.expire)]
        self.world.keep(self.dice.choice((0, 120, 86_400)))

    def made(self, home: Path) -> World:
        return Recorded(home, copies_min=self.copies_min, encrypted=self.encrypted)

    def record(self) -> None:
        world = self.recorded
        world.manifests.step()
        assert not world.superseded
        for target in (A, B):
            if world.sent(target) and not self.rotted:
                self.compare(target)

    def snapshot(self) -> None:
        self.recorded.manifests.snapshot()

    def expire(self) -> None:
        """Forget a part of the past."""
        self.world.fs.upkeep()

    @property
    def recorded(self) -> Recorded:
        assert isinstance(self.world, Recorded)
        return self.world

    def compare(self, target: TargetName) -> None:
        """Loading the manifests gives what is here."""
        self.compared += 1
        engines: dict[bytes, Engine] = {NAMESPACE: MemoryEngine(), STORE: MemoryEngine()}
        report = restore.load(self.world.stores[target], engines, silent, self.recorded.secrets(target))
        assert not report.problems
        there, here = carried(engines), carried(self.recorded.engines())
        for which in (NAMESPACE, STORE):
            assert there[which].keys() == here[which].keys()
            for key, value in here[which].items():
                assert there[which][key] == value, key

    def end_well(self) -> None:
        super().end_well()
        world = self.recorded
        self.forgive_targets()
        world.begin()
        world.clock.advance(100)
        for _ in range(50):
            if world.manifests.step():
                break
            world.clock.advance(61)
        for target in (A, B):
            assert world.sent(target)
            self.compare(target)
        for target in (A, B):
            self.rebuild(target)
        world.stop()

    def rebuild(self, target: TargetName) -> None:
        home = self.world.home / f"rebuilt-{target}"
        home.mkdir()
        other = Rebuilt(home, self.recorded, target)
        assert other.names() == set(self.expected)
        for name, data in self.expected.items():
            assert other.inode(name) == self.world.inode(name)
            assert other.state(name) is FileState.STUB
            assert other.read(name) == data
        other.write(b"new", b"bytes")
        assert other.inode(b"new") >> 40 == 1, "the epoch rises, so that no inode number is used twice"
        other.require_copies(1)  # there is one target now, whatever there was
        other.settle()
        assert other.counts() == other.recounted()
        other.stop()


class Rebuilt(Recorded):
    """A new archive from one target alone."""

    def __init__(self, home: Path, of: Recorded, target: TargetName) -> None:
        self._of, self._from = of, target
        super().__init__(home, target_names=(target,), encrypted=of.encrypted)

    def prepare(self) -> None:
        self.stores = {self._from: self._of.stores[self._from]}
        self.targets = {self._from: self._of.targets[self._from]}
        self.report = restore.rebuild(
            self.stores[self._from],
            f"memory://{self._from}",
            self._namespace,
            self._store,
            name=lambda _: self._from,
            clock=self.clock,
            progress=silent,
            secrets=self.found_keys(),
        )

    def found_keys(self) -> manifest.Keys | None:
        """The keys on the target are this archive's from now on."""
        unlocked = unlocked_from(self.stores[self._from], RECOVERY)
        if unlocked is None:
            return None
        self.adopt_keys(unlocked.with_master(b"n", self.clock.now(), os.urandom))
        return plan.secrets_of(unlocked)


@pytest.mark.parametrize("number", range(12))
def test_an_archive_can_be_rebuilt_from_each_target_at_any_moment_of_a_random_life(home: Path, number: int) -> None:
    life = run(RecordedLife, home, FIXED or 5_000 + number, 300)
    assert life.crashes
    assert life.compared > 2


# -- machines that come back from the past ---------------------------------------------------------------------------


@pytest.fixture
def world(home: Path) -> Recorded:
    return Recorded(home)


def settled(world: Recorded) -> None:
    world.clock.advance(20)
    world.settle()
    assert world.manifests.step()


def reverted(world: Recorded, before: dict[bytes, dict[bytes, bytes]]) -> None:
    """The data disk is as it was: as after a VM snapshot was reverted."""
    for which, engine in world.engines().items():
        with engine.write() as tx:
            for key, _ in list(tx.scan(b"\x02", b"\xff")):
                tx.delete(key)
            for key, value in before[which].items():
                tx.put(key, value)


def rows(world: Recorded) -> dict[bytes, dict[bytes, bytes]]:
    found = {}
    for which, engine in world.engines().items():
        with engine.read() as reader:
            found[which] = dict(reader.scan(b"\x02", b"\xff"))
    return found


def keep(folder: Path, kept: Path) -> None:
    shutil.rmtree(kept, ignore_errors=True)
    shutil.copytree(folder, kept)


@pytest.fixture
def past(world: Recorded, tmp_path: Path) -> Recorded:
    """An archive whose disk was reverted to before its last file was written and copied."""
    world.write(b"old", b"of both times")
    settled(world)
    before = rows(world)
    world.stop()
    for name in ("spool", "packs", "manifests"):
        keep(world.home / name, tmp_path / name)
    world.begin()
    world.write(b"lost", b"only in the time that was undone")
    settled(world)
    world.stop()
    reverted(world, before)
    for name in ("spool", "packs", "manifests"):
        keep(tmp_path / name, world.home / name)
    world.begin()
    return world


def test_a_reverted_disk_is_noticed_at_the_start_and_nothing_is_changed(past: Recorded) -> None:
    objects = {name: past.stores[name].list() for name in past.stores}
    kept = {name: list(found) for name, found in objects.items()}
    assert "older state of this machine" in past.manifests.compare()
    for change in (
        lambda: past.write(b"new", b"x"),
        lambda: past.unlink(b"old"),
        lambda: past.rename(b"old", b"other"),
        lambda: past.cut(b"old", 0),
    ):
        with pytest.raises(Superseded):
            change()
    assert past.read(b"old") == b"of both times"
    assert not past.evict(b"old")
    for _ in range(20):
        past.tiering.step()
        past.manifests.step()
        past.clock.advance(30)
    assert {name: list(past.stores[name].list()) for name in past.stores} == kept
    past.stop()
    past.begin()  # also after a restart, whatever targets say
    with pytest.raises(Superseded):
        past.write(b"new", b"x")


def test_a_reverted_disk_is_noticed_with_the_first_segment_when_no_target_answered_at_the_start(past: Recorded) -> None:
    for target in past.targets.values():
        target.die(100)
    assert past.manifests.compare() == ""
    past.write(b"new", b"written while nobody knew")
    past.manifests.step()
    past.clock.advance(200)
    past.manifests.step()
    assert past.superseded
    assert past.read(b"new") == b"written while nobody knew"
    with pytest.raises(Superseded):
        past.write(b"newer", b"x")


def test_adopting_goes_on_from_what_is_here_with_numbers_that_nobody_had(past: Recorded) -> None:
    past.manifests.compare()
    heads = {name: max(past.stores[name].list("manifests/segments/")) for name in past.stores}
    inodes = {past.inode(b"old")}
    past.stop()
    places = {r.number: past.targets[r.name] for r in past.tiering.replicators()}
    by = Actor(Door.COMMAND, 0, "root")
    report = adopt(past._namespace, past._store, places, clock=past.clock, by=by)
    assert report.epoch == 1
    assert report.copies_in_doubt
    past.begin()
    [(_, noted)] = past.fs.retentions.audit(0, 10)
    assert (noted["action"], noted["who"]) == ("adopted", by.shown())
    assert past.manifests.compare() == ""
    past.superseded = ""
    past.write(b"new", b"x")
    assert past.inode(b"new") not in inodes
    assert past.inode(b"new") >> 40 == 1
    settled(past)
    assert past.names() == {b"old", b"new"}
    for name in past.stores:
        assert max(past.stores[name].list("manifests/segments/")) > heads[name]
        engines: dict[bytes, Engine] = {NAMESPACE: MemoryEngine(), STORE: MemoryEngine()}
        report_of_load = restore.load(past.stores[name], engines, silent)
        assert not report_of_load.problems
        assert carried(engines)[NAMESPACE] == carried(past.engines())[NAMESPACE]


def test_of_two_clones_one_goes_on_and_the_other_stops(world: Recorded, tmp_path: Path) -> None:
    world.write(b"old", b"of both")
    settled(world)
    kept = rows(world)
    keep(world.home / "manifests", tmp_path / "manifests")
    world.write(b"mine", b"of the first")
    settled(world)
    clone = Clone(tmp_path, world, kept)
    clone.write(b"other", b"of the second")
    clone.manifests.step()
    assert clone.superseded
    assert not world.superseded
    world.write(b"more", b"of the first")
    settled(world)


class Clone(Recorded):
    """Another machine on a copy of the same disk."""

    def __init__(self, home: Path, of: Recorded, kept: dict[bytes, dict[bytes, bytes]]) -> None:
        self._of, self._kept = of, kept
        for name in ("manifests",):
            (home / name).mkdir(exist_ok=True)
        super().__init__(home, target_names=tuple(of.stores))

    def prepare(self) -> None:
        self.stores, self.targets = self._of.stores, self._of.targets
        reverted(self, self._kept)


# -- manifests that are not what they should be ----------------------------------------------------------------------


def load(world: Recorded, target: TargetName = A) -> tuple[Report, dict[bytes, Engine]]:
    engines: dict[bytes, Engine] = {NAMESPACE: MemoryEngine(), STORE: MemoryEngine()}
    return restore.load(world.stores[target], engines, silent), engines


def segments(world: Recorded) -> list[ObjectName]:
    return list(world.stores[A].list("manifests/segments/"))


@pytest.fixture
def long(world: Recorded) -> Recorded:
    """One with some segments behind its snapshot."""
    for number in range(5):
        world.write(b"%d" % number, b"data %d" % number)
        settled(world)
    return world


def test_a_missing_head_is_not_noticed_and_a_missing_middle_ends_what_is_used(long: Recorded) -> None:
    names = segments(long)
    whole, _ = load(long)
    assert whole.number == whole.head
    long.stores[A].delete(names[-2])
    report, _ = load(long)
    assert report.number == whole.number - 2
    assert "not used" in report.problems[0]
    long.stores[A].delete(names[-1])
    report, _ = load(long)
    assert report.number == whole.number - 2
    assert not report.problems


def test_a_forged_or_damaged_segment_ends_what_is_used(long: Recorded) -> None:
    names = segments(long)
    first = b"".join(long.stores[A].get(names[-2]))
    for wrong in (
        first[:-1],
        first[:100] + bytes([first[100] ^ 1]) + first[101:],
        first[:-3] + b"abc",
        b"".join(long.stores[A].get(names[-1])),
    ):
        long.stores[A].replace(names[-2], wrong)
        report, _ = load(long)
        assert report.number == report.head - 2
        assert report.problems
    long.stores[A].replace(names[-2], first)
    assert not load(long)[0].problems


def test_an_older_snapshot_is_used_when_the_newest_is_damaged(long: Recorded) -> None:
    long.manifests.snapshot()
    long.write(b"more", b"x")
    settled(long)
    newest = max(long.stores[A].list("manifests/snapshots/"))
    long.stores[A].replace(newest, b"nothing of ours")
    report, engines = load(long)
    assert report.number == report.head
    assert "cannot be used" in report.problems[0]
    assert carried(engines) == carried(long.engines())


def test_nothing_to_restore_is_said_plainly(world: Recorded) -> None:
    with pytest.raises(NotFound, match="manifest"):
        load(world)


def test_another_archives_target_is_refused(world: Recorded, tmp_path: Path) -> None:
    settled(world)
    other = Other(tmp_path, world)
    assert "another archive" in other.manifests.compare()


class Other(Recorded):
    def __init__(self, home: Path, of: Recorded) -> None:
        self._of = of
        super().__init__(home, target_names=tuple(of.stores))

    def prepare(self) -> None:
        self.stores, self.targets = self._of.stores, self._of.targets

    def begin(self) -> None:
        super().begin()
        for send in self.manifests._current():
            send._archive = b"b" * 16


def test_a_file_whose_bytes_never_reached_the_target_is_there_and_cannot_be_read(
    world: Recorded, tmp_path: Path
) -> None:
    world.write(b"safe", b"bytes")
    settled(world)
    world.write(b"young", b"not yet sealed")
    assert world.manifests.step()
    other = Rebuilt(tmp_path, world, A)
    assert other.names() == {b"safe", b"young"}
    assert other.read(b"safe") == b"bytes"
    with pytest.raises(RecallFailed):
        other.read(b"young")


def away(world: Recorded) -> None:
    """B misses a few snapshots."""
    world.write(b"0", b"x")
    settled(world)
    world.targets[B].die(1e9)
    for number in range(4):
        world.write(b"%d" % number, b"data %d" % number)
        world.clock.advance(20)
        for _ in range(40):
            world.tiering.step()
        world.manifests.snapshot()
        world.manifests.step()
    assert world.sent(A)
    assert not world.sent(B)


@pytest.mark.parametrize("kept", [True, False])
def test_a_target_that_was_away_for_long_is_brought_up_to_date(world: Recorded, kept: bool) -> None:
    away(world)
    if not kept:
        forget_segments(world)
    world.targets[B].forgive()
    world.clock.advance(100)
    settled(world)
    assert world.sent(B)
    report, engines = load(world, B)
    assert report.problems == []
    assert carried(engines) == carried(world.engines())
    numbers = [name[-24:-8] for name in world.stores[B].list("manifests/segments/")]
    assert kept == (numbers == [f"{number:016x}" for number in range(1, len(numbers) + 1)])


def forget_segments(world: Recorded) -> None:
    """So long that the segments it lacks are gone."""
    now = world.manifests.ledger.position()
    for number in range(1, now.snapshot_from + 1):
        world.manifests.ledger.remove(manifest.segment_name(number))


def test_a_reverted_disk_is_noticed_where_a_target_has_a_gap(world: Recorded, tmp_path: Path) -> None:
    world.write(b"old", b"of both times")
    settled(world)
    before = rows(world)
    keep(world.home / "manifests", tmp_path / "manifests")
    away(world)
    forget_segments(world)
    world.targets[B].forgive()
    world.clock.advance(100)
    settled(world)
    world.stop()
    reverted(world, before)
    keep(tmp_path / "manifests", world.home / "manifests")
    world.begin()
    world.targets[A].die(1e9)
    assert "older state" in world.manifests.compare()


def test_segments_are_sent_while_a_snapshot_is_not_there_yet(world: Recorded) -> None:
    world.write(b"0", b"x")
    settled(world)
    for number in range(30):
        world.write(b"%d" % number, b"data %d" % number)
    world.clock.advance(20)
    world.settle()
    world.manifests.snapshot()
    run = next(iter(sorted((world.home / "manifests" / "runs").rglob("*.run"))))
    run_name = ObjectName(str(run.relative_to(world.home)))
    world.targets[A].poison(run_name)
    world.write(b"young", b"x")
    assert not world.manifests.step()
    assert load(world)[0].number == world.manifests.ledger.position().number
    world.targets[A].forgive()
    world.clock.advance(100)
    assert world.manifests.step()


@pytest.mark.parametrize("what", ["segment", "run", "snapshot"])
def test_a_local_manifest_that_rotted_is_written_again_and_not_sent(world: Recorded, what: str) -> None:
    world.write(b"0", b"x")
    settled(world)
    for target in world.targets.values():
        target.die(1e9)
    world.write(b"1", b"y")
    world.manifests.step()
    world.manifests.snapshot()
    for path in (world.home / "manifests").rglob(f"*.{what}"):
        data = bytearray(path.read_bytes())
        data[-2] ^= 1
        path.write_bytes(data)
    for target in world.targets.values():
        target.forgive()
    for _ in range(12):
        world.clock.advance(100)
        world.manifests.step()
    for target in (A, B):
        assert world.sent(target)
        report, engines = load(world, target)
        assert not report.problems
        assert carried(engines) == carried(world.engines())


def test_mount_hears_that_it_is_superseded_as_soon_as_it_answers(past: Recorded) -> None:
    tell = past.manifests._superseded
    deaf = [True]

    def superseded(why: str) -> None:
        if deaf[0]:
            raise DaemonUnreachable(daemon="mount", socket="", why="it starts")
        tell(why)

    past.manifests._superseded = superseded
    assert past.manifests.compare()
    past.manifests.step()
    past.write(b"new", b"while it could not be told")
    deaf[0] = False
    past.manifests.step()
    with pytest.raises(Superseded):
        past.write(b"newer", b"x")


def test_attributes_of_any_size_fit(world: Recorded) -> None:
    world.write(b"0", b"x")
    settled(world)
    value = random.Random(1).randbytes(60_000)
    for number in range(400):
        name = b"%d" % number
        world.write(name, b"")
        world.fs.setxattr(world.inode(name), b"user.large", value, 0)
    assert world.manifests.step()
    assert len(segments(world)) > 2
    world.manifests.snapshot()
    assert world.manifests.step()
    report, engines = load(world)
    assert not report.problems
    assert carried(engines) == carried(world.engines())


def test_what_changes_after_a_death_in_the_middle_of_a_snapshot_is_in_the_segments_too(world: Recorded) -> None:
    world.write(b"0", b"x")
    settled(world)
    world.fate.seal(1, "manifest.runs")
    with pytest.raises(Crash):
        world.manifests.snapshot()
    world.die()
    world.begin()
    for number in range(3):
        world.write(b"after-%d" % number, b"x")
        world.manifests.step()
        report, engines = load(world)
        assert not report.problems
        assert carried(engines) == carried(world.engines())


def test_events_that_were_trimmed_before_they_were_recorded_begin_a_new_chain(world: Recorded) -> None:
    world.write(b"0", b"x")
    settled(world)
    before = world.manifests.ledger.position()
    world.write(b"1", b"y")
    world.unlink(b"0")
    with world._namespace.write() as tx:
        feeds.trim(tx, 1, 10_000)
    assert world.manifests.step()
    assert world.manifests.ledger.position().snapshot != before.snapshot
    report, engines = load(world)
    assert not report.problems
    assert carried(engines) == carried(world.engines())
    # without that snapshot nobody takes the segments behind the gap for the whole story
    newest = max(world.stores[A].list("manifests/snapshots/"))
    world.stores[A].delete(newest)
    assert load(world)[0].number == before.number


@pytest.mark.parametrize(
    "point",
    ["manifest.written", "manifest.recorded", "manifest.runs", "manifest.snapshot", "manifest.sent", "manifest.noted"],
)
@pytest.mark.parametrize("count", [1, 2])
def test_a_death_while_recording_or_sending_costs_nothing(world: Recorded, point: str, count: int) -> None:
    world.write(b"file", b"data")
    world.clock.advance(20)
    world.settle()
    world.fate.seal(count, point)
    try:
        world.manifests.step()
        world.manifests.snapshot()
        world.manifests.step()
    except Crash:
        pass
    else:
        pytest.fail("it was never reached")
    world.die()
    world.begin()
    world.write(b"more", b"x")
    settled(world)
    for target in (A, B):
        report, engines = load(world, target)
        assert not report.problems
        assert carried(engines) == carried(world.engines())
