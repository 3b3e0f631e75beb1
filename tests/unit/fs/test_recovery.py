"""What a start repairs, and what it still repairs when an earlier start was cut short."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.semantics.trees import ALICE, LazyEngine, Tree
from vnafs.fs.attributes import AttributeChanges
from vnafs.index import keys


class Killed(BaseException):
    """Nothing may catch it but the test, as nothing catches kill -9."""


class KilledEngine(LazyEngine):
    """Dies before the first change that touches an inode's row."""

    is_mortal = False

    def _commit(self, changed: dict[bytes, bytes | None]) -> None:
        if self.is_mortal and any(key.startswith(keys.INODES) for key in changed):
            raise Killed
        super()._commit(changed)


def test_a_start_that_is_killed_after_loss_of_power_leaves_the_repair_to_the_next(tmp_path: Path) -> None:
    engine = KilledEngine()
    tree = Tree(tmp_path, engine=engine)
    tree.crash(boot_id="first")
    inode = tree.file(b"f")
    tree.local(inode).write_bytes(b"")  # what ext4 had not written yet
    engine.is_mortal = True
    with pytest.raises(Killed):
        tree.crash(boot_id="second")
    engine.is_mortal = False
    tree.crash(boot_id="second")
    assert tree.stat(inode).size_bytes == 0


def test_a_start_after_the_same_boot_reads_only_what_was_open(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    tree.crash(boot_id="first")
    inode = tree.file(b"f")
    tree.local(inode).write_bytes(b"")
    tree.crash(boot_id="first")
    assert tree.stat(inode).size_bytes == 5


def test_times_that_were_set_on_a_closed_file_survive_loss_of_power(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    tree.crash(boot_id="one")
    inode = tree.file(b"f")
    tree.fs.setattr(inode, AttributeChanges(mtime_ns=5), ALICE)
    tree.crash(boot_id="two")
    assert tree.stat(inode).mtime_ns == 5
