"""Local bytes of versions that are over and not in packs yet."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from tests.model.treecheck import check_tree
from tests.semantics.trees import ALICE, Tree
from tests.unit.fs.test_history import overwrite, packed, versions
from tests.unit.fs.test_kept_versions import at, content
from vnafs.domain.errors import NoSpace, Refused, StorageFailed
from vnafs.domain.files import FileState, Proposal, Verdict
from vnafs.domain.ids import Inode, RepositoryId, Version
from vnafs.fs.asof import AS_OF, name_of
from vnafs.fs.attributes import AttributeChanges
from vnafs.fs.erasure import Wanted
from vnafs.fs.settings import Settings
from vnafs.local.spool import Spool, copy_of

LIMIT_BYTES = 100


class NoClones(Spool):
    """On a file system that cannot clone."""

    def clone(self, inode: Inode, version: Version) -> bool:
        return False


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    settings = Settings(reserve_bytes=0, quiet_seconds=1, left_copy_bytes_max=LIMIT_BYTES)
    return Tree(tmp_path, settings=settings, spool=NoClones(str(tmp_path / "spool")))


def sealed(tree: Tree, name: bytes, data: bytes = b"bytes") -> Inode:
    return packed(tree, name, data, FileState.SEALED)


def patch(tree: Tree, inode: Inode, data: bytes = b"X") -> None:
    handle = tree.open(inode, os.O_RDWR)
    tree.fs.write(handle, 0, data)
    tree.fs.release(handle)


def settle(tree: Tree) -> None:
    """Everything is synced, and what may go is gone."""
    tree.engine.sync(tree.engine.position)
    while tree.fs.reap():
        pass


def left(tree: Tree) -> list[bytes]:
    """The bytes that wait to be packed, in order of inode and version."""
    return [path.read_bytes() for path in tree.left().values()]


def check(tree: Tree) -> None:
    check_tree(tree.engine, tree.spool)


def test_the_bytes_of_a_removed_file_stay_until_they_are_packed_and_then_go(tree: Tree) -> None:
    inode = sealed(tree, b"f", b"precious")
    tree.fs.unlink(tree.r, b"f")
    settle(tree)
    assert left(tree) == [b"precious"]
    check(tree)
    [path] = tree.left().values()
    assert tree.pack_left() == [Verdict.KEPT]
    assert path.exists(), "gone before the change that gave it up was synced"
    settle(tree)
    assert not path.exists()
    assert versions(tree, inode)[0].is_kept
    tree.fs.versions.undelete(b"r/f")
    assert content(tree, at(tree, b"f")) == b"precious"
    check(tree)


def test_so_do_those_of_a_file_that_is_replaced(tree: Tree) -> None:
    sealed(tree, b"f", b"old")
    tree.file(b"g", b"new")
    tree.fs.rename(tree.r, b"g", tree.r, b"f")
    settle(tree)
    assert left(tree) == [b"old"]
    check(tree)


@pytest.mark.parametrize("how", ["open", "setattr"])
def test_a_file_that_is_emptied_goes_on_in_a_new_local_file(tree: Tree, how: str) -> None:
    inode = sealed(tree, b"f", b"old")
    reader = tree.open(inode)
    before = os.stat(tree.local(inode)).st_ino
    if how == "open":
        overwrite(tree, inode, b"newer")
    else:
        tree.fs.setattr(inode, AttributeChanges(size_bytes=0), ALICE)
        patch(tree, inode, b"newer")
    assert left(tree) == [b"old"]
    assert [os.stat(path).st_ino for path in tree.left().values()] == [before]
    assert tree.fs.read(reader, 0, 100) == b"newer"
    tree.fs.release(reader)
    assert tree.read(inode) == b"newer"
    check(tree)
    tree.pack_left()
    settle(tree)
    tree.fs.versions.undelete(b"r/f", to=b"r/old")
    assert content(tree, at(tree, b"old")) == b"old"
    assert tree.read(inode) == b"newer"
    check(tree)


@pytest.mark.parametrize("how", ["write", "cut"])
def test_a_file_that_is_changed_in_place_is_copied_first(tree: Tree, how: str) -> None:
    inode = sealed(tree, b"f", b"old bytes")
    before = os.stat(tree.local(inode)).st_ino
    if how == "write":
        patch(tree, inode)
    else:
        tree.fs.setattr(inode, AttributeChanges(size_bytes=3), ALICE)
    assert left(tree) == [b"old bytes"]
    assert tree.read(inode) == (b"Xld bytes" if how == "write" else b"old")
    assert os.stat(tree.local(inode)).st_ino == before, "what is synced already goes on being the file"
    check(tree)
    tree.pack_left()
    settle(tree)
    tree.fs.versions.undelete(b"r/f", to=b"r/old")
    assert content(tree, at(tree, b"old")) == b"old bytes"
    check(tree)


def test_a_large_file_is_not_copied_and_nobody_waits(tree: Tree, caplog: pytest.LogCaptureFixture) -> None:
    inode = sealed(tree, b"f", bytes(LIMIT_BYTES + 1))
    patch(tree, inode)
    assert left(tree) == []
    assert "tree.not_left" in caplog.text
    assert not versions(tree, inode)[0].is_kept
    check(tree)
    other = sealed(tree, b"g", bytes(LIMIT_BYTES + 1))
    overwrite(tree, other, b"emptied first")
    assert [len(data) for data in left(tree)] == [LIMIT_BYTES + 1], "this one needs no copy"


def test_a_full_disk_costs_the_copy_and_not_the_write(tmp_path: Path) -> None:
    class FullDisk(NoClones):
        def copy(self, inode: Inode, version: Version) -> None:
            super().copy(inode, version)
            self.remove(inode, copy_of(version))
            raise NoSpace(why="the test filled the disk")

    tree = Tree(tmp_path, settings=Settings(reserve_bytes=0), spool=FullDisk(str(tmp_path / "spool")))
    inode = sealed(tree, b"f", b"old")
    patch(tree, inode)
    assert tree.read(inode) == b"Xld"
    assert left(tree) == []
    check(tree)


def test_a_change_that_cannot_be_logged_leaves_neither_copy_nor_new_file(tree: Tree) -> None:
    inode = sealed(tree, b"f", b"old")
    for flags in (os.O_RDWR, os.O_WRONLY | os.O_TRUNC):
        tree.engine.room_for = 0
        with pytest.raises(NoSpace):
            tree.open(inode, flags)
        tree.engine.room_for = None
        check(tree)
    assert tree.read(inode) == b"old"


def test_a_disk_that_fails_while_it_is_copied_takes_nothing(tmp_path: Path) -> None:
    class BadDisk(NoClones):
        def copy(self, inode: Inode, version: Version) -> None:
            raise StorageFailed(doing="copying local bytes", why="the test broke it")

    tree = Tree(tmp_path, settings=Settings(reserve_bytes=0), spool=BadDisk(str(tmp_path / "spool")))
    inode = sealed(tree, b"f", b"old")
    with pytest.raises(StorageFailed):
        tree.open(inode, os.O_RDWR)
    assert tree.read(inode) == b"old"
    check(tree)


def test_what_changed_behind_vnafs_is_not_left(tree: Tree) -> None:
    inode = sealed(tree, b"f", b"old")
    tree.local(inode).write_bytes(b"other")
    tree.fs.unlink(tree.r, b"f")
    settle(tree)
    assert left(tree) == []
    check(tree)


def test_bytes_that_are_not_what_was_sealed_are_given_up_once_they_were_read(tree: Tree) -> None:
    inode = sealed(tree, b"f", b"old")
    stale = Proposal(inode, Version(1), FileState.PACKED, tree._seal(tree.local(sealed(tree, b"g", b"torn"))))
    tree.fs.unlink(tree.r, b"f")
    assert tree.fs.advance([stale]) == [Verdict.GONE]
    assert left(tree) == [b"old"], "news of bytes that were read earlier says nothing of these"
    [path] = tree.left().values()
    path.write_bytes(b"torn")
    assert tree.pack_left() == [Verdict.GONE]
    settle(tree)
    assert left(tree) == []
    assert not path.exists()
    assert not versions(tree, inode)[0].is_kept


def test_several_versions_of_one_file_wait_beside_each_other(tree: Tree) -> None:
    inode = sealed(tree, b"f", b"one")
    overwrite(tree, inode, b"two")
    tree.advance(inode, FileState.SEALED)
    patch(tree, inode, b"TWO and more")
    tree.advance(inode, FileState.SEALED)
    tree.fs.unlink(tree.r, b"f")
    assert left(tree) == [b"one", b"two", b"TWO and more"]
    check(tree)
    assert tree.pack_left() == [Verdict.KEPT] * 3
    settle(tree)
    assert [found.is_kept for found in versions(tree, inode)] == [True] * 3
    check(tree)


def test_what_was_open_when_it_was_removed_is_left_at_its_last_close(tree: Tree) -> None:
    inode = sealed(tree, b"f", b"old")
    reader = tree.open(inode)
    tree.fs.unlink(tree.r, b"f")
    assert left(tree) == []
    assert tree.fs.read(reader, 0, 100) == b"old"
    tree.fs.release(reader)
    assert left(tree) == [b"old"]
    check(tree)


def test_nothing_is_left_where_no_versions_are_kept(tree: Tree) -> None:
    rules = tree.fs.repositories.get(RepositoryId(tree.r))
    tree.fs.repositories.set(dataclasses.replace(rules, versions_kept_seconds=0))
    removed, emptied, changed = sealed(tree, b"r"), sealed(tree, b"e"), sealed(tree, b"c")
    tree.fs.unlink(tree.r, b"r")
    overwrite(tree, emptied, b"new")
    patch(tree, changed)
    settle(tree)
    assert left(tree) == []
    assert not versions(tree, removed)
    check(tree)


def test_bytes_that_never_come_into_packs_go_when_their_version_expires(tree: Tree) -> None:
    sealed(tree, b"f")
    patch(tree, sealed(tree, b"g"))
    tree.fs.unlink(tree.r, b"f")
    tree.clock.sleep(31 * 86400)
    while tree.fs.upkeep():
        pass
    settle(tree)
    assert left(tree) == []
    check(tree)


def test_undelete_says_that_a_version_is_on_its_way(tree: Tree) -> None:
    sealed(tree, b"f")
    tree.fs.unlink(tree.r, b"f")
    [shown] = tree.fs.versions.history(b"r/f")
    assert not shown.is_kept
    with pytest.raises(Refused, match="on their way into packs"):
        tree.fs.versions.undelete(b"r/f", label=shown.label)


def test_it_is_seen_under_as_of_already_but_for_copies_which_nobody_vouches_for(tree: Tree) -> None:
    removed, changed = sealed(tree, b"r", b"one"), sealed(tree, b"c", b"two")
    tree.clock.wall += 10**9 - tree.clock.wall % 10**9
    moment = tree.clock.now()
    tree.clock.sleep(1)
    tree.fs.unlink(tree.r, b"r")
    patch(tree, changed)
    above = tree.fs.find(tree.r, AS_OF)
    assert above is not None
    top = tree.fs.find(above.inode, name_of(moment // 10**9))
    assert top is not None
    then = top.inode
    seen = tree.fs.find(then, b"r")
    assert seen is not None
    assert tree.read(seen.inode) == b"one"
    assert tree.fs.find(then, b"c") is None
    tree.local(changed).parent.joinpath(f"{removed:x}.1").write_bytes(b"changed behind vnafs")
    assert tree.fs.find(then, b"r") is None
    tree.pack_left()
    assert tree.fs.find(then, b"c") is not None


def test_nothing_is_erased_of_which_bytes_are_still_to_be_packed(tree: Tree) -> None:
    inode = sealed(tree, b"f", b"old")
    overwrite(tree, inode, b"new")
    tree.advance(inode, FileState.PACKED)
    wanted = [Wanted(inode, ((tree.r, b"f"),))]
    number = RepositoryId(tree.r)
    [why] = tree.fs.erasures.refusals(number, wanted)
    assert why == ("its bytes are on their way into packs; try again in a minute",)
    tree.fs.unlink(tree.r, b"f")
    assert tree.fs.erasures.refusals(number, [Wanted(inode)]) == [why]
    tree.pack_left()
    assert tree.fs.erasures.refusals(number, [Wanted(inode)]) == [()]
    erasure = tree.fs.erasures.begin(number, "the test")
    tree.fs.erasures.add(erasure.number, [Wanted(inode)])
    settle(tree)
    check(tree)
    assert not list(tree.spool.versions_near(inode))


# -- starts ------------------------------------------------------------------------------------------------------------


def test_a_restart_keeps_them_and_the_live_bytes_apart(tree: Tree) -> None:
    removed, emptied, changed = sealed(tree, b"r", b"one"), sealed(tree, b"e", b"two"), sealed(tree, b"c", b"three")
    tree.fs.unlink(tree.r, b"r")
    handles = [tree.open(emptied, os.O_WRONLY | os.O_TRUNC), tree.open(changed, os.O_RDWR)]
    for handle in handles:
        tree.fs.write(handle, 0, b"NEW")
    tree.crash()
    assert left(tree) == [b"one", b"two", b"three"]
    assert (tree.read(emptied), tree.read(changed)) == (b"NEW", b"NEWee")
    assert removed == min(inode for inode, _ in tree.left())
    check(tree)


def test_loss_of_power_that_takes_a_new_local_file_does_not_bring_the_old_bytes_into_it(tree: Tree) -> None:
    inode = sealed(tree, b"f", b"old")
    tree.open(inode, os.O_WRONLY | os.O_TRUNC)
    tree.local(inode).unlink()
    tree.crash(boot_id="another")
    assert tree.read(inode) == b""
    assert left(tree) == [b"old"]
    tree.pack_left()  # given up now, and still there
    tree.open(inode, os.O_WRONLY)
    tree.local(inode).unlink()
    tree.crash(boot_id="a third")
    assert tree.read(inode) == b""
    settle(tree)
    check(tree)


def test_loss_of_power_that_undoes_the_move_of_a_copied_file_is_repaired(tree: Tree) -> None:
    inode = sealed(tree, b"f", b"old")
    handle = tree.open(inode, os.O_RDWR)
    tree.fs.write(handle, 0, b"N")
    tree.spool.move(inode, Version(2), Version(1))
    tree.crash(boot_id="another")
    assert tree.read(inode) == b"Nld"
    assert left(tree) == [b"old"]
    check(tree)


def test_a_start_removes_copies_that_nobody_waits_for_and_rows_without_bytes(tree: Tree) -> None:
    inode = sealed(tree, b"f", b"old")
    tree.spool.copy(inode, Version(1))
    gone = sealed(tree, b"g")
    tree.fs.unlink(tree.r, b"g")
    tree.spool.remove(gone, Version(1))
    tree.crash()
    assert tree.left() == {}
    assert not list(tree.spool.copies())
    assert tree.read(inode) == b"old"
    check(tree)
