"""Every sequence of a few deeds, to a stated depth: replicate, collect, restore, revert.

One file, two targets, and eight deeds: write, unlink, evict, replicate, record, collect, revert (to how the machine was
when it began, then adopt) and restore (from the target B alone; life goes on there). Nothing is kept here once it is
overwritten or removed, so that collecting has all to lose. After each sequence every file that should be there is read,
and B alone must give back what its manifests last told of: whatever was collected was collected after B knew.

Three deeds in CI, five in `make soak`; both from an archive in which something is there, and one in which something is
condemned.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.model.collectworld import AFTER_SECONDS, Collecting
from tests.model.test_manifest_model import B, Rebuilt, keep, reverted, rows
from vnafs.domain.actors import SYSTEM
from vnafs.domain.errors import Damaged, RecallFailed
from vnafs.domain.files import FileState
from vnafs.upkeep.adopt import adopt
from vnafs.upkeep.collect import LOOK_SECONDS

NAME = b"file"
CONTENTS = [random.Random(number).randbytes(9_000) for number in range(2)]
FOLDERS = ("spool", "packs", "manifests")
DEPTH_IN_CI = 3
DEPTH_IN_SOAK = 5


class Restored(Collecting, Rebuilt):
    """An archive from one target alone that collects, too."""


class Idle(Exception):
    """A deed changes nothing: the sequence without it is looked at elsewhere."""


@dataclasses.dataclass
class Told:
    """What B's manifests last told of, and whose bytes B had then."""

    names: dict[bytes, bytes]
    there: set[bytes]


class Machine:
    """One machine with one file, and what it may not lose."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.lives = 0
        self.world: Collecting = Collecting(self.next_home())
        self.world.live_percent_min = 0.0
        self.world.stop()
        self.world.begin()
        self.world.keep(0)
        self.expected: dict[bytes, bytes] = {}
        self.written = 0
        self.told = Told({}, set())
        self.saved: tuple[dict[bytes, dict[bytes, bytes]], dict[bytes, bytes], Path] | None = None
        self.needed: set[bytes] = set()
        """Contents that have been needed ever since the machine was saved."""

    def next_home(self) -> Path:
        self.lives += 1
        place = self.home / f"{self.lives}"
        place.mkdir()
        return place

    def changed(self) -> None:
        self.needed &= set(self.expected.values())

    # -- deeds ---------------------------------------------------------------------------------------------------

    def write(self) -> None:
        data = CONTENTS[self.written % 2]
        self.written += 1
        self.world.write(NAME, data)
        self.expected[NAME] = data
        self.changed()

    def unlink(self) -> None:
        if NAME not in self.expected:
            raise Idle
        self.world.unlink(NAME)
        del self.expected[NAME]
        self.changed()

    def evict(self) -> None:
        if NAME not in self.expected or not self.world.evict(NAME):
            raise Idle

    def replicate(self) -> None:
        self.world.expire()
        for _ in range(3):
            self.world.clock.advance(11)
            while self.world.tiering.step():
                pass

    def record(self) -> None:
        before = self.world.manifests.ledger.position().number
        self.world.manifests.step()
        if self.world.manifests.ledger.position().number == before:
            raise Idle
        assert self.world.sent(B)
        has = self.world.standing(NAME)[2] if NAME in self.expected else 0
        there = {NAME} if has == len(self.world.stores) else set()
        self.told = Told(dict(self.expected), there)

    def collect(self) -> None:
        before = rows(self.world)
        self.world.expire()
        for seconds in (AFTER_SECONDS + LOOK_SECONDS, AFTER_SECONDS, 1.0):
            self.world.clock.advance(seconds)
            while self.world.collector.step():
                pass
            while self.world.tiering.step():
                pass
        if rows(self.world) == before:
            raise Idle

    def save(self) -> None:
        """How the machine is now."""
        self.world.stop()
        place = self.next_home()
        for name in FOLDERS:
            keep(self.world.home / name, place / name)
        self.saved = rows(self.world), dict(self.expected), place
        self.needed = set(self.expected.values())
        self.world.begin()

    def revert(self) -> None:
        if self.saved is None:
            raise Idle
        before, self.expected, place = self.saved[0], dict(self.saved[1]), self.saved[2]
        self.saved = None
        world = self.world
        world.stop()
        reverted(world, before)
        for name in FOLDERS:
            keep(place / name, world.home / name)
        world.begin()
        if world.manifests.compare():
            there = {name: world.stored(name) for name in world.stores}
            world.clock.advance(LOOK_SECONDS + AFTER_SECONDS)
            for _ in range(3):
                world.collector.step()
                world.tiering.step()
                world.manifests.step()
            assert {name: world.stored(name) for name in world.stores} == there, "it was superseded"
            world.stop()
            places = {one.number: world.targets[one.name] for one in world.tiering.replicators()}
            adopt(world._namespace, world._store, places, clock=world.clock, by=SYSTEM)
            world.superseded = ""
            world.begin()
        for name, data in list(self.expected.items()):
            if data not in self.needed and not self.is_readable(name):
                del self.expected[name]  # it was removed, and collected, in the time that was undone
                world.unlink(name)

    def is_readable(self, name: bytes) -> bool:
        try:
            self.world.read(name)
        except (RecallFailed, Damaged):
            return False
        return True

    def restore(self) -> None:
        if len(self.world.stores) == 1 or (not self.told.names and not self.world.sent(B)):
            raise Idle
        other = self.restored()
        self.world.stop()
        self.world = other
        self.saved = None
        self.expected = dict(self.told.names)
        for name in set(self.expected) - self.told.there:
            if self.is_readable(name):  # perhaps as it was before, as long as the new bytes are nowhere
                self.expected[name] = other.read(name)
                assert self.expected[name] in CONTENTS
            else:
                del self.expected[name]
                other.unlink(name)
        self.changed()

    def restored(self) -> Restored:
        other = Restored(self.next_home(), self.world, B)
        assert other.names() == set(self.told.names)
        for name in self.told.there:
            assert other.read(name) == self.told.names[name], "B told of it, and had it"
        return other

    # -- the end -------------------------------------------------------------------------------------------------

    def check(self) -> None:
        world = self.world
        assert world.names() == set(self.expected)
        for name, data in self.expected.items():
            if world.state(name) is FileState.REPLICATED:
                world.evict(name)
            assert world.read(name) == data
        assert world.counts() == world.recounted()
        if self.told.names and B in world.stores:
            self.restored().stop()


Deed = Callable[[Machine], None]
DEEDS: tuple[Deed, ...] = (
    Machine.write,
    Machine.unlink,
    Machine.evict,
    Machine.replicate,
    Machine.record,
    Machine.collect,
    Machine.revert,
    Machine.restore,
)


def there(machine: Machine) -> None:
    """A file that is on both targets, and that they know of."""
    machine.write()
    machine.replicate()
    machine.record()
    machine.save()


def condemned(machine: Machine) -> None:
    """The same, and another content that is on its way out."""
    machine.write()
    machine.replicate()
    machine.write()
    machine.replicate()
    machine.record()
    machine.world.expire()
    machine.world.clock.advance(LOOK_SECONDS)
    machine.world.collector.step()
    machine.save()


def sequences(depth: int) -> Iterator[tuple[Deed, ...]]:
    """All of exactly that many deeds: shorter ones are their beginnings, and every step checks itself."""
    yield from itertools.product(DEEDS, repeat=depth)


def explore(home: Path, beginning: Deed, chosen: Iterator[tuple[Deed, ...]]) -> int:
    """Live all of them; how many were not idle. They come in order, so what an idle deed begins is passed over."""
    lived = 0
    idle: tuple[Deed, ...] | None = None
    for deeds in chosen:
        if idle is not None and deeds[: len(idle)] == idle:
            continue
        place = Path(tempfile.mkdtemp(dir=home))
        done = 0
        machine = Machine(place)
        try:
            beginning(machine)
            for deed in deeds:
                done += 1
                deed(machine)
            machine.check()
            lived += 1
        except Idle:
            idle = deeds[:done]
        except BaseException as problem:
            problem.add_note(" → ".join(deed.__name__ for deed in (beginning, *deeds[:done])))
            raise
        finally:
            machine.world.stop()
            shutil.rmtree(place)
    return lived


BEGINNINGS = (there, condemned)


@pytest.mark.parametrize("first", DEEDS, ids=lambda deed: deed.__name__)
@pytest.mark.parametrize("beginning", BEGINNINGS, ids=lambda deed: deed.__name__)
def test_every_sequence_of_three_deeds_loses_nothing(home: Path, beginning: Deed, first: Deed) -> None:
    chosen = ((first, *rest) for rest in sequences(DEPTH_IN_CI - 1))
    lived = explore(home, beginning, chosen)
    is_idle = first is Machine.record or (beginning is there and first is Machine.collect)
    assert lived > 2 or is_idle, "there is something to be done"


@pytest.mark.soak
@pytest.mark.timeout(4 * 3600)
@pytest.mark.parametrize("beginning", BEGINNINGS, ids=lambda deed: deed.__name__)
def test_every_sequence_of_five_deeds_loses_nothing(home: Path, beginning: Deed) -> None:
    explore(home, beginning, sequences(DEPTH_IN_SOAK))
