"""What names led to and what versions were: kept as long as the repository says, and told to whoever follows."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from tests.model.treecheck import check_tree
from tests.semantics.trees import ALICE, Tree
from vnafs.domain.events import EventKind
from vnafs.domain.files import FileState, Proposal, Verdict
from vnafs.domain.ids import Inode, RepositoryId, Version
from vnafs.fs.settings import Settings
from vnafs.index import keys, past
from vnafs.index.engine import prefix_stop
from vnafs.index.feeds import read_from
from vnafs.index.past import PastName, PastVersion

DAY = 86400.0


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path, settings=Settings(reserve_bytes=0, quiet_seconds=1))


def names(tree: Tree, name: bytes, parent: Inode | None = None) -> list[PastName]:
    with tree.engine.read() as reader:
        return list(past.names_of(reader, parent or tree.r, name))


def versions(tree: Tree, inode: Inode) -> list[PastVersion]:
    with tree.engine.read() as reader:
        return list(past.versions_of(reader, inode))


def packed(tree: Tree, name: bytes, data: bytes = b"bytes", state: FileState = FileState.PACKED) -> Inode:
    inode = tree.file(name, data)
    tree.clock.sleep(10)
    assert tree.advance(inode, state) is Verdict.DONE
    return inode


def overwrite(tree: Tree, inode: Inode, data: bytes) -> None:
    handle = tree.open(inode, os.O_WRONLY | os.O_TRUNC)
    tree.fs.write(handle, 0, data)
    tree.fs.release(handle)


def test_a_packed_file_that_is_deleted_is_kept_with_its_name_attributes_and_xattrs(tree: Tree) -> None:
    made = tree.clock.now()
    inode = packed(tree, b"f")
    tree.fs.setxattr(inode, b"user.x", b"1")
    tree.clock.sleep(5)
    tree.fs.unlink(tree.r, b"f")
    [name], [version] = names(tree, b"f"), versions(tree, inode)
    assert (name.inode, name.since_ns, name.ended_ns) == (inode, made, tree.clock.now())
    assert version.is_kept
    assert version.is_last
    assert (version.since_ns, version.ended_ns) == (made, tree.clock.now())
    assert version.row.mode & 0o777 == 0o644
    with tree.engine.read() as reader:
        assert reader.get(keys.xattr(inode, b"user.x")) == b"1"


def test_a_file_that_was_never_sealed_leaves_nothing(tree: Tree) -> None:
    inode = tree.file(b"upload.tmp")
    tree.clock.sleep(5)
    tree.fs.unlink(tree.r, b"upload.tmp")
    assert names(tree, b"upload.tmp") == []
    assert versions(tree, inode) == []


def test_the_brief_name_of_an_upload_is_not_noted_and_a_long_one_is(tree: Tree) -> None:
    tree.file(b"a.tmp")
    tree.fs.rename(tree.r, b"a.tmp", tree.r, b"a")
    assert names(tree, b"a.tmp") == []
    tree.clock.sleep(5)
    renamed = tree.clock.now()
    tree.fs.rename(tree.r, b"a", tree.r, b"b")
    [name] = names(tree, b"a")
    assert name.ended_ns == renamed
    with tree.engine.read() as reader:
        found = past.find_at(reader, tree.r, b"b", renamed)
        assert found is not None
        assert past.find_at(reader, tree.r, b"b", renamed - 1) is None
        assert past.find_at(reader, tree.r, b"a", renamed - 1) == found._replace(name=b"a")
        assert past.find_at(reader, tree.r, b"a", renamed) is None


def test_overwritten_versions_follow_each_other_without_gaps(tree: Tree) -> None:
    inode = packed(tree, b"f", b"one")
    tree.clock.sleep(5)
    second = tree.clock.now()
    overwrite(tree, inode, b"two")
    tree.advance(inode, FileState.PACKED)
    tree.clock.sleep(5)
    third = tree.clock.now()
    overwrite(tree, inode, b"three")
    one, two = versions(tree, inode)
    assert (one.version, one.ended_ns, two.since_ns, two.ended_ns) == (1, second, second, third)
    assert one.is_kept
    assert not one.is_last
    with tree.engine.read() as reader:
        assert past.version_at(reader, inode, second - 1) == one
        assert past.version_at(reader, inode, second) == two
        assert past.version_at(reader, inode, third) is None


def test_a_version_that_is_packed_after_it_was_over_is_kept_after_all(tree: Tree) -> None:
    inode = packed(tree, b"f", state=FileState.SEALED)
    seal = tree.seal_of(inode)
    tree.fs.unlink(tree.r, b"f")
    [version] = versions(tree, inode)
    assert not version.is_kept
    other = dataclasses.replace(seal, sha256=type(seal.sha256)(bytes(32)))
    proposals = [Proposal(inode, Version(1), FileState.PACKED, of) for of in (other, seal, seal)]
    assert tree.fs.advance(proposals) == [Verdict.GONE, Verdict.KEPT, Verdict.KEPT]
    [version] = versions(tree, inode)
    assert version.is_kept


def test_rename_over_a_packed_file_keeps_it(tree: Tree) -> None:
    old = packed(tree, b"f", b"old")
    new = tree.file(b"g", b"new")
    tree.fs.rename(tree.r, b"g", tree.r, b"f")
    assert [name.inode for name in names(tree, b"f")] == [old]
    [version] = versions(tree, old)
    assert version.is_last
    assert versions(tree, new) == []


def test_a_file_that_is_open_when_it_is_removed_is_kept_once_it_is_closed(tree: Tree) -> None:
    inode = packed(tree, b"f")
    handle = tree.open(inode)
    tree.fs.unlink(tree.r, b"f")
    assert versions(tree, inode) == []
    tree.fs.release(handle)
    assert [version.is_last for version in versions(tree, inode)] == [True]
    assert [name.inode for name in names(tree, b"f")] == [inode]


def test_directories_and_links_are_kept_with_what_they_are(tree: Tree) -> None:
    directory = tree.fs.mkdir(tree.r, b"d", 0o750, ALICE).inode
    link = tree.fs.symlink(directory, b"l", b"where", ALICE).inode
    tree.clock.sleep(1)
    tree.fs.unlink(directory, b"l")
    tree.fs.rmdir(tree.r, b"d")
    assert [version.row.mode & 0o777 for version in versions(tree, directory)] == [0o750]
    assert [version.is_kept for version in versions(tree, link)] == [True]
    assert names(tree, b"l", directory)
    with tree.engine.read() as reader:
        assert reader.get(keys.symlink(link)) == b"where"


def test_a_listing_of_the_past_has_what_was_there_and_nothing_else(tree: Tree) -> None:
    for name in (b"a", b"ab", b"b", b"c"):
        packed(tree, name)
    moment = tree.clock.now()
    tree.clock.sleep(1)
    tree.fs.unlink(tree.r, b"a")
    tree.fs.rename(tree.r, b"b", tree.r, b"bb")
    packed(tree, b"a")
    packed(tree, b"d")
    with tree.engine.read() as reader:
        assert [found.name for found in past.listing_at(reader, tree.r, moment)] == [b"a", b"ab", b"b", b"c"]
        assert [found.name for found in past.listing_at(reader, tree.r, moment, b"a")] == [b"ab", b"b", b"c"]
        now = tree.clock.now()
        assert [found.name for found in past.listing_at(reader, tree.r, now)] == [b"a", b"ab", b"bb", b"c", b"d"]


def test_the_past_is_forgotten_after_its_time_and_the_feed_says_so(tree: Tree) -> None:
    tree.fs.repositories.set(
        dataclasses.replace(tree.fs.repositories.get(RepositoryId(tree.r)), versions_kept_seconds=int(DAY))
    )
    first, second = packed(tree, b"f"), packed(tree, b"g")
    tree.fs.setxattr(first, b"user.x", b"1")
    tree.fs.unlink(tree.r, b"f")
    tree.clock.sleep(DAY / 2)
    tree.fs.unlink(tree.r, b"g")
    tree.clock.sleep(DAY / 2)
    while tree.fs.upkeep():
        pass
    assert (names(tree, b"f"), versions(tree, first)) == ([], [])
    assert versions(tree, second)
    with tree.engine.read() as reader:
        assert reader.get(keys.xattr(first, b"user.x")) is None
        told = [event.kind for _, event in read_from(reader, 1, 1000) if event.inode == first]
    assert {EventKind.NAME_EXPIRED, EventKind.VERSION_EXPIRED} <= set(told)
    tree.clock.sleep(DAY)
    while tree.fs.upkeep():
        pass
    with tree.engine.read() as reader:
        for table in (keys.PAST_NAMES, keys.PAST_VERSIONS, keys.ENDINGS):
            assert not list(reader.scan(table, prefix_stop(table)))
    check_tree(tree.engine, tree.spool)


def test_a_repository_that_keeps_nothing_keeps_nothing(tree: Tree) -> None:
    tree.fs.repositories.set(
        dataclasses.replace(tree.fs.repositories.get(RepositoryId(tree.r)), versions_kept_seconds=0)
    )
    inode = packed(tree, b"f")
    overwrite(tree, inode, b"new")
    tree.fs.unlink(tree.r, b"f")
    assert (names(tree, b"f"), versions(tree, inode)) == ([], [])


def test_a_clock_that_was_set_back_leaves_an_interval(tree: Tree) -> None:
    inode = packed(tree, b"f")
    tree.clock.sleep(-1000)
    tree.fs.unlink(tree.r, b"f")
    [name], [version] = names(tree, b"f"), versions(tree, inode)
    assert name.ended_ns == name.since_ns + 1
    assert version.ended_ns == version.since_ns + 1
