"""How much of a mirror's work is found at once, and how fast it comes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.model.mirrorworld import Mirrored
from tests.model.pipelineworld import SOMEBODY
from vnafs.domain.clock import NANOSECONDS, Instant
from vnafs.domain.ids import Sha256
from vnafs.index import mirrored
from vnafs.index.mirrored import Kind, Place, Work, folder_of
from vnafs.upkeep import mirroring
from vnafs.upkeep.mirrorerrands import METADATA_BYTES_PER_SECOND, WALK_NAMES, Errands

PARTS = (b"share", b"large")
NOW = Instant(1_000 * NANOSECONDS)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Mirrored]:
    made = Mirrored(tmp_path)
    yield made
    made.stop()


def test_what_describes_a_large_folder_is_rewritten_rarely_however_often_it_changes(world: Mirrored) -> None:
    place = Place(folder_of(PARTS), b"")
    size_bytes = 40 * METADATA_BYTES_PER_SECOND
    with world.rows.write() as tx:
        there = mirrored.Mirrored(Kind.METADATA, size_bytes=size_bytes, sha256=Sha256(b"x" * 32), is_present=True)
        mirrored.put(tx, place, there)
        for seconds in (0, 1, 30):
            with world.mirroring._tree.view() as view:
                now = Instant(NOW + seconds * NANOSECONDS)
                Errands(tx, view, now, keeps_removed=False, harm_seconds=0.0).describe_later(PARTS)
        errand = mirrored.errand_at(tx, place)
        assert errand is not None
        assert (errand.due - NOW) / NANOSECONDS == 40
        assert errand.since == NOW
        assert mirrored.count(tx, mirrored.ERRANDS) == 1


def test_a_walk_over_a_large_folder_takes_some_names_at_a_time_and_goes_on_after_death(world: Mirrored) -> None:
    names = [b"%05d" % number for number in range(2 * WALK_NAMES + 10)]
    folder = world.folder(b"large")
    for name in names:
        world.fs.symlink(folder, name, b"nowhere", SOMEBODY)
    place = Place(folder_of(PARTS), b"")
    seen = set()
    for _ in range(10_000):
        if not world.mirroring.step() and world.is_mirrored():
            break
        with world.rows.read() as reader:
            errand = mirrored.errand_at(reader, place)
        if errand is not None and errand.work & Work.WALK and errand.after not in seen:
            seen.add(errand.after)
            world.die()
            world.begin()
        world.clock.advance(0.5)
    assert seen >= {names[WALK_NAMES - 1], names[2 * WALK_NAMES - 1]}
    world.check()


def test_walks_wait_while_there_is_much_to_do(world: Mirrored, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirroring, "ERRANDS_MAX", 20)
    for number in range(30):
        folder = world.folder(b"%d" % number)
        for name in range(10):
            world.fs.symlink(folder, b"%d" % name, b"nowhere", SOMEBODY)
    most = 0
    for _ in range(10_000):
        if not world.mirroring.step() and world.is_mirrored():
            break
        with world.rows.read() as reader:
            most = max(most, mirrored.count(reader, mirrored.ERRANDS))
        world.clock.advance(0.2)
    assert 20 <= most <= 80  # what one walk finds comes on top
    world.check()


def test_what_is_too_much_to_hear_of_stays_in_the_feed(world: Mirrored, monkeypatch: pytest.MonkeyPatch) -> None:
    world.mirror()
    monkeypatch.setattr(mirroring, "HEARD_MAX", 5)
    world.faulty.bad.die(100)
    for number in range(50):
        world.folder(b"%d" % number)
        world.mirroring.step()
    standing = world.mirroring.standing()
    assert standing.unread_events > 0
    assert standing.waiting < 20
    world.mirror()
    world.check()
