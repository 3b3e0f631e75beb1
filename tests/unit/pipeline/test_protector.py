"""When a file that stays open is copied, and when it is forgotten."""

from __future__ import annotations

import dataclasses
import stat

import pytest

from vnafs.domain.clock import NANOSECONDS, Instant
from vnafs.domain.files import FileState, Fingerprint
from vnafs.domain.ids import Inode, RepositoryId, Sha256, Version
from vnafs.index.inodes import InodeRow
from vnafs.index.protections import Frozen, Protection
from vnafs.pipeline.protect import followed, is_due

HOUR = 3600.0
NOW = Instant(1_700_000_000 * NANOSECONDS)
MARK = Fingerprint(100, 1, 1)
OTHER = Fingerprint(100, 2, 2)
EMPTY = Fingerprint(0, 1, 1)


def ago(seconds: float) -> Instant:
    return Instant(NOW - int(seconds * NANOSECONDS))


def frozen(seconds: float, version: int = 1, mark: Fingerprint = MARK) -> Frozen:
    return Frozen(Version(version), Sha256(b"s" * 32), ago(seconds), mark)


def row(seconds: float, kept: Frozen | None = None, coming: Frozen | None = None) -> Protection:
    return Protection(Inode(7), RepositoryId(2), Version(1), ago(seconds), kept, coming)


@pytest.mark.parametrize(
    ("found", "mark", "expected"),
    [
        (row(HOUR - 1), MARK, False),
        (row(HOUR), MARK, True),
        (row(HOUR), EMPTY, False),
        (row(-5), MARK, True),  # from before the clock was set back
        (row(9 * HOUR, frozen(HOUR - 1)), OTHER, False),
        (row(9 * HOUR, frozen(HOUR)), OTHER, True),
        (row(9 * HOUR, frozen(HOUR)), EMPTY, True),  # emptied since: that is a change as any other
        (row(9 * HOUR, frozen(HOUR)), MARK, False),  # not changed since
        (row(9 * HOUR, frozen(-5)), OTHER, True),
        (row(HOUR - 1, frozen(9 * HOUR, version=0)), OTHER, False),  # of an earlier version
        (row(HOUR, frozen(9 * HOUR, version=0)), OTHER, True),
        (row(9 * HOUR, coming=frozen(5 * HOUR)), OTHER, False),  # one at a time
        (row(9 * HOUR, frozen(8 * HOUR), frozen(5 * HOUR)), OTHER, False),
    ],
)
def test_a_file_is_copied_when_its_bytes_are_too_long_unprotected(found, mark, expected) -> None:
    assert is_due(found, mark, NOW, HOUR) is expected


def inode_row(state: FileState = FileState.OPEN, version: int = 1, nlink: int = 1) -> InodeRow:
    return InodeRow(
        stat.S_IFREG | 0o644, 0, 0, nlink, 100, 8, 0, 0, 0, 0,
        RepositoryId(2), Inode(2), 3, Version(version), state, Instant(0),
    )  # fmt: skip


@pytest.mark.parametrize("state", [FileState.OPEN, FileState.SEALED, FileState.PACKED])
def test_a_copy_is_remembered_until_the_file_has_copies_of_its_own(state) -> None:
    known = row(HOUR, frozen(HOUR))
    assert followed(known, inode_row(state), NOW) is known


@pytest.mark.parametrize(
    "file", [None, inode_row(FileState.REPLICATED), inode_row(FileState.STUB, version=2), inode_row(nlink=0)]
)
def test_then_or_when_the_file_is_gone_it_is_forgotten(file) -> None:
    assert followed(row(HOUR, frozen(HOUR)), file, NOW) is None


def test_a_new_version_begins_anew_and_keeps_the_copy_there_is() -> None:
    known = row(HOUR, frozen(HOUR))
    assert followed(known, inode_row(version=2), NOW) == dataclasses.replace(known, version=Version(2), since=NOW)
