"""Random operations on the tree and on a real directory, side by side: same results, same errors, same bytes.

The reference is whatever file system the tests run on. Crashes drop every handle without a word and start the tree
again; tiering seals, evicts and recalls files behind the operations' back, which must never show.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import random
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.model.treecheck import check_tree
from tests.seeds import soak_dice
from vnafs.domain.clock import Instant
from vnafs.domain.errors import VnaError
from vnafs.domain.files import FileState, Proposal, Seal, Verdict
from vnafs.domain.ids import ROOT, Inode, RepositoryId
from vnafs.domain.repositories import Acknowledgement
from vnafs.fs.attributes import AttributeChanges
from vnafs.fs.caller import Caller
from vnafs.fs.filesystem import Filesystem
from vnafs.fs.handles import Handle
from vnafs.fs.recall import RangeNeeded, RecallNeeded
from vnafs.fs.settings import Settings
from vnafs.index import keys
from vnafs.index.engine import prefix_stop
from vnafs.index.engines.memory import MemoryEngine
from vnafs.local.spool import Spool, fingerprint_of

NAMES = [b"a", b"A", b"Bc", b"d\xff", b"E" * 40]
TOO_LONG = b"x" * 256
DEPTH_MAX = 3
HANDLES_MAX = 6
USED_EVERY = 200
PATH_BYTES_MAX = 3800
WHO = Caller(os.geteuid(), os.getegid())
AT_FDCWD = -100
_renameat2 = ctypes.CDLL(None, use_errno=True).renameat2

Path_ = tuple[bytes, ...]


class TickingClock:
    """Never stands still, never asks the machine."""

    def __init__(self) -> None:
        self._now = 1_700_000_000_000_000_000

    def now(self) -> Instant:
        self._now += 1_000_003
        return Instant(self._now)

    def monotonic(self) -> float:
        return self._now / 1e9

    def sleep(self, seconds: float) -> None:
        self._now += int(seconds * 1e9)


class Real:
    """The reference: system calls on a directory."""

    def __init__(self, root: bytes) -> None:
        self.root = root
        self.fds: dict[int, int] = {}

    def path(self, path: Path_) -> bytes:
        return os.path.join(self.root, *path)

    def kind(self, path: Path_) -> int:
        try:
            return stat.S_IFMT(os.lstat(self.path(path)).st_mode)
        except OSError:
            return 0

    def stat(self, path: Path_) -> Any:
        found = os.lstat(self.path(path))
        size = 0 if stat.S_ISDIR(found.st_mode) else found.st_size
        return found.st_mode, found.st_nlink, size

    def listdir(self, path: Path_) -> Any:
        return sorted(os.listdir(self.path(path)))

    def mkdir(self, path: Path_, mode: int) -> None:
        os.mkdir(self.path(path), mode)

    def mkfifo(self, path: Path_) -> None:
        os.mkfifo(self.path(path), 0o600)

    def rmdir(self, path: Path_) -> None:
        os.rmdir(self.path(path))

    def unlink(self, path: Path_) -> None:
        os.unlink(self.path(path))

    def rename(self, old: Path_, new: Path_, flags: int) -> None:
        if _renameat2(AT_FDCWD, self.path(old), AT_FDCWD, self.path(new), flags):
            raise OSError(ctypes.get_errno(), "renameat2")

    def link(self, old: Path_, new: Path_) -> None:
        os.link(self.path(old), self.path(new), follow_symlinks=False)

    def symlink(self, path: Path_, target: bytes) -> None:
        os.symlink(target, self.path(path))

    def readlink(self, path: Path_) -> bytes:
        return os.readlink(self.path(path))

    def chmod(self, path: Path_, mode: int) -> None:
        os.chmod(self.path(path), mode)

    def utime(self, path: Path_, mtime_ns: int) -> int:
        os.utime(self.path(path), ns=(0, mtime_ns), follow_symlinks=False)
        return os.lstat(self.path(path)).st_mtime_ns

    def truncate(self, path: Path_, size: int) -> None:
        os.truncate(self.path(path), size)

    def setxattr(self, path: Path_, name: str, value: bytes, flags: int) -> None:
        os.setxattr(self.path(path), name, value, flags)

    def getxattr(self, path: Path_, name: str) -> bytes:
        return os.getxattr(self.path(path), name)

    def listxattr(self, path: Path_) -> Any:
        return sorted(name for name in os.listxattr(self.path(path)) if name.startswith("user."))

    def removexattr(self, path: Path_, name: str) -> None:
        os.removexattr(self.path(path), name)

    def open(self, number: int, path: Path_, flags: int, mode: int) -> None:
        if self.kind(path) == stat.S_IFDIR and not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC):
            raise OSError(errno.EISDIR, "directories are opened elsewhere")
        self.fds[number] = os.open(self.path(path), flags | os.O_NOFOLLOW, mode)

    def read(self, number: int, offset: int, length: int) -> bytes:
        return os.pread(self.fds[number], length, offset)

    def write(self, number: int, offset: int, data: bytes) -> int:
        return os.pwrite(self.fds[number], data, offset)

    def append(self, number: int, data: bytes) -> int:
        end = os.fstat(self.fds[number]).st_size
        os.pwrite(self.fds[number], data, end)
        return end

    def fstat(self, number: int) -> Any:
        found = os.fstat(self.fds[number])
        return found.st_mode, found.st_nlink, found.st_size

    def close(self, number: int) -> None:
        os.close(self.fds.pop(number))

    def content(self, path: Path_) -> bytes:
        return Path(os.fsdecode(self.path(path))).read_bytes()


class Ours:
    """The tree, by path, with a store that keeps what tiering took away."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.engine = MemoryEngine()
        self.spool = Spool(str(directory / "spool"))
        self.clock = TickingClock()
        self.settings = Settings(
            quiet_seconds=0.001, reserve_bytes=0, recall_whole_bytes_max=3000, drops_pending_max=8, rows_cached_max=24,
            numbers_ahead=64,
        )  # fmt: skip
        self.store: dict[bytes, bytes] = {}
        self.handles: dict[int, Handle] = {}
        self.tiered = dict.fromkeys(Verdict, 0)
        self.recalled = 0
        self.fs = self._start()
        made = self.fs.repositories.add(
            "r", acknowledgement=Acknowledgement.WRITTEN, uid=WHO.uid, quota_bytes=1 << 50, quota_files=1 << 50
        )
        self.root = Inode(made.id)

    def _start(self) -> Filesystem:
        return Filesystem(self.engine, self.spool, self.clock, settings=self.settings)

    def crash(self) -> None:
        """Every handle vanishes without a release; then the tree starts again."""
        for handle in self.handles.values():
            handle.file.close_descriptors()
        self.handles.clear()
        self.fs = self._start()

    def check_used(self) -> None:
        """What the quota counts is what stat(2) shows of every inode, with and without a name."""
        used = self.fs.used(RepositoryId(self.root))  # before looking, which lets the tree look too
        with self.engine.read() as reader:
            numbers = [Inode(keys.number_of(key)) for key, _ in reader.scan(keys.INODES, prefix_stop(keys.INODES))]
        shown = [self.fs.getattr(number) for number in numbers if number != ROOT]
        size_bytes = sum(found.size_bytes for found in shown if stat.S_ISREG(found.mode))
        assert used == (len(shown), size_bytes)

    # -- walking --------------------------------------------------------------------------------------------

    def at(self, path: Path_) -> Inode:
        inode = self.root
        for name in path[:-1]:
            found = self.fs.lookup(inode, name)
            inode = found.inode
            if stat.S_ISLNK(found.mode):
                raise OSError(errno.ENOENT, "links here point nowhere")
            if not stat.S_ISDIR(found.mode):
                raise OSError(errno.ENOTDIR, "the kernel walks the whole path first")
        return inode

    def final(self, path: Path_, *, follow: bool = False) -> Inode:
        if not path:
            return self.root
        found = self.fs.lookup(self.at(path), path[-1])
        if follow and stat.S_ISLNK(found.mode):
            raise OSError(errno.ENOENT, "links here point nowhere")
        return found.inode

    def with_bytes(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except RecallNeeded as needed:
            self.recall(needed.inode)
            return call()

    def recall(self, inode: Inode) -> None:
        facts = self.fs.facts(inode)
        assert facts.sha256 is not None
        staged = self.directory / "staged"
        staged.write_bytes(self.store[facts.sha256])
        assert self.fs.adopt(inode, facts.version, str(staged)) is Verdict.DONE
        self.recalled += 1

    # -- the operations of Real -----------------------------------------------------------------------------

    def stat(self, path: Path_) -> Any:
        found = self.fs.getattr(self.final(path))
        return found.mode, found.nlink, found.size_bytes

    def listdir(self, path: Path_) -> Any:
        inode = self.final(path, follow=True)
        if not stat.S_ISDIR(self.fs.getattr(inode).mode):
            raise OSError(errno.ENOTDIR, "listdir")
        names, cookie = [], 0
        while batch := self.fs.readdir(inode, cookie, 3):
            names += [name for _, name, _ in batch]
            cookie = batch[-1][0]
        assert names[:2] == [b".", b".."]
        return sorted(names[2:])

    def mkdir(self, path: Path_, mode: int) -> None:
        self.fs.mkdir(self.at(path), path[-1], mode, WHO)

    def mkfifo(self, path: Path_) -> None:
        self.fs.mknod(self.at(path), path[-1], stat.S_IFIFO | 0o600, 0, WHO)

    def rmdir(self, path: Path_) -> None:
        self.fs.rmdir(self.at(path), path[-1])

    def unlink(self, path: Path_) -> None:
        self.fs.unlink(self.at(path), path[-1])

    def rename(self, old: Path_, new: Path_, flags: int) -> None:
        if flags == 3:
            raise OSError(errno.EINVAL, "the kernel looks at the flags first")
        parent, new_parent = self.at(old), self.at(new)
        self.fs.lookup(parent, old[-1])  # and at the old name before the new one
        self.fs.rename(parent, old[-1], new_parent, new[-1], flags)

    def link(self, old: Path_, new: Path_) -> None:
        source, parent = self.final(old), self.at(new)
        if not stat.S_ISDIR(self.fs.getattr(parent).mode):
            raise OSError(errno.ENOTDIR, "link")
        if self.fs.find(parent, new[-1]) is not None:
            raise OSError(errno.EEXIST, "the kernel looks at the new name first")
        self.fs.link(source, parent, new[-1])

    def symlink(self, path: Path_, target: bytes) -> None:
        self.fs.symlink(self.at(path), path[-1], target, WHO)

    def readlink(self, path: Path_) -> bytes:
        return self.fs.readlink(self.final(path))

    def _set(self, path: Path_, *, follow: bool = True, **changes: int) -> None:
        inode = self.final(path, follow=follow)
        self.with_bytes(lambda: self.fs.setattr(inode, AttributeChanges(**changes), WHO))

    def chmod(self, path: Path_, mode: int) -> None:
        self._set(path, mode=mode)

    def utime(self, path: Path_, mtime_ns: int) -> int:
        self._set(path, follow=False, mtime_ns=mtime_ns, atime_ns=0)
        return self.fs.getattr(self.final(path)).mtime_ns

    def truncate(self, path: Path_, size: int) -> None:
        self._set(path, size_bytes=size)

    def setxattr(self, path: Path_, name: str, value: bytes, flags: int) -> None:
        self.fs.setxattr(self.final(path, follow=True), name.encode(), value, flags)

    def getxattr(self, path: Path_, name: str) -> bytes:
        return self.fs.getxattr(self.final(path, follow=True), name.encode())

    def listxattr(self, path: Path_) -> Any:
        return sorted(name.decode() for name in self.fs.listxattr(self.final(path, follow=True)))

    def removexattr(self, path: Path_, name: str) -> None:
        self.fs.removexattr(self.final(path, follow=True), name.encode())

    def open(self, number: int, path: Path_, flags: int, mode: int) -> None:
        parent = self.at(path)
        found = self.fs.find(parent, path[-1])
        if found is not None and stat.S_ISLNK(found.mode):
            raise OSError(errno.EEXIST if flags & os.O_EXCL else errno.ELOOP, "open")
        if flags & os.O_CREAT:
            made = self.with_bytes(lambda: self.fs.create(parent, path[-1], mode, flags, WHO))[0]
        elif found is None:
            raise OSError(errno.ENOENT, "open")
        else:
            made = self.with_bytes(lambda: self.fs.open(found.inode, flags, WHO))
        self.handles[number] = made

    def read(self, number: int, offset: int, length: int) -> bytes:
        try:
            return self.fs.read(self.handles[number], offset, length)
        except RangeNeeded as needed:
            sha256 = self.fs.facts(needed.inode).sha256
            assert sha256 is not None
            self.recalled += 1
            return self.store[sha256][needed.offset : needed.offset + needed.length]

    def write(self, number: int, offset: int, data: bytes) -> int:
        return self.fs.write(self.handles[number], offset, data)

    def append(self, number: int, data: bytes) -> int:
        return self.fs.append(self.handles[number], data)

    def fstat(self, number: int) -> Any:
        found = self.fs.getattr(self.handles[number].file.inode)
        return found.mode, found.nlink, found.size_bytes

    def close(self, number: int) -> None:
        self.fs.release(self.handles.pop(number))

    def content(self, path: Path_) -> bytes:
        inode = self.final(path)
        self.handles[-1] = self.with_bytes(lambda: self.fs.open(inode, os.O_RDONLY, WHO))
        try:
            return self.read(-1, 0, 1 << 20)
        finally:
            self.close(-1)

    # -- tiering --------------------------------------------------------------------------------------------

    def tier(self, path: Path_, wanted: FileState, *, evict: bool) -> None:
        """Seal with what is really there, move forward, perhaps evict; whatever the tree allows."""
        inode = self.final(path)
        facts = self.fs.facts(inode)
        seal = None
        if facts.state is FileState.OPEN:
            local = Path(self.fs.local_path(inode, facts.version))
            data = local.read_bytes()
            digest = hashlib.sha256(data).digest()
            self.store[digest] = data
            seal = Seal(digest, fingerprint_of(os.stat(local)))  # type: ignore[arg-type] # a plain digest
        [verdict] = self.fs.advance([Proposal(inode, facts.version, wanted, seal)])
        self.tiered[verdict] += 1
        assert verdict in (Verdict.DONE, Verdict.BUSY, Verdict.ILLEGAL), verdict
        if evict:
            verdict = self.fs.evict(inode, facts.version)
            assert verdict in (Verdict.DONE, Verdict.BUSY, Verdict.ILLEGAL), verdict
            if verdict is Verdict.DONE:
                assert not Path(self.fs.local_path(inode, facts.version)).exists()
                assert self.fs.getattr(inode).blocks == 0


class Pair:
    """Draws operations and compares."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.random = random.Random(seed)
        reference = directory / "reference"
        reference.mkdir(mode=0o755)
        self.real = Real(os.fsencode(reference))
        self.ours = Ours(directory)
        self.next_handle = 0
        self.trail: list[str] = []
        self.agreed = 0
        self.steps = 0
        self.failed_alike = 0

    def some_path(self) -> Path_:
        chance = self.random
        depth = chance.choice((1, 1, 2, 2, 2, DEPTH_MAX))
        path = tuple(chance.choice(NAMES) for _ in range(depth))
        if chance.random() < 0.002:
            path = (*path[:-1], TOO_LONG)
        return path

    def existing(self, kind: int) -> Path_ | None:
        """A path that leads to *kind*, usually; operations must also meet what they do not fit."""
        for _ in range(8):
            path = self.some_path()
            if self.real.kind(path) == kind:
                return path
        return None

    def both(self, what: str, *arguments: Any) -> Any:
        said = f"{what}{arguments!r}".replace("e" * 40, "e…")[:300]
        self.trail.append(said)
        del self.trail[:-12]
        expected = outcome(getattr(self.real, what), *arguments)
        found = outcome(getattr(self.ours, what), *arguments)
        if found != expected:
            pytest.fail(f"{said}: the tree says {found}, the reference {expected}")
        self.agreed += 1
        self.failed_alike += isinstance(expected, OSError)
        return expected

    def step(self) -> None:
        chance = self.random
        self.steps += 1
        what = chance.choices(*OPERATIONS)[0]
        getattr(self, f"do_{what}")(chance)
        if self.steps % USED_EVERY == 0:
            self.ours.check_used()

    # -- one method an operation ----------------------------------------------------------------------------

    def do_stat(self, chance: random.Random) -> None:
        self.both("stat", self.some_path())

    def do_listdir(self, chance: random.Random) -> None:
        self.both("listdir", self.some_path()[: chance.randrange(DEPTH_MAX)])

    def do_mkdir(self, chance: random.Random) -> None:
        self.both("mkdir", self.some_path(), chance.choice((0o755, 0o700, 0o777)))

    def do_mkfifo(self, chance: random.Random) -> None:
        self.both("mkfifo", self.some_path())

    def do_rmdir(self, chance: random.Random) -> None:
        self.both("rmdir", self.some_path())

    def do_unlink(self, chance: random.Random) -> None:
        self.both("unlink", self.some_path())

    def do_rename(self, chance: random.Random) -> None:
        self.both("rename", self.some_path(), self.some_path(), chance.choice((0, 0, 0, 1, 2, 3)))

    def do_link(self, chance: random.Random) -> None:
        self.both("link", self.some_path(), self.some_path())

    def do_symlink(self, chance: random.Random) -> None:
        self.both("symlink", self.some_path(), b"nowhere/" + bytes([chance.randrange(97, 120)]))

    def do_readlink(self, chance: random.Random) -> None:
        self.both("readlink", self.some_path())

    def do_chmod(self, chance: random.Random) -> None:
        self.both("chmod", self.some_path(), chance.choice((0o644, 0o4755, 0o2755, 0o1777, 0o600)))

    def do_utime(self, chance: random.Random) -> None:
        self.both("utime", self.some_path(), chance.randrange(1 << 60))

    def do_truncate(self, chance: random.Random) -> None:
        path = self.existing(stat.S_IFREG) or self.some_path()
        if self.real.kind(path) != stat.S_IFIFO:
            self.both("truncate", path, chance.choice((0, 1, 100, 4096, 10000)))

    def do_xattr(self, chance: random.Random) -> None:
        path, name = self.some_path(), chance.choice(("user.a", "user.b", "user.some.longer"))
        if self.real.kind(path) not in (stat.S_IFREG, stat.S_IFDIR):
            return
        match chance.randrange(4):
            case 0:
                self.both("setxattr", path, name, chance.randbytes(chance.randrange(40)), chance.choice((0, 0, 1, 2)))
            case 1:
                self.both("getxattr", path, name)
            case 2:
                self.both("listxattr", path)
            case _:
                self.both("removexattr", path, name)

    def do_open(self, chance: random.Random) -> None:
        path = self.some_path()
        if self.real.kind(path) == stat.S_IFIFO:
            return
        if len(self.real.fds) >= HANDLES_MAX:
            self.do_close(chance)
        flags = chance.choice((os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR))
        flags |= chance.choice((0, os.O_CREAT, os.O_CREAT | os.O_EXCL))
        if flags & os.O_ACCMODE != os.O_RDONLY:
            flags |= chance.choice((0, 0, os.O_TRUNC))
        self.next_handle += 1
        self.both("open", self.next_handle, path, flags, chance.choice((0o644, 0o600)))

    def _handle(self) -> int | None:
        return self.random.choice(list(self.real.fds)) if self.real.fds else None

    def do_read(self, chance: random.Random) -> None:
        if (number := self._handle()) is not None:
            self.both("read", number, chance.randrange(6000), chance.choice((1, 100, 5000)))

    def do_write(self, chance: random.Random) -> None:
        if (number := self._handle()) is not None:
            self.both(
                "write", number, chance.choice((0, 1, 50, 4095, 9000)), chance.randbytes(chance.randrange(1, 3000))
            )

    def do_append(self, chance: random.Random) -> None:
        if (number := self._handle()) is not None:
            self.both("append", number, chance.randbytes(chance.randrange(1, 100)))

    def do_fstat(self, chance: random.Random) -> None:
        if (number := self._handle()) is not None:
            self.both("fstat", number)

    def do_close(self, chance: random.Random) -> None:
        if (number := self._handle()) is not None:
            self.both("close", number)

    def do_content(self, chance: random.Random) -> None:
        if (path := self.existing(stat.S_IFREG)) is not None:
            self.both("content", path)

    def do_tier(self, chance: random.Random) -> None:
        if (path := self.existing(stat.S_IFREG)) is not None:
            wanted = chance.choice((FileState.SEALED, FileState.PACKED, FileState.REPLICATED, FileState.REPLICATED))
            self.trail.append(f"tier{path, wanted}")
            self.ours.tier(path, wanted, evict=chance.random() < 0.7)

    def do_crash(self, chance: random.Random) -> None:
        self.trail.append("crash()")
        for number in list(self.real.fds):
            self.real.close(number)
        self.ours.crash()
        self.compare_everything()

    def compare_everything(self) -> None:
        waiting: list[Path_] = [()]
        while waiting:
            path = waiting.pop()
            if len(self.real.path(path)) > PATH_BYTES_MAX:
                continue  # renames nest directories deeper than a path can say
            for name in self.both("listdir", path):
                below = (*path, name)
                self.both("stat", below)
                kind = self.real.kind(below)
                if kind == stat.S_IFDIR:
                    waiting.append(below)
                elif kind == stat.S_IFREG:
                    self.both("content", below)
        self.ours.fs.reap()
        self.ours.check_used()
        check_tree(self.ours.engine, self.ours.spool, open_inodes={h.file.inode for h in self.ours.handles.values()})


OPERATIONS = (
    ["stat", "listdir", "mkdir", "mkfifo", "rmdir", "unlink", "rename", "link", "symlink", "readlink", "chmod",
     "utime", "truncate", "xattr", "open", "read", "write", "append", "fstat", "close", "content", "tier", "crash"],
    [6, 6, 5, 1, 3, 5, 12, 4, 2, 2, 3, 3, 4, 6, 14, 8, 8, 3, 3, 6, 6, 8, 0.1],
)  # fmt: skip


def outcome(call: Callable[..., Any], *arguments: Any) -> Any:
    """What a call returned, or the errno it failed with."""
    try:
        return call(*arguments)
    except VnaError as error:
        return ("errno", errno.errorcode[error.errno])
    except OSError as error:
        return ("errno", errno.errorcode[error.errno or 0])


def walk(directory: Path, seed: int, operations: int) -> Pair:
    """Run *operations*; a failure says how to repeat it."""
    old = os.umask(0)
    pair = Pair(directory, seed)
    try:
        while pair.steps < operations:
            pair.step()
        pair.compare_everything()
    except BaseException as error:
        error.add_note(f"seed {seed}, operation {pair.steps}; the last ones were:\n  " + "\n  ".join(pair.trail))
        raise
    finally:
        os.umask(old)
        for number in list(pair.real.fds):
            pair.real.close(number)
        for handle in pair.ours.handles.values():
            handle.file.close_descriptors()
    return pair


@pytest.mark.parametrize("seed", [1, 2, 3, pytest.param(None, id="fresh")])
def test_random_operations_leave_the_tree_like_a_real_directory(tmp_path: Path, seed: int | None) -> None:
    pair = walk(tmp_path, random.randrange(1 << 32) if seed is None else seed, 26_000)
    assert pair.agreed >= 20_000
    assert pair.ours.tiered[Verdict.DONE] > 100
    assert pair.ours.recalled > 20


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_a_million_random_operations_leave_the_tree_like_a_real_directory(tmp_path: Path) -> None:
    dice = soak_dice()
    for turn in range(10):
        below = tmp_path / str(turn)
        below.mkdir()
        walk(below, dice.randrange(1 << 32), 105_000)
        shutil.rmtree(below)
