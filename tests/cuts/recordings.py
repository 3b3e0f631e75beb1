"""An archive at `durable` under mixed load on a disk that is recorded: what there is to cut.

Local programs and an NFS client write, change, rename and remove; tierd seals, packs and copies to two targets on the
same disk, and files are evicted and recalled meanwhile.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pickle
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from tests.cuts.clients import Client, Local
from tests.cuts.disks import Recorded, recorded_disk
from tests.cuts.promises import Deed
from tests.servers.ganesha import HERE, rendered_ganesha
from tests.system.archives import Archive, an_archive, with_engine
from tests.system.load import Daemons
from vnafs.domain.errors import VnaError

ROOT = Path(__file__).parents[2]
SETTINGS = """
[file_system]
quiet_seconds = 0.15
recall_seconds_max = 20.0

[spool]
reserve_bytes = 1048576
high_watermark_percent = 99.0
low_watermark_percent = 98.0

[packs]
age_seconds_max = 0.2
target_bytes = 1048576

[manifests]
seconds_max = 0.5
kept_seconds = 60

[collection]
after_seconds = 2
live_percent_min = 70
"""
LOCALS, NFS = ("local-0", "local-1"), "nfs"
"""Folders of clients."""


@dataclasses.dataclass(frozen=True)
class Recording:
    """In *folder*, which is what `Replay` reads. *place* is where its images must be mounted."""

    folder: Path
    place: Path
    kind: str
    engine: str
    first: int
    """From here on an archive is served, and each client has its folder."""
    last: int
    clients: dict[str, list[Deed]]
    """By the name of its directory, what each client did."""

    @property
    def answers(self) -> list[int]:
        """Positions at which something had just been answered."""
        every = [deed.answered for deeds in self.clients.values() for deed in deeds if deed.answered is not None]
        return sorted({at for at in every if at > self.first})


def targets_at(place: Path) -> dict[str, str]:
    return {name: f"file://{place}/{name}" for name in ("one", "two")}


def record(folder: Path, place: Path, kind: str, engine: str, seed: int, seconds: float) -> Recording:
    """Live for so long. *folder* is made; what the daemons said stays in it."""
    clients: dict[str, list[Deed]] = {}
    with recorded_disk(folder, place, kind) as disk:
        # now packed at once, now sealed for a while without any copy
        age_seconds = random.Random(seed).choice((0.2, 2.0))
        settings = with_engine(SETTINGS, engine).replace("age_seconds_max = 0.2", f"age_seconds_max = {age_seconds}")
        try:
            with an_archive(place, targets_at(place), settings=settings) as archive:
                archive.vna("repository", "set", "archive", "--tripwire", "off")
                for name in (*LOCALS, NFS):
                    (archive.share / name).mkdir()
                first = disk.counter.read()
                _live(archive, disk, seed, seconds, clients)
                last = disk.counter.read()
        finally:
            shutil.copy(place / "daemons.log", folder / "daemons.log")
    return Recording(folder, place, kind, engine, first, last, clients)


def _live(archive: Archive, disk: Recorded, seed: int, seconds: float, clients: dict[str, list[Deed]]) -> None:
    dice = random.Random(seed)
    failures: list[BaseException] = []
    stop = threading.Event()
    threads = []
    with _nfs(archive, disk, dice.randrange(1 << 30), seconds) as nfs:
        for name in LOCALS:
            client = Client(Local(archive.share / name), disk.counter, random.Random(dice.randrange(1 << 30)))
            clients[name] = client.deeds
            threads.append(threading.Thread(target=_work, args=(client, seconds, stop, failures)))
        threads.append(threading.Thread(target=_tier, args=(archive, dice, seconds, stop, failures)))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    clients[NFS] = pickle.loads(nfs.read_bytes())
    if failures:
        raise failures[0]


def _work(client: Client, seconds: float, stop: threading.Event, failures: list[BaseException]) -> None:
    try:
        client.work(seconds, stop.is_set)
    except BaseException as problem:
        problem.add_note(f"after {[str(deed) for deed in client.deeds[-10:]]}")
        failures.append(problem)
        stop.set()


def _tier(
    archive: Archive, dice: random.Random, seconds: float, stop: threading.Event, failures: list[BaseException]
) -> None:
    """Files go and come back; packs are collected."""
    ask, until = Daemons(archive), time.monotonic() + seconds
    try:
        while time.monotonic() < until and not stop.is_set():
            paths = [Path(folder, name) for folder, _, names in os.walk(archive.share) for name in names]
            inodes = []
            for path in paths:
                with contextlib.suppress(OSError):
                    inodes.append(os.lstat(path).st_ino)
            with contextlib.suppress(VnaError):
                ask.tierd.call("tiering.evict", inodes=dice.sample(inodes, len(inodes) // 2))
            if dice.random() < 0.3:
                with contextlib.suppress(VnaError):
                    ask.tierd.call("collect.hurry")
            for path in dice.sample(paths, min(3, len(paths))):
                with contextlib.suppress(OSError):
                    if path.is_file():
                        path.read_bytes()
            stop.wait(0.2)
    except BaseException as problem:
        failures.append(problem)
        stop.set()
    finally:
        ask.close()


@contextlib.contextmanager
def _nfs(archive: Archive, disk: Recorded, seed: int, seconds: float) -> Iterator[Path]:
    """An NFS client beside the others; the file that it leaves its deeds in."""
    shared, notes = archive.share / NFS, disk.folder / "nfs-deeds"
    archive.vna("share", "add", "nfs", f"archive/{NFS}", "--protocol", "nfs", "--host", HERE, "--squash", "none")
    archive.vna("share", "render")
    with rendered_ganesha(disk.folder / "ganesha", archive.archive / "shares" / "ganesha.conf") as server:
        words = (
            sys.executable,
            "-m",
            "tests.cuts.clients",
            disk.folder / "counter",
            notes,
            seed,
            seconds,
            HERE,
            shared,
        )
        with (disk.folder / "nfs.out").open("wb") as out:
            client = subprocess.Popen(server.inside(*words), cwd=ROOT, stdout=out, stderr=out)
            try:
                yield notes
                assert client.wait(seconds + 60) == 0, (disk.folder / "nfs.out").read_text()
            finally:
                client.kill()
                client.wait()
