"""P-53 and what follows: overwritten and deleted contents are kept, and come back."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.semantics.trees import Tree
from vnafs.domain.files import FileState
from vnafs.fs.settings import Settings
from vnafs.index import past


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path, settings=Settings(reserve_bytes=0, quiet_seconds=1))


def test_p53_what_is_overwritten_or_deleted_is_kept_once_it_was_packed(tree: Tree) -> None:
    overwritten, deleted, early = tree.file(b"o"), tree.file(b"d"), tree.file(b"early")
    tree.fs.setxattr(deleted, b"user.x", b"1")
    tree.clock.sleep(60)
    tree.advance(overwritten, FileState.PACKED)
    tree.advance(deleted, FileState.PACKED)
    tree.fs.release(tree.open(overwritten, os.O_WRONLY | os.O_TRUNC))
    for name in (b"d", b"early"):
        tree.fs.unlink(tree.r, name)
    with tree.engine.read() as reader:
        kept = [past.last_version(reader, inode) for inode in (overwritten, deleted, early)]
    assert [found is not None and found.is_kept for found in kept] == [True, True, False]


def test_p54_what_a_name_led_to_is_kept_but_for_brief_names_of_uploads(tree: Tree) -> None:
    for name in (b"brief", b"long"):
        tree.file(name)
        tree.clock.sleep(2 if name == b"long" else 0)
        tree.fs.rename(tree.r, name, tree.r, b"now " + name)
    with tree.engine.read() as reader:
        assert [found.name for found in past.names_in(reader, tree.r)] == [b"long"]
