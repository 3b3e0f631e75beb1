"""Folders to compare: a local file system, vnafs on it, and what others put in front of it.

All lie on one disk that is made for the run, so that they share what it can do. Peers are Debian's packages, each with
the options its documentation gives for files that other programs only reach through it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import subprocess
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from appliance.shares.ganesha import ganesha_conf
from appliance.shares.samba import smb_conf
from appliance.shares.settings import ShareSettings, SharingSettings
from tests.servers.ganesha import HERE, Ganesha
from tests.servers.processes import Servers, free_port, need
from tests.servers.samba import INCLUDING, Samba
from tests.system.archives import an_archive, until, with_engine

PASSWORD = b"only for this bench\n"
SETTINGS = """
[file_system]
quiet_seconds = 3600.0

[spool]
high_watermark_percent = 99.0
low_watermark_percent = 98.0
"""
"""Of an archive whose files nobody takes up: peers tier nothing either."""


@dataclasses.dataclass(frozen=True)
class Place:
    """Somewhere to write files."""

    name: str
    folder: Path
    pids: tuple[int, ...] = ()
    """Of the processes that serve it."""
    syncs: bool = True
    """Whether a writer who wants its file on stable storage must say so."""
    server: Samba | None = None
    """Shares the disk that all places are on."""
    shared: Path = Path("/")
    """That disk."""
    exporter: Ganesha | None = None
    """Exports the folder by NFS."""

    def cpu_seconds(self) -> float:
        """Processor time that its processes have taken so far."""
        ticks = 0
        for pid in self.pids:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def plain(home: Path, _: Servers, name: str) -> Iterator[Place]:
    """The disk itself."""
    yield Place(name, home)


@contextlib.contextmanager
def vnafs(home: Path, _: Servers, name: str) -> Iterator[Place]:
    """Our mount without tiering; the name says the acknowledgement level and the engine."""
    words = name.split()
    level = "durable" if "durable" in words else "written"
    engine = "kernel" if "kernel" in words else "pyfuse3"
    settings = with_engine(SETTINGS, engine)
    with an_archive(home, {}, "--ack", level, settings=settings, serve=False) as archive:
        process = archive.start("mount")
        yield Place(name, archive.share, (process.pid,), syncs=level != "durable")


@contextlib.contextmanager
def mounted(home: Path, started: Servers, name: str) -> Iterator[Place]:
    """A peer over a folder of the disk, until it shows what is in there."""
    below, point = home / "below", home / "point"
    below.mkdir()
    point.mkdir()
    if name == "gocryptfs":
        words = ["gocryptfs", "-q", "-init", str(below)]
        subprocess.run(words, input=PASSWORD, check=True, capture_output=True)
        (home / "password").write_bytes(PASSWORD)
    words = [word.format(below=below, point=point, home=home) for word in PEERS[name]]
    process = started.start(name, *words)
    try:
        until(point.is_mount, lambda: f"{name} is mounted\n{started.logs()}")
        pids = (process.pid, *map(int, _children(process.pid)))
        yield Place(name, point, pids)
    finally:
        subprocess.run(["umount", "-l", point], check=False, capture_output=True)


def _children(pid: int) -> Sequence[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


PEERS = {
    "mergerfs": ["mergerfs", "-f", "-o", "cache.files=partial,dropcacheonclose=true,allow_other", "{below}", "{point}"],
    "rclone": ["rclone", "mount", "--vfs-cache-mode", "full", "--cache-dir", "{home}/cache", "{below}", "{point}"],
    "gocryptfs": ["gocryptfs", "-q", "-fg", "-passfile", "{home}/password", "{below}", "{point}"],
    "bindfs": ["bindfs", "-f", "{below}", "{point}"],
}
Maker = Callable[[Path, Servers, str], contextlib.AbstractContextManager[Place]]
LOCAL = "disk"
WRITTEN, DURABLE = "vnafs written", "vnafs durable"
KERNEL = {WRITTEN: "vnafs kernel", DURABLE: "vnafs kernel durable"}
"""The same with the kernel engine."""
MAKERS: dict[str, Maker] = (
    {LOCAL: plain, WRITTEN: vnafs, DURABLE: vnafs}
    | dict.fromkeys(KERNEL.values(), vnafs)
    | dict.fromkeys(PEERS, mounted)
)


SHARE = "bench"


def samba_of(disk: Path, started: Servers) -> Samba:
    """One Samba for all places, with what `vna share render` writes for a share that is not case-sensitive."""
    home = Path(started.directory) / "samba"
    home.mkdir()
    port = free_port()
    share = ShareSettings(name=SHARE, repository=disk.name, protocol="smb", previous_versions=False)
    rendered = home / "rendered.conf"
    rendered.write_text(smb_conf(SharingSettings(addresses=("127.0.0.1",), smb_port=port), [share], str(disk.parent)))
    return Samba(home, INCLUDING.format(home=home, rendered=rendered), started, port)


def ganesha_of(disk: Path, started: Servers, folders: Sequence[Path]) -> Ganesha:
    """One nfs-ganesha for all places, with what `vna share render` writes."""
    home = Path(started.directory) / "ganesha"
    home.mkdir()
    shares = [
        ShareSettings(
            name=str(number), repository=str(folder.relative_to(disk)), protocol="nfs", hosts=(HERE,), squash="none",
            versions=("3",), fsid=str(uuid.UUID(int=number + 1)),
        )
        for number, folder in enumerate(folders)
    ]  # fmt: skip
    rendered = home / "rendered.conf"
    rendered.write_text(ganesha_conf(SharingSettings(), shares, str(disk)))
    return Ganesha(home, rendered, started)


@contextlib.contextmanager
def places(
    disk: Path, started: Servers, names: Sequence[str], *, shared: bool = False, exported: bool = False
) -> Iterator[list[Place]]:
    """All of them at once, each in a folder of its own on *disk*; *shared* by a Samba and *exported* by NFS as well."""
    need(tuple(sorted(PEERS.keys() & set(names))), "mergerfs rclone gocryptfs bindfs")
    with contextlib.ExitStack() as stack:
        found = []
        for number, name in enumerate(names):
            home = disk / str(number)
            home.mkdir()
            found.append(stack.enter_context(MAKERS[name](home, started, name)))
        if shared:
            server = samba_of(disk, started)
            found = [dataclasses.replace(place, server=server, shared=disk) for place in found]
        if exported:
            exporter = ganesha_of(disk, started, [place.folder for place in found])
            found = [dataclasses.replace(place, exporter=exporter) for place in found]
        yield found


def emptied(folder: Path) -> Path:
    """A fresh folder for one workload."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def settle(*, forget: bool = False) -> None:
    """What was written is on the disk, so that nobody pays for another; *forget*: and in no cache."""
    os.sync()
    if forget:
        Path("/proc/sys/vm/drop_caches").write_text("3")
