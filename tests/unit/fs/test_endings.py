"""The end of an open file when the disk refuses to log it: nothing is lost, nothing stays busy, it is tried again."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.model.treecheck import check_tree
from tests.semantics.trees import ALICE, Tree
from vnafs.domain.errors import NoSpace, StorageFailed, TooManyOpen
from vnafs.domain.files import FileState, Verdict
from vnafs.domain.ids import Inode, Version
from vnafs.domain.repositories import Acknowledgement
from vnafs.fs.attributes import AttributeChanges
from vnafs.fs.commitment import settle
from vnafs.fs.settings import Settings
from vnafs.index import inodes
from vnafs.index.queue import DUE_NEVER
from vnafs.local.spool import QUARANTINE, Spool, local_error


class ShortSpool(Spool):
    """Can run out of descriptors, and its disk can refuse a rename."""

    is_short = False
    is_stuck = False

    def open(self, inode: Inode, version: Version, *, write: bool) -> int:
        if self.is_short:
            raise local_error(OSError(errno.EMFILE, "the test took them all"), "opening a local file")
        return super().open(inode, version, write=write)

    def move(self, inode: Inode, version: Version, to: Version) -> None:
        if self.is_stuck:
            raise local_error(OSError(errno.EIO, "the test broke it"), "beginning a version")
        super().move(inode, version, to)

    def sync_places(self, places: Iterable[tuple[Inode, Version]]) -> None:
        if self.is_short:
            raise local_error(OSError(errno.EMFILE, "the test took them all"), "syncing the spool")
        super().sync_places(places)


@pytest.fixture
def spool(tmp_path: Path) -> ShortSpool:
    return ShortSpool(str(tmp_path / "spool"))


@pytest.fixture
def tree(tmp_path: Path, spool: ShortSpool) -> Tree:
    return Tree(tmp_path, spool=spool)


def is_parked(tree: Tree, inode: Inode) -> bool:
    """Whether the row says that it is open for write."""
    with tree.engine.read() as reader:
        row = inodes.find(reader, inode)
    assert row is not None
    return row.due == DUE_NEVER


def waiting(tree: Tree) -> int:
    return len(tree.fs._core.handles.ending)


def at_rest(tree: Tree) -> None:
    """Everything was ended, and nothing is left open."""
    assert waiting(tree) == 0
    assert not tree.fs._core.handles.files
    check_tree(tree.engine, tree.spool)


def test_a_close_on_a_full_disk_shows_the_bytes_and_is_logged_when_there_is_room(tree: Tree) -> None:
    handle = tree.create(b"f", b"bytes")
    inode = handle.file.inode
    tree.engine.room_for = 0
    tree.fs.release(handle)
    assert tree.stat(inode).size_bytes == 5
    assert tree.read(inode) == b"bytes"
    tree.fs.upkeep()
    assert tree.stat(inode).size_bytes == 5
    assert is_parked(tree, inode)
    tree.engine.room_for = None
    tree.fs.upkeep()
    assert tree.stat(inode).size_bytes == 5
    assert not is_parked(tree, inode)
    assert tree.advance(inode) is Verdict.DONE
    at_rest(tree)


def test_an_unlinked_file_that_is_closed_on_a_full_disk_goes_when_there_is_room(tree: Tree) -> None:
    handle = tree.create(b"f", b"bytes")
    tree.fs.unlink(tree.r, b"f")
    tree.engine.room_for = 0
    tree.fs.release(handle)
    tree.engine.room_for = None
    tree.fs.upkeep()
    tree.engine.sync(tree.engine.position)
    assert tree.fs.reap() == 1
    at_rest(tree)


def test_a_file_that_waits_for_its_end_may_be_unlinked(tree: Tree) -> None:
    handle = tree.create(b"f", b"bytes")
    tree.engine.room_for = 0
    tree.fs.release(handle)
    tree.engine.room_for = None
    tree.fs.unlink(tree.r, b"f")
    tree.fs.upkeep()
    at_rest(tree)


def test_a_file_made_for_reading_opens_without_a_second_descriptor_and_ends(tree: Tree, spool: ShortSpool) -> None:
    spool.is_short = True
    handle, _ = tree.fs.create(tree.r, b"f", 0o644, os.O_RDONLY, ALICE)
    assert tree.fs.read(handle, 0, 10) == b""
    tree.fs.release(handle)
    spool.is_short = False
    assert not is_parked(tree, handle.file.inode)
    assert tree.advance(handle.file.inode) is Verdict.DONE
    assert tree.evict(handle.file.inode) is Verdict.DONE


def test_tiering_does_not_touch_a_file_that_waits_for_its_end(tree: Tree) -> None:
    handle = tree.create(b"f", b"bytes")
    tree.engine.room_for = 0
    tree.fs.release(handle)
    tree.engine.room_for = None
    assert tree.advance(handle.file.inode) is Verdict.BUSY


def test_writing_again_before_the_end_was_logged_is_one_opening(tree: Tree) -> None:
    handle = tree.create(b"f", b"bytes")
    inode = handle.file.inode
    tree.engine.room_for = 0
    tree.fs.release(handle)
    again = tree.open(inode, os.O_WRONLY)
    tree.fs.write(again, 5, b" more")
    tree.engine.room_for = None
    tree.fs.upkeep()
    assert is_parked(tree, inode)
    assert waiting(tree) == 0
    tree.fs.release(again)
    assert tree.read(inode) == b"bytes more"
    assert tree.fs.facts(inode).version == 1
    at_rest(tree)


def test_files_that_wait_for_their_end_count_as_open(tmp_path: Path) -> None:
    tree = Tree(tmp_path, settings=Settings(reserve_bytes=0, handles_open_max=2))
    handles = [tree.create(b"1"), tree.create(b"2")]
    tree.engine.room_for = 0
    for handle in handles:
        tree.fs.release(handle)
    with pytest.raises(TooManyOpen):
        tree.open(handles[0].file.inode)
    tree.engine.room_for = None
    tree.fs.upkeep()
    assert tree.read(handles[0].file.inode) == b""


def test_a_truncation_whose_end_is_not_logged_is_not_forgotten(tree: Tree) -> None:
    inode = tree.file(b"f")
    tree.engine.room_for = 1
    assert tree.fs.setattr(inode, AttributeChanges(size_bytes=3), ALICE).size_bytes == 3
    assert is_parked(tree, inode)
    tree.engine.room_for = None
    tree.fs.upkeep()
    assert tree.read(inode) == b"byt"
    assert not is_parked(tree, inode)
    at_rest(tree)


def test_dying_while_a_file_waits_for_its_end_loses_nothing(tree: Tree) -> None:
    handle = tree.create(b"f", b"bytes")
    tree.engine.room_for = 0
    tree.fs.release(handle)
    tree.engine.room_for = None
    tree.crash()
    assert tree.read(handle.file.inode) == b"bytes"
    at_rest(tree)


def test_the_tree_closes_although_a_file_cannot_be_ended(tree: Tree) -> None:
    handle = tree.create(b"f", b"bytes")
    tree.engine.room_for = 0
    tree.fs.close()
    assert handle.file.descriptor == -1


def test_a_version_that_cannot_begin_does_not_stay_open_for_ever(tree: Tree, spool: ShortSpool) -> None:
    inode = tree.file(b"f")
    tree.advance(inode)
    spool.is_stuck = True
    with pytest.raises(StorageFailed):
        tree.open(inode, os.O_RDWR)
    spool.is_stuck = False
    assert not is_parked(tree, inode)
    assert tree.read(inode) == b"bytes"
    at_rest(tree)


def test_emptying_a_stub_on_a_full_disk_leaves_nothing_behind(tree: Tree) -> None:
    inode = tree.stub(b"f")
    tree.engine.room_for = 0
    for _ in range(2):
        with pytest.raises(NoSpace):
            tree.open(inode, os.O_WRONLY | os.O_TRUNC)
    tree.engine.room_for = None
    assert tree.fs.facts(inode).state is FileState.STUB
    assert os.listdir(tree.directory / "spool" / QUARANTINE) == []
    at_rest(tree)


def test_removed_bytes_are_not_forgotten_when_the_disk_is_full(tree: Tree) -> None:
    tree.file(b"f")
    tree.fs.unlink(tree.r, b"f")
    tree.engine.sync(tree.engine.position)
    tree.engine.room_for = 0
    assert tree.fs.reap() == 1
    with pytest.raises(NoSpace):
        tree.fs.forget_removed(tree.fs.removed())
    assert tree.fs.removed()
    tree.engine.room_for = None
    tree.fs.forget_removed(tree.fs.removed())
    assert not tree.fs.removed()
    at_rest(tree)


def test_removals_that_cannot_be_made_final_refuse_nothing_and_wait(tmp_path: Path, spool: ShortSpool) -> None:
    tree = Tree(tmp_path, settings=Settings(reserve_bytes=0, drops_pending_max=2), spool=spool)
    names = [b"%d" % number for number in range(12)]
    for name in names:
        tree.file(name)
    spool.is_short = True
    for name in names:
        tree.fs.unlink(tree.r, name)
        tree.engine.sync(tree.engine.position)
        tree.fs.reap()
    assert len(tree.fs.removed()) == 3, "one more than may wait: nothing is removed that cannot be made final"
    spool.is_short = False
    tree.crash()
    at_rest(tree)


def test_the_new_name_of_a_version_that_began_is_synced_with_it(tmp_path: Path) -> None:
    tree = Tree(tmp_path, acknowledgement=Acknowledgement.DURABLE)
    writer = tree.create(b"f", b"bytes")
    reader = tree.open(writer.file.inode)
    commitment = tree.fs.fsync(writer)
    assert commitment is not None
    settle(commitment, tree.engine)
    tree.fs.settled(commitment)
    tree.fs.release(writer)
    assert tree.advance(writer.file.inode) is Verdict.DONE
    again = tree.open(writer.file.inode, os.O_RDWR)
    commitment = tree.fs.fsync(again)
    assert commitment is not None
    assert commitment.directory == tree.spool.local_directory(writer.file.inode)
    settle(commitment, tree.engine)
    for handle in (reader, again):
        tree.fs.release(handle)
