"""Room on the local disk: made before bytes are brought back, and no more than needed."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from vnafs.domain.errors import DaemonUnreachable, NoSpace
from vnafs.pipeline.evict import Watermarks
from vnafs.pipeline.room import Room


class Disk:
    """So many bytes in use; a part of them can be fetched again, the rest evicted."""

    def __init__(self, used: int, cached: int = 0) -> None:
        self.used = used
        self.cached = cached
        self.broken = False
        self.limit = 95

    def marks(self) -> tuple[int, Watermarks]:
        return self.used, Watermarks(high_bytes=80, low_bytes=60, limit_bytes=self.limit)

    def shed(self) -> None:
        self.used -= self.cached
        self.cached = 0

    def evict(self, used_bytes: Callable[[], int], bytes_max: int) -> int:
        if self.broken:
            raise DaemonUnreachable(daemon="mount", socket="", why="down")
        files = 0
        while used_bytes() > bytes_max:
            self.used -= 1
            files += 1
        return files

    @property
    def room(self) -> Room:
        return Room(self.marks, shed=self.shed, evict=self.evict)


def test_nothing_goes_while_there_is_room() -> None:
    disk = Disk(70, cached=5)
    disk.room.make(10)
    disk.room.keep()
    assert (disk.used, disk.cached) == (70, 5)


def test_what_can_be_fetched_again_goes_first_and_files_only_as_far_as_needed() -> None:
    disk = Disk(78, cached=10)
    disk.room.make(7)
    assert disk.used == 68
    disk.room.make(20)
    assert disk.used == 60


def test_above_the_high_mark_it_comes_back_to_the_low_one() -> None:
    disk = Disk(81)
    disk.room.keep()
    assert disk.used == 60


def test_more_than_the_disk_empties_it_and_says_nothing() -> None:
    disk = Disk(70)
    disk.room.make(500)
    assert disk.used == 0


def test_a_tree_that_does_not_answer_is_no_failure_here() -> None:
    disk = Disk(90)
    disk.broken = True
    disk.room.make(10)
    assert not disk.room.has(1)


def test_what_is_brought_back_never_takes_of_the_reserve() -> None:
    disk = Disk(90)
    disk.broken = True  # nothing can be evicted
    room = disk.room
    with room.taking(5):
        pass
    with pytest.raises(NoSpace), room.taking(6):
        pass


def test_what_is_promised_to_one_is_not_given_to_another() -> None:
    disk = Disk(70)
    disk.broken = True
    room = disk.room
    with room.taking(20):
        assert not room.has(1)
        with pytest.raises(NoSpace), room.taking(6):
            pass
        with pytest.raises(NoSpace), room.spare(1):
            pass
    with room.spare(10):
        assert not room.has(1)
    assert room.has(10)


def test_a_reserve_above_the_high_mark_is_the_mark() -> None:
    disk = Disk(50)
    disk.limit = 60
    assert disk.room.has(10)
    assert not disk.room.has(11)
    disk.used = 58
    with disk.room.taking(10):
        assert disk.used == 50
