"""Room on the disk: pure decisions, and one look at the disk for many writes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.semantics.trees import HandClock
from vnafs.domain.errors import NoSpace
from vnafs.local.space import Room, Space, Watermarks, bytes_to_evict, may_write

MARKS = Watermarks(high_bytes=90, low_bytes=80, reserve_bytes=5)


@pytest.mark.parametrize(("free", "wanted"), [(100, 0), (10, 0), (9, 11), (0, 20)])
def test_eviction_begins_above_the_high_mark_and_goes_down_to_the_low_one(free: int, wanted: int) -> None:
    assert bytes_to_evict(Room(100, free), MARKS) == wanted


@pytest.mark.parametrize(("free", "wanted", "may"), [(10, 5, True), (10, 6, False), (5, 0, True), (4, 0, False)])
def test_the_reserve_is_not_for_writers(free: int, wanted: int, may: bool) -> None:
    assert may_write(Room(100, free), wanted, 5) is may


def test_marks_must_make_sense() -> None:
    with pytest.raises(ValueError, match="low_bytes 91"):
        Watermarks(high_bytes=90, low_bytes=91)


def test_many_writes_cost_one_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []
    original = os.statvfs
    monkeypatch.setattr(os, "statvfs", lambda path: looks.append(path) or original(path))
    clock = HandClock()
    space = Space(str(tmp_path), clock, reserve_bytes=0)
    for _ in range(100):
        space.claim(4096)
    assert len(looks) == 1
    clock.sleep(1)
    space.claim(4096)
    assert len(looks) == 2


def test_a_claim_past_the_reserve_is_refused_at_once(tmp_path: Path) -> None:
    found = os.statvfs(tmp_path)
    free = found.f_bavail * found.f_frsize
    with pytest.raises(NoSpace):
        Space(str(tmp_path), HandClock(), reserve_bytes=free + (1 << 30)).claim(1)
    with pytest.raises(NoSpace):
        Space(str(tmp_path), HandClock(), reserve_bytes=0).claim(free + (1 << 33))
