"""Waiting for stable storage: one sync for all, none after a failure."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import pytest
import trio

from tests.semantics.trees import ALICE, Tree
from vnafs.domain.errors import Damaged, NotFound, StorageFailed
from vnafs.domain.files import Verdict
from vnafs.domain.ids import Inode, Version
from vnafs.domain.repositories import Acknowledgement
from vnafs.fs.settings import Settings
from vnafs.fuse.errno import errno_of
from vnafs.fuse.invalidation import Invalidations
from vnafs.fuse.pyfuse3 import MountOptions, keep_up, mount_options, together
from vnafs.fuse.stale import clear_stale, is_ours
from vnafs.fuse.syncing import Syncing
from vnafs.index import feeds


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path, acknowledgement=Acknowledgement.DURABLE)


def test_a_hundred_waiters_share_few_syncs(tree: Tree) -> None:
    async def run() -> None:
        syncing = Syncing(tree.fs)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(syncing.run)
            before = tree.engine.syncs
            async with trio.open_nursery() as waiters:
                for number in range(100):
                    tree.fs.mkdir(tree.r, b"%d" % number, 0o755, ALICE)
                    position = tree.fs.must_sync(tree.r)
                    assert position is not None
                    waiters.start_soon(syncing.until, position)
            assert tree.engine.synced == tree.engine.position
            assert tree.engine.syncs - before <= 3
            nursery.cancel_scope.cancel()

    trio.run(run)


def test_a_failed_sync_refuses_every_waiter_and_is_not_tried_again(tree: Tree) -> None:
    refused: list[BaseException] = []

    async def run() -> None:
        syncing = Syncing(tree.fs)

        async def wait() -> None:
            tree.fs.mkdir(tree.r, b"%d" % len(tree.names(tree.r)), 0o755, ALICE)
            try:
                await syncing.until(tree.engine.position)
            except StorageFailed as error:
                refused.append(error)

        tree.engine.is_broken = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            nursery.start_soon(wait)
            nursery.start_soon(syncing.run)

    before = tree.engine.syncs
    with pytest.raises(ExceptionGroup) as ended:
        trio.run(run)
    assert ended.value.subgroup(StorageFailed) is not None
    assert len(refused) == 2
    assert tree.engine.syncs - before == 1
    with pytest.raises(StorageFailed):
        tree.fs.mkdir(tree.r, b"x", 0o755, ALICE)


def test_a_settled_commitment_is_not_waited_for_again(tree: Tree) -> None:
    async def run() -> None:
        syncing = Syncing(tree.fs)
        handle = tree.create(b"f", b"bytes")
        commitment = tree.fs.flush(handle)
        assert commitment is not None
        await syncing.settle(commitment)
        assert tree.fs.flush(handle) is None
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(commitment.descriptor)

    trio.run(run)


def test_a_tree_that_failed_ends_its_mount_with_the_plain_error(tree: Tree) -> None:
    async def run() -> None:
        syncing = Syncing(tree.fs)
        tree.engine.is_broken = True
        with pytest.raises(StorageFailed):
            tree.fs.evict(stub, Version(1))
        await together(trio.sleep_forever, syncing.run, functools.partial(keep_up, tree.fs, syncing, 0.001))

    stub = tree.stub(b"f")
    with pytest.raises(StorageFailed) as ended:
        trio.run(run)
    assert ended.value is tree.fs.failure


def test_what_ends_a_mount_comes_out_of_any_number_of_nurseries() -> None:
    error = StorageFailed(doing="testing", why="it must")

    async def fail() -> None:
        raise error

    async def fail_deeper() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail)

    for others in ([fail], [fail_deeper], [fail, fail_deeper]):
        with pytest.raises(StorageFailed) as ended:
            trio.run(together, trio.sleep_forever, *others)
        assert ended.value is error


def test_several_errors_and_surprises_are_not_hidden() -> None:
    async def fail() -> None:
        raise StorageFailed(doing="testing", why="it must")

    async def surprise() -> None:
        raise ZeroDivisionError

    for others in ([fail, fail], [surprise], [fail, surprise]):
        with pytest.raises(ExceptionGroup):
            trio.run(together, trio.sleep_forever, *others)


def test_the_end_of_the_main_task_ends_the_others() -> None:
    trio.run(together, trio.lowlevel.checkpoint, trio.sleep_forever)


def test_a_full_disk_postpones_upkeep_and_does_not_end_the_mount(tree: Tree) -> None:
    async def run() -> None:
        syncing = Syncing(tree.fs)
        tree.file(b"f")
        tree.fs.unlink(tree.r, b"f")
        closed = tree.create(b"g", b"bytes")
        tree.engine.room_for = 0
        tree.fs.release(closed)

        async def make_room() -> None:
            await trio.sleep(0.02)
            assert len(tree.fs.removed()) == 1
            tree.engine.room_for = None
            while tree.fs.removed() or tree.advance(closed.file.inode) is not Verdict.DONE:
                await trio.sleep(0.001)

        await together(make_room, syncing.run, functools.partial(keep_up, tree.fs, syncing, 0.001))

    trio.run(run)


def test_upkeep_trims_the_feed_in_steps(tmp_path: Path) -> None:
    tree = Tree(tmp_path, settings=Settings(reserve_bytes=0, feed_events_max=5))

    async def run() -> None:
        async def trimmed() -> None:
            while events(tree) > 5:
                await trio.sleep(0.001)

        for number in range(700):
            tree.fs.mkdir(tree.r, b"%d" % number, 0o755, ALICE)
        assert tree.fs.upkeep()
        assert 5 < events(tree) < 300
        with trio.fail_after(10):
            await together(trimmed, functools.partial(keep_up, tree.fs, Syncing(tree.fs), 0.001))
        position = tree.engine.position
        assert not tree.fs.upkeep()
        assert tree.engine.position == position

    trio.run(run)


def events(tree: Tree) -> int:
    with tree.engine.read() as reader:
        return feeds.end(reader) - feeds.begin(reader)


def test_notices_are_gathered_and_unknown_inodes_ignored() -> None:
    sent: list[tuple[int, bool]] = []

    def forget(inode: int, attributes_only: bool) -> None:
        sent.append((inode, attributes_only))
        if inode == 2:
            raise FileNotFoundError

    async def run() -> None:
        notices = Invalidations(forget, lambda parent, name: None)
        for inode in (1, 2, 3, 1):
            notices.attributes_changed(Inode(inode))
        notices.bytes_changed(Inode(3))
        with trio.move_on_after(0.1):
            await notices.run()

    trio.run(run)
    assert sent == [(1, True), (2, True), (3, False)]


def test_errors_become_numbers_and_surprises_are_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    assert [errno_of(error) for error in (NotFound(what="x"), Damaged(what="x"))] == [2, 5]
    assert caplog.records == []
    assert errno_of(ZeroDivisionError()) == 5
    [record] = caplog.records
    assert record.message == "fuse.unexpected"
    assert record.exc_info is not None


def test_the_kernel_checks_permissions_and_ignores_devices() -> None:
    assert {"default_permissions", "nosuid", "nodev", "fsname=vnafs"} <= mount_options(MountOptions())
    assert "allow_other" in mount_options(MountOptions(allow_other=True))
    assert "allow_other" not in mount_options(MountOptions(allow_other=False))


def test_an_ordinary_directory_is_no_dead_mount(tmp_path: Path) -> None:
    assert not is_ours(str(tmp_path))
    assert not clear_stale(str(tmp_path))
