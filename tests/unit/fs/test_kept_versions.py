"""What there was under a path, and having it again."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.model.treecheck import check_tree
from tests.semantics.trees import ALICE, Tree
from tests.unit.fs.test_history import overwrite, packed
from vnafs.domain.errors import AlreadyExists, NotFound, Refused
from vnafs.domain.files import FileState
from vnafs.domain.ids import Inode
from vnafs.fs.recall import RecallNeeded
from vnafs.fs.settings import Settings
from vnafs.index import returned


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path, settings=Settings(reserve_bytes=0, quiet_seconds=1))


def content(tree: Tree, inode: Inode) -> bytes:
    """Its bytes, recalled if need be."""
    try:
        return tree.read(inode)
    except RecallNeeded as needed:
        tree.recall(needed)
        return tree.read(inode)


def at(tree: Tree, name: bytes) -> Inode:
    return tree.fs.lookup(tree.r, name).inode


def test_a_deleted_file_comes_back_with_bytes_attributes_and_xattrs(tree: Tree) -> None:
    old = packed(tree, b"f", b"precious")
    tree.fs.setxattr(old, b"user.x", b"1")
    before = tree.stat(old)
    tree.clock.sleep(5)
    tree.fs.unlink(tree.r, b"f")
    assert tree.fs.versions.history(b"r/f")[0].is_kept
    tree.fs.versions.undelete(b"r/f")
    new = at(tree, b"f")
    assert new != old
    assert tree.fs.facts(new).state is FileState.STUB
    after = tree.stat(new)
    for field in ("mode", "uid", "gid", "size_bytes", "atime_ns", "mtime_ns", "nlink"):
        assert getattr(after, field) == getattr(before, field), field
    assert tree.fs.getxattr(new, b"user.x") == b"1"
    assert content(tree, new) == b"precious"
    check_tree(tree.engine, tree.spool)


def test_the_store_is_told_what_came_back_and_until_then_nothing_expires(tree: Tree) -> None:
    packed(tree, b"f")
    tree.fs.unlink(tree.r, b"f")
    tree.fs.versions.undelete(b"r/f")
    new = at(tree, b"f")
    with tree.engine.read() as reader:
        [found] = returned.some(reader, 10)
    assert (found.inode, found.version, found.sha256) == (new, 1, tree.fs.facts(new).sha256)
    tree.clock.sleep(40 * 86400)
    assert not tree.fs.upkeep()
    assert tree.fs.versions.history(b"r/f")[0].ended_ns is not None
    tree.fs.heard([(found.inode, found.version)])
    while tree.fs.upkeep():
        pass
    assert [shown.ended_ns for shown in tree.fs.versions.history(b"r/f")] == [None]


def test_an_overwritten_version_comes_back_beside_the_live_one_or_over_it_only_when_told(tree: Tree) -> None:
    inode = packed(tree, b"f", b"one")
    tree.clock.sleep(5)
    overwrite(tree, inode, b"two")
    with pytest.raises(AlreadyExists):
        tree.fs.versions.undelete(b"r/f")
    assert content(tree, at(tree, b"f")) == b"two"
    tree.fs.versions.undelete(b"r/f", to=b"r/old")
    assert content(tree, at(tree, b"old")) == b"one"
    tree.advance(inode, FileState.PACKED)
    tree.clock.sleep(5)
    tree.fs.versions.undelete(b"r/f", label="1", replace=True)
    assert content(tree, at(tree, b"f")) == b"one"
    tree.fs.versions.undelete(b"r/f", label=f"{inode}.2", replace=True)
    assert content(tree, at(tree, b"f")) == b"two"
    check_tree(tree.engine, tree.spool)


def test_a_moment_says_which_version(tree: Tree) -> None:
    inode = packed(tree, b"f", b"one")
    moments = []
    for data in (b"two", b"three"):
        tree.clock.sleep(100)
        moments.append(tree.clock.now() - 1)
        overwrite(tree, inode, data)
        tree.advance(inode, FileState.PACKED)
    for number, (moment, data) in enumerate(zip(moments, (b"one", b"two"), strict=True)):
        tree.fs.versions.undelete(b"r/f", at_ns=moment, to=b"r/%d" % number)
        assert content(tree, at(tree, b"%d" % number)) == data
    with pytest.raises(NotFound):
        tree.fs.versions.undelete(b"r/f", at_ns=moments[0] - 1000 * 10**9, to=b"r/x")


def test_a_version_that_never_came_into_packs_is_shown_and_refused(tree: Tree) -> None:
    inode = packed(tree, b"f", b"one", FileState.SEALED)
    overwrite(tree, inode, b"two")
    first, _ = tree.fs.versions.history(b"r/f")
    assert not first.is_kept
    with pytest.raises(Refused):
        tree.fs.versions.undelete(b"r/f", label=first.label, to=b"r/g")


def test_files_of_a_folder_that_is_gone_are_found_by_its_path(tree: Tree) -> None:
    folder = tree.fs.mkdir(tree.r, b"d", 0o700, ALICE).inode
    packed(tree, b"f", b"deep")
    tree.fs.rename(tree.r, b"f", folder, b"f")
    tree.clock.sleep(10)
    tree.fs.unlink(folder, b"f")
    tree.fs.rmdir(tree.r, b"d")
    assert [shown.name for shown in tree.fs.versions.deleted_in(b"r")[0]] == [b"d", b"f"]
    assert [shown.name for shown in tree.fs.versions.deleted_in(b"r/d")[0]] == [b"f"]
    assert tree.fs.versions.is_directory(b"r/d")
    with pytest.raises(NotFound):
        tree.fs.versions.undelete(b"r/d/f")
    tree.fs.versions.undelete(b"r/d")
    assert tree.stat(at(tree, b"d")).mode & 0o777 == 0o700
    tree.fs.versions.undelete(b"r/d/f")
    assert content(tree, tree.fs.lookup(at(tree, b"d"), b"f").inode) == b"deep"
    check_tree(tree.engine, tree.spool)


def test_what_was_deleted_comes_in_pages_and_only_what_has_no_such_name_now(tree: Tree) -> None:
    for name in (b"a", b"ab", b"b", b"c"):
        for _ in range(2):
            packed(tree, name)
            tree.clock.sleep(10)
            tree.fs.unlink(tree.r, name)
    packed(tree, b"b")
    first, after = tree.fs.versions.deleted_in(b"r", limit=2)
    second, end = tree.fs.versions.deleted_in(b"r", after, 2)
    assert [[shown.name for shown in page] for page in (first, second)] == [[b"a", b"ab"], [b"c"]]
    assert (after, end) == (b"ab", b"")


def test_a_name_that_was_one_of_several_comes_back_as_a_name_of_the_same_file(tree: Tree) -> None:
    inode = packed(tree, b"f")
    tree.fs.link(inode, tree.r, b"g")
    tree.clock.sleep(5)
    tree.fs.unlink(tree.r, b"f")
    tree.fs.versions.undelete(b"r/f", at_ns=tree.clock.now() - 1)
    assert at(tree, b"f") == inode
    assert tree.stat(inode).nlink == 2
    check_tree(tree.engine, tree.spool)


def test_a_link_comes_back_with_its_target(tree: Tree) -> None:
    tree.fs.symlink(tree.r, b"l", b"where", ALICE)
    tree.clock.sleep(5)
    tree.fs.unlink(tree.r, b"l")
    tree.fs.versions.undelete(b"r/l")
    assert tree.fs.readlink(at(tree, b"l")) == b"where"


def test_nothing_comes_back_into_another_repository(tree: Tree) -> None:
    tree.repository("other")
    packed(tree, b"f")
    tree.fs.unlink(tree.r, b"f")
    with pytest.raises(Refused):
        tree.fs.versions.undelete(b"r/f", to=b"other/f")


def test_what_came_back_can_be_written_and_removed_before_the_store_heard_of_it(tree: Tree) -> None:
    packed(tree, b"f", b"one")
    tree.fs.unlink(tree.r, b"f")
    tree.fs.versions.undelete(b"r/f")
    new = at(tree, b"f")
    tree.fs.release(tree.open(new, os.O_WRONLY | os.O_TRUNC))
    tree.fs.unlink(tree.r, b"f")
    assert [shown.is_kept for shown in tree.fs.versions.history(b"r/f")] == [True, True]
    check_tree(tree.engine, tree.spool)
