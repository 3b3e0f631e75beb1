"""Receipts while the world moves: what is called safe is so, whatever happens between the first look and the second."""

from __future__ import annotations

import dataclasses
import hashlib
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import studies
from tests.model.pipelineworld import QUIET_SECONDS, World
from tests.seeds import soak_dice
from vnafs.domain.custody import Custody, may_delete
from vnafs.domain.errors import NotFound, Refused, TooMuch
from vnafs.domain.ids import Inode, RepositoryId, TargetName, pack_object_name
from vnafs.domain.recipes import EMPTY
from vnafs.domain.retention import RetentionMode
from vnafs.index import contents, feeds, packs
from vnafs.upkeep.custody import CHANGED, Custodian
from vnafs.upkeep.ledger import Position, Sent
from vnafs.upkeep.manifests import Progress

NAMES = [b"a", b"b", b"c"]


class Names:
    """Manifests that are recorded and sent when the test says so; *meanwhile* happens between the two looks."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.rival = ""
        self.ledger = self
        self.hurried = 0
        self.sent: dict[str, int] = {"a": 0, "b": 0}
        self.here = Position()
        self.meanwhile: Callable[[], None] = lambda: None

    def record(self, *names: str) -> None:
        """Everything up to now, sent to some targets."""
        ends = [_end(engine) for engine in (self.world._namespace, self.world._store)]
        self.here = Position(self.here.number + 1, namespace_cursor=ends[0], store_cursor=ends[1])
        for name in names:
            self.sent[name] = self.here.number

    def position(self) -> Position:
        return self.here

    def progress(self) -> list[Progress]:
        deed, self.meanwhile = self.meanwhile, lambda: None
        deed()
        return [Progress(TargetName(name), Sent(number, snapshot=1), "") for name, number in self.sent.items()]

    def hurry(self) -> None:
        self.hurried += 1


def _end(engine) -> int:
    with engine.read() as reader:
        return feeds.end(reader)


@dataclasses.dataclass
class Desk:
    """Where receipts are asked for."""

    world: World
    names: Names
    custodian: Custodian

    def look(self, *paths: bytes, seconds: float = 0.0):
        return self.custodian.look(paths or [b"share"], names_seconds_max=seconds)


@pytest.fixture
def desk(home: Path) -> Desk:
    return a_desk(World(home, copies_min=2))


def a_desk(world: World, files_max: int = 100) -> Desk:
    names = Names(world)
    custodian = Custodian(
        world._store,
        world._namespace,
        names,  # type: ignore[arg-type] # what it asks of Manifests, and no more
        world.fs.local_path,
        fold=lambda: None,
        files_max=files_max,
        clock=world.clock,
    )
    return Desk(world, names, custodian)


def why(desk: Desk, *paths: bytes) -> dict[bytes, str]:
    return {file.path: may_delete(file).why for file in desk.look(*paths).files}


@pytest.mark.parametrize("deed", ["write", "rename over", "unlink", "rename away"])
def test_what_changes_between_the_looks_is_not_safe(desk: Desk, deed: str) -> None:
    world = desk.world
    world.write(b"a", b"one" * 1000)
    world.write(b"b", b"two" * 1000)
    world.settle()
    desk.names.record("a", "b")
    assert set(why(desk).values()) == {""}
    desk.names.meanwhile = {
        "write": lambda: world.patch(b"a", 0, b"new"),
        "rename over": lambda: world.rename(b"b", b"a"),
        "unlink": lambda: world.unlink(b"a"),
        "rename away": lambda: world.rename(b"a", b"z"),
    }[deed]
    assert why(desk, b"share/a") == {b"share/a": CHANGED}


def test_coming_and_going_of_local_bytes_changes_nothing(desk: Desk) -> None:
    world = desk.world
    world.write(b"a", b"one" * 1000)
    world.settle()
    desk.names.record("a", "b")
    desk.names.meanwhile = lambda: world.evict(b"a")
    assert why(desk) == {b"share/a": ""}
    desk.names.record("a", "b")
    desk.names.meanwhile = lambda: world.read(b"a")
    assert why(desk) == {b"share/a": ""}


def test_names_are_waited_for_and_hurried_once(desk: Desk) -> None:
    world = desk.world
    world.write(b"a", b"one" * 1000)
    world.settle()
    assert "not recorded" in why(desk)[b"share/a"]
    assert desk.look().waits_for_names
    assert desk.names.hurried == 0
    assert desk.look(seconds=1.0).not_safe == 1
    assert desk.names.hurried == 1
    desk.names.meanwhile = lambda: setattr(desk.names, "meanwhile", lambda: desk.names.record("b"))
    found = desk.look(seconds=1.0)
    assert found.not_safe == 0
    assert [copy.names_recorded for copy in found.files[0].copies] == [False, True]


def test_a_target_that_lags_behind_does_not_know_the_newest_names(desk: Desk) -> None:
    world = desk.world
    world.write(b"a", b"one" * 1000)
    world.settle()
    desk.names.record("a")
    desk.names.record()
    assert "not recorded" in why(desk)[b"share/a"]


def test_verified_is_the_oldest_time_of_all_packs(desk: Desk) -> None:
    world = desk.world
    world.write(b"a", b"one" * 1000)
    world.settle()
    [before] = desk.look().files
    world.clock.advance(1000)
    world.verify_all()
    for replicator in world.tiering.replicators():
        if replicator.name == "a":
            with world.reading() as reader:
                numbers = [pack.number for pack in packs.every(reader)]
            for number in numbers:
                replicator.reverified(number, before.copies[0].verified_by[0])
    [after] = desk.look().files
    assert after.copies[0].verified > before.copies[0].verified
    assert after.copies[1].verified == before.copies[1].verified


def test_a_copy_needs_every_pack_that_the_file_leans_on(desk: Desk) -> None:
    world = desk.world
    slice_ = next(iter(studies.synthetic_ct_study(seed=3, slices=1))).data
    world.write(b"a", slice_)
    world.settle()
    with world.reading() as reader:
        [first] = packs.every(reader)
    world.write(b"b", studies.with_corrected_header(slice_))
    world.settle()
    desk.names.record("a", "b")
    assert set(why(desk).values()) == {""}
    [replicator] = [replicator for replicator in world.tiering.replicators() if replicator.name == "b"]
    replicator.damaged(first.number)
    [file] = desk.look(b"share/b").files
    assert [copy.target for copy in file.copies] == ["a"]


def test_what_is_not_there_or_too_much_or_overtaken_is_refused(home: Path) -> None:
    desk = a_desk(World(home), files_max=2)
    for number in range(3):
        desk.world.write(b"%d" % number, b"x")
    with pytest.raises(TooMuch, match="2 files"):
        desk.look()
    assert len(desk.look(b"share/0", b"share/1", b"share/0").files) == 2
    for path in (b"share/none", b"none", b"share/0/below"):
        with pytest.raises(NotFound):
            desk.look(path)
    desk.names.rival = "another run went on"
    with pytest.raises(Refused, match="another run"):
        desk.look(b"share/0")


def test_an_empty_folder_gives_no_receipt(desk: Desk) -> None:
    with pytest.raises(NotFound):
        desk.look()


@pytest.mark.parametrize("run", range(25))
def test_whatever_is_called_safe_has_its_bytes_and_its_name_where_it_says(home: Path, run: int) -> None:
    seed = soak_dice().randrange(1 << 32)
    print(f"seed {seed}")
    Walk(a_desk(World(home, copies_min=2)), random.Random(seed)).run()


class Walk:
    """Deeds of clients and of the pipeline in any order, and receipts all the time."""

    def __init__(self, desk: Desk, dice: random.Random) -> None:
        self.desk = desk
        self.world = desk.world
        self.dice = dice
        self.expected: dict[bytes, bytes] = {}
        self.recorded: dict[str, dict[bytes, bytes]] = {"a": {}, "b": {}}
        """What manifests on each target lead to."""

    def deed(self) -> None:
        clients = [self.write, self.patch, self.unlink, self.rename, self.evict, self.read]
        self.dice.choice([*clients, self.work, self.work, self.record])()

    def write(self) -> None:
        name, data = self.dice.choice(NAMES), self.dice.randbytes(self.dice.choice([0, 10, 5000]))
        self.world.write(name, data)
        self.expected[name] = data

    def some(self) -> bytes:
        if not self.expected:
            self.write()
        return self.dice.choice(sorted(self.expected))

    def patch(self) -> None:
        name = self.some()
        self.world.patch(name, 0, b"!")
        self.expected[name] = b"!" + self.expected[name][1:]

    def unlink(self) -> None:
        name = self.some()
        self.world.unlink(name)
        del self.expected[name]

    def rename(self) -> None:
        name, other = self.some(), self.dice.choice(NAMES)
        if name != other:
            self.world.rename(name, other)
            self.expected[other] = self.expected.pop(name)

    def evict(self) -> None:
        self.world.evict(self.some())

    def read(self) -> None:
        name = self.some()
        assert self.world.read(name) == self.expected[name]

    def work(self) -> None:
        self.world.clock.advance(self.dice.choice([0.1, QUIET_SECONDS, 12.0]))
        for _ in range(self.dice.randrange(30)):
            self.world.tiering.step()

    def record(self) -> None:
        self.record_on(*self.dice.sample(["a", "b"], self.dice.randrange(3)))

    def record_on(self, *targets: str) -> None:
        self.desk.names.record(*targets)
        for target in targets:
            self.recorded[target] = dict(self.expected)

    def run(self) -> None:
        for _ in range(60):
            self.deed()
            self.desk.names.meanwhile = self.dice.choice([self.deed, lambda: None])
            try:
                found = self.desk.look()
            except NotFound:
                continue
            for file in found.files:
                if may_delete(file).yes:
                    self.check(file)
        self.write()
        self.world.settle()
        self.record_on("a", "b")
        self.desk.names.meanwhile = lambda: None
        assert self.desk.look().not_safe == 0  # where everything is well it says so

    def check(self, file: Custody) -> None:
        name = file.path.removeprefix(b"share/")
        assert file.sha256 == hashlib.sha256(self.expected[name]).digest()
        if file.sha256 == EMPTY:
            return
        assert len({copy.target for copy in file.copies}) >= 2
        recorded = [copy.target for copy in file.copies if copy.names_recorded]
        assert recorded
        assert all(self.recorded[target].get(name) == self.expected[name] for target in recorded)
        with self.world.reading() as reader:
            content = contents.find(reader, file.sha256, file.repository.id)
            assert content is not None
            needed = [pack for number in content.packs() if (pack := packs.get(reader, number))]
        for copy in file.copies:
            held = self.world.stored(copy.target)
            for pack in needed:
                assert held[pack_object_name(pack.id)] == pack.sha256.hex()


def test_a_receipt_names_what_keeps_a_file(desk: Desk) -> None:
    world = desk.world
    share = RepositoryId(world.share)
    known = world.fs.repositories.get(share)
    world.fs.repositories.set(dataclasses.replace(known, retention=RetentionMode.GOVERNANCE))
    for name in NAMES:
        world.write(name, name)
    world.fs.retentions.retain([(world.inode(b"a"), Inode(0))], until_ns=4_000_000_000 * 10**9)
    world.fs.retentions.hold(world.inode(b"b"), "case 7", "a letter")
    kept = {file.path[-1:]: file.holds for file in desk.look().files}
    assert kept == {b"a": ("retained until 2096-10-02T07:06:40Z (governance)",), b"b": ("held: case 7",), b"c": ()}
    assert world.fs.retentions.of(world.inode(b"c")).holds == ()
