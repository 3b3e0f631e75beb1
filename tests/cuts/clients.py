"""Clients that note what they did and when it was answered: local programs, and NFS without a single fsync.

    python -m tests.cuts.clients COUNTER NOTES SEED SECONDS SERVER PATH

does so as an NFSv3 client (libnfs) and leaves its deeds in NOTES.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from tests.cuts.promises import FILE, FOLDER, LINK, PIPE, Deed, Tree
from tests.cuts.recorder import Counter
from tests.system.shadowed import Mapping

_RENAME_EXCHANGE = 2
_AT_FDCWD = -100
SIZES_BYTES = (0, 1, 700, 4096, 9_001, 60_000, 300_000)
NAMES_MAX = 26


class Calls(Protocol):
    """What a client can do; it has at most one file open. Paths are relative."""

    only: frozenset[str]
    """Kinds of deeds that there are here besides the common ones."""

    def call(self, deed: Deed) -> None:
        """Raises OSError."""
        ...


class Local:
    """Calls of programs on this machine."""

    only = frozenset({"exchange", "setxattr", "removexattr", "store", "mkfifo"})

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._handle = -1
        self._libc = ctypes.CDLL(None, use_errno=True)

    def call(self, deed: Deed) -> None:
        getattr(self, f"_{deed.kind}")(*deed.words)

    def _at(self, name: str) -> Path:
        return self._folder / name

    def _mkdir(self, name: str) -> None:
        self._at(name).mkdir()

    def _create(self, name: str, syncs_each: bool) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | (os.O_SYNC if syncs_each else 0)
        self._handle = os.open(self._at(name), flags, 0o644)

    def _reopen(self, name: str, empties: bool, syncs_each: bool) -> None:
        flags = os.O_RDWR | (os.O_TRUNC if empties else 0) | (os.O_SYNC if syncs_each else 0)
        self._handle = os.open(self._at(name), flags)

    def _write(self, offset: int, data: bytes) -> None:
        assert os.pwrite(self._handle, data, offset) == len(data)

    def _store(self, offset: int, data: bytes) -> None:
        mapping = Mapping(self._handle, os.fstat(self._handle).st_size)
        mapping.store(offset, data)
        mapping.sync()
        mapping.close()

    def _sync(self) -> None:
        os.fsync(self._handle)

    def _close(self) -> None:
        os.close(self._handle)

    def _resize(self, size: int) -> None:
        os.ftruncate(self._handle, size)

    def _cut(self, name: str, size: int) -> None:
        os.truncate(self._at(name), size)

    def _rename(self, old: str, new: str) -> None:
        self._at(old).rename(self._at(new))

    def _exchange(self, one: str, other: str) -> None:
        paths = [os.fsencode(self._at(name)) for name in (one, other)]
        if self._libc.renameat2(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_EXCHANGE) != 0:
            raise OSError(ctypes.get_errno(), "renameat2")

    def _link(self, old: str, new: str) -> None:
        os.link(self._at(old), self._at(new))

    def _unlink(self, name: str) -> None:
        self._at(name).unlink()

    def _rmdir(self, name: str) -> None:
        self._at(name).rmdir()

    def _symlink(self, name: str, target: str) -> None:
        self._at(name).symlink_to(target)

    def _mkfifo(self, name: str) -> None:
        os.mkfifo(self._at(name))

    def _chmod(self, name: str, mode: int) -> None:
        self._at(name).chmod(mode)

    def _utime(self, name: str, mtime_ns: int) -> None:
        os.utime(self._at(name), ns=(mtime_ns, mtime_ns))

    def _setxattr(self, name: str, key: str, value: bytes) -> None:
        os.setxattr(self._at(name), key, value)

    def _removexattr(self, name: str, key: str) -> None:
        os.removexattr(self._at(name), key)


class Nfs:
    """Calls of libnfs: NFSv3, with no fsync but the COMMIT that a close sends, and writes that are stable or not."""

    only: frozenset[str] = frozenset()

    def __init__(self, server: str, export: str) -> None:
        self._libnfs = ctypes.CDLL("libnfs.so.13")
        self._libnfs.nfs_init_context.restype = ctypes.c_void_p
        self._libnfs.nfs_get_error.restype = ctypes.c_char_p
        self._context = ctypes.c_void_p(self._libnfs.nfs_init_context())
        self._libnfs.nfs_set_version(self._context, 3)
        self._handle = ctypes.c_void_p()
        self._nfs("mount", server.encode(), export.encode())

    def call(self, deed: Deed) -> None:
        getattr(self, f"_{deed.kind}")(*deed.words)

    def _nfs(self, name: str, *words: Any) -> int:
        done = int(getattr(self._libnfs, f"nfs_{name}")(self._context, *words))
        if done < 0:
            raise OSError(-done, f"{name}: {self._libnfs.nfs_get_error(self._context)!r}")
        return done

    def _path(self, name: str) -> bytes:
        return b"/" + name.encode()

    def _mkdir(self, name: str) -> None:
        self._nfs("mkdir", self._path(name))

    def _create(self, name: str, syncs_each: bool) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | (os.O_SYNC if syncs_each else 0)
        self._nfs("create", self._path(name), flags, 0o644, ctypes.byref(self._handle))

    def _reopen(self, name: str, empties: bool, syncs_each: bool) -> None:
        flags = os.O_RDWR | (os.O_TRUNC if empties else 0) | (os.O_SYNC if syncs_each else 0)
        self._nfs("open", self._path(name), flags, ctypes.byref(self._handle))

    def _write(self, offset: int, data: bytes) -> None:
        done = 0
        while done < len(data):
            part = data[done:]
            length, at = ctypes.c_uint64(len(part)), ctypes.c_uint64(offset + done)
            done += self._nfs("pwrite", self._handle, at, length, part)

    def _close(self) -> None:
        self._nfs("close", self._handle)

    def _resize(self, size: int) -> None:
        self._nfs("ftruncate", self._handle, ctypes.c_uint64(size))

    def _cut(self, name: str, size: int) -> None:
        self._nfs("truncate", self._path(name), ctypes.c_uint64(size))

    def _rename(self, old: str, new: str) -> None:
        self._nfs("rename", self._path(old), self._path(new))

    def _link(self, old: str, new: str) -> None:
        self._nfs("link", self._path(old), self._path(new))

    def _unlink(self, name: str) -> None:
        self._nfs("unlink", self._path(name))

    def _rmdir(self, name: str) -> None:
        self._nfs("rmdir", self._path(name))

    def _symlink(self, name: str, target: str) -> None:
        self._nfs("symlink", target.encode(), self._path(name))

    def _chmod(self, name: str, mode: int) -> None:
        self._nfs("chmod", self._path(name), mode)

    def _utime(self, name: str, mtime_ns: int) -> None:
        seconds, rest = divmod(mtime_ns, 1_000_000_000)
        times = (ctypes.c_long * 4)(seconds, rest // 1000, seconds, rest // 1000)
        self._nfs("utimes", self._path(name), times)


class Client:
    """Somebody who works in one directory, at random, and notes it."""

    def __init__(self, calls: Calls, counter: Counter, dice: random.Random) -> None:
        self.deeds: list[Deed] = []
        self._calls = calls
        self._counter = counter
        self._dice = dice
        self._tree = Tree()
        self._serial = 0
        self._common: list[tuple[int, Callable[[], None]]] = [
            (5, self._write_a_file),
            (3, self._as_a_pacs_does),
            (3, self._patch),
            (2, self._write_over),
            (2, self._cut),
            (3, self._rename),
            (2, self._mkdir),
            (1, self._rmdir),
            (2, self._link),
            (3, self._unlink),
            (1, self._symlink),
            (2, self._chmod),
            (2, self._utime),
        ]
        if calls.only:
            self._common += [
                (2, self._exchange),
                (2, self._setxattr),
                (1, self._removexattr),
                (2, self._store),
                (1, self._mkfifo),
                (1, self._unlink_while_open),  # NFSv3 has no such thing: its clients rename instead
                (2, self._sync_half_way),
            ]

    def work(self, seconds: float, stop: Callable[[], bool] = lambda: False) -> None:
        """Raises OSError, when a deed fails that must not."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and not stop():
            [deed] = self._dice.choices([one for _, one in self._common], [weight for weight, _ in self._common])
            deed()

    def _do(self, kind: str, *words: Any) -> None:
        deed = Deed(kind, words, self._counter.read())
        self.deeds.append(deed)
        self._calls.call(deed)
        deed.answered = self._counter.read()
        self._tree.apply(deed)

    # -- what there is -------------------------------------------------------------------------------------------

    def _new(self) -> str:
        self._serial += 1
        folder = self._dice.choice(["", *(f"{name}/" for name in self._tree.of_kind(FOLDER))])
        return f"{folder}{self._serial}"

    def _old(self, kind: str = FILE) -> str | None:
        every = self._tree.of_kind(kind)
        return self._dice.choice(every) if every else None

    def _any(self) -> str | None:
        return self._old(self._dice.choice((FILE, FILE, FILE, FOLDER, LINK, PIPE)))

    def _noise(self) -> bytes:
        return self._dice.randbytes(self._dice.choice(SIZES_BYTES))

    # -- deeds ---------------------------------------------------------------------------------------------------

    def _fill(self) -> None:
        at = 0
        for _ in range(self._dice.randrange(1, 4)):
            data = self._noise()
            self._do("write", at, data)
            at += len(data)

    def _make(self, name: str) -> None:
        self._do("create", name, self._dice.random() < 0.2)
        self._fill()
        self._do("close")

    def _write_a_file(self) -> None:
        if len(self._tree.of_kind(FILE)) < NAMES_MAX:
            self._make(self._new())
        else:
            self._unlink()

    def _as_a_pacs_does(self) -> None:
        """Under another name, closed, renamed, times set, the header rewritten."""
        name, old = self._new(), self._old()
        if self._dice.random() < 0.4 and old is not None:
            name = old
        self._make(f"{name}.tmp")
        self._do("rename", f"{name}.tmp", name)
        self._do("utime", name, 1_600_000_000_000_000_000 + self._serial * 1_000_003_000)
        if self._dice.random() < 0.5:
            self._do("reopen", name, False, False)
            self._do("write", 0, self._dice.randbytes(200))
            self._do("close")

    def _patch(self) -> None:
        if (name := self._old()) is not None:
            size = len(self._tree.node(name).content.newest())
            self._do("reopen", name, False, self._dice.random() < 0.3)
            for _ in range(self._dice.randrange(1, 4)):
                self._do(
                    "write", self._dice.randrange(size + 2000), self._dice.randbytes(self._dice.randrange(1, 6000))
                )
                if self._dice.random() < 0.2:
                    self._do("resize", self._dice.randrange(size + 5000))
            self._do("close")

    def _write_over(self) -> None:
        if (name := self._old()) is not None:
            self._do("reopen", name, True, False)
            self._fill()
            self._do("close")

    def _cut(self) -> None:
        if (name := self._old()) is not None:
            self._do("cut", name, self._dice.randrange(len(self._tree.node(name).content.newest()) + 3000))

    def _rename(self) -> None:
        old = self._any()
        if old is None:
            return
        new, over = self._new(), self._old()
        is_file = self._tree.node(old).kind == FILE
        if is_file and over is not None and self._dice.random() < 0.5:
            new = over
        if new == old or new.startswith(f"{old}/"):
            return
        if is_file and self._tree.names.get(new) == self._tree.names[old]:
            return  # two names of one file: rename(2) does nothing
        self._do("rename", old, new)

    def _exchange(self) -> None:
        one, other = self._old(), self._old()
        if one is not None and other is not None and self._tree.names[one] != self._tree.names[other]:
            self._do("exchange", one, other)

    def _mkdir(self) -> None:
        if len(self._tree.of_kind(FOLDER)) < NAMES_MAX // 4:
            self._do("mkdir", self._new())

    def _rmdir(self) -> None:
        name = self._old(FOLDER)
        if name is not None and not list(self._tree.below(name)):
            self._do("rmdir", name)

    def _link(self) -> None:
        if (name := self._old()) is not None and len(self._tree.of_kind(FILE)) < NAMES_MAX:
            self._do("link", name, self._new())

    def _unlink(self) -> None:
        name = self._any()
        if name is not None and self._tree.node(name).kind != FOLDER:
            self._do("unlink", name)

    def _unlink_while_open(self) -> None:
        if (name := self._old()) is not None:
            self._do("reopen", name, False, False)
            self._do("write", 0, self._dice.randbytes(3000))
            self._do("unlink", name)
            self._do("close")

    def _symlink(self) -> None:
        if len(self._tree.of_kind(LINK)) < NAMES_MAX // 4:
            self._do("symlink", self._new(), f"to/{self._serial}")

    def _mkfifo(self) -> None:
        if len(self._tree.of_kind(PIPE)) < NAMES_MAX // 4:
            self._do("mkfifo", self._new())

    def _chmod(self) -> None:
        if (name := self._old(self._dice.choice((FILE, FOLDER)))) is not None:
            self._do("chmod", name, self._dice.choice((0o700, 0o755, 0o750, 0o775)))

    def _utime(self) -> None:
        if (name := self._old()) is not None:
            self._do("utime", name, self._dice.randrange(10**9) * 1_000_001_000)

    def _setxattr(self) -> None:
        if (name := self._old()) is not None:
            key = f"user.key{self._dice.randrange(3)}"
            self._do("setxattr", name, key, self._dice.randbytes(self._dice.choice((0, 5, 3000))))

    def _removexattr(self) -> None:
        named = [name for name in self._tree.of_kind(FILE) if self._tree.node(name).xattrs]
        if named:
            name = self._dice.choice(named)
            self._do("removexattr", name, self._dice.choice(sorted(self._tree.node(name).xattrs)))

    def _store(self) -> None:
        """Through a shared mapping, and msync(2)."""
        if (name := self._old()) is not None and (size := len(self._tree.node(name).content.newest())) > 0:
            self._do("reopen", name, False, False)
            offset = self._dice.randrange(size)
            self._do("store", offset, self._dice.randbytes(self._dice.randrange(1, min(size - offset, 5000) + 1)))
            self._do("close")

    def _sync_half_way(self) -> None:
        if len(self._tree.of_kind(FILE)) < NAMES_MAX:
            self._do("create", self._new(), False)
            self._fill()
            self._do("sync")
            self._fill()
            self._do("close")


def main() -> None:
    counter, notes, seed, seconds, server, export = sys.argv[1:]
    client = Client(Nfs(server, export), Counter(Path(counter)), random.Random(int(seed)))
    try:
        client.work(float(seconds))
    finally:
        Path(notes).write_bytes(pickle.dumps(client.deeds))


if __name__ == "__main__":
    main()
