"""What is done in a folder, and the one figure that it comes to.

Each workload gets a place, a fresh folder in it and a scale, and returns its figure; the unit says whether more is
better. Only what a client waits for is timed. Pixels are random bytes: nobody gains by compressing.
"""

from __future__ import annotations

import dataclasses
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.bench.places import SHARE, Place, settle

KIB, MIB = 1024, 1024 * 1024
IMAGE_BYTES = 512 * KIB
BLOCK = os.urandom(MIB)
CLIENTS = 4
NFS_CLIENT = Path(__file__).with_name("nfsput.py")
WRITER = """
import os, sys
folder, first, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
data = os.urandom(512 * 1024)
for number in range(first, first + count):
    with open(f"{folder}/{number}", "wb", buffering=0) as file:
        file.write(data)
"""


def write_file(path: str, data: bytes) -> None:
    """Create, write, close."""
    file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    try:
        os.write(file, data)
    finally:
        os.close(file)


def sync_path(path: str) -> None:
    """A file's bytes, or a folder's names, on stable storage."""
    found = os.open(path, os.O_RDONLY)
    try:
        os.fsync(found)
    finally:
        os.close(found)


def _files(folder: Path, count: int, size_bytes: int) -> float:
    data = BLOCK[:size_bytes]
    began = time.perf_counter()
    for number in range(count):
        write_file(f"{folder}/{number}", data)
    return count / (time.perf_counter() - began)


def images(_: Place, folder: Path, scale: float) -> float:
    """512 KiB files, created, written and closed one after the other."""
    return _files(folder, round(1000 * scale), IMAGE_BYTES)


def small_files(_: Place, folder: Path, scale: float) -> float:
    """The same with 4 KiB."""
    return _files(folder, round(4000 * scale), 4 * KIB)


def empty_files(_: Place, folder: Path, scale: float) -> float:
    """The same with nothing."""
    return _files(folder, round(4000 * scale), 0)


def stable_images(place: Place, folder: Path, scale: float) -> float:
    """512 KiB files that survive loss of power: where closing does not say so, fdatasync and fsync of the folder do."""
    count, data = round(200 * scale), BLOCK[:IMAGE_BYTES]
    began = time.perf_counter()
    for number in range(count):
        path = f"{folder}/{number}"
        file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        os.write(file, data)
        if place.syncs:
            os.fdatasync(file)
        os.close(file)
        if place.syncs:
            sync_path(str(folder))
    return count / (time.perf_counter() - began)


def processor(place: Place, folder: Path, scale: float) -> float:
    """Processor time of the serving process for each 512 KiB file, with four clients."""
    count = round(250 * scale)
    before = place.cpu_seconds()
    clients = [
        subprocess.Popen([sys.executable, "-c", WRITER, folder, str(first * count), str(count)])
        for first in range(CLIENTS)
    ]
    assert not any(client.wait() for client in clients)
    return (place.cpu_seconds() - before) / (CLIENTS * count) * 1e6


def stream_write(_: Place, folder: Path, scale: float) -> float:
    """A large file, written in blocks of 1 MiB."""
    count = round(1024 * scale)
    began = time.perf_counter()
    with open(folder / "large", "wb", buffering=0) as file:
        for _number in range(count):
            file.write(BLOCK)
    return count * MIB / 1e6 / (time.perf_counter() - began)


def _stream_read(folder: Path) -> float:
    size_bytes = 0
    began = time.perf_counter()
    with open(folder / "large", "rb", buffering=0) as file:
        while block := file.read(MIB):
            size_bytes += len(block)
    return size_bytes / 1e6 / (time.perf_counter() - began)


def stream_read(place: Place, folder: Path, scale: float) -> float:
    """The same read again, from the disk."""
    stream_write(place, folder, scale)
    settle(forget=True)
    return _stream_read(folder)


def warm_read(place: Place, folder: Path, scale: float) -> float:
    """And once more, from memory."""
    stream_write(place, folder, scale)
    settle()
    _stream_read(folder)
    return _stream_read(folder)


def random_read(place: Place, folder: Path, scale: float) -> float:
    """4 KiB from anywhere in a large file that no cache has: what 99 of 100 take at most."""
    stream_write(place, folder, scale / 4)
    settle(forget=True)
    dice, took = random.Random(1), []
    with open(folder / "large", "rb", buffering=0) as file:
        pages = os.fstat(file.fileno()).st_size // (4 * KIB)
        for _number in range(round(2000 * scale)):
            offset = dice.randrange(pages) * 4 * KIB
            began = time.perf_counter()
            os.pread(file.fileno(), 4 * KIB, offset)
            took.append(time.perf_counter() - began)
    return sorted(took)[int(len(took) * 0.99)] * 1e3


def cold_stat(_: Place, folder: Path, scale: float) -> float:
    """Attributes of many files that no cache knows."""
    count = round(20_000 * scale)
    for number in range(count):
        write_file(f"{folder}/{number}", b"")
    settle(forget=True)
    began = time.perf_counter()
    for number in range(count):
        os.stat(f"{folder}/{number}")
    return count / (time.perf_counter() - began)


def smb_put(place: Place, folder: Path, scale: float) -> float:
    """512 KiB files, named as scanners do, sent by one smbclient to a share that is not case-sensitive."""
    count, source = round(200 * scale), _sources(round(200 * scale))
    took = _smb(place, folder, f"lcd {source}; mput *")
    assert len(list(folder.iterdir())) == count
    shutil.rmtree(source)
    return count / took


def smb_get(place: Place, folder: Path, scale: float) -> float:
    """The same files fetched."""
    count, source = round(200 * scale), _sources(round(200 * scale))
    _smb(place, folder, f"lcd {source}; mput *")
    shutil.rmtree(source)
    source.mkdir()
    took = _smb(place, folder, f"lcd {source}; mget *")
    assert len(list(source.iterdir())) == count
    shutil.rmtree(source)
    return count / took


def nfs_put(place: Place, folder: Path, scale: float) -> float:
    """512 KiB files put by one NFSv3 client, which waits for each to be on stable storage (COMMIT)."""
    assert place.exporter is not None, "nobody exports this place"
    count = round(200 * scale)
    fresh = Path(tempfile.mkdtemp(prefix="nfs-", dir=folder.parent))  # the server remembers folders by their names
    done = place.exporter.run(sys.executable, NFS_CLIENT, place.exporter.url(folder.parent), fresh.name, count)
    assert done.returncode == 0, done.stderr
    assert len(list(fresh.iterdir())) == count
    shutil.rmtree(fresh)
    return count / float(done.stdout)


def _sources(count: int) -> Path:
    """Files that a client has, in memory where there is room, so that no disk of its own counts."""
    found = Path(tempfile.mkdtemp(prefix="vnafs-bench-", dir="/dev/shm"))
    for number in range(count):
        (found / f"IM{number:06}.DCM").write_bytes(BLOCK[:IMAGE_BYTES])
    return found


def _smb(place: Place, folder: Path, command: str) -> float:
    """Seconds that one smbclient takes in that folder of the share."""
    assert place.server is not None, "nobody shares this place"
    within = folder.relative_to(place.shared)
    began = time.perf_counter()
    told = place.server.ask(f"prompt off; cd {within}; {command}", share=SHARE)
    took = time.perf_counter() - began
    assert "NT_STATUS" not in told, told
    return took


OVER_SMB = (smb_put, smb_get)
OVER_NFS = (nfs_put,)
"""They need a place's server."""


@dataclasses.dataclass(frozen=True)
class Workload:
    """A figure and what is wanted of it, as a factor of another place's figure or as a bound."""

    run: Callable[[Place, Path, float], float]
    unit: str
    ours: str
    """The place that has to reach it."""
    wanted: tuple[tuple[str, float], ...] = ()
    """At least so many times the figure of that place."""
    most: float | None = None
    """At most so much: less is better."""

    @property
    def title(self) -> str:
        """What it is called."""
        return self.run.__name__.replace("_", " ")
