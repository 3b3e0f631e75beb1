"""One NFS client that writes, reads, names and lists until its standard input ends; then says what it found, as JSON.

    python -m tests.bench.nfsload SERVER EXPORT SEED

It is a program because the server listens in a network of its own. What it says: calls, the longest of them, what went
wrong, and each file that is there in the end with its SHA-256.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import select
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes import c_void_p

from tests.servers.libnfs import Nfs

HELD = 4
"""Files that stay open."""
LISTED = 400


class Load:
    """What one client has done, and what must be there."""

    def __init__(self, nfs: Nfs, seed: int) -> None:
        self.nfs = nfs
        self.dice = random.Random(seed)
        self.calls = 0
        self.longest = (0.0, "")
        self.held: dict[str, tuple[c_void_p, bytearray, int]] = {}
        self.names: dict[str, bytes] = {}
        self.stays: dict[str, int] = {}
        self._count = 0

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.calls += 1
        self.longest = max(self.longest, (time.monotonic() - began, what))

    def begin(self) -> None:
        for folder in ("/names", "/listed"):
            self.nfs.mkdir(folder)
        for number in range(HELD):
            path = f"/held{number}"
            handle = self.nfs.create(path)
            self.held[path] = handle, bytearray(), self.nfs.stat(path).ino
        for number in range(LISTED):
            path = f"/listed/stays-{number:05}"
            with self.timed("create"):
                self.nfs.close(self.nfs.create(path))
            self.stays[f"stays-{number:05}"] = self.nfs.stat(path).ino

    def step(self) -> None:
        """One deed, of any kind."""
        deeds: tuple[tuple[Callable[[], None], int], ...] = ((self.write, 10), (self.name, 10), (self.list, 1))
        [deed] = self.dice.choices([deed for deed, _ in deeds], [weight for _, weight in deeds])
        deed()

    def write(self) -> None:
        """Through handles that stay open: write anywhere, cut, sync, read back; the inode number stays."""
        dice, path = self.dice, self.dice.choice(sorted(self.held))
        handle, data, inode = self.held[path]
        what = dice.random()
        if what < 0.5:
            at, new = dice.randrange(len(data) + 1), dice.randbytes(dice.choice((1, 100, 5000, 70_000)))
            with self.timed("write"):
                assert self.nfs.pwrite(handle, new, at) == len(new)
            data[at : at + len(new)] = new
        elif what < 0.65:
            with self.timed("commit"):
                self.nfs.fsync(handle)
        elif what < 0.95 or len(data) < 500_000:
            with self.timed("read"):
                assert self.nfs.pread(handle, len(data) + 1, 0) == data, f"{path} has other bytes"
            assert self.nfs.stat(path).ino == inode, f"{path} has another inode number"
        else:
            with self.timed("truncate"):
                self.nfs.truncate(handle, 1000)
            del data[1000:]

    def name(self) -> None:
        """Each call does what it says, once."""
        dice, nfs, there = self.dice, self.nfs, self.names
        self._count += 1
        new, what = f"/names/n{self._count}", dice.random()
        if what < 0.4 or len(there) < 3:
            data = dice.randbytes(dice.choice((0, 10, 3000, 300_000)))
            with self.timed("create"):
                handle = nfs.create(new)
            for at in range(0, len(data), 100_000):
                part = data[at : at + 100_000]
                assert nfs.pwrite(handle, part, at) == len(part)
            with self.timed("close"):
                nfs.close(handle)
            there[new] = data
            return
        old = dice.choice(sorted(there))
        if what < 0.6:
            with self.timed("rename"):
                nfs.rename(old, new)
            there[new] = there.pop(old)
        elif what < 0.7:
            with self.timed("mkdir"):
                nfs.mkdir(new)
            with self.timed("rmdir"):
                nfs.rmdir(new)
        elif what < 0.8:
            with self.timed("link"):
                nfs.link(old, new)
            with self.timed("unlink"):
                nfs.unlink(old)
            there[new] = there.pop(old)
        elif what < 0.9:
            with self.timed("get"):
                handle = nfs.open(old, os.O_RDONLY)
                assert nfs.pread(handle, len(there[old]) + 1, 0) == there[old], f"{old} has other bytes"
                nfs.close(handle)
        else:
            with self.timed("unlink"):
                nfs.unlink(old)
            del there[old]

    def list(self) -> None:
        """A large directory while names in it come and go."""
        passing = f"/listed/passing-{self.dice.randrange(10)}"
        self.nfs.mkdir(passing)
        with self.timed("list"):
            found = self.nfs.listing("/listed")
        self.nfs.rmdir(passing)
        steady = {name: inode for name, inode in found.items() if name.startswith("stays-")}
        assert steady == self.stays, f"a listing shows {len(steady)} of {len(self.stays)} names, or other numbers"

    def end(self) -> None:
        for handle, _, _ in self.held.values():
            self.nfs.close(handle)

    def expected(self) -> dict[str, str]:
        contents = {path: bytes(data) for path, (_, data, _) in self.held.items()} | self.names
        contents |= {f"/listed/{name}": b"" for name in self.stays}
        return {path.lstrip("/"): hashlib.sha256(data).hexdigest() for path, data in contents.items()}


def main() -> int:
    server, export, seed = sys.argv[1:]
    load, wrong = Load(Nfs(server, export), int(seed)), list[str]()
    try:
        load.begin()
        while not select.select([sys.stdin], [], [], 0)[0]:
            load.step()
        load.end()
    except (OSError, AssertionError) as error:
        wrong.append(f"NFS: {error!r}")
    said = {"calls": load.calls, "longest": load.longest, "wrong": wrong, "expected": load.expected()}
    print(json.dumps(said))
    return 0


if __name__ == "__main__":
    sys.exit(main())
