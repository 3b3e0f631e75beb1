"""Inode rows as records."""

from __future__ import annotations

import stat

import pytest

from vnafs.domain.clock import Instant
from vnafs.domain.files import FileState, Fingerprint, Seal
from vnafs.domain.ids import Inode, RepositoryId, Sha256, Version
from vnafs.index import inodes
from vnafs.index.engines.memory import MemoryEngine
from vnafs.index.inodes import NOT_QUEUED, InodeRow

FILE = InodeRow(
    stat.S_IFREG | 0o640, 1, 2, 3, 4096, 8, 10, 11, 12, 13,
    RepositoryId(2), Inode(2), 17, Version(3), FileState.OPEN, Instant(99),
)  # fmt: skip
ROWS = {
    "open": FILE,
    "sealed": FILE._replace(
        state=FileState.STUB, blocks=0, seal=Seal(Sha256(b"\5" * 32), Fingerprint(4096, 11, 14)), has_xattrs=True
    ),
    "opened again": FILE._replace(before=Sha256(b"\6" * 32), has_xattrs=True),
    "device": FILE._replace(mode=stat.S_IFBLK | 0o600, rdev=0x801, due=NOT_QUEUED, size_bytes=0),
    "directory": FILE._replace(mode=stat.S_IFDIR | 0o755, due=NOT_QUEUED),
}


@pytest.mark.parametrize("kind", ROWS)
def test_a_listing_shows_all_of_a_row_but_its_seal(kind: str) -> None:
    engine, number, row = MemoryEngine(), Inode(5), ROWS[kind]
    with engine.write() as tx:
        inodes.put(tx, number, row)
    with engine.read() as reader:
        assert inodes.find(reader, number) == row
        assert inodes.find_shown(reader, number) == row._replace(seal=None, before=None)
        assert inodes.find_shown(reader, Inode(6)) is None
