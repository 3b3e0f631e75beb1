"""The log's records and segments by themselves."""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from vnafs.domain.errors import IndexBroken
from vnafs.index.engines.log import SEGMENT_NAMES, Log, Record, chain, encode, has_log, map_segments, open_log

EPOCH = 7
SEGMENT_BYTES = 4096

Changed = Mapping[bytes, bytes | None]


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    with contextlib.closing(open_log(str(tmp_path), SEGMENT_BYTES)) as log:
        yield log


def append(log: Log, *sequences: int, epoch: int = EPOCH, synced: int = 0, changed: Changed | None = None) -> None:
    for sequence in sequences:
        log.append(encode(changed or {b"k": b"%d" % sequence}, epoch, sequence, synced))


def found(path: Path, folded: int = 0, epoch: int = EPOCH) -> list[int]:
    return [record.sequence for record in chain(map_segments(str(path)), epoch, folded, what="here")]


def damage(path: Path, at: int, name: str = SEGMENT_NAMES[0]) -> None:
    with open(path / name, "r+b") as file, mmap.mmap(file.fileno(), 0) as raw:
        raw[at] ^= 0x10


def test_rows_come_back_as_they_were(log: Log, tmp_path: Path) -> None:
    changed: Changed = {b"a": b"", b"b" * 511: b"x" * 1000, b"gone": None, b"\xff": b"\0\xff"}
    append(log, 1, changed=changed)
    records: list[Record] = chain(map_segments(str(tmp_path)), EPOCH, 0, what="here")
    assert [dict(record.rows()) for record in records] == [changed]


def test_space_is_written_before_it_is_used_and_never_grows(log: Log, tmp_path: Path) -> None:
    for name in SEGMENT_NAMES:
        state = os.stat(tmp_path / name)
        assert state.st_size == SEGMENT_BYTES
        assert state.st_blocks * 512 >= SEGMENT_BYTES
    record = encode({b"k": b"x" * 900}, EPOCH, 1, 0)
    while log.fits(record):
        log.append(record)
    assert os.stat(tmp_path / SEGMENT_NAMES[0]).st_size == SEGMENT_BYTES
    assert log.fits_empty(record)
    assert not log.fits_empty(bytes(SEGMENT_BYTES + 1))


def test_an_empty_log_has_nothing_to_replay(log: Log, tmp_path: Path) -> None:
    assert found(tmp_path) == []


def test_only_what_is_not_folded_is_replayed(log: Log, tmp_path: Path) -> None:
    append(log, 1, 2, 3, 4)
    assert found(tmp_path, folded=2) == [3, 4]
    assert found(tmp_path, folded=4) == []


def test_records_of_another_epoch_are_not_replayed(log: Log, tmp_path: Path) -> None:
    append(log, 1, 2)
    append(log, 3, epoch=EPOCH + 1)
    assert found(tmp_path) == [1, 2]
    assert found(tmp_path, folded=2, epoch=EPOCH + 1) == []


def test_records_of_an_older_lap_behind_the_end_are_not_replayed(log: Log, tmp_path: Path) -> None:
    append(log, 1, 2, 3)
    log.switch()
    append(log, 4, 5)
    log.switch()
    append(log, 6)
    assert found(tmp_path, folded=3) == [4, 5, 6]
    assert found(tmp_path, folded=5) == [6]


def test_what_does_not_follow_on_is_not_replayed(log: Log, tmp_path: Path) -> None:
    append(log, 3, 4)
    assert found(tmp_path, folded=1) == []


def test_a_torn_tail_is_left_out(log: Log, tmp_path: Path) -> None:
    append(log, 1, 2)
    end = len((tmp_path / SEGMENT_NAMES[0]).read_bytes().rstrip(b"\0"))
    damage(tmp_path, end - 1)
    assert found(tmp_path) == [1]


def test_damage_before_a_record_that_vouches_for_the_damaged_one_is_refused(log: Log, tmp_path: Path) -> None:
    append(log, 1, 2)
    log.switch()
    append(log, 3, synced=2)
    assert found(tmp_path) == [1, 2, 3]
    damage(tmp_path, 20)
    with pytest.raises(IndexBroken, match="change 1 was on disk"):
        found(tmp_path)
    assert found(tmp_path, folded=2) == [3]


def test_loss_before_a_record_that_vouches_for_nothing_is_a_torn_tail(log: Log, tmp_path: Path) -> None:
    append(log, 1, 2, 3, synced=0)
    damage(tmp_path, 20)
    assert found(tmp_path) == []


def test_both_segments_are_synced_when_both_have_news(log: Log) -> None:
    assert log.take_unsynced() == []
    append(log, 1)
    log.switch()
    append(log, 2)
    both = log.take_unsynced()
    assert len(set(both)) == 2
    assert log.take_unsynced() == []


def test_a_folded_segment_needs_no_sync(log: Log) -> None:
    append(log, 1)
    log.switch()
    append(log, 2)
    log.folded()
    assert len(log.take_unsynced()) == 1


def test_a_log_is_recognised_by_any_of_its_files(tmp_path: Path) -> None:
    assert not has_log(str(tmp_path))
    (tmp_path / SEGMENT_NAMES[1]).touch()
    assert has_log(str(tmp_path))
    with pytest.raises(IndexBroken, match=r"log\.0 of its log is missing"):
        map_segments(str(tmp_path))
