"""P-56 and what follows: overwritten and deleted contents are kept, and come back."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from tests.model.treecheck import check_tree
from tests.semantics.trees import ALICE, Tree
from vnafs.domain.errors import AlreadyExists, ReadOnly
from vnafs.domain.files import FileState
from vnafs.domain.ids import RepositoryId
from vnafs.domain.repositories import OnTrip
from vnafs.fs.asof import name_of
from vnafs.fs.recall import RecallNeeded
from vnafs.fs.settings import Settings
from vnafs.index import past


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path, settings=Settings(reserve_bytes=0, quiet_seconds=1))


def test_p56_what_is_overwritten_or_deleted_is_kept_once_it_was_sealed(tree: Tree) -> None:
    overwritten, deleted, early, late = (tree.file(name) for name in (b"o", b"d", b"early", b"late"))
    tree.fs.setxattr(deleted, b"user.x", b"1")
    tree.clock.sleep(60)
    for inode in (overwritten, deleted):
        tree.advance(inode, FileState.PACKED)
    tree.advance(late, FileState.SEALED)
    tree.fs.release(tree.open(overwritten, os.O_WRONLY | os.O_TRUNC))
    for name in (b"d", b"early", b"late"):
        tree.fs.unlink(tree.r, name)

    def kept() -> list[bool]:
        with tree.engine.read() as reader:
            found = [past.last_version(reader, inode) for inode in (overwritten, deleted, early, late)]
        return [one is not None and one.is_kept for one in found]

    assert kept() == [True, True, False, False]
    tree.pack_left()
    assert kept() == [True, True, False, True]


def test_p57_what_a_name_led_to_is_kept_but_for_brief_names_of_uploads(tree: Tree) -> None:
    for name in (b"brief", b"long"):
        tree.file(name)
        tree.clock.sleep(2 if name == b"long" else 0)
        tree.fs.rename(tree.r, name, tree.r, b"now " + name)
    with tree.engine.read() as reader:
        assert [found.name for found in past.names_in(reader, tree.r)] == [b"long"]


def test_p58_what_comes_back_is_a_new_file_and_takes_nobodys_name(tree: Tree) -> None:
    old = tree.file(b"f", b"old")
    tree.clock.sleep(60)
    tree.advance(old, FileState.PACKED)
    tree.fs.unlink(tree.r, b"f")
    tree.file(b"f", b"newer")
    with pytest.raises(AlreadyExists):
        tree.fs.versions.undelete(b"r/f")
    made = tree.fs.versions.undelete(b"r/f", to=b"r/g").inode
    assert made != old
    assert tree.fs.facts(made).state is FileState.STUB
    assert tree.stat(made).size_bytes == 3
    assert tree.names(tree.r) == [b"f", b"g"]


def test_p59_a_rollback_brings_back_what_was_and_can_be_undone(tree: Tree) -> None:
    inode = tree.file(b"f", b"old")
    tree.clock.sleep(60)
    tree.advance(inode, FileState.PACKED)
    before = tree.clock.now()
    tree.clock.sleep(60)
    tree.fs.unlink(tree.r, b"f")
    tree.file(b"g", b"not packed yet")
    after = tree.clock.now()
    tree.clock.sleep(60)
    number = RepositoryId(tree.r)
    for moment, names in ((before, [b"f"]), (after, [b"g"])):
        tree.fs.rollbacks.begin(number, moment)
        with pytest.raises(ReadOnly):
            tree.fs.mkdir(tree.r, b"d", 0o755, ALICE)
        tree.crash()
        while tree.fs.repositories.get(number).rolling_to_ns:
            tree.fs.upkeep()
        assert tree.names(tree.r) == names
    assert tree.read(tree.fs.lookup(tree.r, b"g").inode) == b"not packed yet"


def test_p60_the_past_is_there_to_be_read_and_not_to_be_changed(tree: Tree) -> None:
    inode = tree.file(b"f", b"old")
    tree.clock.sleep(60)
    tree.advance(inode, FileState.PACKED)
    moment = tree.clock.now() // 10**9
    tree.clock.sleep(60)
    tree.fs.unlink(tree.r, b"f")
    above = tree.fs.find(tree.r, b".as-of")
    assert above is not None
    top = tree.fs.find(above.inode, name_of(moment))
    assert top is not None
    found = tree.fs.find(top.inode, b"f")
    assert found is not None
    assert found.size_bytes == 3
    with pytest.raises(ReadOnly):
        tree.fs.unlink(top.inode, b"f")
    assert tree.names(tree.r) == []


def test_p61_very_much_change_in_a_minute_stops_expiry_and_where_wanted_clients(tree: Tree) -> None:
    number = RepositoryId(tree.r)
    rules = dataclasses.replace(tree.fs.repositories.get(number), tripwire_per_minute=2, versions_kept_seconds=100)
    tree.fs.repositories.set(rules)
    for name in (b"1", b"2", b"3"):
        tree.advance(tree.file(name), FileState.PACKED)
        tree.fs.unlink(tree.r, name)
    tree.clock.sleep(1000)
    tree.fs.upkeep()
    assert len(tree.fs.versions.deleted_in(b"r")[0]) == 3
    tree.fs.repositories.set(dataclasses.replace(rules, tripwire=OnTrip.READ_ONLY))
    with pytest.raises(ReadOnly):
        tree.fs.mkdir(tree.r, b"d", 0o755, ALICE)
    tree.fs.repositories.set(rules, reset_tripwire=True)
    tree.fs.mkdir(tree.r, b"d", 0o755, ALICE)
    while tree.fs.upkeep():
        pass
    assert not tree.fs.versions.deleted_in(b"r")[0]


def test_p77_local_bytes_of_a_sealed_version_stay_until_they_are_packed(tree: Tree) -> None:
    limit_bytes = tree.settings.left_copy_bytes_max
    assert limit_bytes == 16 << 20
    data = {b"deleted": b"1", b"replaced": b"2", b"emptied": b"3", b"written to": b"4" * 100, b"unsealed": b"5"}
    inodes = {name: tree.file(name, bytes_) for name, bytes_ in data.items()}
    tree.clock.sleep(60)
    for name in list(data)[:4]:
        tree.advance(inodes[name], FileState.SEALED)
    tree.fs.unlink(tree.r, b"deleted")
    tree.file(b"other", b"other")
    tree.fs.rename(tree.r, b"other", tree.r, b"replaced")
    tree.fs.release(tree.open(inodes[b"emptied"], os.O_WRONLY | os.O_TRUNC))
    handle = tree.open(inodes[b"written to"], os.O_WRONLY)
    tree.fs.write(handle, 0, b"encrypted")
    tree.fs.release(handle)
    tree.fs.unlink(tree.r, b"unsealed")
    tree.engine.sync(tree.engine.position)
    tree.fs.reap()
    tree.crash()
    assert [path.read_bytes() for path in tree.left().values()] == list(data.values())[:4]
    check_tree(tree.engine, tree.spool)
    tree.pack_left()
    tree.engine.sync(tree.engine.position)
    tree.fs.reap()
    check_tree(tree.engine, tree.spool)
    assert not tree.left()
    for name in list(data)[:4]:
        label = f"{inodes[name]}.1"
        found = tree.fs.versions.undelete(b"r/" + name, label=label, to=b"r/back of " + name)
        with pytest.raises(RecallNeeded) as needed:
            tree.read(found.inode)
        tree.recall(needed.value)
        assert tree.read(found.inode) == data[name]


def test_p77_of_a_large_file_that_is_written_to_nothing_stays_where_nothing_can_be_cloned(tree: Tree) -> None:
    tree.spool._clones = False
    inode = tree.file(b"large", b"")
    os.truncate(tree.local(inode), tree.settings.left_copy_bytes_max + 1)
    tree.clock.sleep(60)
    tree.advance(inode, FileState.SEALED)
    tree.fs.release(tree.open(inode, os.O_RDWR))
    assert not tree.left()
