"""P-79: where the kernel may read and write local files itself, and what the tree still answers for."""

from __future__ import annotations

import dataclasses
import mmap
import os
import time
from pathlib import Path

import pytest

from tests.model.treecheck import check_tree
from tests.semantics.trees import ALICE, Tree, behind_our_back, passed
from vnafs.domain.files import FileState, Verdict
from vnafs.domain.ids import Inode, RepositoryId, Version
from vnafs.domain.repositories import Acknowledgement
from vnafs.domain.retention import RetentionMode
from vnafs.fs.attributes import AttributeChanges
from vnafs.fs.caller import ROOT_CALLER
from vnafs.fs.commitment import settle
from vnafs.fs.settings import Settings


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path, settings=Settings(reserve_bytes=0, unseen_room_bytes_min=0))


def test_p79_not_where_something_may_be_retained(tree: Tree) -> None:
    inode = tree.file(b"f")
    assert tree.fs.unseen.may_pass(tree.open(inode))
    known = tree.fs.repositories.get(RepositoryId(tree.r))
    tree.fs.repositories.set(dataclasses.replace(known, retention=RetentionMode.GOVERNANCE, retention_seconds=9))
    assert not tree.fs.unseen.may_pass(tree.open(inode))
    assert not tree.fs.unseen.may_pass(tree.open(inode, os.O_RDWR))


def test_p79_not_while_the_disk_is_nearly_full(tmp_path: Path) -> None:
    tree = Tree(tmp_path, settings=Settings(reserve_bytes=0, unseen_room_bytes_min=1 << 60))
    assert not tree.fs.unseen.may_pass(tree.create(b"f"))


def test_p79_not_of_a_stub_that_is_read_by_range_and_not_of_the_past(tmp_path: Path) -> None:
    tree = Tree(tmp_path, settings=Settings(reserve_bytes=0, unseen_room_bytes_min=0, recall_whole_bytes_max=0))
    assert not tree.fs.unseen.may_pass(tree.open(tree.stub(b"f")))


def test_p79_writers_that_the_kernel_serves_are_not_held(tree: Tree) -> None:
    handle = tree.create(b"f", b"bytes")
    inode = handle.file.inode
    passed(tree, handle)
    assert tree.fs.hold(inode, Version(1)) is Verdict.UNHELD
    tree.fs.release(handle)
    assert tree.fs.hold(inode, Version(1)) is Verdict.DONE


def test_p79_a_mapping_alone_goes_on_showing_what_is_emptied_before_it_is_in_packs(tree: Tree) -> None:
    inode = tree.file(b"f", b"sealed")
    assert tree.advance(inode, FileState.SEALED) is Verdict.DONE
    with open(tree.spool.local_path(inode, Version(1)), "rb") as local:  # as the kernel has it
        mapping = mmap.mmap(local.fileno(), 6, prot=mmap.PROT_READ)
    handle = tree.open(inode, os.O_WRONLY | os.O_TRUNC)
    tree.fs.write(handle, 0, b"later!")
    tree.fs.release(handle)
    assert (mapping[:], tree.read(inode)) == (b"sealed", b"later!")
    mapping.close()


def test_p79_whoever_the_kernel_serves_sees_what_others_write_to_a_version_that_is_kept(tree: Tree) -> None:
    inode = tree.file(b"f", b"sealed")
    assert tree.advance(inode, FileState.SEALED) is Verdict.DONE
    reader = passed(tree, tree.open(inode))
    local = os.stat(tree.fs.local_path(inode, Version(1))).st_ino
    writer = passed(tree, tree.open(inode, os.O_RDWR | os.O_TRUNC))
    assert os.stat(tree.fs.local_path(inode, Version(2))).st_ino == local
    behind_our_back(writer, b"other")
    tree.fs.release(writer)
    tree.fs.release(reader)
    assert [path.read_bytes() for path in tree.left().values()] == [b"sealed"]
    assert tree.read(inode) == b"other"
    check_tree(tree.engine, tree.spool)
    tree.advance(inode, FileState.SEALED)
    tree.fs.release(tree.open(inode, os.O_WRONLY | os.O_TRUNC))
    assert os.stat(tree.fs.local_path(inode, Version(3))).st_ino != local, "nobody is served by the kernel any more"


def test_p79_what_it_writes_is_shown_at_once_and_after_a_crash(tree: Tree) -> None:
    handle = passed(tree, tree.create(b"f"))
    inode = handle.file.inode
    behind_our_back(handle, b"x" * 5000)
    assert tree.stat(inode).size_bytes == 5000
    assert tree.fs.unseen.is_written(inode)
    behind_our_back(handle, b"x", 9999)
    tree.crash()
    assert tree.stat(inode).size_bytes == 10_000
    assert not tree.fs.unseen.is_written(inode)


def test_p79_a_durable_close_waits_for_what_it_wrote_each_time(tmp_path: Path) -> None:
    settings = Settings(reserve_bytes=0, unseen_room_bytes_min=0)
    tree = Tree(tmp_path, settings=settings, acknowledgement=Acknowledgement.DURABLE)
    handle = passed(tree, tree.create(b"f"))
    for _ in range(2):
        behind_our_back(handle, b"bytes")
        commitment = tree.fs.flush(handle)
        assert commitment is not None
        assert commitment.descriptor >= 0
        settle(commitment, tree.engine)
        tree.fs.settled(commitment)
    reader = passed(tree, tree.open(handle.file.inode))
    assert tree.fs.flush(reader) is None
    assert (tree.fs.unseen.flush_matters(handle), tree.fs.unseen.flush_matters(reader)) == (True, False)
    behind_our_back(handle, b"again")
    commitment = tree.fs.fsync(reader)  # also what others wrote
    assert commitment is not None
    assert commitment.descriptor >= 0
    settle(commitment, tree.engine)


def test_p79_bits_of_privilege_go_when_somebody_else_opens_for_write(tree: Tree) -> None:
    inode = tree.file(b"f")
    tree.fs.setattr(inode, AttributeChanges(mode=0o6755), ALICE)
    tree.fs.release(passed(tree, tree.open(inode, os.O_RDWR, ROOT_CALLER)))
    assert tree.stat(inode).mode & 0o7777 == 0o6755
    tree.fs.release(passed(tree, tree.open(inode, os.O_RDONLY, ALICE)))
    assert tree.stat(inode).mode & 0o7777 == 0o6755
    handle = passed(tree, tree.open(inode, os.O_RDWR, ALICE))
    assert tree.stat(inode).mode & 0o7777 == 0o755
    tree.fs.release(handle)


def test_p79_bytes_written_after_the_last_close_are_sealed_and_shown(tree: Tree) -> None:
    told: list[Inode] = []
    tree.fs._core.watcher.attributes_changed = told.append  # type: ignore[method-assign] # a listener
    inode = tree.file(b"f", b"bytes")
    time.sleep(0.01)  # another time of change
    with tree.local(inode).open("ab") as orphan:  # a descriptor of before a restart
        orphan.write(b" and more")
    assert tree.advance(inode) is Verdict.DONE
    assert told == [inode]
    assert tree.stat(inode).size_bytes == 14
    assert tree.read(inode) == b"bytes and more"
