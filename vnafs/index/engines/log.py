"""The log of an LMDB environment: where a commit is written before it is answered. Two files of fixed size.

Each record holds one transaction as absolute row images. All of a segment's space is written with zeros when it is
made, so that a later fdatasync writes data and no metadata. One segment takes records while the other is folded
into LMDB; a folded segment is used again from its start.

    record (big-endian), at a multiple of 8:
      0  8  xxh3-64 of all that follows in the record
      8  4  magic
     12  8  epoch: a random number drawn at each opening
     20  4  length of the body in bytes
     24  8  sequence of the transaction, without gaps
     32  8  synced: when this was written, everything up to this sequence survived loss of power
     40     rows: key length 2, value length 4 (all ones: removed), key, value

What is replayed: LMDB holds one (epoch, folded sequence). Records of exactly that epoch whose sequences follow on
the folded one without a gap, and whose checksums hold. Opening folds them and changes the epoch in a synced commit
before the first new record, so neither a record of an older lap (its sequence is lower) nor one that was lost and
came back, or belongs to another life of these files (its epoch is another), can ever be replayed. Where the chain
ends, a record further on that vouches for a sequence past the end as synced is proof of damage, not of a torn
tail: then nothing is served.

Overwriting the rest of a disk block that already holds a synced record is taken to leave that record alone
(power-safe overwrite), as PostgreSQL and SQLite take it.

A `Log` is used by one thread at a time, except `sync_segments`. It knows neither LMDB nor what rows mean.
"""

from __future__ import annotations

import dataclasses
import mmap
import os
import struct
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import xxhash

from vnafs.domain.errors import IndexBroken

SEGMENT_NAMES = ("log.0", "log.1")
_HEADER = struct.Struct(">Q4sQIQQ")
_MAGIC = b"vnL1"
_ROW = struct.Struct(">HI")
_REMOVED = 0xFFFFFFFF
_ALIGN = 8
_ZEROS_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True, slots=True)
class LogSettings:
    """How much may wait in the log, and how long."""

    segment_bytes: int = 16 << 20
    """Of each of the two files; allocated in full when they are made. Both may be full of what is not folded when a
    process dies, and a start folds them first: this bounds its time, and the memory for rows that wait."""
    fold_age_seconds: float = 0.05
    """A change is folded at the latest so long after it was made, as long as the disk keeps up."""
    fold_bytes: int = 4 << 20
    """Folded earlier once so much waits in memory."""
    full_wait_seconds_max: float = 30.0
    """How long a writer waits for room in the log before it is refused with NoSpace."""
    retry_seconds: float = 1.0
    """Pause after a fold that found the disk full."""


class Record(NamedTuple):
    """One transaction as found in a segment."""

    sequence: int
    synced: int
    body: memoryview

    def rows(self) -> dict[bytes, bytes | None]:
        """Keys with their new values; None for a removed one. Only of records whose checksum held."""
        found: dict[bytes, bytes | None] = {}
        body, stop = bytes(self.body), len(self.body)
        unpack, head_bytes = _ROW.unpack_from, _ROW.size
        at = 0
        while at < stop:
            key_length, value_length = unpack(body, at)
            at += head_bytes
            value_at = at + key_length
            key = body[at:value_at]
            if value_length == _REMOVED:
                found[key] = None
                at = value_at
            else:
                at = value_at + value_length
                found[key] = body[value_at:at]
        return found


def encode(changed: Mapping[bytes, bytes | None], epoch: int, sequence: int, synced: int) -> bytes:
    """One record, ready to be appended."""
    parts = [b""]
    for key, value in changed.items():
        if value is None:
            parts.append(_ROW.pack(len(key), _REMOVED))
            parts.append(key)
        else:
            parts.append(_ROW.pack(len(key), len(value)))
            parts.append(key)
            parts.append(value)
    length = sum(map(len, parts))
    parts[0] = _HEADER.pack(0, _MAGIC, epoch, length, sequence, synced)[8:]
    guarded = b"".join(parts)
    return xxhash.xxh3_64_digest(guarded) + guarded


def _record_at(raw: memoryview, at: int, epoch: int) -> Record | None:
    """The record at an offset, or None when there is none of this epoch whose checksum holds."""
    if at + _HEADER.size > len(raw):
        return None
    checksum, magic, found_epoch, length, sequence, synced = _HEADER.unpack_from(raw, at)
    stop = at + _HEADER.size + length
    if magic != _MAGIC or found_epoch != epoch or stop > len(raw):
        return None
    if xxhash.xxh3_64_intdigest(raw[at + 8 : stop]) != checksum:
        return None
    return Record(sequence, synced, raw[at + _HEADER.size : stop])


def _run(raw: memoryview, epoch: int) -> tuple[list[Record], int]:
    """The records from the start of a segment on, as long as each follows on the one before, and where they end."""
    found: list[Record] = []
    at = 0
    while (record := _record_at(raw, at, epoch)) is not None:
        if found and record.sequence != found[-1].sequence + 1:
            break
        found.append(record)
        at = _aligned(at + _HEADER.size + len(record.body))
    return found, at


def _aligned(offset: int) -> int:
    return (offset + _ALIGN - 1) & -_ALIGN


def chain(segments: Sequence[mmap.mmap], epoch: int, folded: int, *, what: str) -> list[Record]:
    """The records that LMDB lacks, in order.

    Raises IndexBroken when a record that was synced is damaged or gone.
    """
    views = [memoryview(segment) for segment in segments]
    runs = [_run(view, epoch) for view in views]
    found: list[Record] = []
    reached = folded
    for run in sorted((run for run, _ in runs if run), key=lambda run: run[0].sequence):
        for record in run:
            if record.sequence == reached + 1:
                found.append(record)
                reached = record.sequence
    for raw, view, (run, end) in zip(segments, views, runs, strict=True):
        # a record vouches only for what came before it: those of a run that was reached to its end for nothing later
        passed = end if run and run[-1].sequence <= reached else 0
        _refuse_damage(raw, view, passed, epoch, reached, what)
    return found


def _refuse_damage(raw: mmap.mmap, view: memoryview, start: int, epoch: int, reached: int, what: str) -> None:
    ours = _MAGIC + epoch.to_bytes(8, "big")
    at = raw.find(ours, start)
    while at >= 0:
        record_at = at - 8
        if record_at >= 0 and record_at % _ALIGN == 0 and record_at + _HEADER.size <= len(view):
            synced = _HEADER.unpack_from(view, record_at)[5]
            if synced > reached and _record_at(view, record_at, epoch) is not None:
                raise IndexBroken(
                    what=what, why=f"its log is damaged: change {reached + 1} was on disk and cannot be read"
                )
        at = raw.find(ours, at + 1)


class Log:
    """The two segments of one environment, open for appending. Make it with `open_log`."""

    def __init__(self, descriptors: list[int], segment_bytes: int) -> None:
        self._descriptors = descriptors
        self._segment_bytes = segment_bytes
        self._active = 0
        self._tail = 0
        self._unsynced = [False, False]

    def fits(self, record: bytes) -> bool:
        """Whether the active segment has room for it."""
        return self._tail + len(record) <= self._segment_bytes

    def fits_empty(self, record: bytes) -> bool:
        """Whether an empty segment would have room for it."""
        return len(record) <= self._segment_bytes

    def append(self, record: bytes) -> None:
        """Write to the active segment, which has room. Raises OSError; then the log must not be used again."""
        descriptor, at = self._descriptors[self._active], self._tail
        written = os.pwrite(descriptor, record, at)
        while written < len(record):
            written += os.pwrite(descriptor, record[written:], at + written)
        self._tail = _aligned(at + written)
        self._unsynced[self._active] = True

    def switch(self) -> None:
        """Go on at the start of the other segment, whose records are all folded."""
        self._active = 1 - self._active
        self._tail = 0

    def folded(self) -> None:
        """All records of the segment that is not active are in LMDB and synced there."""
        self._unsynced[1 - self._active] = False

    def take_unsynced(self) -> list[int]:
        """The descriptors that hold records nobody has begun to sync; they count as begun from here on."""
        taken = []
        for index in (0, 1):
            # only what was seen is cleared: an append on another thread may raise the flag at any moment
            if self._unsynced[index]:
                self._unsynced[index] = False
                taken.append(self._descriptors[index])
        return taken

    def close(self) -> None:
        """Let go of the files, as they are."""
        while self._descriptors:
            os.close(self._descriptors.pop())


def sync_segments(descriptors: Sequence[int]) -> None:
    """Everything written to these survives loss of power. Raises OSError: never try again."""
    for descriptor in descriptors:
        os.fdatasync(descriptor)


def has_log(path: str) -> bool:
    """Whether an environment has, or once began to have, a log."""
    return any(os.path.exists(os.path.join(path, name)) for name in SEGMENT_NAMES)


def map_segments(path: str) -> list[mmap.mmap]:
    """The bytes of both segments, not loaded. Raises IndexBroken when one is missing, OSError."""
    found: list[mmap.mmap] = []
    for name in SEGMENT_NAMES:
        try:
            with open(os.path.join(path, name), "rb") as file:
                found.append(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
        except (FileNotFoundError, ValueError):  # ValueError: the file is empty
            raise IndexBroken(what=path, why=f"the file {name} of its log is missing") from None
    return found


def is_ready(path: str, segment_bytes: int) -> bool:
    """Whether `open_log` would make no segment anew. Raises OSError."""
    return all(_fits(os.path.join(path, name), segment_bytes) for name in SEGMENT_NAMES)


def _fits(full: str, segment_bytes: int) -> bool:
    try:
        return os.stat(full).st_size == segment_bytes
    except FileNotFoundError:
        return False


def open_log(path: str, segment_bytes: int, *, names_are_synced: bool = False) -> Log:
    """Open both segments at their start, made anew where they are missing or of another size.

    Everything in them must have been folded, and the epoch raised, before the first append. Raises OSError.
    """
    descriptors: list[int] = []
    try:
        for name in SEGMENT_NAMES:
            full = os.path.join(path, name)
            if not _fits(full, segment_bytes):
                _make_segment(full, segment_bytes)
            descriptors.append(os.open(full, os.O_RDWR | os.O_CLOEXEC))
        if not names_are_synced:
            _sync_names(path)
    except OSError:
        for descriptor in descriptors:
            os.close(descriptor)
        raise
    return Log(descriptors, segment_bytes)


def _sync_names(path: str) -> None:
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _make_segment(full: str, segment_bytes: int) -> None:
    unfinished = full + ".new"
    descriptor = os.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        left = segment_bytes
        zeros = bytes(min(_ZEROS_BYTES, left))
        while left:
            left -= os.write(descriptor, zeros[:left])
        os.fsync(descriptor)
        os.rename(unfinished, full)
    except OSError:
        os.unlink(unfinished)  # on a full disk it is in the way of what could make room
        raise
    finally:
        os.close(descriptor)
