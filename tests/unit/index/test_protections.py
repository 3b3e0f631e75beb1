"""W rows: what is remembered of files that stay open."""

from __future__ import annotations

import pytest

from vnafs.domain.clock import Instant
from vnafs.domain.errors import Damaged, FormatUnknown
from vnafs.domain.files import Fingerprint
from vnafs.domain.ids import Inode, RepositoryId, Sha256, Version
from vnafs.index import keys, protections
from vnafs.index.engines.memory import MemoryEngine
from vnafs.index.protections import Frozen, Protection

OLD = Frozen(Version(3), Sha256(b"o" * 32), Instant(50), Fingerprint(10, -5, 1 << 62))
NEW = Frozen(Version(4), Sha256(b"n" * 32), Instant(90), Fingerprint(1 << 40, 7, 8))


@pytest.mark.parametrize("kept", [None, OLD])
@pytest.mark.parametrize("coming", [None, NEW])
def test_a_row_comes_back_as_it_was_stored(kept: Frozen | None, coming: Frozen | None) -> None:
    engine = MemoryEngine()
    row = Protection(Inode(7), RepositoryId(2), Version(4), Instant(40), kept, coming)
    with engine.write() as tx:
        protections.put(tx, row)
    with engine.read() as reader:
        assert protections.get(reader, Inode(7)) == row
        assert protections.get(reader, Inode(8)) is None
    assert list(row.copies()) == [copy for copy in (coming, kept) if copy]


def test_rows_come_in_order_until_they_are_removed() -> None:
    engine = MemoryEngine()
    with engine.write() as tx:
        for number in (300, 2, 65_536):
            protections.put(tx, Protection(Inode(number), RepositoryId(2), Version(1), Instant(0)))
    with engine.write() as tx:
        protections.remove(tx, Inode(300))
        protections.remove(tx, Inode(299))
    with engine.read() as reader:
        assert [row.inode for row in protections.every(reader)] == [2, 65_536]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda raw: raw[:-1], Damaged),
        (lambda raw: raw + b"x", Damaged),
        (lambda raw: b"\xff" + raw[1:], FormatUnknown),
    ],
)
def test_a_row_that_cannot_be_read_is_never_guessed(change, error) -> None:
    engine = MemoryEngine()
    with engine.write() as tx:
        protections.put(tx, Protection(Inode(7), RepositoryId(2), Version(4), Instant(40), OLD))
        tx.put(keys.protection(Inode(7)), change(tx.get(keys.protection(Inode(7))) or b""))
    with engine.read() as reader, pytest.raises(error):
        protections.get(reader, Inode(7))
