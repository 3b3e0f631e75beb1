"""Disks for power cuts: one that is recorded while it is used, and images of it as a cut could have left them."""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.cuts.recorder import FLUSH, HEADER, NAME, WRITE, Counter

MIB = 1 << 20
SIZE_BYTES = 3072 * MIB
"""Sparse. The kernel passes reads and writes by only while 1 GiB above the reserve is free (P-79)."""
MKFS = {
    "ext4": ("mkfs.ext4", "-q", "-F", "-N", "16384", "-J", "size=16", "-E", "nodiscard,lazy_itable_init=0"),
    "xfs": ("mkfs.xfs", "-q", "-f", "-K"),
}
OPTIONS = {"ext4": "loop", "xfs": "loop,nouuid"}
SECTORS_BYTES = (512, 4096)
_ZEROS = bytes(MIB)
_PACKAGES = "fuse3 e2fsprogs xfsprogs mount"


def _run(*words: object) -> str:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{words}: {done.stderr}"
    return done.stdout


def copy_sparse(source: Path, target: Path) -> None:
    """Zeros become holes."""
    with source.open("rb") as reading, target.open("wb") as writing:
        size = os.fstat(reading.fileno()).st_size
        writing.truncate(size)
        at = 0
        with contextlib.suppress(OSError):  # ENXIO: no more data
            while at < size:
                at = os.lseek(reading.fileno(), at, os.SEEK_DATA)
                end = os.lseek(reading.fileno(), at, os.SEEK_HOLE)
                while at < end:
                    at += _transfer(reading.fileno(), writing.fileno(), at, end - at)


def _transfer(reading: int, writing: int, at: int, length: int) -> int:
    data = os.pread(reading, min(length, MIB), at)
    if data != _ZEROS[: len(data)]:
        os.pwrite(writing, data, at)
    return len(data)


@dataclasses.dataclass(frozen=True)
class Recorded:
    """A disk in use: its file system is mounted at *place*; in *folder* are its log, and `base`, how it began."""

    folder: Path
    place: Path
    kind: str
    counter: Counter


@contextlib.contextmanager
def recorded_disk(folder: Path, place: Path, kind: str) -> Iterator[Recorded]:
    """A fresh file system; whatever is written to its disk until the block ends is recorded. *folder* is made."""
    folder.mkdir()
    place.mkdir(exist_ok=True)
    image, behind = folder / "image", folder / "behind"
    behind.mkdir()
    with image.open("wb") as file:
        file.truncate(SIZE_BYTES)
    if shutil.which(MKFS[kind][0]) is None or os.geteuid() != 0:
        raise AssertionError(f"needs root, loop devices and {_PACKAGES}")
    _run(*MKFS[kind], image)
    copy_sparse(image, folder / "base")
    words = [sys.executable, "-m", "tests.cuts.recorder", str(folder), str(behind)]
    recorder = subprocess.Popen(words, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
    try:
        assert recorder.stdout is not None
        assert recorder.stdout.readline() == b"ready\n"
        device = _run("losetup", "--find", "--show", "--direct-io=on", behind / os.fsdecode(NAME)).strip()
        try:
            _run("mount", device, place)
            try:
                yield Recorded(folder, place, kind, Counter(folder / "counter"))
            finally:
                unmount(place)
        finally:
            _run("losetup", "--detach", device)
    finally:
        _unmount_gone(behind)
        recorder.wait(60)
        image.unlink()


def _unmount_gone(place: Path) -> None:
    """The loop device may hold the file a moment longer."""
    for _ in range(100):
        if subprocess.run(["umount", str(place)], check=False, capture_output=True).returncode == 0:
            return
        time.sleep(0.1)
    _run("umount", "-l", place)


def unmount(place: Path) -> None:
    """Whoever was just ended may hold a file for a moment."""
    _unmount_gone(place)


@contextlib.contextmanager
def mounted_image(image: Path, place: Path, kind: str) -> Iterator[None]:
    """What a machine finds when the power is back. Raises AssertionError when the file system is not mounted."""
    _run("mount", "-o", OPTIONS[kind], image, place)
    try:
        yield
    finally:
        unmount(place)


# -- the log -----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Event:
    """A write, or a flush (of no bytes)."""

    kind: int
    offset: int
    length: int
    at: int
    """Where its bytes are in the log."""


def read_log(path: Path) -> list[Event]:
    """Everything that was recorded, in order."""
    found, at = [], 0
    with path.open("rb") as file:
        while head := file.read(HEADER.size):
            kind, length, offset = HEADER.unpack(head)
            at += HEADER.size
            found.append(Event(kind, offset, length, at))
            at += length
            file.seek(at)
    return found


@dataclasses.dataclass(frozen=True)
class Cut:
    """Power was lost after *position* events. *seed* drew what of the writes since the last flush is on the disk."""

    position: int
    seed: int


class Replay:
    """Images of one recorded disk at cuts, which must be asked for in the order of their positions."""

    def __init__(self, folder: Path) -> None:
        self.events = read_log(folder / "log")
        self._log = (folder / "log").open("rb")
        self._base = folder / "flushed"
        copy_sparse(folder / "base", self._base)
        self._flushes = [number for number, event in enumerate(self.events) if event.kind == FLUSH]
        self._done = 0

    def close(self) -> None:
        self._log.close()
        self._base.unlink()

    def build(self, cut: Cut, image: Path) -> str:
        """Write the image; says in words which writes it has."""
        index = bisect.bisect_left(self._flushes, cut.position) - 1
        flushed = self._flushes[index] if index >= 0 else 0
        assert flushed >= self._done, "cuts go forward"
        with self._base.open("r+b") as base:
            for event in self.events[self._done : flushed]:
                self._apply(base.fileno(), event)
        self._done = flushed
        copy_sparse(self._base, image)
        volatile = [event for event in self.events[flushed : cut.position] if event.kind == WRITE]
        return self._reorder(volatile, random.Random(cut.seed), image)

    def _reorder(self, volatile: Sequence[Event], dice: random.Random, image: Path) -> str:
        """Any subset of what was not flushed, in order, one write perhaps in part: a disk may leave it so."""
        way = dice.choice(("all", "none", "some", "some", "few", "most", "prefix", "last"))
        share = {"all": 1.0, "none": 0.0, "few": 0.15, "most": 0.9}.get(way, dice.random())
        if way == "prefix":
            kept = list(volatile[: dice.randrange(len(volatile) + 1)])
        elif way == "last":
            kept = list(volatile[-1:])
        else:
            kept = [event for event in volatile if dice.random() < share]
        torn = dice.choice(kept) if kept and dice.random() < 0.5 else None
        sector = dice.choice(SECTORS_BYTES)
        with image.open("r+b") as file:
            for event in kept:
                if event is torn:
                    self._tear(file.fileno(), event, sector, dice)
                else:
                    self._apply(file.fileno(), event)
        tear = f", one of {torn.length} bytes torn at {sector}" if torn else ""
        return f"{way}: {len(kept)} of {len(volatile)} writes since the last flush{tear}"

    def _bytes(self, event: Event) -> bytes:
        self._log.seek(event.at)
        return self._log.read(event.length)

    def _apply(self, descriptor: int, event: Event) -> None:
        if event.kind == WRITE:
            os.pwrite(descriptor, self._bytes(event), event.offset)

    def _tear(self, descriptor: int, event: Event, sector: int, dice: random.Random) -> None:
        data = self._bytes(event)
        for start in range(0, len(data), sector):
            if dice.random() < 0.5:
                os.pwrite(descriptor, data[start : start + sector], event.offset + start)
