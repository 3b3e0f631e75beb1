"""The quarantine on real disks: what `vna` shows and removes, and a disk that is full."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import stat
from pathlib import Path

import pytest

from tests.system.archives import an_archive, until
from tests.system.loopdisks import MIB, a_disk, free_bytes
from vnafs.domain.clock import SystemClock
from vnafs.domain.faults import NoFaults
from vnafs.local.quarantine import About, Kind, Quarantine, QuarantineSettings

pytestmark = pytest.mark.system

ABOUT = About(Kind.PACK, "00" * 16, "target t", "it is wrong")


def test_a_damaged_copy_is_mended_and_what_it_was_is_listed_and_removed(tmp_path):
    data = random.Random(1).randbytes(300_000)
    with an_archive(tmp_path, {name: f"file://{tmp_path}/{name}" for name in ("one", "two")}) as archive:
        (archive.share / "file").write_bytes(data)
        archive.wait(2)
        assert archive.vna("quarantine", "list") == []
        (pack,) = (tmp_path / "one" / "packs").rglob("*.pack")
        right = pack.read_bytes()
        damaged = right[:1000] + bytes([right[1000] ^ 8]) + right[1001:]
        os.chmod(pack, 0o600)
        pack.write_bytes(damaged)
        archive.vna("verify", check=4)
        until(lambda: pack.exists() and pack.read_bytes() == right, archive.tail)
        archive.wait(2)
        (row,) = archive.vna("quarantine", "list")
        assert (row["kind"], row["origin"], row["size_bytes"]) == ("pack", "target one", len(damaged))
        assert row["sha256"] == hashlib.sha256(damaged).hexdigest()
        assert row["expected_sha256"] == hashlib.sha256(right).hexdigest()
        kept = Path(row["bytes"])
        assert kept.read_bytes() == damaged
        assert stat.S_IMODE(kept.stat().st_mode) == 0o600
        assert stat.S_IMODE(kept.parent.stat().st_mode) == 0o700
        status = archive.vna("status")["quarantine"]
        assert (status["count"], status["size_bytes"]) == (1, len(damaged))
        archive.evict(archive.share)
        assert (archive.share / "file").read_bytes() == data
        archive.vna("quarantine", "remove", check=3)
        archive.vna("quarantine", "remove", "0123", check=3)
        assert archive.vna("quarantine", "remove", row["id"]) == {"removed": 1}
        assert archive.vna("quarantine", "list") == []
        assert list(kept.parent.iterdir()) == []
        assert archive.vna("quarantine", "remove", "--all") == {"removed": 0}


def fill(place):
    """Until not one byte more fits."""
    with contextlib.suppress(OSError), open(place / "filler", "ab", buffering=0) as file:
        while True:
            file.write(bytes(MIB))
    with contextlib.suppress(OSError), open(place / "filler", "ab", buffering=0) as file:
        while True:
            file.write(bytes(512))


@pytest.fixture
def disk(tmp_path):
    with a_disk(tmp_path, "ext4", 16 * MIB) as place:
        yield place


def test_a_full_disk_keeps_nothing_and_loses_nothing_that_was_kept(disk, caplog):
    settings = QuarantineSettings(bytes_max=8 * MIB, kept_seconds=0, reserve_bytes=0)
    quarantine = Quarantine(str(disk / "quarantine"), settings, clock=SystemClock(), faults=NoFaults())
    assert quarantine.keep(ABOUT, 100_000, lambda: [b"a" * 100_000])

    def blocks():
        fill(disk)
        for _ in range(4):
            yield b"b" * MIB

    assert not quarantine.keep(ABOUT, 4 * MIB, blocks), "it filled up on the way"
    assert caplog.messages[-1] == "quarantine.not_kept"
    fill(disk)
    assert not quarantine.keep(ABOUT, 4 * MIB, lambda: [b"c" * MIB] * 4), "it was full before"
    assert free_bytes(disk) < 4 * MIB
    (one,) = quarantine.every()
    assert Path(quarantine.path(one.id)).read_bytes() == b"a" * 100_000
    assert len(os.listdir(disk / "quarantine")) == 2
    (disk / "filler").unlink()
    assert quarantine.keep(ABOUT, 4 * MIB, lambda: [b"d" * MIB] * 4)
