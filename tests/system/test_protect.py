"""Files that programs keep open, on real mounts over real disks: copied as they are, and sealed like any other in the
end. Death of tierd at each step of it.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.archives import Archive, an_archive, until, with_engine
from tests.system.load import Daemons, files_in
from tests.system.loopdisks import KINDS, a_disk
from tests.system.mounts import ENGINES
from vnafs.content.packfile import PackReader, rebuild
from vnafs.domain.clock import SystemClock
from vnafs.domain.faults import POINTS
from vnafs.domain.ids import PackId, Span
from vnafs.local.frozen import FrozenCopies

pytestmark = pytest.mark.system

AGE_SECONDS = 1.0
SETTINGS = f"""
[file_system]
quiet_seconds = 0.3
unprotected_seconds_max = {AGE_SECONDS}
hold_seconds_max = 2.0

[spool]
reserve_bytes = 1048576
high_watermark_percent = 99.0
low_watermark_percent = 98.0

[packs]
age_seconds_max = 0.3
"""

WRITER = """
import os, sys, time
file = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
number = 0
while not os.path.exists(sys.argv[2]):
    os.write(file, b"%015d\\n" % number)
    number += 1
    time.sleep(float(sys.argv[3]))
os.close(file)
"""


class Writer:
    """A process that keeps a file open and appends numbered lines to it."""

    def __init__(self, path: Path, pause_seconds: float, sign: Path) -> None:
        self.path = path
        self._sign = sign
        command = [sys.executable, "-c", WRITER, str(path), str(sign), str(pause_seconds)]
        self._process = subprocess.Popen(command)

    @property
    def lines(self) -> int:
        return self.path.stat().st_size // 16

    def close(self) -> bytes:
        """What it wrote in all."""
        size = self.lines
        self._sign.touch()
        assert self._process.wait(30) == 0
        data = self.path.read_bytes()
        assert data == b"".join(b"%015d\n" % number for number in range(len(data) // 16))
        assert len(data) // 16 >= size
        return data

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


@contextlib.contextmanager
def a_writer(archive: Archive, pause_seconds: float) -> Iterator[Writer]:
    writer = Writer(archive.share / "log", pause_seconds, archive.folder / "enough")
    try:
        yield writer
    finally:
        writer.kill()


def copy_of(archive: Archive, path: Path) -> dict | None:
    """What `vna status PATH` says of it, without a `vna` of its own."""
    ask = Daemons(archive)
    try:
        return ask.tierd.call("tiering.copy_as_of", inode=os.stat(path).st_ino)
    finally:
        ask.close()


def stored(target: Path) -> dict[str, tuple[bytes, bool]]:
    """Every content that the packs on a directory target hold: SHA-256 to bytes, and whether its file was open."""
    found = {}
    for path in target.rglob("*.pack"):
        data = path.read_bytes()

        def fetch(span: Span, data: bytes = data) -> bytes:
            return data[span.offset : span.stop]

        reader = PackReader(fetch, len(data), PackId(bytes.fromhex(path.stem)))
        catalogue = reader.catalogue()
        is_open = {entry.sha256: entry.hints.is_open for entry in catalogue.files}
        for entry in catalogue.recipes:
            recipe = reader.recipe(entry.span)
            if recipe.packs() <= {PackId(bytes.fromhex(path.stem))}:
                found[entry.sha256.hex()] = (b"".join(rebuild(recipe, reader.piece)), is_open[entry.sha256])
    return found


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_a_program_appends_to_for_ever_is_copied_as_it_is(tmp_path, kind, engine):
    settings = with_engine(SETTINGS, engine)
    with a_disk(tmp_path, kind) as disk, an_archive(disk, settings=settings) as archive:
        with a_writer(archive, 0.002) as writer:
            until(writer.path.exists, "it writes")
            until(lambda: copy_of(archive, writer.path) is not None, "it is copied", 30)
            first = copy_of(archive, writer.path)
            until(lambda: copy_of(archive, writer.path)["as_of"] > first["as_of"], "it is copied again", 60)
            [lost] = archive.vna("lost")
            assert lost["path"] == "archive/log"
            assert lost["copy_as_of"] >= first["as_of"]
            status = archive.vna("status")
            assert status["staying_open"]["with_copy"] == 1
            assert status["staying_open"]["without_copy"] == 0
            assert archive.state(writer.path) == "open"
            assert archive.vna("evict", writer.path, check=3)["refused"]
            [row] = archive.vna("status", writer.path)
            assert row["copies"] == []
            last = row["copy_as_of"]
            assert last["as_of"] > first["as_of"]
            everything = writer.close()
        archive.wait()
        on_target = stored(archive.folder / "one")
        for copy in (first, last):
            data, is_open = on_target[copy["sha256"]]
            assert is_open
            assert data
            assert everything.startswith(data)
            assert len(data) % 16 == 0
        assert len(on_target[first["sha256"]][0]) < len(on_target[last["sha256"]][0])
        # what it became is sealed like anything else
        [row] = archive.vna("status", writer.path)
        assert row["copies"]
        assert row["copy_as_of"] is None
        assert archive.vna("evict", writer.path)["evicted"] == 1
        assert writer.path.read_bytes() == everything
        assert archive.vna("lost") == []
        assert files_in(archive.archive / "frozen") == []


def test_what_was_written_before_its_time_is_in_the_copy(tmp_path):
    with an_archive(tmp_path, settings=SETTINGS) as archive:
        path = archive.share / "held open"
        with open(path, "wb", buffering=0) as file:
            file.write(b"written and left open")
            until(lambda: copy_of(archive, path) is not None, "it is copied", 30)
            copy = copy_of(archive, path)
            assert copy["as_of"] > path.stat().st_mtime_ns
            assert stored(archive.folder / "one")[copy["sha256"]] == (b"written and left open", True)
            time.sleep(3 * AGE_SECONDS)
            assert copy_of(archive, path) == copy, "it did not change, so it is not copied again"
        archive.wait()
        assert archive.vna("lost") == []


def test_a_copy_of_a_mapped_file_has_what_was_synced(tmp_path):
    with an_archive(tmp_path, settings=SETTINGS) as archive:
        path = archive.share / "mapped"
        path.write_bytes(bytes(8192))
        with open(path, "r+b") as file:
            mapped = mmap.mmap(file.fileno(), 8192)
        mapped[:6] = b"synced"  # its file is closed
        mapped.flush()
        synced = time.time_ns()
        until(lambda: (copy_of(archive, path) or {"as_of": 0})["as_of"] > synced, "it is copied", 30)
        data, is_open = stored(archive.folder / "one")[copy_of(archive, path)["sha256"]]
        assert is_open
        assert data == b"synced" + bytes(8186)
        mapped[4096:] = b"x" * 4096
        mapped.close()
        archive.wait()
        assert archive.vna("evict", path)["evicted"] == 1
        assert path.read_bytes() == b"synced" + bytes(4090) + b"x" * 4096


def test_people_are_told_as_of_when_it_is_protected(tmp_path):
    later = SETTINGS.replace(f"max = {AGE_SECONDS}\n", "max = 10.0\n")  # each `vna` takes a while
    with an_archive(tmp_path, settings=later) as archive:
        path = archive.share / "file"
        with open(path, "wb", buffering=0) as file:
            file.write(b"data")
            assert "none at all" in say(archive, "lost")
            assert "as of" not in say(archive, "status", path)
            until(lambda: copy_of(archive, path) is not None, "it is copied", 30)
            assert "protected as of" in say(archive, "status", path)
            assert "as of" in say(archive, "lost")
            until(lambda: "protected as they were: 1" in say(archive, "status"), "status says so")
            assert "WARNING" not in say(archive, "status")


def say(archive: Archive, *words: object) -> str:
    command = [sys.executable, "-m", "appliance", *map(str, words)]
    environ = {**archive._environ, "COLUMNS": "200"}
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("kind", KINDS)
def test_a_clone_is_one_moment_of_a_file_that_is_being_written_where_there_are_clones(tmp_path, kind):
    with a_disk(tmp_path, kind) as disk:
        copies = FrozenCopies(str(disk / "frozen"), reserve_bytes=0, clock=SystemClock())
        source = disk / "source"
        source.write_bytes(os.urandom(50 << 20))
        copy = copies.clone(str(source), "1.1")
        if kind == "ext4":
            assert copy is None
            assert os.listdir(disk / "frozen") == []
            return
        assert copy is not None
        before = source.read_bytes()
        with open(source, "r+b") as file:
            file.write(b"changed afterwards")
        assert Path(copy.path).read_bytes() == before
        assert os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize > 250 << 20, "it shares its blocks"
        copies.remove(copy)


@pytest.mark.parametrize("point", [point for point in POINTS if point.startswith("protect.")])
def test_tierd_killed_at(tmp_path, point):
    # whom Linux serves itself nobody can hold
    settings = with_engine(SETTINGS, "pyfuse3") if point == "protect.held" else SETTINGS
    with an_archive(tmp_path, settings=settings, serve=False) as archive:
        archive.start("mount")
        process = archive.start("tierd", "--fault", f"{point}=kill", wait=False)
        # without a pause, so that its writers must be held
        with a_writer(archive, 0.0 if point == "protect.held" else 0.002) as writer:
            until(writer.path.exists, "it writes")
            until(lambda: process.poll() is not None, f"{point} is reached\n{archive.tail()}", 30)
            assert process.returncode == -signal.SIGKILL
            died, lines = time.monotonic(), writer.lines
            until(lambda: writer.lines > lines, "its writer goes on", 10)
            assert time.monotonic() - died < 4, "not held for longer than it may be"
            if point == "protect.frozen":
                assert files_in(archive.archive / "frozen") != []
            archive.start("tierd")
            assert files_in(archive.archive / "frozen") == [] or point == "protect.frozen"
            until(lambda: copy_of(archive, writer.path) is not None, "it is copied all the same", 60)
            copy = copy_of(archive, writer.path)
            everything = writer.close()
        archive.wait()
        assert everything.startswith(stored(archive.folder / "one")[copy["sha256"]][0])
        assert files_in(archive.archive / "frozen") == []
        assert archive.vna("evict", writer.path)["evicted"] == 1
        assert writer.path.read_bytes() == everything
