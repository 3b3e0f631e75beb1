"""Promises about a disk that does not keep what was written. On a real one: `tests/system/test_failing_disk.py`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.model.pipelineworld import World
from tests.model.test_protect_days import pass_time
from tests.semantics.trees import ALICE, Tree
from vnafs.domain.errors import Busy, Suspect
from vnafs.domain.files import FileState, Fingerprint, Proposal, Seal, Verdict
from vnafs.domain.ids import Inode, Sha256, Version
from vnafs.domain.repositories import Acknowledgement
from vnafs.fs.attributes import AttributeChanges
from vnafs.fs.commitment import settle
from vnafs.index.inodes import InodeRow
from vnafs.index.queue import DUE_NEVER

FIRST = Version(1)


def sealed(tree: Tree, inode: Inode) -> Verdict:
    found = os.stat(tree.spool.local_path(inode, FIRST))
    seal = Seal(Sha256(bytes(32)), Fingerprint(found.st_size, found.st_mtime_ns, found.st_ctime_ns))
    [verdict] = tree.fs.advance([Proposal(inode, FIRST, FileState.SEALED, seal)])
    return verdict


def row_of(tree: Tree, inode: Inode) -> InodeRow:
    return tree.fs._core.row(inode)


def a_suspect(tree: Tree) -> Inode:
    inode = tree.file(b"f")
    tree.fs.suspect(inode, FIRST)
    return inode


def test_p90_what_the_disk_did_not_keep_is_not_sealed(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    inode = a_suspect(tree)
    assert row_of(tree, inode).due == DUE_NEVER
    assert sealed(tree, inode) is Verdict.ILLEGAL
    tree.fs.release(tree.open(inode, os.O_WRONLY))  # who writes a part of it does not make up for the rest
    assert row_of(tree, inode).due == DUE_NEVER
    assert tree.read(inode) == b"bytes"
    assert sealed(tree, tree.file(b"other")) is Verdict.DONE


def test_p90_fsync_goes_on_to_fail_also_after_a_restart(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    inode = a_suspect(tree)
    for _ in range(2):
        handle = tree.open(inode, os.O_RDWR)
        with pytest.raises(Suspect):
            tree.fs.fsync(handle)
        tree.crash(boot_id="another")
        assert row_of(tree, inode).due == DUE_NEVER


def test_p90_at_durable_a_close_fails_until_the_file_is_emptied(tmp_path: Path) -> None:
    tree = Tree(tmp_path, acknowledgement=Acknowledgement.DURABLE)
    inode = a_suspect(tree)
    handle = tree.open(inode, os.O_RDWR)
    tree.fs.write(handle, 0, b"a part")
    with pytest.raises(Suspect):
        tree.fs.flush(handle)
    tree.fs.release(handle)
    handle = tree.open(inode, os.O_RDWR | os.O_TRUNC)
    tree.fs.write(handle, 0, b"all of it")
    assert tree.fs.flush(handle) is not None


@pytest.mark.parametrize("how", ["open", "open beside a writer", "truncate"])
def test_p90_a_file_that_was_emptied_is_a_file_like_any_other(tmp_path: Path, how: str) -> None:
    tree = Tree(tmp_path)
    inode = a_suspect(tree)
    other = tree.open(inode, os.O_WRONLY) if "beside" in how else None
    if how == "truncate":
        tree.fs.setattr(inode, AttributeChanges(size_bytes=0), ALICE)
    handle = tree.open(inode, os.O_WRONLY | (0 if how == "truncate" else os.O_TRUNC))
    tree.fs.write(handle, 0, b"anew")
    assert tree.fs.fsync(handle) is not None
    for one in (handle, other):
        if one is not None:
            tree.fs.release(one)
    assert row_of(tree, inode).due != DUE_NEVER
    assert sealed(tree, inode) is Verdict.DONE


def test_p90_a_sync_that_fails_for_a_client_makes_the_file_suspect_and_stops_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = Tree(tmp_path)
    handle = tree.create(b"f", b"bytes")
    commitment = tree.fs.fsync(handle)
    assert commitment is not None
    with monkeypatch.context() as patched:
        patched.setattr(os, "fdatasync", refuse)
        with pytest.raises(Suspect) as caught:
            settle(commitment, tree.engine)
    tree.fs.unsettled(commitment, caught.value)
    assert row_of(tree, handle.file.inode).is_suspect
    assert tree.fs.failure is not None


def test_p90_each_of_several_syncs_that_fail_at_once_makes_its_file_suspect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = Tree(tmp_path)
    handles = [tree.create(name, b"bytes") for name in (b"f", b"g")]
    commitments = [tree.fs.fsync(handle) for handle in handles]
    monkeypatch.setattr(os, "fdatasync", refuse)
    for commitment in commitments:
        assert commitment is not None
        with pytest.raises(Suspect) as caught:
            settle(commitment, tree.engine)
        tree.fs.unsettled(commitment, caught.value)
    tree.crash()
    assert [row_of(tree, handle.file.inode).is_suspect for handle in handles] == [True, True]


def test_p90_a_file_whose_sync_failed_for_somebody_else_is_suspect_when_it_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = Tree(tmp_path)
    handle = tree.create(b"f", b"bytes")
    monkeypatch.setattr("vnafs.fs.data.check_kept", suspects)
    tree.fs.release(handle)
    assert row_of(tree, handle.file.inode).is_suspect
    assert sealed(tree, handle.file.inode) is Verdict.ILLEGAL


@pytest.mark.parametrize("stays_open", [False, True])
def test_p90_what_the_tree_could_not_be_told_yet_is_remembered_and_not_sealed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, stays_open: bool
) -> None:
    world = World(tmp_path, unprotected_seconds_max=30.0)
    world.write(b"file", b"x" * 5_000)
    handle = world.open(b"file") if stays_open else None
    with monkeypatch.context() as patched:
        patched.setattr("vnafs.local.syncing.Synced.covers", lambda *_: False)
        for place in ("pipeline.seal", "local.frozen"):
            patched.setattr(f"vnafs.{place}.sync_bytes", suspects)
        patched.setattr(world.fs, "suspect", away)
        pass_time(world, 90)
    assert not world.fs.facts(world.inode(b"file")).is_suspect
    with monkeypatch.context() as patched:
        patched.setattr(world.fs, "suspect", away)
        pass_time(world, 200)  # nobody can tell the tree, and the disk has no more to say
        assert world.packs_known() == set()
        world.die()
        world.begin()
    pass_time(world, 200)
    assert world.fs.facts(world.inode(b"file")).is_suspect
    assert world.packs_known() == set()
    del handle
    world.stop()


def test_p90_nothing_is_sealed_while_too_much_is_untold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path)
    world.write(b"file", b"x" * 5_000)
    with monkeypatch.context() as patched:
        patched.setattr("vnafs.pipeline.suspects.UNTOLD_MAX", 0)
        pass_time(world, 60)
        assert world.state(b"file") is FileState.OPEN
    pass_time(world, 120)
    assert world.state(b"file") is FileState.REPLICATED
    world.stop()


def away(*_: object) -> None:
    raise Busy(what="the tree", why="its process is being replaced")


def refuse(_: int) -> None:
    raise OSError(5, "Input/output error")


def test_p90_a_suspect_is_told_and_not_copied_until_it_is_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, unprotected_seconds_max=30.0)
    world.write(b"file", b"x" * 5_000)
    with monkeypatch.context() as patched:
        patched.setattr("vnafs.local.syncing.Synced.covers", lambda *_: False)  # each file is asked for on its own
        patched.setattr("vnafs.local.syncing.sync_bytes", lambda *_: None)
        patched.setattr("vnafs.pipeline.seal.sync_bytes", suspects)
        pass_time(world, 20)
    pass_time(world, 200)  # the disk has no more to say of it
    inode = world.inode(b"file")
    assert world.state(b"file") is FileState.OPEN
    assert world.fs.facts(inode).is_suspect
    assert world.tiering.protector.standing.suspects == 1
    assert world.packs_known() == set()
    world.write(b"file", b"y" * 5_000)
    pass_time(world, 60)
    assert world.state(b"file") is FileState.REPLICATED
    assert world.tiering.protector.standing.suspects == 0
    world.stop()


def suspects(_: int, what: str) -> None:
    raise Suspect(what=what, why="Input/output error")
