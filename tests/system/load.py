"""A small real load on an archive that may lose a daemon at any moment, and what must be true of it afterwards.

Every operation notes what was acknowledged. One that failed half way may have happened or not: its file is in doubt
until it is looked at, and then holds one of the contents that are possible.
"""

from __future__ import annotations

import contextlib
import functools
import os
import random
from collections.abc import Iterator
from pathlib import Path

from appliance.cli.files import CLOSING_SECONDS
from appliance.control.client import ControlClient
from tests import studies
from tests.system.archives import Archive, until
from vnafs import store as archive_store
from vnafs.domain.errors import VnaError
from vnafs.index import packs

ABSENT = None
MIB = 1024 * 1024


def noise(seed: object, size_bytes: int) -> bytes:
    """Bytes that no codec makes smaller."""
    return random.Random(str(seed)).randbytes(size_bytes)


@functools.cache
def slices() -> tuple[bytes, bytes]:
    """Two CT slices of half a megabyte."""
    first, second = studies.synthetic_ct_study(seed=7, slices=2)
    return first.data, second.data


class Daemons:
    """The control sockets of an archive, asked in this process: a `vna` of its own costs half a second."""

    def __init__(self, archive: Archive) -> None:
        run = archive.archive / "run"
        self.mount = ControlClient(str(run / "mount.sock"), "mount", timeout_seconds=60)
        self.tierd = ControlClient(str(run / "tierd.sock"), "tierd", timeout_seconds=60)

    def pending(self, copies: int = 1) -> dict:
        self.mount.call("tree.fold")
        return self.tierd.call("tiering.pending", copies=copies)

    def all_done(self, copies: int = 1) -> bool:
        with contextlib.suppress(VnaError):
            return bool(self.pending(copies)["done"])
        return False

    def evict(self, *paths: Path) -> dict:
        return self.tierd.call("tiering.evict", inodes=[os.lstat(path).st_ino for path in paths])

    def evict_all(self, *paths: Path) -> None:
        """None of them is local any more; as `vna evict`, without its half a second."""
        inodes = [os.lstat(path).st_ino for path in paths]
        assert self.tierd.call("tiering.evict", inodes=inodes, wait_seconds=CLOSING_SECONDS)["refused"] == []

    def close(self) -> None:
        self.mount.close()
        self.tierd.close()


class Load:
    """Files in one folder of an archive."""

    def __init__(self, archive: Archive, name: str) -> None:
        self.archive = archive
        self.folder = archive.share / name
        self.seed = name
        self.expected: dict[str, bytes] = {}
        self.doubtful: dict[str, list[bytes | None]] = {}
        self.folder.mkdir()

    def path(self, name: str) -> Path:
        return self.folder / name

    def paths(self) -> list[Path]:
        return [self.path(name) for name in self.expected]

    # -- operations ----------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _in_doubt(self, **possible: list[bytes | None]) -> Iterator[None]:
        """Until the block is done these files may hold one of these contents."""
        for name, contents in possible.items():
            self.doubtful[name] = [self.expected.pop(name, ABSENT), *contents]
        yield
        for name, contents in possible.items():
            del self.doubtful[name]
            if contents[-1] is not ABSENT:
                self.expected[name] = contents[-1]

    def write(self, name: str, data: bytes) -> None:
        with self._in_doubt(**{name: [data]}), open(self.path(name), "wb", buffering=0) as file:
            view = memoryview(data)
            while view:
                view = view[file.write(view) :]

    def patch(self, name: str, offset: int, data: bytes) -> None:
        old = self.expected[name]
        new = old[:offset] + data + old[offset + len(data) :]
        with self._in_doubt(**{name: [new]}), open(self.path(name), "r+b", buffering=0) as file:
            file.seek(offset)
            file.write(data)

    def cut(self, name: str, size: int) -> None:
        new = self.expected[name][:size]
        with self._in_doubt(**{name: [new]}):
            os.truncate(self.path(name), size)

    def rename(self, old: str, new: str) -> None:
        with self._in_doubt(**{old: [ABSENT], new: [self.expected[old]]}):
            os.rename(self.path(old), self.path(new))

    def remove(self, name: str) -> None:
        with self._in_doubt(**{name: [ABSENT]}):
            self.path(name).unlink()

    # -- what they are for -----------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Files that are replicated before anything goes wrong: some are then stubs."""
        for number in range(3):
            self.write(f"stub-{number}", noise((self.seed, "stub", number), 30_000 + number))
            self.write(f"kept-{number}", noise((self.seed, "kept", number), 20_000 + number))
        self.write("study", slices()[0])

    def run(self) -> None:
        """One of everything. Raises OSError where a daemon died under it."""
        for number, size in enumerate((0, 1, 4_097, 300_000)):
            self.write(f"new-{number}", noise((self.seed, "new", number), size))
        self.write("study-again", slices()[0])
        self.write("study-corrected", studies.with_corrected_header(slices()[0]))
        self.write("other-slice", slices()[1])
        self.write("pieces", noise((self.seed, "pieces"), 5 * MIB // 2))
        self.write("gone", noise((self.seed, "gone"), 50_000))
        self.remove("gone")
        self.patch("kept-0", 100, b"patched")
        self.cut("kept-1", 500)
        self.write("over", noise((self.seed, "over"), 9_000))
        self.rename("over", "kept-2")
        with contextlib.suppress(OSError):  # without tierd a stub cannot be read, and says so
            self.check("stub-0")
        with contextlib.suppress(OSError):
            self.patch("stub-1", 10, b"patched too")
        self.cut("stub-2", 0)

    # -- what must be true -----------------------------------------------------------------------------------------

    def check(self, name: str) -> None:
        """Raises AssertionError when a file holds other bytes than were acknowledged, OSError when it has none."""
        assert self.path(name).read_bytes() == self.expected[name], name

    def resolve(self) -> None:
        """Look at what was in doubt: each is one of what is possible, and stays so."""
        for name, possible in self.doubtful.items():
            found = self.path(name).read_bytes() if self.path(name).exists() else ABSENT
            # a write that was cut off leaves a part; nothing, if only the opening came through
            prefixes = [p for p in possible if p is not ABSENT and found is not ABSENT and p.startswith(found)]
            assert found in possible or prefixes, (name, found and len(found))
            if found is not ABSENT:
                self.expected[name] = found
        self.doubtful.clear()

    def check_all(self) -> None:
        assert {entry.name for entry in os.scandir(self.folder)} == set(self.expected)
        for name in self.expected:
            self.check(name)


# -- what must be true of the whole archive ------------------------------------------------------------------------


def objects(folder: Path) -> dict[str, tuple[int, int, int]]:
    """The packs on a directory target: name to (inode, time of change, size)."""
    found = {}
    for path in folder.rglob("*.pack"):
        status = path.stat()
        found[str(path.relative_to(folder))] = (status.st_ino, status.st_mtime_ns, status.st_size)
    return found


def packs_known(archive: Archive) -> int:
    """How many packs the store has rows of."""
    engine = archive_store.read_store(str(archive.archive))
    try:
        with engine.read() as reader:
            return sum(1 for _ in packs.every(reader))
    finally:
        engine.close()


def files_in(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]


def nothing_left_over(archive: Archive, local_files: int) -> None:
    """No pack half built or waiting, nothing staged, and one local file for each file that should have one."""
    until(lambda: files_in(archive.archive / "packs") == [], "no packs are left over")
    until(lambda: files_in(archive.archive / "staging") == [], "nothing staged is left over")

    def spooled() -> int:
        return sum(1 for name in files_in(archive.archive / "spool") if not name.startswith("quarantine/"))

    until(lambda: spooled() == local_files, f"{local_files} local files, not {spooled()}")
