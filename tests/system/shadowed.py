"""A file that is changed at random in every way that programs have, beside a copy in memory that says what it holds.

Reads, writes, appends, vectors, O_DIRECT, shared mappings that outlive the descriptor, truncation up and down, holes,
zeroes, allocation, copies within the kernel, several handles at once, O_TRUNC, rename over: after each step what was
looked at is as it was written. Whatever else happens to the file meanwhile (sealing, eviction, recall) is not its
business: it must not show.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import random
from collections.abc import Callable
from pathlib import Path

KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 0x01, 0x02, 0x10
SIZE_BYTES_MAX = 600_000
RUN_BYTES_MAX = 70_000
HANDLES_MAX = 4
PAGE = mmap.PAGESIZE
_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.mmap.restype = ctypes.c_void_p
_MS_SYNC = 4


class Mapping:
    """A shared mapping without a descriptor: Python's own keeps a duplicate. Raises OSError."""

    def __init__(self, descriptor: int, length: int, *, writable: bool = True) -> None:
        self.length = length
        protection, nowhere = mmap.PROT_READ | mmap.PROT_WRITE * writable, ctypes.c_void_p(-1).value
        size = ctypes.c_size_t(length)
        found = _LIBC.mmap(None, size, protection, mmap.MAP_SHARED, descriptor, ctypes.c_long(0))
        if found == nowhere:
            raise OSError(ctypes.get_errno(), "mmap")
        self._address = int(found)

    def load(self, offset: int, length: int) -> bytes:
        return ctypes.string_at(self._address + offset, length)

    def store(self, offset: int, data: bytes) -> None:
        ctypes.memmove(self._address + offset, data, len(data))

    def sync(self) -> None:
        assert _LIBC.msync(ctypes.c_void_p(self._address), ctypes.c_size_t(self.length), _MS_SYNC) == 0

    def close(self) -> None:
        assert _LIBC.munmap(ctypes.c_void_p(self._address), ctypes.c_size_t(self.length)) == 0


class Shadowed:
    """One file, its handles and mappings, and what it must hold. *allocates*: fallocate(2) works here."""

    def __init__(self, path: Path, dice: random.Random, *, allocates: bool) -> None:
        self.path = path
        self.dice = dice
        self.bytes = bytearray()
        self.handles: list[int] = []
        self.mapping: Mapping | None = None
        self.history: list[str] = []
        self._allocates = allocates
        path.touch()
        self._deeds: list[tuple[int, Callable[[], None]]] = [
            (6, self.open),
            (3, self.close),
            (12, self.write),
            (12, self.read),
            (3, self.append),
            (3, self.write_vector),
            (4, self.read_directly),
            (3, self.write_directly),
            (4, self.cut),
            (3, self.grow),
            (2, self.cut_by_name),
            (1, self.empty),
            (6, self.map),
            (8, self.store),
            (6, self.load),
            (4, self.unmap),
            (3, self.copy_range),
            (1, self.replace),
            (3, self.sync),
            (3, self.look),
            (4, self.punch),
            (3, self.zero),
            (3, self.allocate),
            (2, self.find_data),
            (2, self.let_go),
        ]

    def step(self) -> None:
        """One deed. Raises AssertionError when the file is not what it must be; the note says what led to it."""
        [deed] = self.dice.choices([deed for _, deed in self._deeds], [weight for weight, _ in self._deeds])
        self.history.append(deed.__name__)
        del self.history[:-60]
        try:
            deed()
        except BaseException as error:
            error.add_note(f"{self.path.name} after {' '.join(self.history)}")
            raise

    # -- handles --------------------------------------------------------------------------------------------

    def open(self) -> None:
        if len(self.handles) < HANDLES_MAX:
            self.handles.append(os.open(self.path, self.dice.choice([os.O_RDWR, os.O_RDWR, os.O_RDWR | os.O_SYNC])))

    def close(self) -> None:
        if self.handles:
            os.close(self.handles.pop(self.dice.randrange(len(self.handles))))

    def let_go(self) -> None:
        """Nobody has it: now tiering may."""
        for handle in self.handles:
            os.close(handle)
        self.handles.clear()
        if self.mapping is not None:
            self.unmap()

    def _handle(self) -> int:
        if not self.handles:
            self.open()
        return self.dice.choice(self.handles)

    def _noise(self, length: int) -> bytes:
        return self.dice.randbytes(length)

    def _run(self) -> tuple[int, int]:
        """Offset and length of some bytes, perhaps past the end."""
        dice = self.dice
        offset = dice.randrange(0, min(len(self.bytes) + 20_000, SIZE_BYTES_MAX - RUN_BYTES_MAX))
        if dice.random() < 0.3:
            offset -= offset % PAGE
        return offset, dice.choice([1, 200, PAGE, dice.randrange(1, RUN_BYTES_MAX)])

    def _written(self, offset: int, data: bytes) -> None:
        self._extended(offset + len(data))
        self.bytes[offset : offset + len(data)] = data

    def _extended(self, size: int) -> None:
        if size > len(self.bytes):
            self.bytes.extend(bytes(size - len(self.bytes)))

    def _same(self, offset: int, found: bytes, length: int) -> None:
        wanted = bytes(self.bytes[offset : offset + length])
        if found == wanted:
            return
        first = next((at for at, (a, b) in enumerate(zip(found, wanted, strict=False)) if a != b), None)
        raise AssertionError(f"{len(found)} bytes for {len(wanted)} from {offset}, the first wrong one is {first}")

    # -- read and write -------------------------------------------------------------------------------------

    def read(self) -> None:
        offset, length = self._run()
        self._same(offset, os.pread(self._handle(), length, offset), length)

    def write(self) -> None:
        offset, length = self._run()
        data = self._noise(length)
        assert os.pwrite(self._handle(), data, offset) == length
        self._written(offset, data)

    def append(self) -> None:
        if len(self.bytes) + RUN_BYTES_MAX > SIZE_BYTES_MAX:
            return
        data = self._noise(self.dice.randrange(1, 3000))
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        try:
            assert os.write(descriptor, data) == len(data)
        finally:
            os.close(descriptor)
        self._written(len(self.bytes), data)

    def write_vector(self) -> None:
        offset, _ = self._run()
        parts = [self._noise(self.dice.randrange(0, 5000)) for _ in range(self.dice.randrange(1, 6))]
        assert os.pwritev(self._handle(), parts, offset) == sum(map(len, parts))
        if any(parts):
            self._written(offset, b"".join(parts))

    def _directly(self, flags: int, work: Callable[[int, mmap.mmap, int], None]) -> None:
        """With O_DIRECT: bytes of whole pages from a page, at a page."""
        pages = self.dice.randrange(1, 5)
        place = self.dice.randrange(0, len(self.bytes) // PAGE + 1) * PAGE
        with mmap.mmap(-1, pages * PAGE) as buffer:
            descriptor = os.open(self.path, flags | os.O_DIRECT)
            try:
                work(descriptor, buffer, place)
            finally:
                os.close(descriptor)

    def read_directly(self) -> None:
        def work(descriptor: int, buffer: mmap.mmap, place: int) -> None:
            done = os.preadv(descriptor, [buffer], place)
            self._same(place, buffer[:done], len(buffer))

        self._directly(os.O_RDONLY, work)

    def write_directly(self) -> None:
        def work(descriptor: int, buffer: mmap.mmap, place: int) -> None:
            buffer[:] = self._noise(len(buffer))
            assert os.pwritev(descriptor, [buffer], place) == len(buffer)
            self._written(place, buffer[:])

        self._directly(os.O_RDWR, work)

    # -- size -----------------------------------------------------------------------------------------------

    def cut(self) -> None:
        size = self.dice.randrange(0, len(self.bytes) + 1)
        os.ftruncate(self._handle(), size)
        del self.bytes[size:]

    def grow(self) -> None:
        size = min(len(self.bytes) + self.dice.randrange(1, 100_000), SIZE_BYTES_MAX)
        if size > len(self.bytes):
            os.ftruncate(self._handle(), size)
            self._extended(size)

    def cut_by_name(self) -> None:
        size = self.dice.randrange(0, len(self.bytes) + 1)
        os.truncate(self.path, size)
        del self.bytes[size:]

    def empty(self) -> None:
        os.close(os.open(self.path, os.O_WRONLY | os.O_TRUNC))
        self.bytes.clear()

    def look(self) -> None:
        """Sizes by name, by handle and by listing."""
        sizes = {self.path.stat().st_size, os.fstat(self._handle()).st_size}
        with os.scandir(self.path.parent) as entries:
            sizes |= {entry.stat().st_size for entry in entries if entry.name == self.path.name}
        assert sizes == {len(self.bytes)}

    def sync(self) -> None:
        os.fsync(self._handle())

    # -- mappings -------------------------------------------------------------------------------------------

    def map(self) -> None:
        if self.mapping is None and self.bytes:
            handle = self._handle()
            length = os.fstat(handle).st_size
            assert length == len(self.bytes)
            self.mapping = Mapping(handle, length)

    def _in_mapping(self) -> tuple[int, int] | None:
        """Some bytes that the mapping has and the file has too: past the end there is SIGBUS."""
        room = min(self.mapping.length, len(self.bytes)) if self.mapping is not None else 0
        if not room:
            return None
        offset = self.dice.randrange(0, room)
        return offset, self.dice.randrange(1, min(room - offset, RUN_BYTES_MAX) + 1)

    def store(self) -> None:
        run = self._in_mapping()
        if run is not None and self.mapping is not None:
            offset, length = run
            data = self._noise(length)
            self.mapping.store(offset, data)
            self.bytes[offset : offset + length] = data
            if self.dice.random() < 0.3:
                self.mapping.sync()

    def load(self) -> None:
        run = self._in_mapping()
        if run is not None and self.mapping is not None:
            offset, length = run
            self._same(offset, self.mapping.load(offset, length), length)

    def unmap(self) -> None:
        if self.mapping is not None:
            self.mapping.close()
            self.mapping = None

    # -- copies, holes, allocation --------------------------------------------------------------------------

    def copy_range(self) -> None:
        """Of bytes that do not overlap; copy_file_range(2) may copy less."""
        if len(self.bytes) < 2:
            return
        handle = self._handle()
        half = len(self.bytes) // 2
        offset = self.dice.randrange(0, half)
        length = self.dice.randrange(1, min(half - offset, RUN_BYTES_MAX) + 1)
        at = self.dice.randrange(half, min(len(self.bytes) + 5000, SIZE_BYTES_MAX - RUN_BYTES_MAX))
        if at < offset + length:
            return
        done = os.copy_file_range(handle, handle, length, offset, at)
        assert 0 < done <= length
        self._written(at, bytes(self.bytes[offset : offset + done]))

    def replace(self) -> None:
        """A new file takes the name; who has the old one open keeps it, so nobody has."""
        self.let_go()
        new = self.path.with_suffix(".tmp")
        data = self._noise(self.dice.randrange(0, SIZE_BYTES_MAX // 2))
        new.write_bytes(data)
        new.rename(self.path)
        self.bytes[:] = data

    def _fallocate(self, mode: int, offset: int, length: int) -> bool:
        done = _LIBC.fallocate(self._handle(), mode, ctypes.c_int64(offset), ctypes.c_int64(length))
        refused = ctypes.get_errno() if done != 0 else 0
        assert refused == (0 if self._allocates else errno.EOPNOTSUPP), os.strerror(refused)
        return not refused

    def punch(self) -> None:
        offset, length = self._run()
        if self._fallocate(PUNCH_HOLE | KEEP_SIZE, offset, length):
            end = min(offset + length, len(self.bytes))
            self.bytes[offset:end] = bytes(max(0, end - offset))

    def zero(self) -> None:
        offset, length = self._run()
        keeps = self.dice.random() < 0.5
        if self._fallocate(ZERO_RANGE | (KEEP_SIZE if keeps else 0), offset, length):
            end = min(offset + length, len(self.bytes)) if keeps else offset + length
            if end > offset:
                self._written(offset, bytes(end - offset))

    def allocate(self) -> None:
        offset, length = self._run()
        keeps = self.dice.random() < 0.5
        if self._fallocate(KEEP_SIZE if keeps else 0, offset, length) and not keeps:
            self._extended(offset + length)

    def find_data(self) -> None:
        """What is called a hole reads as zeros."""
        handle, at = self._handle(), 0
        with contextlib.suppress(OSError):
            while at < len(self.bytes):
                hole = os.lseek(handle, at, os.SEEK_HOLE)
                at = os.lseek(handle, hole, os.SEEK_DATA) if hole < len(self.bytes) else hole
                assert not any(self.bytes[hole:at])

    # -- the end --------------------------------------------------------------------------------------------

    def check(self) -> None:
        """All of it, opened anew."""
        found = self.path.read_bytes()
        self._same(0, found, max(len(found), len(self.bytes)))
