"""Rows of retention and holds, and which programs may read the repository they lie in."""

from __future__ import annotations

import dataclasses

import pytest

from vnafs.domain.actors import UNKNOWN, at_mount
from vnafs.domain.clock import Instant
from vnafs.domain.errors import Damaged, FormatUnknown, VnaError
from vnafs.domain.ids import Inode, RepositoryId, Version
from vnafs.domain.repositories import Repository
from vnafs.domain.retention import Retention, RetentionMode
from vnafs.domain.steady import Steady
from vnafs.index import audits, holds, keys, repositories, retentions, steady
from vnafs.index.engines.memory import MemoryEngine
from vnafs.index.holds import Hold
from vnafs.index.retentions import Committing

PLAIN = Repository(RepositoryId(2), "r")


@pytest.mark.parametrize(
    ("rules", "version"),
    [
        (PLAIN, 1),
        (dataclasses.replace(PLAIN, was_guarded=True), 2),
        (dataclasses.replace(PLAIN, retention=RetentionMode.COMPLIANCE, retention_seconds=5, autocommit_seconds=6), 2),
    ],
)
def test_a_program_that_knows_no_retention_reads_only_repositories_without(rules: Repository, version: int) -> None:
    engine = MemoryEngine()
    with engine.write() as tx:
        repositories.put(tx, rules)
        assert (tx.get(keys.repository(rules.id)) or b"")[0] == version
        assert repositories.find(tx, rules.id) == rules


def test_a_repository_record_of_a_newer_program_is_refused() -> None:
    engine = MemoryEngine()
    with engine.write() as tx:
        tx.put(keys.repository(PLAIN.id), b"\x03{}")
        with pytest.raises(FormatUnknown):
            repositories.find(tx, PLAIN.id)


def test_a_retention_of_an_earlier_program_says_that_nobody_knows_who_it_was() -> None:
    found = retentions.decode(b"\x01\x02" + (9).to_bytes(8, "big") + (4).to_bytes(8, "big"))
    assert found == Retention(RetentionMode.COMPLIANCE, 9, 4, UNKNOWN)
    assert found.by.shown() == {"by": "unknown"}


def test_rows_come_back_as_they_were_put() -> None:
    engine = MemoryEngine()
    one, other = (
        Retention(RetentionMode.GOVERNANCE, 5, 3),
        Retention(RetentionMode.COMPLIANCE, 1 << 62, -1, at_mount(2**32 - 2)),
    )
    hold = Hold(Inode(7), "case é", RepositoryId(2), Inode(9), 11, "a letter", is_directory=True)
    waits = Committing(40, Inode(5), Version(2), 33)
    with engine.write() as tx:
        for inode, retention in ((3, one), (4, other)):
            retentions.put(tx, Inode(inode), retention)
        holds.put(tx, hold)
        retentions.queue(tx, waits)
        steady.put(tx, Steady(Instant(70), "boot", 8))
        assert [audits.add(tx, {"action": str(n)}) for n in range(3)] == [1, 2, 3]
    with engine.read() as reader:
        assert list(retentions.every(reader)) == [(3, one), (4, other)]
        assert list(retentions.every(reader, Inode(3))) == [(4, other)]
        assert list(holds.every(reader)) == [hold]
        assert list(retentions.due(reader, 40)) == [waits]
        assert list(retentions.due(reader, 39)) == []
        assert steady.find(reader) == Steady(Instant(70), "boot", 8)
        assert [what["action"] for _, what in audits.every(reader, 1)] == ["1", "2"]


@pytest.mark.parametrize(
    "raw", [b"", b"\x01\x01", b"\x01\x00" + bytes(16), b"\x01\x09" + bytes(16), b"\x02" + bytes(17)]
)
def test_a_retention_that_cannot_be_read_is_an_error_and_not_no_retention(raw: bytes) -> None:
    with pytest.raises((Damaged, FormatUnknown)) as problem:
        retentions.decode(raw)
    assert isinstance(problem.value, VnaError)
