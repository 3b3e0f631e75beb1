"""SEMANTICS.md, executed on the tree itself: attributes, bytes, extended attributes, tiering."""

from __future__ import annotations

import errno
import json
import mmap
import os
import stat
import time
from pathlib import Path

import pytest

from tests.semantics.trees import ALICE, ROOT_USER, Tree
from vnafs.domain import errors
from vnafs.domain.clock import Instant
from vnafs.domain.copies import Copy
from vnafs.domain.files import FileState, Proposal, Verdict
from vnafs.domain.ids import Inode, Sha256, TargetName, Version
from vnafs.fs.attributes import AttributeChanges
from vnafs.fs.filesystem import Filesystem
from vnafs.fs.recall import RangeNeeded, RecallNeeded
from vnafs.fs.settings import Settings
from vnafs.local.space import Room, Space


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def set_attributes(tree: Tree, inode: Inode, **changes: int) -> None:
    tree.fs.setattr(inode, AttributeChanges(**changes), ALICE)


def test_p26_attributes_change_as_named(tree: Tree) -> None:
    inode = tree.file(b"f")
    set_attributes(tree, inode, mode=0o600, uid=7, gid=8, atime_ns=123_456_789, mtime_ns=1_000_000_001)
    found = tree.stat(inode)
    assert (stat.S_IMODE(found.mode), found.uid, found.gid) == (0o600, 7, 8)
    assert (found.atime_ns, found.mtime_ns) == (123_456_789, 1_000_000_001)
    assert found.ctime_ns == tree.clock.now()


def test_p26_a_time_set_while_open_for_write_stays_until_the_next_write(tree: Tree) -> None:
    handle = tree.create(b"f", b"bytes")
    set_attributes(tree, handle.file.inode, mtime_ns=5)
    tree.fs.release(handle)
    assert tree.stat(handle.file.inode).mtime_ns == 5
    again = tree.open(handle.file.inode, os.O_RDWR)
    assert tree.stat(handle.file.inode).mtime_ns == 5
    tree.fs.write(again, 0, b"x")
    assert tree.stat(handle.file.inode).mtime_ns > 5


def test_p26_times_that_were_set_stay_when_a_seal_comes_too_late(tree: Tree) -> None:
    """Written again while it was hashed, as PACS do that put a header right."""
    tree.clock.wall = time.time_ns()
    inode = tree.file(b"f", b"x" * 5000)
    late = tree.seal_of(inode)
    with_new_bytes = tree.open(inode, os.O_RDWR)
    tree.fs.write(with_new_bytes, 0, b"new")
    tree.fs.release(with_new_bytes)
    tree.clock.wall = time.time_ns()
    set_attributes(tree, inode, mtime_ns=5)
    [verdict] = tree.fs.advance([Proposal(inode, tree.fs.facts(inode).version, FileState.SEALED, late)])
    assert verdict is Verdict.CHANGED
    assert tree.stat(inode).mtime_ns == 5


def test_p26_a_time_to_come_is_not_when_the_file_changed(tree: Tree) -> None:
    tree.clock.wall = time.time_ns()
    handle = tree.create(b"f", b"x")
    to_come = tree.clock.wall + 10**18
    set_attributes(tree, handle.file.inode, mtime_ns=to_come)
    for _ in ("open", "closed"):
        found = tree.stat(handle.file.inode)
        assert found.mtime_ns == to_come
        assert found.ctime_ns < to_come
        if handle.file.handles:
            tree.fs.release(handle)


def test_p26_a_time_that_no_file_can_have_becomes_the_nearest_that_one_can(tree: Tree) -> None:
    inode = tree.file(b"f")
    set_attributes(tree, inode, atime_ns=-(1 << 40) * 1_000_000_000, mtime_ns=(1 << 34) * 1_000_000_000)
    found = tree.stat(inode)
    assert (found.atime_ns, found.mtime_ns) == (-(1 << 31) * 1_000_000_000, (1 << 63) - 1)


def test_p26_truncating_a_file_to_the_size_that_it_has_changes_its_times_and_begins_no_version(tree: Tree) -> None:
    inode = tree.file(b"f", b"x" * 5000)
    tree.advance(inode)
    tree.evict(inode)
    tree.clock.sleep(1)
    version = tree.fs.facts(inode).version
    set_attributes(tree, inode, size_bytes=5000)
    found = tree.stat(inode)
    assert (found.mtime_ns, found.ctime_ns) == (tree.clock.now(), tree.clock.now())
    assert (tree.fs.facts(inode).version, tree.fs.facts(inode).state) == (version, FileState.STUB)


def test_p27_change_of_owner_clears_set_id_and_capabilities(tree: Tree) -> None:
    inode = tree.file(b"f", b"", mode=0o6775)
    tree.fs.setxattr(inode, b"security.capability", b"x")
    tree.fs.setattr(inode, AttributeChanges(uid=7), ROOT_USER)
    assert stat.S_IMODE(tree.stat(inode).mode) == 0o775
    with pytest.raises(errors.NoSuchAttribute):
        tree.fs.getxattr(inode, b"security.capability")
    keeps = tree.file(b"g", b"", mode=0o2664)
    tree.fs.setattr(keeps, AttributeChanges(gid=7), ROOT_USER)
    assert stat.S_IMODE(tree.stat(keeps).mode) == 0o2664


def test_p27_writes_of_ordinary_users_clear_set_id(tree: Tree) -> None:
    inode = tree.file(b"f", b"", mode=0o4755)
    for who, left in ((ROOT_USER, 0o4755), (ALICE, 0o755)):
        handle = tree.open(inode, os.O_RDWR, who)
        tree.fs.write(handle, 0, b"x")
        tree.fs.release(handle)
        assert stat.S_IMODE(tree.stat(inode).mode) == left
    set_attributes(tree, inode, mode=0o4755)
    set_attributes(tree, inode, size_bytes=1)
    assert stat.S_IMODE(tree.stat(inode).mode) == 0o755


def test_p28_a_set_group_id_directory_gives_its_group(tree: Tree) -> None:
    parent = tree.fs.mkdir(tree.r, b"d", 0o755, ALICE).inode
    tree.fs.setattr(parent, AttributeChanges(mode=0o2775, gid=77), ROOT_USER)
    tree.fs.setattr(parent, AttributeChanges(mode=0o2775), ROOT_USER)
    below = tree.fs.mkdir(parent, b"e", 0o755, ALICE)
    assert (below.gid, stat.S_IMODE(below.mode)) == (77, 0o2755)
    handle, made = tree.fs.create(parent, b"f", 0o644, os.O_RDWR, ALICE)
    assert (made.gid, stat.S_IMODE(made.mode)) == (77, 0o644)
    tree.fs.release(handle)


def test_p29_reading_leaves_atime(tree: Tree) -> None:
    inode = tree.file(b"f")
    before = tree.stat(inode).atime_ns
    tree.clock.sleep(5)
    tree.read(inode)
    assert tree.stat(inode).atime_ns == before


def test_p30_an_open_file_shows_what_its_local_file_shows(tree: Tree) -> None:
    handle = tree.create(b"f", b"x" * 5000)
    local = os.stat(tree.local(handle.file.inode))
    for found in (tree.stat(handle.file.inode), tree.fs.lookup(tree.r, b"f"), tree.fs.readdir(tree.r, 2, 1)[0][2]):
        assert (found.size_bytes, found.blocks, found.mtime_ns) == (5000, local.st_blocks, local.st_mtime_ns)
    tree.fs.release(handle)
    assert tree.stat(handle.file.inode).size_bytes == 5000


def test_p32_holes_are_zeros_and_take_no_space(tree: Tree) -> None:
    handle = tree.create(b"f")
    set_attributes(tree, handle.file.inode, size_bytes=1 << 30)
    tree.fs.write(handle, 1 << 20, b"x")
    assert tree.fs.read(handle, 0, 100) == bytes(100)
    tree.fs.release(handle)
    found = tree.stat(handle.file.inode)
    assert found.size_bytes == 1 << 30
    assert 0 < found.blocks < 1000


def test_p34_exclusive_and_truncating_opens(tree: Tree) -> None:
    inode = tree.file(b"f")
    with pytest.raises(errors.AlreadyExists):
        tree.fs.create(tree.r, b"f", 0o644, os.O_RDWR | os.O_EXCL, ALICE)
    handle, found = tree.fs.create(tree.r, b"f", 0o644, os.O_RDWR | os.O_TRUNC, ALICE)
    assert (handle.file.inode, found.size_bytes) == (inode, 0)
    tree.fs.release(handle)


def test_p36_missing_local_bytes_are_an_error_and_never_an_empty_file(tree: Tree) -> None:
    for state in (FileState.OPEN, FileState.SEALED, FileState.PACKED):
        inode = tree.file(b"%d" % state)
        if state is not FileState.OPEN:
            tree.advance(inode, state)
        tree.local(inode).unlink()
        for flags in (os.O_RDONLY, os.O_RDWR):
            with pytest.raises(errors.Damaged) as refused:
                tree.open(inode, flags)
            assert refused.value.errno == errno.EIO
        assert tree.stat(inode).size_bytes == 5
    assert tree.read(tree.file(b"other")) == b"bytes"


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDWR])
def test_p36_missing_local_bytes_with_verified_copies_are_recalled(tree: Tree, flags: int) -> None:
    inode = tree.file(b"f")
    tree.advance(inode)
    tree.local(inode).unlink()
    with pytest.raises(RecallNeeded) as needed:
        tree.open(inode, flags)
    assert tree.fs.facts(inode).state is FileState.STUB
    assert tree.stat(inode).size_bytes == 5
    assert tree.recall(needed.value) is Verdict.DONE
    assert tree.fs.read(tree.open(inode, flags), 0, 100) == b"bytes"


def test_p36_missing_local_bytes_of_a_large_replicated_file_are_read_in_ranges(tmp_path: Path) -> None:
    tree = Tree(tmp_path, settings=Settings(reserve_bytes=0, recall_whole_bytes_max=4))
    inode = tree.file(b"f")
    tree.advance(inode)
    tree.local(inode).unlink()
    handle = tree.open(inode)
    with pytest.raises(RangeNeeded):
        tree.fs.read(handle, 0, 5)


def test_p36_missing_local_bytes_hinder_nobody_who_wants_none(tree: Tree) -> None:
    for name in (b"opened", b"cut"):
        inode = tree.file(name)
        tree.advance(inode)
        tree.local(inode).unlink()
        if name == b"opened":
            tree.fs.release(tree.open(inode, os.O_WRONLY | os.O_TRUNC))
        else:
            tree.fs.setattr(inode, AttributeChanges(size_bytes=0), ALICE)
        assert tree.read(inode) == b""
        assert tree.fs.facts(inode).version == 2


def test_p37_writers_are_refused_before_the_disk_is_full(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    handle = tree.create(b"f", b"safe")
    free = Room(1 << 40, 1000)

    def room(space: Space) -> Room:
        space._credit_bytes = free.free_bytes
        space._known_at = tree.clock.monotonic()
        return free

    monkeypatch.setattr(Space, "room", room)
    tree.clock.sleep(1)
    tree.fs.write(handle, 4, b"x" * 900)
    free = Room(1 << 40, 100)
    with pytest.raises(errors.NoSpace):
        tree.fs.write(handle, 904, b"x" * 200)
    free = Room(1 << 40, 1 << 20)
    tree.clock.sleep(1)
    tree.fs.write(handle, 904, b"x" * 200)
    assert tree.fs.read(handle, 0, 4) == b"safe"


def test_p38_sizes_have_a_limit(tmp_path: Path) -> None:
    tree = Tree(tmp_path, settings=Settings(reserve_bytes=0, file_bytes_max=1 << 20))
    handle = tree.create(b"f")
    with pytest.raises(errors.FileTooBig):
        tree.fs.write(handle, (1 << 20) - 1, b"xx")
    with pytest.raises(errors.FileTooBig):
        set_attributes(tree, handle.file.inode, size_bytes=(1 << 20) + 1)
    assert tree.stat(handle.file.inode).size_bytes == 0
    assert Settings().file_bytes_max == 16 << 40


def test_p40_extended_attributes(tree: Tree) -> None:
    inode = tree.file(b"f")
    names = [b"security.x", b"trusted.x", b"user." + b"n" * 250]
    for name in names:
        tree.fs.setxattr(inode, name, b"v" * 65536, 1)
        assert tree.fs.getxattr(inode, name) == b"v" * 65536
        with pytest.raises(errors.AlreadyExists):
            tree.fs.setxattr(inode, name, b"", 1)
    assert tree.fs.listxattr(inode) == names
    with pytest.raises(errors.NoSuchAttribute):
        tree.fs.setxattr(inode, b"user.none", b"", 2)
    with pytest.raises(errors.TooBig):
        tree.fs.setxattr(inode, b"user.big", b"v" * 65537)
    with pytest.raises(errors.NameTooLong):
        tree.fs.setxattr(inode, b"user." + b"n" * 251, b"")
    for name in names:
        tree.fs.removexattr(inode, name)
    assert tree.fs.listxattr(inode) == []


def test_p41_other_names_are_not_supported(tree: Tree) -> None:
    inode = tree.file(b"f")
    for name in (b"system.posix_acl_access", b"system.posix_acl_default", b"odd", b"user"):
        with pytest.raises(errors.NotSupported):
            tree.fs.setxattr(inode, name, b"")
        with pytest.raises((errors.NotSupported, errors.NoSuchAttribute)):
            tree.fs.getxattr(inode, name)
    with pytest.raises(errors.InvalidArgument):
        tree.fs.setxattr(inode, b"user.", b"")


def test_p41_names_of_trusted_attributes_are_for_who_may_read_them(tree: Tree) -> None:
    inode = tree.file(b"f")
    for name in (b"trusted.a", b"user.b"):
        tree.fs.setxattr(inode, name, b"")
    assert tree.fs.listxattr(inode, trusted=False) == [b"user.b"]
    assert tree.fs.listxattr(inode) == [b"trusted.a", b"user.b"]


def test_p42_our_own_attributes_are_answered_and_not_listed(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    asked: list[Sha256] = []

    def copies(inode: Inode, sha256: Sha256) -> list[Copy]:
        asked.append(sha256)
        return [Copy(TargetName("east"), Instant(1_700_000_000_000_000_000))]

    tree.fs = Filesystem(tree.engine, tree.spool, tree.clock, settings=tree.settings, copies_of=copies)
    inode = tree.file(b"f")
    assert tree.fs.getxattr(inode, b"user.vna.state") == b"open"
    assert json.loads(tree.fs.getxattr(inode, b"user.vna.copies")) == []
    with pytest.raises(errors.NoSuchAttribute):
        tree.fs.getxattr(inode, b"user.vna.sha256")
    tree.advance(inode)
    [digest] = tree.store
    assert tree.fs.getxattr(inode, b"user.vna.state") == b"replicated"
    assert tree.fs.getxattr(inode, b"user.vna.sha256") == digest.hex().encode()
    assert tree.fs.getxattr(inode, b"user.vna.ack") == b"written"
    assert tree.fs.getxattr(tree.r, b"user.vna.ack") == b"written"
    shown = json.loads(tree.fs.getxattr(inode, b"user.vna.copies"))
    assert shown == [{"target": "east", "verified": "2023-11-14T22:13:20Z"}]
    assert asked == [digest]
    assert tree.fs.listxattr(inode) == []
    for call in (
        lambda: tree.fs.setxattr(inode, b"user.vna.state", b"x"),
        lambda: tree.fs.removexattr(inode, b"user.vna.x"),
    ):
        with pytest.raises(errors.NotPermitted):
            call()


@pytest.mark.parametrize("state", [FileState.SEALED, FileState.PACKED, FileState.REPLICATED])
def test_p43_a_write_to_sealed_bytes_begins_a_version(tree: Tree, state: FileState) -> None:
    inode = tree.file(b"f")
    tree.advance(inode, state)
    set_attributes(tree, inode, mode=0o600, mtime_ns=77)
    tree.fs.setxattr(inode, b"user.a", b"")
    assert (tree.fs.facts(inode).version, tree.fs.facts(inode).state) == (1, state)
    handle = tree.open(inode, os.O_RDWR)
    facts = tree.fs.facts(inode)
    assert (facts.version, facts.state, facts.sha256, facts.mtime_ns) == (2, FileState.OPEN, None, 77)
    [verdict] = tree.fs.advance([Proposal(inode, Version(1), FileState.REPLICATED)])
    assert verdict is Verdict.KEPT
    assert tree.fs.facts(inode).state is FileState.OPEN
    assert tree.fs.evict(inode, Version(1)) is Verdict.GONE
    tree.fs.release(handle)


def test_p44_no_step_forward_while_a_writer_is_there(tree: Tree) -> None:
    handle = tree.create(b"f", b"bytes")
    assert tree.advance(handle.file.inode) is Verdict.BUSY
    tree.fs.release(handle)
    reader = tree.open(handle.file.inode)
    assert tree.advance(handle.file.inode, FileState.SEALED) is Verdict.DONE
    tree.fs.release(reader)


def test_p44_bytes_changed_behind_our_back_are_open_again(tree: Tree) -> None:
    inode = tree.file(b"f")
    seal = tree.seal_of(inode)
    tree.local(inode).write_bytes(b"other")
    [verdict] = tree.fs.advance([Proposal(inode, Version(1), FileState.SEALED, seal)])
    assert (verdict, tree.fs.facts(inode).version) == (Verdict.CHANGED, 1)
    tree.advance(inode)
    tree.local(inode).write_bytes(b"again!")
    assert tree.evict(inode) is Verdict.CHANGED
    facts = tree.fs.facts(inode)
    assert (facts.version, facts.state, facts.size_bytes) == (2, FileState.OPEN, 6)
    assert tree.read(inode) == b"again!"


def test_p45_a_mapping_that_outlives_its_descriptor_keeps_the_local_bytes(tree: Tree) -> None:
    inode = tree.file(b"f", b"x" * 5000)
    tree.advance(inode)
    with tree.local(inode).open("rb") as local:
        mapped = mmap.mmap(local.fileno(), 5000, access=mmap.ACCESS_READ)
    assert tree.evict(inode) is Verdict.BUSY
    mapped.close()
    assert tree.evict(inode) is Verdict.DONE


def test_p45_only_replicated_files_that_nobody_has_open_go(tree: Tree) -> None:
    inode = tree.file(b"f", b"x" * 5000)
    tree.advance(inode, FileState.PACKED)
    assert tree.evict(inode) is Verdict.ILLEGAL
    tree.advance(inode)
    handle = tree.open(inode)
    assert tree.evict(inode) is Verdict.BUSY
    tree.fs.release(handle)
    local = tree.local(inode)
    assert tree.evict(inode) is Verdict.DONE
    assert not local.exists()
    found = tree.stat(inode)
    assert (found.size_bytes, found.blocks) == (5000, 0)
    assert tree.evict(inode) is Verdict.DONE


def test_p46_opening_a_stub_needs_its_bytes_first(tree: Tree) -> None:
    inode = tree.stub(b"f")
    before = tree.stat(inode)
    for flags in (os.O_RDONLY, os.O_RDWR):
        with pytest.raises(RecallNeeded) as needed:
            tree.open(inode, flags)
    assert tree.recall(needed.value) is Verdict.DONE
    assert tree.read(inode) == b"bytes"
    assert tree.stat(inode).mtime_ns == before.mtime_ns
    assert tree.evict(inode) is Verdict.DONE


def test_p46_a_large_stub_is_read_in_ranges(tmp_path: Path) -> None:
    tree = Tree(tmp_path, settings=Settings(reserve_bytes=0, recall_whole_bytes_max=3))
    inode = tree.stub(b"f", b"0123456789")
    handle = tree.open(inode)
    with pytest.raises(RangeNeeded) as needed:
        tree.fs.read(handle, 8, 100)
    assert (needed.value.offset, needed.value.length) == (8, 2)
    assert tree.fs.read(handle, 10, 5) == b""
    with pytest.raises(RecallNeeded) as whole:
        tree.open(inode, os.O_RDWR)
    tree.recall(whole.value)
    assert tree.fs.read(handle, 8, 100) == b"89"


def test_p46_a_recalled_file_of_another_size_is_refused(tree: Tree) -> None:
    inode = tree.stub(b"f")
    path = tree.directory / "staged"
    path.write_bytes(b"byte")
    with pytest.raises(errors.Damaged):
        tree.fs.adopt(inode, Version(1), str(path))
    assert path.exists()
    assert tree.fs.facts(inode).state is FileState.STUB


def test_p47_cutting_a_stub_to_nothing_recalls_nothing(tree: Tree) -> None:
    one, two, three = tree.stub(b"1"), tree.stub(b"2"), tree.stub(b"3")
    tree.fs.release(tree.open(one, os.O_WRONLY | os.O_TRUNC))
    set_attributes(tree, two, size_bytes=0)
    for inode in (one, two):
        assert (tree.stat(inode).size_bytes, tree.fs.facts(inode).version) == (0, 2)
        assert tree.read(inode) == b""
    with pytest.raises(RecallNeeded):
        set_attributes(tree, three, size_bytes=2)


def test_p48_local_bytes_go_only_after_the_sync(tree: Tree) -> None:
    inode = tree.file(b"f")
    local = tree.local(inode)
    tree.fs.unlink(tree.r, b"f")
    assert tree.fs.reap() == 0
    assert local.exists()
    tree.engine.sync(tree.engine.position)
    assert tree.fs.reap() == 1
    assert not local.exists()


def test_p48_an_interrupted_removal_is_finished_at_the_next_start(tree: Tree) -> None:
    inode = tree.file(b"f")
    local = tree.local(inode)
    tree.fs.unlink(tree.r, b"f")
    tree.crash()
    assert not local.exists()


def test_p49_a_stranger_in_the_spool_is_put_away(tree: Tree) -> None:
    inode = tree.file(b"f")
    stranger = tree.local(inode).with_name(f"{inode + 1:x}.1")
    stranger.write_bytes(b"stranger")
    assert tree.read(tree.file(b"g", b"mine")) == b"mine"
    left = tree.local(inode).with_name(f"{inode + 9:x}.1")
    left.write_bytes(b"left by a crash")
    tree.crash()
    quarantined = sorted(path.read_bytes() for path in (tree.directory / "spool" / "quarantine").iterdir())
    assert quarantined == [b"left by a crash", b"stranger"]
    assert not left.exists()
    assert tree.read(inode) == b"bytes"
