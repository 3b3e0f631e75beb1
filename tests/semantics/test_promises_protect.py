"""Promises about files that stay open. How tiering keeps them step by step: `tests/model/test_protect_days.py`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.model.pipelineworld import SOMEBODY, World
from tests.model.test_protect_days import pass_time
from tests.semantics.trees import ALICE, Tree
from vnafs.domain.files import FileState, Verdict
from vnafs.domain.ids import Version
from vnafs.fs.attributes import AttributeChanges
from vnafs.fs.fences import RESPITE, WritersHeld
from vnafs.pipeline.protect import copy_as_of

AGE_SECONDS = 30.0


def test_p51_a_file_that_stays_open_is_copied_as_it_was_and_stays_open(tmp_path: Path) -> None:
    world = World(tmp_path, unprotected_seconds_max=AGE_SECONDS)
    handle, made = world.fs.create(world.share, b"file", 0o644, os.O_RDWR, SOMEBODY)
    taken = []
    for number in range(2):
        world.fs.write(handle, 0, b"%d" % number + b"x" * 5_000)
        pass_time(world, AGE_SECONDS + 30)
        found = copy_as_of(world._store, made.inode)
        assert found is not None
        taken.append(found.frozen.taken)
        repository = world.fs.facts(made.inode).repository
        staged = world.tiering.recaller.recall(made.inode, Version(1), found.frozen.sha256, repository)
        assert Path(staged).read_bytes() == b"%d" % number + b"x" * 5_000
        os.unlink(staged)
        assert world.state(b"file") is FileState.OPEN
        assert not world.evict(b"file")
    assert taken[0] < taken[1]
    world.stop()


def test_p52_writers_wait_for_a_bounded_time_and_not_again_at_once(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    handle = tree.create(b"f", b"bytes")
    other = tree.create(b"other", b"bytes")
    inode, seconds = handle.file.inode, tree.settings.hold_seconds_max
    assert tree.fs.hold(inode, Version(1)) is Verdict.DONE
    with pytest.raises(WritersHeld):
        tree.fs.write(handle, 0, b"X")
    with pytest.raises(WritersHeld):
        tree.fs.setattr(inode, AttributeChanges(size_bytes=0), ALICE)
    tree.fs.write(other, 0, b"X")
    assert tree.fs.read(handle, 0, 9) == b"bytes"
    tree.clock.sleep(seconds)
    tree.fs.write(handle, 0, b"X")
    assert tree.fs.hold(inode, Version(1)) is Verdict.BUSY
    tree.clock.sleep(RESPITE * seconds)
    assert tree.fs.hold(inode, Version(1)) is Verdict.DONE
