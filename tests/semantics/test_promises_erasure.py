"""P-73 and what follows: what is erased is gone for good, everywhere, and nothing else is."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import pytest

from tests.model.eraseworld import Erases
from tests.model.test_manifest_model import A, Rebuilt
from vnafs.domain.errors import NotFound
from vnafs.domain.ids import RepositoryId
from vnafs.fs.erasure import Wanted

MARK = random.Random(4711).randbytes(64)


class RebuiltErases(Rebuilt, Erases):
    """A new archive from one target alone."""


@pytest.fixture
def world(tmp_path: Path) -> Erases:
    home = tmp_path / "home"
    home.mkdir()
    made = Erases(home, pack_target_bytes=64 * 1024)
    made.keep(1_000_000)
    for name in (b"doe", b"other"):
        data = random.Random(name).randbytes(5_000)
        made.write(name, data + MARK + data if name == b"doe" else data)
    settled(made)
    return made


def settled(world: Erases) -> None:
    world.clock.advance(20)
    world.settle()
    world.manifests.step()


def why(world: Erases, *names: bytes) -> list[tuple[str, ...]]:
    return world.fs.erasures.refusals(RepositoryId(world.share), world.wanted(*names))


def test_p73_what_is_erased_leads_nowhere_any_more(world: Erases) -> None:
    inode, before = world.inode(b"doe"), world.clock.now()
    world.clock.advance(100)
    world.write(b"doe", b"other bytes" + MARK)
    settled(world)
    number = world.fs.erasures.begin(RepositoryId(world.share), "asked for").number
    assert world.fs.erasures.add(number, world.wanted(b"doe")) == [()]
    world.die()
    world.begin()
    with pytest.raises(NotFound):
        world.inode(b"doe")
    world.fs.erasures.finish(number)
    world.expire()
    assert inode not in {past.inode for past in world.past()}
    with pytest.raises(NotFound):
        world.fs.versions.undelete(b"share/doe")
    with pytest.raises(NotFound):
        world.fs.versions.history(b"share/doe")
    world.fs.rollbacks.begin(RepositoryId(world.share), before)
    world.expire()
    assert world.names() == {b"other"}


def test_p74_what_is_protected_open_or_new_stays(world: Erases) -> None:
    share = RepositoryId(world.share)
    world.fs.retentions.hold(world.inode(b"doe"), "case", "court")
    assert why(world, b"doe") == [("held: case",)]
    world.fs.retentions.release(world.inode(b"doe"), "case", "over")
    handle = world.open(b"doe")
    [reasons] = why(world, b"doe")
    assert "it is open" in reasons
    world.fs.release(handle)
    settled(world)
    world.fs.link(world.inode(b"doe"), world.share, b"twin")
    [(one,)] = why(world, b"doe")
    assert "names" in one
    assert why(world, b"doe", b"twin") == [()]
    world.write(b"new", b"bytes")
    assert why(world, b"new") != [()]
    rules = world.fs.repositories.get(share)
    for wrong in ({"tripped_ns": 1, "tripped_why": "x"}, {"rolling_to_ns": 1}):
        world.fs._core.repositories[share] = dataclasses.replace(rules, **wrong)  # type: ignore[arg-type]
        assert why(world, b"doe", b"twin") != [()]
    world.fs._core.repositories[share] = rules
    number = world.fs.erasures.begin(share, "asked for").number
    [refused] = world.fs.erasures.add(number, [Wanted(world.inode(b"doe"), ((world.share, b"doe"),))])
    assert refused
    assert world.inode(b"doe") == world.inode(b"twin")


def test_p75_it_is_complete_only_when_every_target_was_seen_without_it(world: Erases) -> None:
    world.write(b"same", random.Random(b"other").randbytes(5_000))
    settled(world)
    assert world.has_bytes(MARK)
    world.targets[A].die(1e9)
    number = world.erase(b"doe", b"same")
    world.collect(5_000)
    assert not world.erasing(number).completed
    assert world.has_bytes(MARK)
    world.targets[A].forgive()
    world.until_complete(number)
    assert world.has_bytes(MARK) == []
    assert world.evict(b"other")
    assert world.read(b"other") == random.Random(b"other").randbytes(5_000)
    _, _, found = world.eraser.standing(number)
    assert sorted(content["also_of_other_files"] for content in found["contents"]) == [False, True]


def test_p76_it_goes_on_after_a_death_and_after_a_restore(world: Erases, tmp_path: Path) -> None:
    number = world.erase(b"doe")
    world.die()
    world.begin()
    assert world.eraser.step()
    assert world.manifests.step()
    (tmp_path / "other").mkdir()
    other = RebuiltErases(tmp_path / "other", world, A)
    other.settle()
    other.until_complete(number)
    assert other.has_bytes(MARK) == []
    assert other.names() == {b"other"}
