"""The local disk is full: writers are told so, everything else goes on, and it is over as soon as there is room.

On small disks of the file systems that an archive lives on; the targets are elsewhere.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal

import pytest

from tests.system.archives import an_archive, until
from tests.system.load import Daemons, Load, noise, nothing_left_over
from tests.system.loopdisks import KINDS, MIB, a_disk, free_bytes

pytestmark = pytest.mark.system

SETTINGS = """
[file_system]
quiet_seconds = 0.2

[spool]
reserve_bytes = {reserve_bytes}
high_watermark_percent = {high}
low_watermark_percent = {low}

[packs]
age_seconds_max = 0.3
target_bytes = 8388608
"""
FILE_BYTES = 5 * MIB
ROOM_BYTES = 110 * MIB
"""What a test begins with; the rest of the disk is taken."""


@pytest.fixture(params=KINDS)
def disk(request, tmp_path):
    with a_disk(tmp_path, request.param) as place:
        yield place


@contextlib.contextmanager
def archive_on(disk, tmp_path, *, reserve_bytes=32 * MIB, high=99.0, low=98.0):
    settings = SETTINGS.format(reserve_bytes=reserve_bytes, high=high, low=low)
    with an_archive(disk, {"one": f"file://{tmp_path}/one"}, settings=settings, serve=False) as archive:
        archive.start("mount")
        first = archive.start("tierd")  # the store is made, and what it keeps in reserve
        first.send_signal(signal.SIGTERM)
        assert first.wait(30) == 0
        with open(disk / "ballast", "wb") as file:
            os.posix_fallocate(file.fileno(), 0, free_bytes(disk) - ROOM_BYTES)
        ask = Daemons(archive)
        try:
            yield archive, ask
        finally:
            ask.close()


def fill(archive, load, files_max=200):
    """Write until there is no more room; what was refused is removed, as a PACS would."""
    for number in range(files_max):
        name = f"fill-{number}"
        try:
            load.write(name, noise((load.seed, number), FILE_BYTES))
        except OSError as problem:
            if problem.errno != errno.ENOSPC:
                raise
            load.doubtful.clear()
            with contextlib.suppress(FileNotFoundError):
                load.path(name).unlink()
            return number
    raise AssertionError("the disk never got full")


def settled(archive, ask, load, seconds=90):
    until(
        lambda: ask.all_done() and all(archive.state(p) in {"replicated", "stub"} for p in load.paths()),
        f"replicated\n{archive.tail()}",
        seconds,
    )


def test_writers_are_refused_and_all_else_goes_on_until_eviction_makes_room(disk, tmp_path):
    with archive_on(disk, tmp_path) as (archive, ask):
        load = Load(archive, "full")
        load.write("small", b"small")
        written = fill(archive, load)
        assert written > 8
        with pytest.raises(OSError, match="No space"):
            load.path("another").write_bytes(bytes(MIB))
        load.path("another").unlink(missing_ok=True)
        # names, attributes and reads need no room
        load.rename("small", "renamed")
        os.chmod(load.path("renamed"), 0o600)
        os.setxattr(load.path("renamed"), "user.note", b"while full")
        load.check_all()
        assert free_bytes(disk) > 0
        # replication needs room for packs, and has what writers were refused
        tierd = archive.start("tierd")
        settled(archive, ask, load)
        assert tierd.poll() is None
        load.check_all()
        ask.evict_all(*load.paths())
        until(lambda: free_bytes(disk) > written * FILE_BYTES // 2, "local bytes went")
        # over, without anybody's doing
        load.write("after", noise("after", FILE_BYTES))
        settled(archive, ask, load)
        load.check_all()


def test_a_disk_above_its_mark_evicts_by_itself_and_writers_go_on(disk, tmp_path):
    with archive_on(disk, tmp_path, high=80.0, low=72.0) as (archive, ask):
        archive.start("tierd")
        load = Load(archive, "much")
        for number in range(30):  # more than the disk holds
            until(lambda: free_bytes(disk) > 65 * MIB, f"eviction makes room\n{archive.tail()}", 60)
            load.write(f"{number}", noise(("much", number), FILE_BYTES))
        settled(archive, ask, load)
        states = [archive.state(path) for path in load.paths()]
        assert states.count("stub") > 12
        # the oldest went first
        assert states[0] == "stub"
        load.check_all()
        assert free_bytes(disk) > 20 * MIB


def test_not_even_packs_find_room_and_nothing_is_lost(disk, tmp_path):
    with archive_on(disk, tmp_path, reserve_bytes=24 * MIB) as (archive, ask):
        load = Load(archive, "full")
        fill(archive, load)
        # somebody else takes what is left
        hog = disk / "hog"
        with open(hog, "wb") as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(MIB // 4))
        with contextlib.suppress(OSError), open(hog, "ab", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        assert free_bytes(disk) < MIB
        with contextlib.suppress(OSError):
            load.path("refused").write_bytes(b"refused or not")
        with contextlib.suppress(OSError):
            load.path("refused").unlink()
        load.check_all()
        tierd = archive.start("tierd")
        until(lambda: "pack.files_return" in archive.tail(400) or "seal.later" in archive.tail(400), "it tried", 30)
        load.check_all()
        hog.unlink()
        settled(archive, ask, load)
        assert tierd.poll() is None
        load.check_all()
        ask.evict_all(*load.paths())
        load.check_all()
        nothing_left_over(archive, sum(archive.state(path) != "stub" for path in load.paths()))


@pytest.mark.parametrize("point", ["pack.closed", "tree.version_begun"])
def test_killed_on_a_full_disk(disk, tmp_path, point):
    with archive_on(disk, tmp_path, reserve_bytes=16 * MIB) as (archive, ask):
        load = Load(archive, "crash")
        load.write("kept-0", noise("kept-0", 20_000))
        load.write("kept-1", noise("kept-1", 20_000))
        fill(archive, load)
        daemon = "tierd" if point.startswith("pack") else "mount"
        if daemon == "mount":
            tierd = archive.start("tierd")
            until(lambda: archive.state(load.path("kept-0")) == "replicated", "it is sealed", 60)
            archive._processes[0].send_signal(signal.SIGTERM)
            archive._processes[0].wait(30)
        process = archive.start(daemon, "--fault", f"{point}=kill", wait=False)
        if daemon == "mount":
            until(archive.is_mounted, "mounted")
            with contextlib.suppress(OSError):
                load.patch("kept-0", 5, b"patched")
        process.wait(60)
        assert process.returncode == -signal.SIGKILL
        successor = archive.start(daemon)
        load.resolve()
        load.check_all()
        settled(archive, ask, load)
        load.check_all()
        assert successor.poll() is None
        assert daemon == "tierd" or tierd.poll() is None
        ask.evict_all(*load.paths())
        load.check_all()
