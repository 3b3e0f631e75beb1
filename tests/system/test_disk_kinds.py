"""What each file system below a spool is trusted to keep."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from tests.system.loopdisks import KINDS, a_disk
from vnafs.local.syncing import names_follow_bytes

pytestmark = pytest.mark.system


@pytest.mark.parametrize("kind", KINDS)
def test_names_of_new_files_follow_their_bytes_where_both_are_journaled_at_once(tmp_path: Path, kind: str) -> None:
    with a_disk(tmp_path, kind) as place:
        assert names_follow_bytes(str(place))


def test_ext2_has_no_journal_and_the_magic_of_ext4(tmp_path: Path) -> None:
    with a_disk(tmp_path, "ext2") as place:
        assert not names_follow_bytes(str(place))


def test_elsewhere_they_may_not() -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as memory:
        assert not names_follow_bytes(memory)
    assert not names_follow_bytes("/nowhere")
