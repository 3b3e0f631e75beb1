"""Room on the local disk: how much there is, when writers are refused and when eviction begins and ends.

Decisions are pure functions of a `Room`; one call of statvfs at the edge feeds them and is remembered for a moment,
so that a write does not cost a system call. A writer is refused before the disk is really full: what is
acknowledged, the index and the log then still have room.
"""

from __future__ import annotations

import dataclasses
import os

from vnafs.domain.clock import Clock
from vnafs.domain.errors import NoSpace
from vnafs.local.spool import local_error

GIBIBYTE = 1 << 30


@dataclasses.dataclass(frozen=True, slots=True)
class Room:
    """The disk that holds the spool, in bytes."""

    total_bytes: int
    free_bytes: int
    """Free for us."""
    files_total: int = 0
    files_free: int = 0

    @property
    def used_bytes(self) -> int:
        """What others and we use."""
        return self.total_bytes - self.free_bytes


@dataclasses.dataclass(frozen=True, slots=True)
class Watermarks:
    """When local bytes start to go, when that stops, and what writers never get; bytes of the whole disk."""

    high_bytes: int
    """Used above this: evict."""
    low_bytes: int
    """Used below this: evict no more."""
    reserve_bytes: int = GIBIBYTE
    """Free below this: writers get NoSpace."""

    def __post_init__(self) -> None:
        if not 0 <= self.low_bytes <= self.high_bytes:
            raise ValueError(f"low_bytes {self.low_bytes} must lie between 0 and high_bytes {self.high_bytes}")


def bytes_to_evict(room: Room, marks: Watermarks) -> int:
    """How much local space should be won back now: nothing up to the high mark, then down to the low one."""
    if room.used_bytes <= marks.high_bytes:
        return 0
    return room.used_bytes - marks.low_bytes


def may_write(room: Room, wanted_bytes: int, reserve_bytes: int) -> bool:
    """Whether *wanted_bytes* more leave the reserve untouched."""
    return room.free_bytes - wanted_bytes >= reserve_bytes


class Space:
    """The room there is on one disk, asked for at most each `fresh_seconds` while nothing is short."""

    def __init__(self, directory: str, clock: Clock, *, reserve_bytes: int, fresh_seconds: float = 0.25) -> None:
        self._directory = directory
        self._clock = clock
        self._reserve_bytes = reserve_bytes
        self._fresh_seconds = fresh_seconds
        self._room = Room(0, 0)
        self._known_at = float("-inf")
        self._credit_bytes = 0

    def room(self) -> Room:
        """What the disk says now."""
        try:
            found = os.statvfs(self._directory)
        except OSError as error:
            raise local_error(error, "asking for free space") from error
        size = found.f_frsize
        self._room = Room(found.f_blocks * size, found.f_bavail * size, found.f_files, found.f_favail)
        self._known_at = self._clock.monotonic()
        self._credit_bytes = self._room.free_bytes - self._reserve_bytes
        return self._room

    def has_room(self, wanted_bytes: int) -> bool:
        """Whether a claim of so much would be granted; claims nothing."""
        if self._clock.monotonic() - self._known_at > self._fresh_seconds:
            self.room()
        return wanted_bytes <= self._credit_bytes

    def claim(self, wanted_bytes: int) -> None:
        """A writer is about to use *wanted_bytes*. Raises NoSpace while acknowledged bytes are still safe."""
        if wanted_bytes > self._credit_bytes or self._clock.monotonic() - self._known_at > self._fresh_seconds:
            self.room()
            if wanted_bytes > self._credit_bytes:
                raise NoSpace(why=f"{self._room.free_bytes} bytes are free, {self._reserve_bytes} are kept in reserve")
        self._credit_bytes -= wanted_bytes
