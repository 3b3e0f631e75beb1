"""What is kept of the past, and a rollback that was under way, come back from one target alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.model.test_manifest_model import A, Rebuilt, Recorded, settled
from vnafs.domain.events import Event, EventKind
from vnafs.domain.files import FileState
from vnafs.domain.ids import RepositoryId
from vnafs.fs import rollback
from vnafs.index import keys, past
from vnafs.index.engine import Transaction, prefix_stop


@pytest.fixture
def world(home: Path) -> Recorded:
    return Recorded(home)


def recorded(world: Recorded) -> None:
    """Everything is copied, and every target has what was recorded."""
    settled(world)
    world.clock.advance(100)
    for _ in range(5):
        world.manifests.step()
        world.clock.advance(61)
    assert world.sent(A)


def restored(world: Recorded, folder: Path) -> Rebuilt:
    folder.mkdir()
    made = Rebuilt(folder, world, A)
    made.require_copies(1)
    made.clock.advance((world.clock.now() - made.clock.now()) / 1e9)
    return made


def test_kept_versions_come_back_can_be_read_and_expire(world: Recorded, tmp_path: Path) -> None:
    for name in (b"deleted", b"overwritten"):
        world.write(name, b"first of " + name)
    world.fs.setxattr(world.inode(b"deleted"), b"user.x", b"1")
    settled(world)
    world.unlink(b"deleted")
    world.write(b"overwritten", b"second")
    recorded(world)
    made = restored(world, tmp_path / "made")
    assert made.kept() == world.kept()
    assert len(made.kept()) == 2
    for name in (b"deleted", b"overwritten"):
        made.fs.versions.undelete(b"share/" + name, to=b"share/old " + name)
        assert made.read(b"old " + name) == b"first of " + name
    assert made.fs.getxattr(made.inode(b"old deleted"), b"user.x") == b"1"
    made.settle()
    assert made.kept() | made.sealed() == made.uses()
    made.keep(0)
    for _ in range(10):
        made.tiering.tend()
        made.fs.upkeep()
    with made._namespace.read() as reader:
        for table in (keys.PAST_NAMES, keys.PAST_VERSIONS, keys.ENDINGS):
            assert not list(reader.scan(table, prefix_stop(table)))
    made.settle()
    assert made.uses() == made.sealed()


def test_a_version_whose_pack_came_before_the_news_of_it_is_kept(world: Recorded, tmp_path: Path) -> None:
    world.write(b"deleted", b"bytes")
    settled(world)
    world.unlink(b"deleted")
    [was] = world.past()

    def unsay(tx: Transaction) -> None:
        past.put_version(tx, was._replace(row=was.row._replace(state=FileState.SEALED)), is_new=False)
        world.fs._core.feed.append(tx, Event(EventKind.KEPT, was.inode, was.version))

    world.feed(unsay)
    recorded(world)
    made = restored(world, tmp_path / "made")
    assert [found.is_kept for found in made.past()] == [True]
    made.fs.versions.undelete(b"share/deleted")
    assert made.read(b"deleted") == b"bytes"


def test_a_rollback_that_was_under_way_is_finished(
    world: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rollback, "NAMES_PER_STEP_MAX", 4)
    good = {b"%02d" % number: b"image %d" % number for number in range(20)}
    for name, data in good.items():
        world.write(name, data)
    settled(world)
    before = world.clock.now()
    world.clock.advance(10)
    for number, name in enumerate(sorted(good)):
        if number % 2:
            world.write(name, b"encrypted")
        else:
            world.rename(name, name + b".locked")
    settled(world)
    world.clock.advance(10)
    number = RepositoryId(world.share)
    world.fs.rollbacks.begin(number, before)
    for _ in range(3):
        world.fs.rollbacks.step()
    recorded(world)
    made = restored(world, tmp_path / "made")
    assert made.fs.repositories.get(number).rolling_to_ns
    assert made.names() != set(good)
    for _ in range(200):
        made.fs.upkeep()
        made.tiering.step()
    assert not made.fs.repositories.get(number).rolling_to_ns
    assert made.names() == set(good)
    assert {name: made.read(name) for name in good} == good
