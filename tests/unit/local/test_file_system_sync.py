"""Syncing a whole file system: what may be believed after it, and after it went wrong once."""

from __future__ import annotations

import errno
from pathlib import Path

from vnafs.domain.clock import NANOSECONDS, Instant
from vnafs.local.syncing import TICK_NANOSECONDS, FileSystemSync, Synced

NEVER = Instant(-1)


class Passing:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.seconds = 1_000

    def now(self) -> Instant:
        return Instant(self.seconds * NANOSECONDS)

    def monotonic(self) -> float:
        return float(self.seconds)

    def sleep(self, seconds: float) -> None:
        raise AssertionError("syncing never sleeps")


class BadDisk(FileSystemSync):
    """One that may fail to keep something; the kernel says so once."""

    has_error = False

    def _call(self, descriptor: int) -> None:
        if self.has_error:
            self.has_error = False
            raise OSError(errno.EIO, "the disk did not keep something")
        super()._call(descriptor)


def disk(tmp_path: Path, clock: Passing, noted: list[Instant], failed: Instant = NEVER) -> BadDisk:
    return BadDisk(str(tmp_path), clock, failed=failed, note=noted.append)


def at(seconds: int) -> int:
    return seconds * NANOSECONDS


def test_what_was_changed_before_a_sync_is_covered_and_what_came_after_is_not(tmp_path: Path) -> None:
    clock, noted = Passing(), []
    synced = disk(tmp_path, clock, noted).sync()
    assert synced.covers(at(999))
    assert not synced.covers(at(1_000))
    assert not synced.covers(at(1_000) - TICK_NANOSECONDS)
    assert noted == []


def test_after_an_error_nothing_written_until_then_is_ever_covered(tmp_path: Path) -> None:
    """The error is told once and names no file: a later success must not hide it."""
    clock, noted = Passing(), []
    subject = disk(tmp_path, clock, noted)
    subject.has_error = True
    assert not subject.sync().covers(at(1))
    clock.seconds = 2_000
    synced = subject.sync()
    assert not synced.covers(at(999))
    assert not synced.covers(at(1_000))
    assert synced.covers(at(1_001))
    assert noted == [Instant(at(1_000))]


def test_an_error_outlives_the_process_that_heard_of_it(tmp_path: Path) -> None:
    clock, noted = Passing(), []
    synced = disk(tmp_path, clock, noted, failed=Instant(at(500))).sync()
    assert not synced.covers(at(400))
    assert synced.covers(at(600))


def test_one_descriptor_is_kept_so_that_no_error_is_told_to_somebody_else(tmp_path: Path) -> None:
    clock, noted = Passing(), []
    subject = disk(tmp_path, clock, noted)
    before = subject._descriptor
    subject.sync()
    subject.sync()
    assert subject._descriptor == before
    subject.close()
    subject.close()


def test_all_is_covered_between_two_moments_only() -> None:
    synced = Synced(before=Instant(10), after=Instant(5))
    assert [synced.covers(moment) for moment in (5, 6, 9, 10)] == [False, True, True, False]
