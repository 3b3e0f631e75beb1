"""Erased files and plain mirrors, also one that keeps what is removed: see `mirrorworld`."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.model.mirrorworld import Mirrored
from vnafs.domain.ids import RepositoryId
from vnafs.fs.erasure import Wanted
from vnafs.index import mirrored
from vnafs.upkeep.mirroring import MirrorRules

MARK = random.Random(4711).randbytes(64)


def has_mark(world: Mirrored) -> list[str]:
    return [name for name in world.place.list() if MARK in world.place.objects[name]]


@pytest.mark.parametrize("keeps", [False, True])
def test_an_erased_file_goes_from_a_mirror_that_keeps_what_is_removed_too(home: Path, *, keeps: bool) -> None:
    world = Mirrored(home, MirrorRules("memory:", harm_seconds=0.0, transfers_max=2, keeps_removed=keeps))
    for name in (b"doe", b"removed", b"other"):
        world.write(name, MARK + name if name != b"other" else b"bytes")
    world.clock.advance(20)
    world.settle()
    world.mirror()
    inode = world.inode(b"doe")
    assert len(has_mark(world)) == 2
    world.unlink(b"removed")
    number = world.fs.erasures.begin(RepositoryId(world.share), "asked for").number
    assert world.fs.erasures.add(number, [Wanted(inode, ((world.share, b"doe"),))]) == [()]
    world.fs.erasures.finish(number)
    world.fs.fold()
    world.mirror()
    assert [MARK + b"removed"] * keeps == [world.place.objects[name] for name in has_mark(world)]
    with world.rows.read() as reader:
        assert mirrored.names_of(reader, inode) == []
    told = [name for name in world.place.list() if b"doe" in world.place.objects[name]]
    assert told == []
