"""Frozen copies by reading: one moment of a file, or nothing."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from vnafs.domain.clock import Instant
from vnafs.domain.errors import NoSpace, StorageFailed
from vnafs.local.cloning import CHUNK_BYTES
from vnafs.local.frozen import COMPARED_BYTES, FrozenCopies
from vnafs.local.spool import fingerprint_of

AGES = 1e9


class Interrupted:
    """A clock during whose sleeps, and at whose looks at the time, somebody else does something."""

    def __init__(self) -> None:
        self.passed = 0.0
        self.at_sleep: Callable[[], None] = lambda: None
        self.at_look: Callable[[], None] = lambda: None

    def now(self) -> Instant:
        raise AssertionError("the files' own times decide")

    def monotonic(self) -> float:
        self.at_look()
        return self.passed

    def sleep(self, seconds: float) -> None:
        self.passed += seconds
        self.at_sleep()


@pytest.fixture
def clock() -> Interrupted:
    return Interrupted()


@pytest.fixture
def copies(tmp_path: Path, clock: Interrupted) -> FrozenCopies:
    return FrozenCopies(str(tmp_path / "frozen"), reserve_bytes=0, clock=clock)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(b"0123456789")
    os.utime(path, (1_000, 1_000))
    return path


def left(tmp_path: Path) -> list[str]:
    return os.listdir(tmp_path / "frozen")


def test_a_file_that_nobody_writes_is_copied_with_its_fingerprint(copies, source, tmp_path) -> None:
    copy = copies.copy(str(source), "7.1", seconds_max=AGES)
    assert Path(copy.path).read_bytes() == b"0123456789"
    assert copy.fingerprint == fingerprint_of(os.stat(source))
    assert copy.mtime_ns == 1_000 * 10**9
    copies.remove(copy)
    copies.remove(copy)
    assert left(tmp_path) == []


def test_holes_stay_holes(copies, source) -> None:
    with open(source, "r+b") as file:
        file.truncate(64 << 20)
        file.seek(40 << 20)
        file.write(b"far out")
    copy = copies.copy(str(source), "7.1", seconds_max=AGES)
    assert Path(copy.path).read_bytes() == source.read_bytes()
    assert os.stat(copy.path).st_blocks * 512 < 1 << 20


def test_a_file_that_is_written_while_it_is_looked_at_is_not_copied(copies, source, clock, tmp_path) -> None:
    clock.at_sleep = lambda: source.write_bytes(b"9876543210")
    assert copies.copy(str(source), "7.1", seconds_max=AGES) is None
    assert left(tmp_path) == []


@pytest.mark.parametrize("change", ["written", "cut", "replaced"])
def test_a_file_that_changes_while_it_is_read_is_not_copied(copies, source, clock, tmp_path, change) -> None:
    source.write_bytes(os.urandom(3 * CHUNK_BYTES))

    def deed() -> None:
        if not left(tmp_path):
            return
        if change == "written":
            with open(source, "r+b") as file:
                file.write(b"X")
        elif change == "cut":
            os.truncate(source, 100)
        else:
            beside = tmp_path / "beside"
            beside.write_bytes(bytes(3 * CHUNK_BYTES))
            os.replace(beside, source)

    clock.at_look = deed
    assert copies.copy(str(source), "7.1", seconds_max=AGES) is None
    assert left(tmp_path) == []


def test_a_copy_that_takes_too_long_is_given_up(copies, source, clock, tmp_path) -> None:
    source.write_bytes(os.urandom(3 * CHUNK_BYTES))

    def slow() -> None:
        clock.passed += 1

    clock.at_look = slow
    assert copies.copy(str(source), "7.1", seconds_max=2) is None
    assert left(tmp_path) == []


def test_a_copy_is_given_up_when_all_is_to_end(source, clock, tmp_path) -> None:
    copies = FrozenCopies(str(tmp_path / "frozen"), reserve_bytes=0, clock=clock, stopping=lambda: True)
    assert copies.copy(str(source), "7.1", seconds_max=AGES) is None
    assert left(tmp_path) == []


def test_of_a_file_that_only_grows_what_it_was_is_copied(copies, source, clock, tmp_path) -> None:
    before = source.read_bytes()

    def grow() -> None:
        if not left(tmp_path):
            return
        with open(source, "ab") as file:
            file.write(b"more")

    clock.at_look = grow
    mark = fingerprint_of(os.stat(source))
    copy = copies.copy_while_written(str(source), "7.1", seconds_max=AGES)
    assert Path(copy.path).read_bytes() == before
    assert fingerprint_of(os.stat(source)) != mark == copy.fingerprint, "the next look finds that it changed"


def test_what_is_written_between_two_readings_is_read_once_more(copies, source, clock, tmp_path) -> None:
    source.write_bytes(os.urandom(3 * COMPARED_BYTES))
    deeds = [b"first", b"second"]

    def deed() -> None:
        if deeds and left(tmp_path):
            with open(source, "r+b") as file:
                file.seek(COMPARED_BYTES * 2 + 5)
                file.write(deeds.pop(0))

    clock.at_look = deed
    copy = copies.copy_while_written(str(source), "7.1", seconds_max=AGES)
    assert deeds == []
    assert Path(copy.path).read_bytes() == source.read_bytes()


@pytest.mark.parametrize("change", ["written", "cut"])
def test_a_file_of_which_two_readings_are_never_alike_is_not_copied(copies, source, clock, tmp_path, change) -> None:
    source.write_bytes(bytes(3 * COMPARED_BYTES))
    times = itertools.count(1)

    def deed() -> None:
        if not left(tmp_path):
            return
        if change == "cut":
            os.truncate(source, 100)
            return
        with open(source, "r+b") as file:
            file.seek(-8, os.SEEK_END)
            file.write(next(times).to_bytes(8, "big"))

    clock.at_look = deed
    assert copies.copy_while_written(str(source), "7.1", seconds_max=AGES) is None
    assert left(tmp_path) == []


def test_readings_that_take_too_long_are_given_up(copies, source, clock, tmp_path) -> None:
    source.write_bytes(bytes(3 * COMPARED_BYTES))

    def slow() -> None:
        clock.passed += 1

    clock.at_look = slow
    assert copies.copy_while_written(str(source), "7.1", seconds_max=2) is None
    assert left(tmp_path) == []


def test_the_reserve_is_not_touched(source, clock, tmp_path) -> None:
    copies = FrozenCopies(str(tmp_path / "frozen"), reserve_bytes=1 << 62, clock=clock)
    for attempt in (
        lambda: copies.copy(str(source), "7.1", seconds_max=AGES),
        lambda: copies.copy_while_written(str(source), "7.1", seconds_max=AGES),
        lambda: copies.clone(str(source), "7.1"),
    ):
        with pytest.raises(NoSpace):
            attempt()
    assert left(tmp_path) == []


def test_a_file_that_is_elsewhere_now_is_an_error(copies, tmp_path) -> None:
    with pytest.raises(StorageFailed):
        copies.copy(str(tmp_path / "nowhere"), "7.1", seconds_max=AGES)
    with pytest.raises(StorageFailed):
        copies.clone(str(tmp_path / "nowhere"), "7.1")


def test_what_a_crash_left_goes_at_the_start_and_is_in_nobodys_way(copies, source, clock, tmp_path) -> None:
    copies.copy(str(source), "7.1", seconds_max=AGES)
    assert copies.copy(str(source), "7.1", seconds_max=AGES) is not None
    assert left(tmp_path) == ["7.1"]
    FrozenCopies(str(tmp_path / "frozen"), reserve_bytes=0, clock=clock)
    assert left(tmp_path) == []
