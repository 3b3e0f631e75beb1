"""The clock that dates names as Linux dates files."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from vnafs.domain.clock import NANOSECONDS
from vnafs.local.fileclock import FileClock

TICK_NS = NANOSECONDS // 50


def test_what_is_dated_by_it_and_by_writes_comes_in_the_order_of_the_calls(tmp_path: Path) -> None:
    with contextlib.closing(FileClock()) as clock:
        for number in range(500):
            before = clock.now()
            path = tmp_path / str(number)
            path.write_bytes(b"x")
            assert before <= path.stat().st_mtime_ns <= clock.now()


def test_it_is_the_wall_clock_but_for_a_tick() -> None:
    with contextlib.closing(FileClock()) as clock:
        assert 0 <= time.time_ns() - clock.now() < TICK_NS
