"""What only the kernel engine does: the kernel reads and writes local files itself, and tells of holes and copies.

That nobody is asked is shown by stopping the process that would be asked (SIGSTOP).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.archives import QUICK as QUICK_SETTINGS
from tests.system.archives import an_archive, until, with_engine
from tests.system.conftest import StartMount
from tests.system.mounts import Mount, wait_until
from tests.system.shadowed import Mapping

pytestmark = pytest.mark.system

KEEP_SIZE, PUNCH_HOLE, COLLAPSE_RANGE, ZERO_RANGE = 0x01, 0x02, 0x08, 0x10


@pytest.fixture
def fuse() -> str:
    """What is mounted here is always served by the kernel engine."""
    return "kernel"


@contextlib.contextmanager
def stopped(mount: Mount) -> Iterator[None]:
    """Nobody answers requests meanwhile."""
    assert mount.process is not None
    mount.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        mount.process.send_signal(signal.SIGCONT)


def in_time(work: str, *arguments: object, seconds: float = 5.0) -> bool:
    """Whether a program of its own comes to its end in time, whatever it waits for."""
    program = subprocess.Popen([sys.executable, "-c", "import os,sys\n" + work, *map(str, arguments)], close_fds=False)
    try:
        return program.wait(seconds) == 0
    except subprocess.TimeoutExpired:
        program.kill()
        return False


def passes(mount: Mount, descriptor: int) -> bool:
    """Whether a read of an open file asks nobody."""
    with stopped(mount):
        return in_time("os.pread(int(sys.argv[1]), 1, 0)", descriptor, seconds=1.5)


def opened(path: Path, flags: int) -> int:
    descriptor = os.open(path, flags, 0o644)
    os.set_inheritable(descriptor, True)
    return descriptor


def fallocate(descriptor: int, mode: int, offset: int, length: int) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    done = libc.fallocate(descriptor, mode, ctypes.c_int64(offset), ctypes.c_int64(length))
    return 0 if done == 0 else ctypes.get_errno()


def test_open_files_are_read_and_written_while_nobody_answers(mount: Mount) -> None:
    descriptor = opened(mount.root / "f", os.O_RDWR | os.O_CREAT)
    os.write(descriptor, b"y")  # before the first one the kernel asks for security.capability
    with stopped(mount):
        work = "n = int(sys.argv[1]); os.pwrite(n, b'x' * 3000000, 0); sys.exit(os.pread(n, 9, 5) != b'x' * 9)"
        assert in_time(work, descriptor)
    assert os.fstat(descriptor).st_size == 3_000_000
    os.close(descriptor)
    assert (mount.root / "f").stat().st_size == 3_000_000
    mount.restart()
    assert (mount.root / "f").read_bytes() == b"x" * 3_000_000


def test_a_file_that_is_written_shows_its_size_and_times_to_everybody_at_once(mount: Mount) -> None:
    path = mount.root / "f"
    with path.open("wb", buffering=0) as file:
        for step in range(1, 4):
            file.write(bytes(1000))
            assert [path.stat().st_size, os.fstat(file.fileno()).st_size] == [1000 * step] * 2
            [listed] = list(os.scandir(mount.root))
            assert listed.stat().st_size == 1000 * step
        os.utime(path, ns=(5_000_000_001, 7_000_000_002))
        assert (path.stat().st_size, path.stat().st_mtime_ns) == (3000, 7_000_000_002)
        file.write(b"more")
        assert path.stat().st_mtime_ns > 7_000_000_002
        path.chmod(0o600)
        os.ftruncate(file.fileno(), 100)
        assert path.stat().st_size == 100
        os.utime(path, ns=(5_000_000_001, 9_000_000_003))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (100, 9_000_000_003)
    mount.restart()
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (100, 9_000_000_003)


def test_several_opens_of_one_file_see_each_other_in_any_order(mount: Mount) -> None:
    path = mount.root / "f"
    path.write_bytes(b"0" * 8192)
    reader = os.open(path, os.O_RDONLY)
    writer = os.open(path, os.O_RDWR)
    os.pwrite(writer, b"one", 0)
    assert os.pread(reader, 3, 0) == b"one"
    with path.open("r+b", buffering=0) as another, mmap.mmap(another.fileno(), 8192) as mapped:
        mapped[4096:4099] = b"two"
        assert os.pread(reader, 3, 4096) == b"two"
        os.close(writer)
        another.write(b"six")
    assert os.pread(reader, 3, 0) == b"six"
    path.write_bytes(b"new")  # truncated while a reader has it open
    assert os.pread(reader, 10, 0) == b"new"
    os.close(reader)
    assert path.read_bytes() == b"new"


def test_more_files_than_backing_ids_are_served_all_the_same(start_mount: StartMount) -> None:
    mount = start_mount("--backings-max", "1")
    descriptors = [opened(mount.root / str(number), os.O_RDWR | os.O_CREAT) for number in range(3)]
    for number, descriptor in enumerate(descriptors):
        os.write(descriptor, b"%d" % number)
    assert [passes(mount, descriptor) for descriptor in descriptors[:2]] == [True, False]
    again = os.open(mount.root / "1", os.O_RDONLY)
    assert os.read(again, 10) == b"1"
    for descriptor in (*descriptors, again):
        os.close(descriptor)
    wait_until(lambda: passes_new(mount), "a backing id that is free again")
    assert [(mount.root / str(number)).read_bytes() for number in range(3)] == [b"0", b"1", b"2"]


def passes_new(mount: Mount) -> bool:
    descriptor = opened(mount.root / "2", os.O_RDONLY)
    try:
        return passes(mount, descriptor)
    finally:
        os.close(descriptor)


def test_without_backing_ids_every_read_and_write_passes_here(start_mount: StartMount) -> None:
    mount = start_mount("--backings-max", "0")
    descriptor = opened(mount.root / "f", os.O_RDWR | os.O_CREAT)
    os.write(descriptor, b"x" * 2_000_000)
    os.lseek(descriptor, 0, os.SEEK_SET)
    assert os.read(descriptor, 3_000_000) == b"x" * 2_000_000
    os.close(descriptor)
    mount.restart()
    assert (mount.root / "f").read_bytes() == b"x" * 2_000_000


STRANGER = """
import os, sys
os.chdir(sys.argv[1])
os.setgroups([]), os.setgid(65534), os.setuid(65534)
with open("tool", "r+b") as file:
    file.write(b"changed")
"""


def test_a_write_by_somebody_else_clears_set_user_id(mount: Mount) -> None:
    tool = mount.root / "tool"
    tool.write_bytes(b"x" * 100)
    tool.chmod(0o6777)
    with tool.open("r+b") as file:
        file.write(b"root keeps it")
    assert tool.stat().st_mode & 0o7777 == 0o6777
    subprocess.run([sys.executable, "-c", STRANGER, str(mount.root)], check=True)
    assert tool.stat().st_mode & 0o7777 == 0o777


def test_space_is_allocated_punched_and_zeroed(mount: Mount) -> None:
    descriptor = os.open(mount.root / "f", os.O_RDWR | os.O_CREAT)
    assert fallocate(descriptor, 0, 0, 1 << 20) == 0
    assert os.fstat(descriptor).st_size == 1 << 20
    os.pwrite(descriptor, b"x" * (1 << 20), 0)
    assert fallocate(descriptor, KEEP_SIZE, 1 << 20, 1 << 20) == 0
    assert os.fstat(descriptor).st_size == 1 << 20
    assert fallocate(descriptor, PUNCH_HOLE | KEEP_SIZE, 65536, 65536) == 0
    assert fallocate(descriptor, ZERO_RANGE, 4096, 4096) == 0
    assert fallocate(descriptor, COLLAPSE_RANGE, 0, 4096) == errno.EOPNOTSUPP
    shown = os.pread(descriptor, 1 << 20, 0)
    assert shown[65536:131072] == bytes(65536)
    assert shown[4096:8192] == bytes(4096)
    assert shown.count(b"x") == (1 << 20) - 65536 - 4096
    assert os.lseek(descriptor, 65536, os.SEEK_DATA) == 131072
    assert os.lseek(descriptor, 0, os.SEEK_HOLE) <= 65536
    with pytest.raises(OSError, match="No such device or address"):
        os.lseek(descriptor, 1 << 20, os.SEEK_DATA)
    os.close(descriptor)
    mount.restart()
    assert (mount.root / "f").read_bytes() == shown


def test_a_copy_within_the_tree_is_the_same(mount: Mount) -> None:
    data = os.urandom(3_000_000)
    (mount.root / "from").write_bytes(data)
    source, target = os.open(mount.root / "from", os.O_RDONLY), os.open(mount.root / "to", os.O_RDWR | os.O_CREAT)
    done = 0
    while done < len(data):
        done += os.copy_file_range(source, target, len(data) - done, done, done)
    assert os.fstat(target).st_size == len(data)
    os.close(source)
    os.close(target)
    assert (mount.root / "to").read_bytes() == data
    time.sleep(0.1)  # RELEASE follows close
    mount.evict(mount.root / "from")
    subprocess.run(["cp", "--sparse=auto", mount.root / "from", mount.root / "again"], check=True)
    assert (mount.root / "again").read_bytes() == data


def test_files_have_a_time_of_birth(mount: Mount) -> None:
    before = time.time()
    (mount.root / "f").write_bytes(b"x")
    os.utime(mount.root / "f", (1, 1))
    said = subprocess.run(["stat", "-c", "%W", mount.root / "f"], capture_output=True, text=True, check=True)
    assert int(before) <= int(said.stdout) <= time.time() + 1


def test_who_waits_for_a_recall_can_be_interrupted(start_mount: StartMount) -> None:
    mount = start_mount("--recall-seconds", "600")
    path = mount.root / "f"
    path.write_bytes(b"x" * 1000)
    time.sleep(0.1)
    mount.evict(path)
    reader = subprocess.Popen(["cat", path], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    time.sleep(0.5)
    assert reader.poll() is None
    reader.send_signal(signal.SIGTERM)
    assert reader.wait(10) == -signal.SIGTERM
    assert path.stat().st_size == 1000


def test_a_mapping_for_reading_that_outlives_its_close_shows_what_is_written_later(mount: Mount) -> None:
    path = mount.root / "f"
    path.write_bytes(b"old" * 5000)
    descriptor = os.open(path, os.O_RDONLY)
    mapping = Mapping(descriptor, 15_000, writable=False)
    os.close(descriptor)
    time.sleep(0.1)  # RELEASE follows close
    assert mount.evicted([str(path.stat().st_ino)]) == []
    with path.open("r+b") as file:
        file.write(b"NEW")
    assert mapping.load(0, 3) == b"NEW"
    mapping.close()
    mount.evict(path)
    assert path.read_bytes() == b"NEW" + b"old" * 4999


def test_a_mapping_that_outlives_its_close_is_not_sealed_before_it_ends(tmp_path: Path) -> None:
    settings = with_engine(QUICK_SETTINGS, "kernel")
    with an_archive(tmp_path, settings=settings) as archive:
        path = archive.share / "mapped"
        path.write_bytes(bytes(10_000))
        descriptor = os.open(path, os.O_RDWR)
        mapping = mmap.mmap(descriptor, 10_000)
        os.close(descriptor)
        other = archive.share / "other"
        other.write_bytes(b"sealed meanwhile")
        until(lambda: archive.state(other) == "replicated", "the other file has a copy")
        assert archive.state(path) == "open"
        mapping[5000:5005] = b"hello"
        mapping.close()
        archive.wait()
        archive.evict(path)
        assert archive.state(path) == "stub"
        assert path.read_bytes() == bytes(5000) + b"hello" + bytes(4995)
        with path.open("r+b") as file:
            file.write(b"again")
        archive.wait()
        assert path.read_bytes()[:5] == b"again"
