"""What a repository has, what it may have, and what statfs says of it."""

from __future__ import annotations

import dataclasses
import errno
import logging
import os
import stat
from pathlib import Path

import pytest

from tests.model.treecheck import check_tree
from tests.semantics.trees import ALICE, Tree, behind_our_back, passed
from vnafs.domain.errors import AlreadyExists, InvalidArgument, NoSpace, OverQuota
from vnafs.domain.files import Verdict
from vnafs.domain.ids import ROOT, Inode, RepositoryId
from vnafs.domain.repositories import Repository
from vnafs.fs import capacity
from vnafs.fs.asof import BASE
from vnafs.fs.attributes import AttributeChanges
from vnafs.fs.extents import KEEP_SIZE
from vnafs.fs.settings import Settings
from vnafs.fs.takeover import OpenBefore, Survivor
from vnafs.index import counts, recount
from vnafs.index.counts import Count
from vnafs.index.migrations import Migration, migrate
from vnafs.local.space import Room
from vnafs.store import NAMESPACE_MIGRATIONS

PLENTY = Settings(reserve_bytes=0, unseen_room_bytes_min=100)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path, settings=PLENTY)


def limit(tree: Tree, *, quota_bytes: int = 0, quota_files: int = 0) -> None:
    rules = tree.fs.repositories.get(RepositoryId(tree.r))
    tree.fs.repositories.set(dataclasses.replace(rules, quota_bytes=quota_bytes, quota_files=quota_files))


def used(tree: Tree) -> tuple[int, int]:
    """Files and bytes; the repository's own directory is one of the files."""
    found = tree.fs.used(RepositoryId(tree.r))
    return found.rows, found.size_bytes


# -- counting ----------------------------------------------------------------------------------------------------


def test_everything_counts_once_and_only_files_have_bytes(tree: Tree) -> None:
    assert used(tree) == (1, 0)
    file = tree.file(b"f", b"x" * 100)
    folder = tree.fs.mkdir(tree.r, b"d", 0o755, ALICE).inode
    tree.fs.symlink(folder, b"l", b"some where", ALICE)
    tree.fs.mknod(folder, b"p", stat.S_IFIFO | 0o600, 0, ALICE)
    tree.fs.link(file, folder, b"again")
    assert used(tree) == (5, 100)
    tree.fs.rename(folder, b"again", tree.r, b"elsewhere")
    tree.fs.unlink(tree.r, b"f")
    assert used(tree) == (5, 100)
    tree.fs.unlink(tree.r, b"elsewhere")
    assert used(tree) == (4, 0)


def test_holes_count(tree: Tree) -> None:
    file = tree.file(b"f", b"")
    tree.fs.setattr(file, AttributeChanges(size_bytes=1 << 30), ALICE)
    assert used(tree) == (2, 1 << 30)


def test_a_stub_counts_as_before_and_emptying_it_gives_back(tree: Tree) -> None:
    stub = tree.stub(b"f", b"x" * 50)
    assert used(tree) == (2, 50)
    tree.fs.release(tree.open(stub, os.O_WRONLY | os.O_TRUNC))
    assert used(tree) == (2, 0)


def test_what_was_deleted_and_is_kept_does_not_count_until_it_is_back(tree: Tree) -> None:
    file = tree.file(b"f", b"x" * 70)
    assert tree.advance(file) is Verdict.DONE
    tree.fs.unlink(tree.r, b"f")
    assert used(tree) == (1, 0)
    limit(tree, quota_bytes=1, quota_files=1)
    tree.fs.versions.undelete(b"r/f")  # never refused
    assert used(tree) == (2, 70)


def test_what_has_no_name_counts_while_it_is_open(tree: Tree) -> None:
    handle = tree.create(b"f", b"x" * 10)
    tree.fs.unlink(tree.r, b"f")
    assert used(tree)[0] == 2
    tree.fs.release(handle)
    assert used(tree) == (1, 0)


def test_a_repository_that_is_removed_leaves_no_count(tree: Tree) -> None:
    tree.fs.repositories.remove(RepositoryId(tree.r))
    with tree.engine.read() as reader:
        assert counts.every_used(reader) == {}


def test_counts_survive_a_crash_with_files_open(tree: Tree) -> None:
    limit(tree, quota_bytes=1000)
    tree.file(b"closed", b"x" * 100)
    handle = tree.create(b"open", b"x" * 200)
    passed(tree, tree.open(handle.file.inode, os.O_WRONLY))
    behind_our_back(handle, b"y" * 300)
    tree.crash()
    assert used(tree) == (3, 400)
    check_tree(tree.engine, tree.spool)


def test_a_change_that_does_not_fit_on_the_disk_is_not_counted(tree: Tree) -> None:
    tree.engine.room_for = 0
    with pytest.raises(NoSpace):
        tree.create(b"f")
    tree.engine.room_for = None
    assert used(tree) == (1, 0)
    tree.file(b"g", b"x")
    assert used(tree) == (2, 1)


def test_a_tree_from_before_there_were_counts_is_counted_once_in_steps(tree: Tree) -> None:
    tree.repository("other")
    for number in range(7):
        tree.file(b"%d" % number, b"x" * number)
    with tree.engine.read() as reader:
        right = counts.every_used(reader)
    assert right == {RepositoryId(tree.r): Count(8, 21), RepositoryId(tree.r + 1): Count(1, 0)}
    migrate_from = [NAMESPACE_MIGRATIONS[0]]
    with tree.engine.write() as tx:
        for number in right:
            counts.put(tx, counts.used(number), counts.NONE)
        tx.put(b"Mschema", (1).to_bytes(8, "big"))
    migrate(tree.engine, [*migrate_from, Migration(2, "", lambda tx: recount.count_used(tx, at_once=3))], what="here")
    with tree.engine.read() as reader:
        assert counts.every_used(reader) == right == recount.every_used(reader)


# -- limits ------------------------------------------------------------------------------------------------------


def test_nothing_is_made_past_the_number_of_files(tree: Tree) -> None:
    limit(tree, quota_files=3)
    file = tree.file(b"f")
    tree.fs.mkdir(tree.r, b"d", 0o755, ALICE)
    for make in (
        lambda: tree.create(b"g"),
        lambda: tree.fs.mkdir(tree.r, b"g", 0o755, ALICE),
        lambda: tree.fs.symlink(tree.r, b"g", b"f", ALICE),
        lambda: tree.fs.mknod(tree.r, b"g", stat.S_IFREG | 0o600, 0, ALICE),
    ):
        with pytest.raises(OverQuota) as refused:
            make()
        assert refused.value.errno == errno.EDQUOT
        assert "may have 3 files, 3 are used" in str(refused.value)
        assert "vna repository set --quota-files" in str(refused.value)
    with pytest.raises(AlreadyExists):
        tree.create(b"f")
    tree.fs.link(file, tree.r, b"g")
    tree.fs.rename(tree.r, b"g", tree.r, b"h")
    tree.fs.rmdir(tree.r, b"d")
    tree.file(b"g", b"x" * 1000)
    assert used(tree) == (3, 1005)
    check_tree(tree.engine, tree.spool)


def test_nothing_grows_past_the_number_of_bytes(tree: Tree) -> None:
    limit(tree, quota_bytes=100)
    handle = tree.create(b"f", b"x" * 60)
    with pytest.raises(OverQuota) as refused:
        tree.fs.write(handle, 60, b"y" * 41)
    assert "may have 100 bytes, 60 are used and 41 more wanted" in str(refused.value)
    assert tree.stat(handle.file.inode).size_bytes == 60  # nothing of it was written
    tree.fs.write(handle, 60, b"y" * 40)
    tree.fs.write(handle, 0, b"z" * 100)  # over what is there
    with pytest.raises(OverQuota):
        tree.fs.write(handle, 99, b"zz")
    with pytest.raises(OverQuota):
        tree.fs.append(handle, b"z")
    with pytest.raises(OverQuota):
        tree.fs.setattr(handle.file.inode, AttributeChanges(size_bytes=101), ALICE)
    with pytest.raises(OverQuota):
        tree.fs.extents.allocate(handle, 0, 0, 101)
    assert used(tree) == (2, 100)
    tree.fs.setattr(handle.file.inode, AttributeChanges(size_bytes=50), ALICE)
    assert used(tree) == (2, 50)
    tree.fs.extents.allocate(handle, KEEP_SIZE, 0, 200)
    with pytest.raises(OverQuota):
        tree.fs.extents.copy(handle, 0, handle, 80, 50)
    assert tree.fs.extents.copy(handle, 10, handle, 50, 1000) == 40  # there are no more
    tree.fs.release(handle)
    assert used(tree) == (2, 90)
    check_tree(tree.engine, tree.spool)


def test_open_files_count_together_before_any_is_closed(tree: Tree) -> None:
    limit(tree, quota_bytes=100)
    one, two = tree.create(b"1", b"x" * 60), tree.create(b"2", b"x" * 30)
    with pytest.raises(OverQuota):
        tree.fs.write(two, 30, b"x" * 11)
    tree.fs.release(one)
    with pytest.raises(OverQuota):
        tree.fs.write(two, 30, b"x" * 11)
    tree.fs.unlink(tree.r, b"1")
    tree.fs.write(two, 30, b"x" * 70)
    assert used(tree) == (2, 100)
    tree.fs.release(two)
    assert used(tree) == (2, 100)


def test_a_quota_below_what_is_used_loses_nothing_and_refuses_only_growth(tree: Tree) -> None:
    handle = tree.create(b"f", b"x" * 100)
    limit(tree, quota_bytes=10, quota_files=1)
    assert used(tree) == (2, 100)  # of a file that was open before there was a quota
    tree.fs.write(handle, 0, b"y" * 100)
    with pytest.raises(OverQuota):
        tree.fs.write(handle, 100, b"y")
    tree.fs.setattr(handle.file.inode, AttributeChanges(size_bytes=90), ALICE)
    tree.fs.release(handle)
    assert tree.read(handle.file.inode) == b"y" * 90
    limit(tree)
    tree.file(b"g", b"x" * 1000)
    assert used(tree) == (3, 1090)


def test_a_quota_of_another_repository_is_not_ours(tree: Tree) -> None:
    other = tree.repository("other")
    limit(tree, quota_bytes=1, quota_files=1)
    handle, _ = tree.fs.create(other, b"f", 0o644, os.O_RDWR, ALICE)
    tree.fs.write(handle, 0, b"x" * 100)
    tree.fs.release(handle)
    assert tree.fs.used(RepositoryId(other)) == Count(2, 100)


def test_quotas_that_cannot_be_are_refused(tree: Tree) -> None:
    for wrong in ({"quota_bytes": -1}, {"quota_files": 1 << 60}):
        with pytest.raises(InvalidArgument, match="quota"):
            limit(tree, **wrong)


def test_quotas_survive_a_restart(tree: Tree) -> None:
    limit(tree, quota_bytes=7, quota_files=9)
    tree.crash()
    rules = tree.fs.repositories.get(RepositoryId(tree.r))
    assert (rules.quota_bytes, rules.quota_files) == (7, 9)
    with pytest.raises(OverQuota):
        tree.create(b"f", b"x" * 8)


def test_the_log_says_once_that_a_quota_is_reached(tree: Tree, caplog: pytest.LogCaptureFixture) -> None:
    limit(tree, quota_bytes=100)
    handle = tree.create(b"f", b"x" * 96)

    def refused() -> int:
        with pytest.raises(OverQuota):
            tree.fs.write(handle, 100, b"x")
        return sum(record.getMessage() == "quota.reached" for record in caplog.records)

    with caplog.at_level(logging.WARNING):
        assert refused() == 1
        tree.fs.write(handle, 96, b"x")
        assert refused() == 1
        tree.fs.setattr(handle.file.inode, AttributeChanges(size_bytes=10), ALICE)
        tree.fs.write(handle, 10, b"x")
        assert refused() == 2


# -- past us -----------------------------------------------------------------------------------------------------


def test_the_kernel_writes_past_us_only_far_from_the_quota(tree: Tree) -> None:
    limit(tree, quota_bytes=1000)
    handle = tree.create(b"f", b"x" * 900)
    assert tree.fs.unseen.may_pass(handle)
    tree.fs.write(handle, 900, b"x")
    assert not tree.fs.unseen.may_pass(handle)
    limit(tree, quota_files=1)
    assert tree.fs.unseen.may_pass(handle)


def test_what_is_written_past_us_counts_when_somebody_looks_or_closes_and_soon_by_itself(tree: Tree) -> None:
    limit(tree, quota_bytes=1000)
    handle = passed(tree, tree.create(b"f"))
    behind_our_back(handle, b"x" * 100)
    assert tree.stat(handle.file.inode).size_bytes == 100
    assert used(tree) == (2, 100)
    behind_our_back(handle, b"x" * 200)
    tree.fs.flush(handle)
    assert used(tree) == (2, 200)
    behind_our_back(handle, b"x" * 300)
    tree.fs.upkeep()
    assert used(tree) == (2, 300)
    behind_our_back(handle, b"x" * 400)
    tree.fs.release(handle)
    assert used(tree) == (2, 400)
    check_tree(tree.engine, tree.spool)


def test_what_was_written_past_us_before_there_was_a_quota_counts(tree: Tree) -> None:
    handle = passed(tree, tree.create(b"f"))
    behind_our_back(handle, b"x" * 300)
    limit(tree, quota_bytes=200)
    assert used(tree) == (2, 300)
    behind_our_back(handle, b"x" * 400)
    tree.fs.upkeep()
    assert used(tree) == (2, 400)


def test_what_is_written_past_us_counts_in_the_process_that_takes_over_too(tree: Tree) -> None:
    limit(tree, quota_bytes=1000)
    handle = passed(tree, tree.create(b"f"))
    behind_our_back(handle, b"x" * 300)
    one = Survivor(handle.number, handle.file.inode, readable=True, writable=True, privileged=False, is_unseen=True)
    tree.crash(open_before=OpenBefore((one,), handle.number + 1))
    assert used(tree) == (2, 300)
    handle = tree.fs.handle(handle.number)
    behind_our_back(handle, b"x" * 400)
    tree.fs.upkeep()
    assert used(tree) == (2, 400)
    tree.fs.release(handle)
    assert used(tree) == (2, 400)
    check_tree(tree.engine, tree.spool)


def test_nobody_begins_to_write_past_us_at_the_quota(tree: Tree) -> None:
    limit(tree, quota_bytes=1000)
    handle = passed(tree, tree.create(b"f"))
    inode = handle.file.inode
    behind_our_back(handle, b"x" * 1500)
    with pytest.raises(OverQuota):
        tree.open(inode, os.O_WRONLY)
    tree.fs.release(tree.open(inode))
    tree.fs.release(tree.open(inode, os.O_WRONLY | os.O_TRUNC))  # gives back more than there is too much
    assert used(tree) == (2, 0)
    tree.fs.release(tree.open(inode, os.O_WRONLY))


# -- statfs ------------------------------------------------------------------------------------------------------

HERE = capacity.Statistics(1000, 600, 500, 300)
RULES = Repository(RepositoryId(2), "r", copies_min=2)
LIMITED = dataclasses.replace(RULES, quota_bytes=5000, quota_files=50)
USED = Count(10, 2000)


def room(total: int, free: int) -> Room:
    return Room(total, free)


def shown(rules: Repository, targets: list[Room | None] | None, local: capacity.Statistics = HERE) -> tuple[int, int]:
    found = capacity.of_repository(local, rules, USED, targets)
    return found.total_bytes, found.free_bytes


def test_a_quota_is_the_whole_and_what_is_left_of_it_is_free() -> None:
    assert shown(LIMITED, None) == shown(LIMITED, [None, None]) == (5000, 3000)
    found = capacity.of_repository(HERE, LIMITED, USED, None)
    assert (found.files_total, found.files_free) == (50, 40)
    over = capacity.of_repository(HERE, LIMITED, Count(60, 6000), None)
    assert (over.free_bytes, over.files_free) == (0, 0)


def test_no_more_is_free_than_enough_targets_take() -> None:
    assert shown(LIMITED, [room(9000, 2500), room(9000, 4000)]) == (5000, 2500)
    assert shown(LIMITED, [room(9000, 2500), None]) == (5000, 2500)  # an object store has no end
    assert shown(LIMITED, [room(9000, 2500), room(9000, 4000), room(8000, 10)]) == (5000, 2500)
    assert shown(LIMITED, [room(9000, 2500), None, None]) == (5000, 3000)


def test_without_a_quota_targets_are_shown_and_not_the_local_disk() -> None:
    assert shown(RULES, [room(9000, 2500), room(8000, 4000)]) == (9000, 2500)
    assert shown(RULES, [None, None]) == shown(RULES, None) == (1000, 600)


def test_where_bytes_cannot_go_anywhere_the_local_disk_is_all_there_is() -> None:
    assert shown(RULES, []) == shown(RULES, [room(9000, 2500)]) == (1000, 600)
    assert shown(LIMITED, [None]) == (5000, 600)


def test_nothing_is_free_where_writers_get_nothing() -> None:
    full = dataclasses.replace(HERE, free_bytes=0)
    assert shown(LIMITED, [None, None], full) == (5000, 0)
    assert shown(RULES, [room(9000, 2500), None], full) == (9000, 0)
    without = dataclasses.replace(HERE, files_free=0)
    assert capacity.of_repository(without, LIMITED, USED, None).files_free == 0
    uncounted = dataclasses.replace(without, files_total=0)
    assert capacity.of_repository(uncounted, LIMITED, USED, None).files_free == 40


def test_statfs_is_of_the_repository_asked_about(tree: Tree) -> None:
    other = tree.repository("other")
    disk = tree.fs.statfs(ROOT)
    limit(tree, quota_bytes=1 << 20, quota_files=10)
    file = tree.file(b"f", b"x" * 1000)
    for inode in (tree.r, file):
        found = tree.fs.statfs(inode)
        assert (found.total_bytes, found.free_bytes) == (1 << 20, (1 << 20) - 1000)
        assert (found.files_total, found.files_free) == (10, 8)
    for inode in (ROOT, other, None):  # None: nobody knows which, and there are several
        assert tree.fs.statfs(inode).total_bytes == disk.total_bytes
    past = tree.fs.find(tree.r, b".as-of")
    assert past is not None
    assert tree.fs.statfs(past.inode).total_bytes == 1 << 20
    tree.fs.repositories.remove(RepositoryId(other))
    assert tree.fs.statfs().total_bytes == 1 << 20


def test_statfs_follows_what_targets_have(tree: Tree) -> None:
    tree.fs.targets_have([room(1 << 50, 1 << 40)])
    found = tree.fs.statfs(tree.r)
    assert (found.total_bytes, found.free_bytes) == (1 << 50, 1 << 40)


def test_of_an_inode_that_is_gone_statfs_shows_the_local_disk(tree: Tree) -> None:
    limit(tree, quota_bytes=1 << 20)
    for gone in (Inode(12345), Inode(BASE + 12345)):
        assert tree.fs.statfs(gone).total_bytes == tree.fs.statfs(ROOT).total_bytes
