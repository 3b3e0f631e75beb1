"""One directory of a million files: what one more costs a case-insensitive client, a cold listing, cold lookups.

    python -m tests.bench.crowded [--files 1000000] [--rounds 5]

The files are made by the tree without a mount, because a million creates through one take long; they are empty and
named as scanners name them, in upper case. Then the archive is served, the share is what `vna share render` writes, and
smbclient puts files by turns into that directory and into an empty one. What a session costs is taken off: of each turn
it is the time of many puts less that of one.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

from tests.bench.report import keep
from tests.servers.processes import free_port
from tests.servers.samba import Samba, rendered_samba
from tests.system.archives import QUICK, Archive, an_archive, with_engine
from vnafs import store
from vnafs.domain.clock import SystemClock
from vnafs.domain.faults import NoFaults
from vnafs.domain.ids import Inode
from vnafs.fs.caller import Caller
from vnafs.fs.settings import Settings

CROWDED, EMPTY = "crowded", "empty"
PUT_BYTES = 1000
PUTS = 40
"""Of one turn."""
RATIO_MAX = 1.5
LOOKUPS = 1000
ROOT = Caller(0, 0, 1)


def name_of(number: int) -> str:
    """As a scanner names its images."""
    return f"IM{number:09d}.DCM"


def make(archive: Path, count: int) -> float:
    """The two directories, one with so many files; files made in a second."""
    engine = store.open_namespace(str(archive))
    tree = store.open_tree(
        str(archive),
        engine,
        Settings(quiet_seconds=3600.0),
        clock=SystemClock(),
        faults=NoFaults(),
        copies_of=lambda _, __: (),
        boot_id="",
    )
    [repository] = tree.repositories.list()
    tree.mkdir(Inode(repository.id), EMPTY.encode(), 0o755, ROOT)
    folder = tree.mkdir(Inode(repository.id), CROWDED.encode(), 0o755, ROOT).inode
    began = time.monotonic()
    for number in range(count):
        handle, _ = tree.create(folder, name_of(number).encode(), 0o644, os.O_WRONLY, ROOT)
        tree.release(handle)
    took = time.monotonic() - began
    tree.close()
    engine.close()
    return count / took


def put_seconds(server: Samba, folder: str, source: Path, turn: str) -> float:
    """What one file more costs."""

    def took(count: int, batch: str) -> float:
        puts = "; ".join(f"put {source} {turn}-{batch}-{number}.DCM" for number in range(count))
        began = time.perf_counter()
        told = server.ask(f"cd {folder}; {puts}", share="images")
        seconds = time.perf_counter() - began
        assert "NT_STATUS" not in told, told
        return seconds

    one = took(1, "one")
    return (took(PUTS + 1, "many") - one) / PUTS


def cold(archive: Archive, count: int) -> dict[str, float]:
    """Of a mount that nobody has used yet."""
    folder = archive.share / CROWDED
    began = time.perf_counter()
    for number in random.Random(1).sample(range(count), min(LOOKUPS, count)):
        (folder / name_of(number)).stat()
    looked_up = time.perf_counter() - began
    began = time.perf_counter()
    listed = sum(1 for _ in os.scandir(folder))
    seconds = time.perf_counter() - began
    assert listed >= count
    return {"cold_lookup_us": looked_up / min(LOOKUPS, count) * 1e6, "cold_listing_seconds": seconds}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    port = free_port()
    settings = with_engine(QUICK, "kernel").replace("quiet_seconds = 0.3", "quiet_seconds = 3600.0")
    settings += f'\n[sharing]\naddresses = ["127.0.0.1"]\nsmb_port = {port}\n'
    with tempfile.TemporaryDirectory(prefix="vnafs-bench-") as text:
        home = Path(text)
        source = home / "source"
        source.write_bytes(os.urandom(PUT_BYTES))
        with an_archive(home / "a", settings=settings, serve=False) as archive:
            result: dict[str, object] = {"files": args.files}
            result["made_files_per_second"] = round(make(archive.archive, args.files))
            print(json.dumps(result), flush=True)
            archive.start("mount")
            result |= {name: round(value, 2) for name, value in cold(archive, args.files).items()}
            print(json.dumps(result), flush=True)
            archive.vna("share", "add", "images", "archive", "--protocol", "smb")
            archive.vna("share", "render")
            with rendered_samba(home / "samba", archive.archive / "shares" / "smb.conf", port) as server:
                seconds: dict[str, list[float]] = {EMPTY: [], CROWDED: []}
                for turn in range(args.rounds):
                    for folder in (EMPTY, CROWDED) if turn % 2 else (CROWDED, EMPTY):
                        seconds[folder].append(put_seconds(server, folder, source, f"T{turn}"))
                medians = {folder: statistics.median(found) for folder, found in seconds.items()}
    result |= {f"put_{folder}_ms": round(median * 1000, 2) for folder, median in medians.items()}
    ratio = medians[CROWDED] / medians[EMPTY]
    result |= {"ratio": round(ratio, 2), "at most": RATIO_MAX, "holds": ratio <= RATIO_MAX}
    print(json.dumps(result, indent=2))
    keep("crowded", {**result, "seconds": seconds})
    return int(ratio > RATIO_MAX)


if __name__ == "__main__":
    sys.exit(main())
