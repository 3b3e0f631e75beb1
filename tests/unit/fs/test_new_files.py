"""What a file is like that was just made."""

from __future__ import annotations

import os
from pathlib import Path

from tests.semantics.trees import ALICE, Tree
from vnafs.domain.ids import Inode


def test_all_times_of_a_new_file_are_one_whether_it_is_open_or_not(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    handle, made = tree.fs.create(tree.r, b"f", 0o644, os.O_RDWR, ALICE)
    open_still = tree.stat(Inode(made.inode))
    tree.clock.sleep(5)
    tree.fs.release(handle)
    for shown in (made, open_still, tree.stat(Inode(made.inode))):
        assert len({shown.atime_ns, shown.mtime_ns, shown.ctime_ns, shown.birth_ns}) == 1, shown
