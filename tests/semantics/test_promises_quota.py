"""P-80 to P-84: what a repository has, what it may have, and what statfs(2) says of it."""

from __future__ import annotations

import dataclasses
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.model.treecheck import check_tree
from tests.semantics.trees import ALICE, Tree
from tests.system.mounts import ENGINES, Mount
from vnafs.domain.errors import OverQuota
from vnafs.domain.files import Verdict
from vnafs.domain.ids import RepositoryId
from vnafs.fs.attributes import AttributeChanges
from vnafs.fs.settings import Settings

MEBIBYTE = 1 << 20
GIBIBYTE = 1 << 30
QUOTA_BYTES = 10 * MEBIBYTE
QUOTA_FILES = 6


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path, settings=Settings(reserve_bytes=0, unseen_room_bytes_min=100))


def limit(tree: Tree, **quotas: int) -> None:
    known = tree.fs.repositories.get(RepositoryId(tree.r))
    tree.fs.repositories.set(dataclasses.replace(known, **quotas))  # type: ignore[arg-type] # numbers of its fields


def used(tree: Tree) -> tuple[int, int]:
    found = tree.fs.used(RepositoryId(tree.r))
    return found.rows, found.size_bytes


def mounted(folder: Path, fuse: str, *, quota_bytes: int, quota_files: int = 0) -> Mount:
    """The repository `archive` has quotas, `other` has none."""
    mount = Mount(
        folder, "--fuse", fuse, "--quota-bytes", str(quota_bytes), "--quota-files", str(quota_files)
    )  # fmt: skip
    mount.start()
    return mount


@pytest.fixture(params=ENGINES)
def mount(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Mount]:
    made = mounted(tmp_path, request.param, quota_bytes=QUOTA_BYTES, quota_files=QUOTA_FILES)
    yield made
    made.close()


def refusal(call: object, *arguments: object) -> int:
    """The errno that a call fails with, 0 if it does not."""
    try:
        call(*arguments)  # type: ignore[operator] # any call
    except OSError as error:
        return error.errno or -1
    return 0


def test_p80_files_and_sizes_count_and_the_past_does_not(tree: Tree) -> None:
    file = tree.file(b"f", b"x" * 100)
    tree.fs.link(file, tree.r, b"again")
    tree.fs.symlink(tree.r, b"l", b"somewhere", ALICE)
    tree.fs.mkdir(tree.r, b"d", 0o755, ALICE)
    tree.fs.mknod(tree.r, b"p", stat.S_IFIFO | 0o600, 0, ALICE)
    tree.fs.setxattr(file, b"user.x", b"y" * 1000, 0)
    stub = tree.stub(b"stub", b"x" * 1000)
    hole = tree.create(b"hole")
    tree.fs.setattr(hole.file.inode, AttributeChanges(size_bytes=MEBIBYTE), ALICE)
    assert used(tree) == (7, 100 + 1000)  # the last one is open
    limit(tree, quota_bytes=GIBIBYTE)
    assert used(tree) == (7, 100 + 1000 + MEBIBYTE)
    tree.fs.unlink(tree.r, b"hole")
    assert used(tree)[0] == 7  # it is open
    tree.fs.release(hole)
    tree.fs.unlink(tree.r, b"stub")
    assert tree.fs.versions.history(b"r/stub")
    assert used(tree) == (5, 100)
    assert tree.fs.find(tree.r, b"stub") is None
    assert stub


def test_p80_the_count_is_right_after_a_crash(tree: Tree) -> None:
    limit(tree, quota_bytes=MEBIBYTE)
    handle = tree.create(b"f", b"x" * 100)
    tree.fs.unseen.pass_by(handle)
    os.pwrite(handle.file.writing, b"y" * 500, 0)
    gone = tree.create(b"gone", b"x" * 100)
    tree.fs.unlink(tree.r, b"gone")
    assert gone.file.handles
    tree.crash()
    assert used(tree) == (2, 500)
    check_tree(tree.engine, tree.spool)


def test_p81_nothing_is_made_past_the_quota_of_files(mount: Mount) -> None:
    for number in range(QUOTA_FILES - 2):
        (mount.root / f"f{number}").write_bytes(b"")
    (mount.root / "d").mkdir()
    new = mount.root / "new"
    assert refusal(os.open, new, os.O_CREAT | os.O_WRONLY) == errno.EDQUOT
    assert refusal(os.mkdir, new) == errno.EDQUOT
    assert refusal(os.symlink, "f0", new) == errno.EDQUOT
    assert refusal(os.mknod, new, stat.S_IFIFO | 0o600) == errno.EDQUOT
    os.link(mount.root / "f0", new)
    os.rename(mount.root / "f1", mount.root / "d" / "f1")
    (mount.point / "other" / "new").write_bytes(b"no quota there")
    os.unlink(mount.root / "d" / "f1")
    (mount.root / "f1").write_bytes(b"there is room again")
    mount.restart()
    assert refusal(os.mkdir, mount.root / "e") == errno.EDQUOT


def test_p81_nothing_grows_past_the_quota_of_bytes(mount: Mount) -> None:
    first = os.open(mount.root / "first", os.O_CREAT | os.O_RDWR)
    second = os.open(mount.root / "second", os.O_CREAT | os.O_RDWR)
    assert os.pwrite(first, bytes(QUOTA_BYTES - 4096), 0) == QUOTA_BYTES - 4096
    assert os.pwrite(second, b"x" * 4096, 0) == 4096
    assert refusal(os.pwrite, second, b"y" * 2, 4095) == errno.EDQUOT
    assert os.pread(second, 2, 4095) == b"x"  # nothing of it was written
    assert refusal(os.ftruncate, second, 4097) == errno.EDQUOT
    assert refusal(os.truncate, mount.root / "second", 4097) == errno.EDQUOT
    if "kernel" in mount.arguments:
        assert refusal(os.posix_fallocate, second, 0, 4097) == errno.EDQUOT
    assert refusal(os.copy_file_range, first, second, 4096, 0, 4096) == errno.EDQUOT
    assert os.pwrite(second, b"z" * 4096, 0) == 4096
    (mount.point / "other" / "large").write_bytes(bytes(4096))
    os.ftruncate(first, 4096)
    assert os.pwrite(second, b"y" * 4096, 4096) == 4096
    os.close(first)
    os.close(second)
    assert (mount.root / "second").read_bytes() == b"z" * 4096 + b"y" * 4096
    assert refusal((mount.root / "first").write_bytes, bytes(QUOTA_BYTES)) == errno.EDQUOT
    assert (mount.root / "first").stat().st_size <= QUOTA_BYTES - 8192


def test_p81_what_was_comes_back_at_the_quota(tree: Tree) -> None:
    file = tree.file(b"f", b"x" * 1000)
    assert tree.advance(file) is Verdict.DONE
    before = tree.clock.now()
    tree.clock.sleep(1)
    tree.fs.unlink(tree.r, b"f")
    limit(tree, quota_bytes=1, quota_files=1)
    tree.fs.versions.undelete(b"r/f")
    assert used(tree) == (2, 1000)
    tree.fs.unlink(tree.r, b"f")
    tree.fs.rollbacks.begin(RepositoryId(tree.r), before)
    while tree.fs.upkeep():
        pass
    assert tree.stat(tree.fs.lookup(tree.r, b"f").inode).size_bytes == 1000


def test_p82_a_quota_below_what_is_there_loses_nothing(tree: Tree) -> None:
    file = tree.file(b"f", b"x" * 1000)
    limit(tree, quota_bytes=10, quota_files=1)
    handle = tree.open(file, os.O_RDWR)
    tree.fs.write(handle, 0, b"y" * 1000)
    with pytest.raises(OverQuota):
        tree.fs.write(handle, 1000, b"y")
    tree.fs.setattr(file, AttributeChanges(size_bytes=999), ALICE)
    with pytest.raises(OverQuota):
        tree.fs.setattr(file, AttributeChanges(size_bytes=1000), ALICE)
    tree.fs.release(handle)
    assert tree.read(file) == b"y" * 999


def test_p83_near_the_quota_each_write_is_judged(tree: Tree) -> None:
    limit(tree, quota_bytes=1000)
    handle = tree.create(b"f", b"x" * 900)
    assert tree.fs.unseen.may_pass(handle)
    tree.fs.write(handle, 900, b"x")
    assert not tree.fs.unseen.may_pass(handle)


def test_p83_what_linux_writes_counts_and_no_handle_more_goes_past_the_quota(tmp_path: Path) -> None:
    mount = mounted(tmp_path, "kernel", quota_bytes=2 * GIBIBYTE)
    try:
        path = mount.root / "f"
        served = os.open(path, os.O_CREAT | os.O_RDWR)
        assert os.pwrite(served, b"x", 3 * GIBIBYTE) == 1  # a hole: it takes no room on this disk
        assert path.stat().st_size == 3 * GIBIBYTE + 1
        assert refusal(os.open, path, os.O_RDWR) == errno.EDQUOT
        assert refusal((mount.root / "g").write_bytes, b"x") == errno.EDQUOT
        os.close(os.open(path, os.O_RDONLY))
        os.close(os.open(path, os.O_RDWR | os.O_TRUNC))
        assert os.fstat(served).st_size == 0
        os.close(served)
        (mount.root / "g").write_bytes(b"x")
    finally:
        mount.close()


def test_p84_statfs_shows_the_quota_and_what_is_left_of_it(mount: Mount) -> None:
    (mount.root / "f").write_bytes(bytes(MEBIBYTE))
    disk, other, ours = (os.statvfs(path) for path in (mount.point, mount.point / "other", mount.root))
    assert other.f_blocks == disk.f_blocks > QUOTA_BYTES // 4096
    if "kernel" in mount.arguments:  # P-78
        assert (ours.f_blocks, ours.f_bavail) == (QUOTA_BYTES // 4096, (QUOTA_BYTES - MEBIBYTE) // 4096)
        assert (ours.f_files, ours.f_favail) == (QUOTA_FILES, QUOTA_FILES - 2)
        assert os.statvfs(mount.root / "f") == ours
    else:
        assert ours.f_blocks == disk.f_blocks
