"""Repositories as they were, under `.as-of`."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from tests.semantics.trees import ALICE, Tree
from tests.unit.fs.test_history import overwrite, packed
from vnafs.domain.clock import NANOSECONDS
from vnafs.domain.errors import AlreadyExists, IsADirectory, NotFound, ReadOnly
from vnafs.domain.files import FileState
from vnafs.domain.ids import Inode
from vnafs.fs.asof import AS_OF, BASE, moment_of, name_of
from vnafs.fs.attributes import AttributeChanges
from vnafs.fs.recall import RangeNeeded
from vnafs.fs.settings import Settings


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path, settings=Settings(reserve_bytes=0, quiet_seconds=1))


def then(tree: Tree, moment_ns: int, *path: bytes) -> Inode:
    """What a path led to, through `.as-of`. Raises NotFound."""
    inode = tree.r
    for name in (AS_OF, name_of(moment_ns // NANOSECONDS), *path):
        found = tree.fs.find(inode, name)
        if found is None:
            raise NotFound(what=repr(name))
        inode = found.inode
    return inode


def second(tree: Tree) -> int:
    """A whole second that is past when this returns; everything before it was before it."""
    tree.clock.sleep(1)
    moment = tree.clock.now() // NANOSECONDS * NANOSECONDS
    tree.clock.sleep(1)
    return moment


def read(tree: Tree, inode: Inode) -> bytes:
    handle = tree.open(inode)
    try:
        return tree.fs.read(handle, 0, 1 << 20)
    except RangeNeeded as needed:
        facts = tree.fs.asof.kept_facts(needed.inode, needed.version) or tree.fs.facts(needed.inode)
        assert facts.sha256 is not None
        return tree.store[facts.sha256][needed.offset : needed.offset + needed.length]
    finally:
        tree.fs.release(handle)


def test_names_and_bytes_are_those_of_the_moment(tree: Tree) -> None:
    folder = tree.fs.mkdir(tree.r, b"d", 0o755, ALICE).inode
    one, two = packed(tree, b"one", b"first"), packed(tree, b"two", b"second")
    tree.fs.rename(tree.r, b"two", folder, b"two")
    before = second(tree)
    overwrite(tree, one, b"encrypted")
    tree.fs.unlink(folder, b"two")
    tree.fs.rmdir(tree.r, b"d")
    tree.file(b"later")
    assert [name for _, name, _ in tree.fs.listing(then(tree, before), 2)] == [b"d", b"one"]
    assert read(tree, then(tree, before, b"one")) == b"first"
    assert read(tree, then(tree, before, b"d", b"two")) == b"second"
    assert tree.fs.getattr(then(tree, before, b"one")).size_bytes == 5
    with pytest.raises(NotFound):
        then(tree, before, b"later")
    assert tree.fs.facts(one).state is FileState.OPEN, "nothing live was touched"
    del two


def test_a_version_that_still_is_is_read_where_it_is(tree: Tree) -> None:
    local, stub = packed(tree, b"local", b"here"), packed(tree, b"stub", b"away", FileState.REPLICATED)
    tree.evict(stub)
    before = second(tree)
    assert read(tree, then(tree, before, b"local")) == b"here"
    assert read(tree, then(tree, before, b"stub")) == b"away"
    assert tree.fs.facts(stub).state is FileState.STUB
    handle = tree.open(then(tree, before, b"local"))
    overwrite(tree, local, b"other bytes")
    with pytest.raises(RangeNeeded) as needed:
        tree.fs.read(handle, 1, 100)
    assert (needed.value.inode, needed.value.version, needed.value.length) == (local, 1, 3)
    tree.fs.release(handle)


def test_the_past_is_not_listed_and_its_name_is_taken(tree: Tree) -> None:
    assert tree.names(tree.r) == []
    folder = tree.fs.mkdir(tree.r, b"d", 0o755, ALICE).inode
    inode = tree.file(b"f")
    with pytest.raises(AlreadyExists):
        tree.fs.mkdir(tree.r, AS_OF, 0o755, ALICE)
    with pytest.raises(AlreadyExists):
        tree.fs.rename(tree.r, b"f", tree.r, AS_OF)
    with pytest.raises(AlreadyExists):
        tree.fs.link(inode, tree.r, AS_OF)
    assert tree.fs.find(folder, AS_OF) is None
    assert tree.fs.find(Inode(1), AS_OF) is None
    tree.fs.mkdir(folder, AS_OF, 0o755, ALICE)


def test_nothing_of_the_past_can_be_changed(tree: Tree) -> None:
    packed(tree, b"f")
    before = second(tree)
    top, file = then(tree, before), then(tree, before, b"f")
    calls = [
        lambda: tree.fs.unlink(top, b"f"),
        lambda: tree.fs.mkdir(top, b"d", 0o755, ALICE),
        lambda: tree.fs.create(top, b"g", 0o644, os.O_RDWR, ALICE),
        lambda: tree.fs.rename(top, b"f", tree.r, b"g"),
        lambda: tree.fs.rename(tree.r, b"f", top, b"g"),
        lambda: tree.fs.link(file, tree.r, b"g"),
        lambda: tree.fs.open(file, os.O_WRONLY, ALICE),
        lambda: tree.fs.open(file, os.O_TRUNC, ALICE),
        lambda: tree.fs.setattr(file, AttributeChanges(mode=0o600), ALICE),
        lambda: tree.fs.setxattr(file, b"user.x", b"1"),
    ]
    for call in calls:
        with pytest.raises(ReadOnly):
            call()
    assert not tree.stat(file).mode & 0o222
    with pytest.raises(IsADirectory):
        tree.open(top)


def test_moments_are_listed_and_only_those_that_are_kept_are_found(tree: Tree) -> None:
    made = tree.clock.now()
    tree.clock.sleep(3 * 86400)
    moments = tree.fs.find(tree.r, AS_OF)
    assert moments is not None
    assert stat.S_ISDIR(moments.mode)
    names = [name for _, name, _ in tree.fs.listing(moments.inode, 2)]
    assert len(names) == 24 + 2
    assert names == sorted(names)
    assert all(tree.fs.find(moments.inode, name) for name in names)
    for wrong in (made - NANOSECONDS, tree.clock.now() + 2 * NANOSECONDS):
        assert tree.fs.find(moments.inode, name_of(wrong // NANOSECONDS)) is None
    for odd in (b"@GMT-2026.13.01-00.00.00", b"@GMT-2026.1.1-0.0.0", b"x", b"@GMT-\xff"):
        assert moment_of(odd) is None
        assert tree.fs.find(moments.inode, odd) is None


def test_links_xattrs_and_the_way_up(tree: Tree) -> None:
    tree.fs.symlink(tree.r, b"l", b"where", ALICE)
    file = packed(tree, b"f")
    tree.fs.setxattr(file, b"user.x", b"1")
    before = second(tree)
    tree.fs.unlink(tree.r, b"l")
    tree.fs.unlink(tree.r, b"f")
    assert tree.fs.readlink(then(tree, before, b"l")) == b"where"
    found = then(tree, before, b"f")
    assert tree.fs.listxattr(found) == [b"user.x"]
    assert tree.fs.getxattr(found, b"user.x") == b"1"
    assert len(tree.fs.getxattr(found, b"user.vna.sha256")) == 64
    top = then(tree, before)
    above = tree.fs.find(top, b"..")
    assert above is not None
    assert above.inode == tree.fs.find(tree.r, AS_OF).inode >= BASE
    assert tree.fs.find(above.inode, b"..").inode == tree.r


def test_a_long_listing_goes_on_where_it_stopped(tree: Tree) -> None:
    for number in range(50):
        packed(tree, b"%02d" % number)
    before = second(tree)
    top, cookie, found = then(tree, before), 0, []
    while batch := tree.fs.listing(top, cookie):
        some = [item for _, item in zip(range(7), batch, strict=False)]
        if not some:
            break
        found += [name for _, name, _ in some]
        cookie = some[-1][0]
    assert found == [b".", b"..", *(b"%02d" % number for number in range(50))]
