"""What reaches the disk first, where loss of power would otherwise keep one half of a change and lose the other."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.model.treecheck import check_tree
from tests.semantics.trees import ALICE, LazyEngine, Tree
from vnafs.domain.errors import StorageFailed
from vnafs.domain.files import FileState, Fingerprint, Verdict
from vnafs.domain.ids import Inode, Version
from vnafs.domain.repositories import Acknowledgement
from vnafs.fs.attributes import AttributeChanges
from vnafs.fs.commitment import settle
from vnafs.fs.recall import RecallNeeded
from vnafs.index import keys
from vnafs.local.spool import Spool

CHANGED_NS = 1_600_000_000_000_000_000


class WatchedSpool(Spool):
    """Asks somebody before a local file changes its name."""

    def __init__(self, directory: str, ask: Callable[[], None]) -> None:
        super().__init__(directory)
        self._ask = ask

    def move(self, inode: Inode, version: Version, to: Version) -> None:
        self._ask()
        super().move(inode, version, to)

    def adopt(self, inode: Inode, version: Version, staged: str, *, sync: bool) -> Fingerprint:
        self._ask()
        return super().adopt(inode, version, staged, sync=sync)


class Watched:
    """A tree whose spool notes whether all of the index was synced when a local file changed its name."""

    def __init__(self, directory: Path, acknowledgement: Acknowledgement) -> None:
        self.engine = LazyEngine()
        self.synced: list[bool] = []
        spool = WatchedSpool(str(directory / "spool"), lambda: self.synced.append(self._is_synced()))
        self.tree = Tree(directory, acknowledgement=acknowledgement, engine=self.engine, spool=spool)

    def _is_synced(self) -> bool:
        return self.engine.synced >= self.engine.position


@pytest.fixture(params=list(Acknowledgement))
def watched(request: pytest.FixtureRequest, tmp_path: Path) -> Watched:
    return Watched(tmp_path, request.param)


def sealed(tree: Tree, state: FileState) -> Inode:
    inode = tree.file(b"f")
    assert tree.advance(inode, state) is Verdict.DONE
    return inode


@pytest.mark.parametrize("state", [FileState.SEALED, FileState.REPLICATED])
def test_a_local_file_goes_over_to_a_new_version_only_once_that_has_a_row(watched: Watched, state: FileState) -> None:
    inode = sealed(watched.tree, state)
    watched.tree.open(inode, os.O_RDWR)
    assert watched.synced == [True]


def test_a_file_is_cut_in_place_only_once_its_new_version_has_a_row(watched: Watched) -> None:
    inode = sealed(watched.tree, FileState.REPLICATED)
    watched.engine.is_broken = True
    with pytest.raises(StorageFailed):
        watched.tree.open(inode, os.O_WRONLY | os.O_TRUNC)
    assert Path(watched.tree.fs.local_path(inode, Version(1))).read_bytes() == b"bytes"


def test_a_write_that_was_not_seen_moves_a_file_only_once_its_new_version_has_a_row(watched: Watched) -> None:
    tree = watched.tree
    inode = sealed(tree, FileState.REPLICATED)
    tree.local(inode).write_bytes(b"other bytes")
    assert tree.evict(inode) is Verdict.CHANGED
    assert watched.synced == [True]


def test_recalled_bytes_take_their_place_only_once_a_row_says_so(watched: Watched) -> None:
    tree = watched.tree
    inode = tree.stub(b"f")
    with pytest.raises(RecallNeeded) as needed:
        tree.open(inode)
    assert tree.recall(needed.value) is Verdict.DONE
    assert watched.synced == [True]


# -- what was removed -----------------------------------------------------------------------------------------


def remove(tree: Tree) -> Path:
    """Remove a file; where its local bytes were, which are gone as far as a process can see."""
    place = tree.local(tree.file(b"f"))
    tree.fs.unlink(tree.r, b"f")
    tree.engine.sync(tree.engine.position)
    assert tree.fs.reap() == 1
    assert not place.exists()
    return place


def test_local_bytes_that_loss_of_power_brings_back_are_removed_again(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    place = remove(tree)
    place.write_bytes(b"bytes")
    tree.crash(boot_id="another boot")
    assert not place.exists()
    check_tree(tree.engine, tree.spool)


def test_the_row_of_removed_bytes_goes_once_their_removal_is_synced(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    remove(tree)
    removed = tree.fs.removed()
    tree.fs.sync_places(removed)
    tree.fs.forget_removed(removed)
    with tree.engine.read() as reader:
        assert [key for place in removed if (key := reader.get(keys.dropped(*place))) is not None] == []
    assert not tree.fs.removed()


def test_bytes_that_were_given_up_again_meanwhile_keep_their_row(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    inode = tree.stub(b"f")
    before = tree.fs.removed()
    assert [place[0] for place in before] == [inode]
    with pytest.raises(RecallNeeded) as needed:
        tree.open(inode)
    assert tree.recall(needed.value) is Verdict.DONE
    assert tree.evict(inode) is Verdict.DONE
    tree.fs.forget_removed(before)  # that sync began before the second removal
    with tree.engine.read() as reader:
        assert reader.get(keys.dropped(inode, Version(1))) is not None


# -- times ----------------------------------------------------------------------------------------------------


def set_times(tree: Tree, inode: Inode) -> None:
    tree.fs.setattr(inode, AttributeChanges(mtime_ns=CHANGED_NS), ALICE)


def test_times_of_a_file_that_is_open_for_write_are_synced_with_its_local_file(tmp_path: Path) -> None:
    tree = Tree(tmp_path, acknowledgement=Acknowledgement.DURABLE)
    handle = tree.create(b"f", b"bytes")
    set_times(tree, handle.file.inode)
    commitment = tree.fs.must_settle_times(handle.file.inode)
    assert commitment is not None
    assert (commitment.descriptor >= 0, commitment.times) == (True, 1)
    settle(commitment, tree.engine)
    tree.fs.settled(commitment)
    assert tree.fs.must_settle_times(handle.file.inode) is None


def test_times_of_a_closed_file_are_synced_with_its_row(tmp_path: Path) -> None:
    tree = Tree(tmp_path, acknowledgement=Acknowledgement.DURABLE)
    inode = tree.file(b"f")
    set_times(tree, inode)
    commitment = tree.fs.must_settle_times(inode)
    assert commitment is not None
    assert (commitment.descriptor, commitment.position) == (-1, tree.engine.position)


def test_times_that_were_set_before_are_synced_with_what_is_written_later(tmp_path: Path) -> None:
    tree = Tree(tmp_path, acknowledgement=Acknowledgement.DURABLE)
    inode = tree.file(b"f")
    set_times(tree, inode)
    handle = tree.open(inode, os.O_RDWR)
    tree.fs.write(handle, 0, b"B")
    commitment = tree.fs.flush(handle)
    assert commitment is not None
    assert commitment.times == 1
    settle(commitment, tree.engine)


def test_fsync_syncs_times_at_either_level(watched: Watched) -> None:
    tree = watched.tree
    handle = tree.create(b"f", b"bytes")
    first = tree.fs.fsync(handle)
    assert first is not None
    settle(first, tree.engine)
    tree.fs.settled(first)
    set_times(tree, handle.file.inode)
    commitment = tree.fs.fsync(handle)
    assert commitment is not None
    assert commitment.times == 1
    settle(commitment, tree.engine)


@pytest.mark.parametrize("follows", [True, False])
def test_the_name_of_a_new_local_file_is_synced_unless_it_follows_the_bytes(tmp_path: Path, follows: bool) -> None:
    tree = Tree(tmp_path, acknowledgement=Acknowledgement.DURABLE)
    tree.spool.names_follow_bytes = follows
    handle = tree.create(b"f", b"bytes")
    commitment = tree.fs.flush(handle)
    assert commitment is not None
    assert commitment.directory == ("" if follows else tree.spool.local_directory(handle.file.inode))
    settle(commitment, tree.engine)


def test_an_empty_file_whose_local_name_is_lost_is_there_after_loss_of_power(tmp_path: Path) -> None:
    tree = Tree(tmp_path, acknowledgement=Acknowledgement.DURABLE)
    tree.spool.names_follow_bytes = True
    inode = tree.file(b"f", b"")
    tree.local(inode).unlink()
    tree.crash(boot_id="another")
    assert tree.read(inode) == b""
