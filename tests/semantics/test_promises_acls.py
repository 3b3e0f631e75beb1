"""P-91: POSIX ACLs, as the tree keeps them. What tools and the kernel make of them is in tests/system/test_acls.py."""

from __future__ import annotations

import dataclasses
import os
import stat
import struct
from pathlib import Path

import pytest

from tests.model.test_manifest_model import Recorded
from tests.model.test_restore_past import recorded, restored
from tests.semantics.trees import ALICE, Tree
from vnafs.domain import errors
from vnafs.domain.ids import Inode, RepositoryId
from vnafs.domain.retention import RetentionMode
from vnafs.fs.attributes import AttributeChanges
from vnafs.fs.posixacl import ACCESS, DEFAULT

USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 1, 2, 4, 8, 16, 32
NOBODY = (1 << 32) - 1
BOB = 1001


def acl(*entries: tuple[int, int] | tuple[int, int, int], version: int = 2) -> bytes:
    """As linux/posix_acl_xattr.h has it: tag, permissions and id."""
    whole = ((*entry, NOBODY)[:3] for entry in entries)
    return struct.pack("<I", version) + b"".join(struct.pack("<HHI", *entry) for entry in whole)


def for_bob(owner: int = 7, bob: int = 6, group: int = 4, mask: int = 6, other: int = 0) -> bytes:
    return acl((USER_OBJ, owner), (USER, bob, BOB), (GROUP_OBJ, group), (MASK, mask), (OTHER, other))


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def mode(tree: Tree, inode: Inode) -> int:
    return stat.S_IMODE(tree.stat(inode).mode)


def test_p91_the_mode_follows_the_acl_and_the_acl_the_mode(tree: Tree) -> None:
    inode = tree.file(b"f", mode=0o644)
    tree.fs.setacl(inode, ACCESS, for_bob(mask=6))
    assert mode(tree, inode) == 0o760
    tree.fs.setattr(inode, AttributeChanges(mode=0o2651), ALICE)
    assert tree.fs.getacl(inode, ACCESS) == for_bob(owner=6, mask=5, other=1)
    assert tree.fs.listxattr(inode, acls=True) == [ACCESS]
    assert tree.fs.listxattr(inode) == []
    tree.fs.setacl(inode, ACCESS, for_bob(), drops_setgid=True)
    assert mode(tree, inode) == 0o760


def test_p91_an_acl_that_says_no_more_than_a_mode_becomes_one(tree: Tree) -> None:
    inode = tree.file(b"f")
    tree.fs.setacl(inode, ACCESS, for_bob())
    tree.fs.setacl(inode, ACCESS, acl((USER_OBJ, 6), (GROUP_OBJ, 4), (OTHER, 4)))
    assert mode(tree, inode) == 0o644
    with pytest.raises(errors.NoSuchAttribute):
        tree.fs.getacl(inode, ACCESS)
    assert tree.fs.listxattr(inode, acls=True) == []


def test_p91_removing_an_acl_leaves_the_mode_and_may_be_done_twice(tree: Tree) -> None:
    inode = tree.file(b"f")
    tree.fs.setxattr(inode, b"user.x", b"1")
    tree.fs.setacl(inode, ACCESS, for_bob())
    for _ in range(2):
        tree.fs.removeacl(inode, ACCESS)
    tree.fs.setacl(inode, ACCESS, acl())  # says nothing: the same
    assert mode(tree, inode) == 0o760
    assert tree.fs.listxattr(inode, acls=True) == [b"user.x"]


def test_p91_what_is_made_in_a_directory_with_a_default_begins_with_it(tree: Tree) -> None:
    default = for_bob(owner=7, bob=7, group=5, mask=7, other=5)
    tree.fs.setacl(tree.r, DEFAULT, default)
    handle, made = tree.fs.create(tree.r, b"f", 0o640, os.O_RDWR, ALICE, 0o077)
    tree.fs.release(handle)
    assert stat.S_IMODE(made.mode) == 0o640
    assert tree.fs.getacl(made.inode, ACCESS) == for_bob(owner=6, bob=7, group=5, mask=4, other=0)
    below = tree.fs.mkdir(tree.r, b"d", 0o777, ALICE, 0o077).inode
    assert mode(tree, below) == 0o775
    assert (tree.fs.getacl(below, ACCESS), tree.fs.getacl(below, DEFAULT)) == (default, default)
    pipe = tree.fs.mknod(below, b"p", stat.S_IFIFO | 0o666, 0, ALICE, 0o077).inode
    assert mode(tree, pipe) == 0o664
    link = tree.fs.symlink(below, b"l", b"f", ALICE)
    assert (stat.S_IMODE(link.mode), tree.fs.listxattr(link.inode, acls=True)) == (0o777, [])


def test_p91_a_default_without_names_only_takes_the_place_of_the_umask(tree: Tree) -> None:
    tree.fs.setacl(tree.r, DEFAULT, acl((USER_OBJ, 7), (GROUP_OBJ, 5), (OTHER, 0)))
    inode = tree.fs.mknod(tree.r, b"f", 0o666, 0, ALICE, 0o077).inode
    assert (mode(tree, inode), tree.fs.listxattr(inode, acls=True)) == (0o640, [])


def test_p91_elsewhere_the_umask_counts(tree: Tree) -> None:
    handle, made = tree.fs.create(tree.r, b"f", 0o666, os.O_RDWR, ALICE, 0o027)
    tree.fs.release(handle)
    assert stat.S_IMODE(made.mode) == 0o640
    assert mode(tree, tree.fs.mkdir(tree.r, b"d", 0o777, ALICE, 0o027).inode) == 0o750


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\2\0\0",
        for_bob()[:-1],
        acl((USER_OBJ, 6), (GROUP_OBJ, 4), (OTHER, 4), version=1),
        acl((USER_OBJ, 6), (GROUP_OBJ, 4)),
        acl((USER_OBJ, 6), (USER_OBJ, 6), (GROUP_OBJ, 4), (OTHER, 4)),
        acl((USER_OBJ, 6), (USER, 6, BOB), (GROUP_OBJ, 4), (OTHER, 4)),
        acl((USER_OBJ, 6), (USER, 6, NOBODY), (GROUP_OBJ, 4), (MASK, 7), (OTHER, 4)),
        acl((GROUP_OBJ, 4), (USER_OBJ, 6), (OTHER, 4)),
        acl((USER_OBJ, 8), (GROUP_OBJ, 4), (OTHER, 4)),
        acl((USER_OBJ, 6), (GROUP_OBJ, 4), (OTHER, 4), (64, 4)),
    ],
)
def test_p91_what_is_no_acl_is_refused(tree: Tree, value: bytes) -> None:
    inode = tree.file(b"f")
    with pytest.raises(errors.InvalidArgument):
        tree.fs.setacl(inode, ACCESS, value)
    assert mode(tree, inode) == 0o644


def test_p91_linux_could_not_ask_for_an_acl_that_is_too_large(tree: Tree) -> None:
    inode = tree.file(b"f")
    users = [(USER, 4, number) for number in range(507)]
    tree.fs.setacl(inode, ACCESS, acl((USER_OBJ, 6), *users, (GROUP_OBJ, 4), (MASK, 4), (OTHER, 4)))
    users.append((USER, 4, 507))
    with pytest.raises(errors.TooBig):
        tree.fs.setacl(inode, ACCESS, acl((USER_OBJ, 6), *users, (GROUP_OBJ, 4), (MASK, 4), (OTHER, 4)))


def test_p91_only_directories_have_a_default(tree: Tree) -> None:
    with pytest.raises(errors.AccessDenied):
        tree.fs.setacl(tree.file(b"f"), DEFAULT, for_bob())


def test_p91_what_is_retained_keeps_its_acl(tree: Tree) -> None:
    known = tree.fs.repositories.get(RepositoryId(tree.r))
    tree.fs.repositories.set(
        dataclasses.replace(known, retention=RetentionMode.COMPLIANCE, retention_seconds=86400), reason=""
    )
    inode = tree.file(b"f")
    tree.fs.setacl(inode, ACCESS, for_bob())
    tree.fs.retentions.retain([(inode, Inode(0))], seconds=86400)
    with pytest.raises(errors.Retained):
        tree.fs.setacl(inode, ACCESS, for_bob(bob=0))
    with pytest.raises(errors.Retained):
        tree.fs.removeacl(inode, ACCESS)
    assert tree.fs.getacl(inode, ACCESS) == for_bob()


def test_p91_a_manifest_brings_acls_back(tmp_path: Path) -> None:
    (tmp_path / "world").mkdir()
    world = Recorded(tmp_path / "world")
    world.write(b"f", b"bytes")
    share = world.fs.lookup(Inode(1), b"share").inode
    world.fs.setacl(share, DEFAULT, for_bob())
    world.fs.setacl(world.inode(b"f"), ACCESS, for_bob(owner=5))
    world.write(b"below", b"inherits")
    recorded(world)
    made = restored(world, tmp_path / "made")
    for name in (b"f", b"below"):
        inode = made.inode(name)
        assert made.fs.getacl(inode, ACCESS) == world.fs.getacl(world.inode(name), ACCESS)
        assert made.fs.getattr(inode).mode == world.fs.getattr(world.inode(name)).mode
    assert made.fs.getacl(made.fs.lookup(Inode(1), b"share").inode, DEFAULT) == for_bob()


def test_p91_what_comes_back_has_mode_and_acl_in_step(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    inode = tree.file(b"f", b"first")
    tree.fs.setacl(inode, ACCESS, for_bob(mask=4))
    tree.advance(inode)
    tree.fs.release(tree.open(inode, os.O_WRONLY | os.O_TRUNC))
    tree.fs.setacl(inode, ACCESS, for_bob(mask=7, other=5))
    tree.advance(inode)
    tree.fs.unlink(tree.r, b"f")
    [first] = [shown for shown in tree.fs.versions.history(b"r/f") if shown.size_bytes == 5]
    tree.fs.versions.undelete(b"r/f", label=first.label)
    back = tree.fs.lookup(tree.r, b"f").inode
    assert mode(tree, back) == 0o740
    assert tree.fs.getacl(back, ACCESS) == for_bob(mask=4)
