"""SEMANTICS.md, executed on the tree itself: acknowledgement, root, names, rename, directories."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from tests.semantics.trees import ALICE, ROOT_USER, Tree
from vnafs.domain import errors
from vnafs.domain.ids import ROOT, Inode
from vnafs.domain.repositories import Acknowledgement
from vnafs.fs.attributes import AttributeChanges
from vnafs.fs.commitment import settle
from vnafs.fs.filesystem import Filesystem

DURABLE = Acknowledgement.DURABLE


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def test_p1_what_was_answered_is_there_after_a_crash(tree: Tree) -> None:
    directory = tree.fs.mkdir(tree.r, b"d", 0o755, ALICE).inode
    inode = tree.file(b"f")
    tree.fs.rename(tree.r, b"f", directory, b"g")
    tree.fs.setattr(inode, AttributeChanges(mode=0o600), ALICE)
    tree.fs.setxattr(inode, b"user.a", b"1")
    tree.crash()
    found = tree.fs.lookup(directory, b"g")
    assert (found.inode, stat.S_IMODE(found.mode)) == (inode, 0o600)
    assert tree.fs.getxattr(inode, b"user.a") == b"1"
    assert tree.names(tree.r) == [b"d"]


def test_p2_only_a_durable_repository_makes_answers_wait(tmp_path: Path, tree: Tree) -> None:
    tree.fs.mkdir(tree.r, b"d", 0o755, ALICE)
    assert tree.fs.must_sync(tree.r) is None
    strict = tree.repository("strict", DURABLE)
    made = tree.fs.mkdir(strict, b"d", 0o755, ALICE)
    assert tree.fs.must_sync(strict) == tree.engine.position
    tree.engine.sync(tree.engine.position)
    assert tree.fs.must_sync(strict) is None
    tree.fs.rmdir(strict, b"d")
    assert tree.fs.must_sync(made.inode) == tree.engine.position


def test_p4_close_of_a_writer_waits_for_bytes_and_name_and_of_a_reader_for_nothing(tmp_path: Path) -> None:
    tree = Tree(tmp_path, acknowledgement=DURABLE)
    tree.spool.names_follow_bytes = False  # elsewhere than on ext4 and XFS
    handle = tree.create(b"f", b"bytes")
    commitment = tree.fs.flush(handle)
    assert commitment is not None
    assert commitment.position == tree.engine.position
    assert commitment.directory == str(tree.local(handle.file.inode).parent)
    assert commitment.descriptor >= 0
    settle(commitment, tree.engine)
    tree.fs.settled(commitment)
    assert tree.engine.synced == tree.engine.position
    assert tree.fs.flush(handle) is None
    reader = tree.open(handle.file.inode)
    assert tree.fs.flush(reader) is None


def test_p4_a_write_during_the_sync_is_waited_for_again(tmp_path: Path) -> None:
    tree = Tree(tmp_path, acknowledgement=DURABLE)
    handle = tree.create(b"f", b"bytes")
    first = tree.fs.flush(handle)
    assert first is not None
    tree.fs.write(handle, 5, b"more")
    settle(first, tree.engine)
    tree.fs.settled(first)
    second = tree.fs.flush(handle)
    assert second is not None
    assert second.directory == ""
    settle(second, tree.engine)


def test_p4_at_written_close_waits_for_nothing(tree: Tree) -> None:
    assert tree.fs.flush(tree.create(b"f", b"bytes")) is None


def test_p5_fsync_covers_what_others_wrote_before(tree: Tree) -> None:
    inode = tree.file(b"f")
    reader = tree.open(inode)
    commitment = tree.fs.fsync(reader)
    assert commitment is not None
    assert commitment.descriptor >= 0
    assert commitment.directory
    assert commitment.position == tree.engine.position
    settle(commitment, tree.engine)
    tree.fs.settled(commitment)
    assert tree.fs.fsync(reader) is None


def test_p6_after_a_failed_sync_every_change_is_refused(tmp_path: Path) -> None:
    tree = Tree(tmp_path, acknowledgement=DURABLE)
    handle = tree.create(b"f", b"bytes")
    commitment = tree.fs.flush(handle)
    assert commitment is not None
    tree.engine.is_broken = True
    with pytest.raises(errors.StorageFailed) as failed:
        settle(commitment, tree.engine)
    tree.fs.fail(failed.value)
    before = tree.engine.syncs
    for change in (
        lambda: tree.fs.write(handle, 0, b"x"),
        lambda: tree.fs.mkdir(tree.r, b"d", 0o755, ALICE),
        lambda: tree.fs.unlink(tree.r, b"f"),
    ):
        with pytest.raises(errors.StorageFailed):
            change()
    assert tree.engine.syncs == before
    assert tree.fs.lookup(tree.r, b"f").size_bytes == 5


def test_p7_a_file_open_at_the_crash_has_what_was_written(tree: Tree) -> None:
    handle = tree.create(b"f", b"x" * 10_000)
    inode = handle.file.inode
    mtime = tree.stat(inode).mtime_ns
    tree.crash()
    found = tree.stat(inode)
    assert (found.size_bytes, found.mtime_ns) == (10_000, mtime)
    assert tree.read(inode) == b"x" * 10_000


def test_p7_a_version_begun_but_not_renamed_is_finished(tree: Tree) -> None:
    inode = tree.file(b"f", b"old")
    tree.advance(inode)
    before = tree.local(inode)
    tree.open(inode, os.O_RDWR)
    tree.local(inode).rename(before)  # as if the crash came between log and rename
    tree.crash()
    assert tree.read(inode) == b"old"
    assert not before.exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda fs, root: fs.mkdir(root, b"x", 0o755, ROOT_USER),
        lambda fs, root: fs.create(root, b"x", 0o644, os.O_RDWR, ROOT_USER),
        lambda fs, root: fs.mknod(root, b"x", stat.S_IFIFO | 0o644, 0, ROOT_USER),
        lambda fs, root: fs.symlink(root, b"x", b"y", ROOT_USER),
        lambda fs, root: fs.rename(root, b"r", root, b"x"),
        lambda fs, root: fs.unlink(root, b"r"),
        lambda fs, root: fs.rmdir(root, b"r"),
        lambda fs, root: fs.link(fs.lookup(fs.lookup(root, b"r").inode, b"f").inode, root, b"x"),
        lambda fs, root: fs.rename(fs.lookup(root, b"r").inode, b"f", root, b"x"),
    ],
)
def test_p8_the_root_refuses_and_says_what_to_use(tree: Tree, caplog: pytest.LogCaptureFixture, change: object) -> None:
    tree.file(b"f")
    with pytest.raises(errors.NotPermitted):
        change(tree.fs, ROOT)  # type: ignore[operator] # one lambda of the table
    [record] = [record for record in caplog.records if record.message == "tree.root_refused"]
    assert "vna repository" in record.advice  # type: ignore[attr-defined] # an extra of this record
    assert tree.names(ROOT) == [b"r"]


def test_p9_nothing_crosses_repositories(tree: Tree) -> None:
    other, inode = tree.repository("other"), tree.file(b"f")
    with pytest.raises(errors.CrossesRepositories):
        tree.fs.rename(tree.r, b"f", other, b"f")
    with pytest.raises(errors.CrossesRepositories):
        tree.fs.link(inode, other, b"f")


def test_p10_only_an_empty_repository_goes(tree: Tree) -> None:
    tree.file(b"f")
    repository = tree.fs.repositories.named("r")
    with pytest.raises(errors.DirectoryNotEmpty):
        tree.fs.repositories.remove(repository.id)
    tree.fs.unlink(tree.r, b"f")
    tree.fs.repositories.remove(repository.id)
    assert tree.names(ROOT) == []
    tree.crash()
    assert tree.fs.repositories.list() == []


def test_p11_any_bytes_but_two_make_a_name(tree: Tree) -> None:
    odd = [bytes(byte for byte in range(1, 256) if byte != ord("/")), b"\xff\xfe", b" ", b"\n", b"x" * 255, b"-rf"]
    for name in odd:
        tree.file(name)
    assert tree.names(tree.r) == odd
    for call in (tree.fs.lookup, tree.fs.unlink, tree.fs.rmdir):
        with pytest.raises(errors.NameTooLong):
            call(tree.r, b"x" * 256)
    with pytest.raises(errors.NameTooLong):
        tree.file(b"x" * 256)


def test_p12_inode_numbers_are_not_used_again(tree: Tree) -> None:
    seen = set()
    for turn in range(3):
        for number in range(3):
            inode = tree.file(b"f%d" % number)
            assert inode not in seen
            seen.add(inode)
            tree.fs.unlink(tree.r, b"f%d" % number)
        tree.crash()
        assert turn < 3


def test_p13_dot_and_dotdot_work_for_every_inode(tree: Tree) -> None:
    directory = tree.fs.mkdir(tree.r, b"d", 0o755, ALICE).inode
    inode = tree.file(b"f")
    tree.crash()
    assert tree.fs.lookup(directory, b"..").inode == tree.r
    assert tree.fs.lookup(tree.r, b"..").inode == ROOT
    assert tree.fs.lookup(ROOT, b"..").inode == ROOT
    assert tree.fs.lookup(inode, b".").inode == inode
    assert tree.fs.lookup(inode, b"..").inode == tree.r


def test_p14_all_names_of_a_file_are_alike(tree: Tree) -> None:
    inode = tree.file(b"f", b"one")
    assert tree.fs.link(inode, tree.r, b"g").nlink == 2
    tree.fs.unlink(tree.r, b"f")
    assert tree.fs.lookup(tree.r, b"g").nlink == 1
    assert tree.read(inode) == b"one"
    assert tree.fs.path_hint(inode) == b"r/g"
    directory = tree.fs.mkdir(tree.r, b"d", 0o755, ALICE)
    with pytest.raises(errors.NotPermitted):
        tree.fs.link(directory.inode, tree.r, b"e")


def test_p15_unlinked_bytes_stay_until_the_last_close(tree: Tree) -> None:
    handle = tree.create(b"f", b"bytes")
    inode, local = handle.file.inode, tree.local(handle.file.inode)
    second = tree.open(inode)
    tree.fs.unlink(tree.r, b"f")
    assert tree.names(tree.r) == []
    tree.fs.write(handle, 5, b"!")
    tree.fs.release(handle)
    assert tree.fs.read(second, 0, 10) == b"bytes!"
    assert tree.stat(inode).nlink == 0
    tree.fs.release(second)
    with pytest.raises(errors.NotFound):
        tree.stat(inode)
    tree.engine.sync(tree.engine.position)
    tree.fs.reap()
    assert not local.exists()


def test_p16_an_orphan_is_gone_after_a_crash(tree: Tree) -> None:
    handle = tree.create(b"f", b"bytes")
    local = tree.local(handle.file.inode)
    tree.fs.unlink(tree.r, b"f")
    tree.crash()
    assert not local.exists()
    with pytest.raises(errors.NotFound):
        tree.stat(handle.file.inode)


def test_p17_a_directory_with_names_stays(tree: Tree) -> None:
    directory = tree.fs.mkdir(tree.r, b"d", 0o755, ALICE).inode
    tree.fs.mkdir(directory, b"e", 0o755, ALICE)
    with pytest.raises(errors.DirectoryNotEmpty):
        tree.fs.rmdir(tree.r, b"d")
    tree.fs.rmdir(directory, b"e")
    tree.fs.rmdir(tree.r, b"d")
    assert tree.stat(tree.r).nlink == 2


def test_p17_who_has_a_directory_open_that_is_removed_sees_it_empty_and_without_links(tree: Tree) -> None:
    directory = tree.fs.mkdir(tree.r, b"d", 0o755, ALICE).inode
    tree.fs.rmdir(tree.r, b"d")
    assert tree.fs.getattr(directory).nlink == 0
    assert list(tree.fs.listing(directory)) == []
    tree.fs.fsync_directory(directory)
    with pytest.raises(errors.NotFound):
        tree.fs.mkdir(directory, b"e", 0o755, ALICE)


def test_p18_a_symbolic_link_holds_any_bytes(tree: Tree) -> None:
    target = bytes(range(1, 256)) * 16
    made = tree.fs.symlink(tree.r, b"l", target, ALICE)
    assert made.size_bytes == len(target)
    assert tree.fs.readlink(made.inode) == target
    for wrong in (b"", b"x" * 4096):
        with pytest.raises(errors.NameTooLong):
            tree.fs.symlink(tree.r, b"m", wrong, ALICE)


def test_p19_device_nodes_are_for_root(tree: Tree) -> None:
    for kind in (stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK):
        made = tree.fs.mknod(tree.r, b"%o" % kind, kind | 0o600, 0, ALICE)
        assert made.mode == kind | 0o600
    with pytest.raises(errors.NotPermitted):
        tree.fs.mknod(tree.r, b"n", stat.S_IFCHR | 0o600, os.makedev(1, 3), ALICE)
    made = tree.fs.mknod(tree.r, b"n", stat.S_IFCHR | 0o600, os.makedev(1, 3), ROOT_USER)
    assert made.rdev == os.makedev(1, 3)


def test_p20_rename_over_an_open_file_keeps_its_bytes_for_its_handles(tree: Tree) -> None:
    old, new = tree.file(b"f", b"old"), tree.file(b"g", b"new")
    handle = tree.open(old)
    tree.fs.rename(tree.r, b"g", tree.r, b"f")
    assert tree.fs.read(handle, 0, 9) == b"old"
    assert tree.fs.lookup(tree.r, b"f").inode == new
    assert tree.names(tree.r) == [b"f"]


def test_p20_rename_over_a_sealed_file_keeps_its_bytes_until_the_change_is_synced(tree: Tree) -> None:
    old = tree.file(b"f", b"old")
    tree.advance(old)
    local = tree.local(old)
    tree.file(b"g", b"new")
    tree.fs.rename(tree.r, b"g", tree.r, b"f")
    tree.fs.reap()
    assert local.exists()
    tree.engine.sync(tree.engine.position)
    tree.fs.reap()
    assert not local.exists()


def test_p21_flags_of_rename(tree: Tree) -> None:
    one, two = tree.file(b"f", b"one"), tree.fs.mkdir(tree.r, b"d", 0o755, ALICE).inode
    with pytest.raises(errors.AlreadyExists):
        tree.fs.rename(tree.r, b"f", tree.r, b"d", 1)
    tree.fs.rename(tree.r, b"f", tree.r, b"d", 2)
    assert (tree.fs.lookup(tree.r, b"d").inode, tree.fs.lookup(tree.r, b"f").inode) == (one, two)
    with pytest.raises(errors.NotFound):
        tree.fs.rename(tree.r, b"f", tree.r, b"none", 2)
    with pytest.raises(errors.InvalidArgument):
        tree.fs.rename(tree.r, b"f", tree.r, b"w", 4)


def test_p22_what_cannot_be_renamed(tree: Tree) -> None:
    outer = tree.fs.mkdir(tree.r, b"outer", 0o755, ALICE).inode
    inner = tree.fs.mkdir(outer, b"inner", 0o755, ALICE).inode
    tree.fs.mkdir(tree.r, b"empty", 0o755, ALICE)
    tree.file(b"f")
    for names, wanted in (
        ((tree.r, b"outer", inner, b"x"), errors.InvalidArgument),
        ((tree.r, b"empty", tree.r, b"f"), errors.NotADirectory),
        ((tree.r, b"f", tree.r, b"empty"), errors.IsADirectory),
        ((tree.r, b"empty", tree.r, b"outer"), errors.DirectoryNotEmpty),
        ((outer, b"inner", tree.r, b"outer"), errors.DirectoryNotEmpty),
    ):
        with pytest.raises(wanted):
            tree.fs.rename(*names)


def test_p23_a_moved_directory_brings_its_link_and_its_parent(tree: Tree) -> None:
    one = tree.fs.mkdir(tree.r, b"one", 0o755, ALICE).inode
    two = tree.fs.mkdir(tree.r, b"two", 0o755, ALICE).inode
    moved = tree.fs.mkdir(one, b"d", 0o755, ALICE).inode
    tree.fs.rename(one, b"d", two, b"d")
    assert [tree.stat(inode).nlink for inode in (one, two)] == [2, 3]
    assert tree.fs.lookup(moved, b"..").inode == two


def test_p24_a_listing_misses_and_repeats_nothing_that_stays(tree: Tree) -> None:
    stay = [b"stay%d" % number for number in range(40)]
    for name in stay:
        tree.file(name)
        tree.file(b"gone" + name)
    seen, cookie, turn = [], 0, 0
    while batch := tree.fs.readdir(tree.r, cookie, 5):
        seen += [name for _, name, _ in batch]
        cookie = batch[-1][0]
        if turn < 40:
            tree.fs.unlink(tree.r, b"gone" + stay[turn])
            tree.file(b"new%d" % turn)
            turn += 1
    assert [name for name in seen if name.startswith(b"stay")] == stay


def test_p25_a_cookie_is_good_after_a_restart(tree: Tree) -> None:
    for number in range(10):
        tree.file(b"%d" % number)
    cookie = tree.fs.readdir(tree.r, 0, 6)[-1][0]
    tree.fs.unlink(tree.r, b"2")
    tree.crash()
    assert [name for _, name, _ in tree.fs.readdir(tree.r, cookie, 99)] == [b"%d" % number for number in range(4, 10)]


def test_p25_a_removed_directory_lists_nothing(tree: Tree) -> None:
    directory = tree.fs.mkdir(tree.r, b"d", 0o755, ALICE).inode
    tree.fs.rmdir(tree.r, b"d")
    assert tree.fs.readdir(directory, 0, 9) == []


def test_p50_start_reads_what_was_in_flight_and_not_every_file(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    for number in range(300):
        tree.file(b"%d" % number)
    tree.create(b"open", b"bytes")
    reads = Counting(tree)
    Filesystem(tree.engine, tree.spool, tree.clock, settings=tree.settings)
    assert reads.rows < 20


class Counting:
    """How many inode rows a start looks at."""

    def __init__(self, tree: Tree) -> None:
        self.rows = 0
        original = tree.spool.stat

        def stat(inode: Inode, version: int) -> os.stat_result | None:
            self.rows += 1
            return original(inode, version)  # type: ignore[arg-type] # a version

        tree.spool.stat = stat  # type: ignore[method-assign] # counts calls of the real thing


def test_p85_a_directory_tells_its_name_of_another_case(tree: Tree) -> None:
    ask, other = b"glusterfs.get_real_filename:", b"user.glusterfs.get_real_filename:"
    above = tree.fs.mkdir(tree.r, b"CT", 0o755, ALICE).inode
    for name in (b"IMAGE.DCM", b"Image.dcm"):
        tree.file(name)
        tree.fs.rename(tree.r, name, above, name)
    for prefix in (ask, other):
        assert tree.fs.getxattr(tree.r, prefix + b"ct") == b"CT\0"
        assert tree.fs.getxattr(above, prefix + b"Image.dcm") == b"Image.dcm\0"
        assert tree.fs.getxattr(above, prefix + b"image.dcm") == b"IMAGE.DCM\0"
    tree.fs.rename(above, b"Image.dcm", above, b"image.dcm")
    tree.crash()
    assert tree.fs.getxattr(above, ask + b"iMAGE.dcm") == b"image.dcm\0"
    tree.fs.unlink(above, b"image.dcm")
    assert tree.fs.getxattr(above, ask + b"image.dcm") == b"IMAGE.DCM\0"
    tree.fs.unlink(above, b"IMAGE.DCM")
    for inode, name in ((above, b"image.dcm"), (above, b""), (tree.file(b"f"), b"f")):
        with pytest.raises(errors.NoSuchAttribute):
            tree.fs.getxattr(inode, ask + name)
    past = tree.fs.find(tree.r, b".as-of")
    assert past is not None
    with pytest.raises(errors.NotSupported):
        tree.fs.getxattr(past.inode, ask + b"CT")
    assert tree.fs.listxattr(above) == []
