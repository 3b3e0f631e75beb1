"""What clients do on an NFS mount, run inside the guest by `python -m tests.servers.guest_load`.

    images FOLDER COUNT                     as a PACS stores, corrects and deletes
    list FOLDER                             a listing while names come and go and caches are dropped
    kills FOLDER LISTED UNTIL [WITHOUT…]    until the file UNTIL is there; then all is compared
    hashes FOLDER                           of all files below it

Each prints one line of JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from pathlib import Path

from tests.bench.takeover import Clients, compare

SIZES = (1, 4_096, 70_001, 527_000)
"""Of images; the last is that of a CT slice."""
SECONDS_MAX = 600.0


def images(folder: Path, count: int) -> dict[str, object]:
    """Written under another name, synced, renamed, dated; every third gets another header, every fifth is removed."""
    expected, wrong = dict[str, tuple[bytes, int]](), list[str]()
    for number in range(count):
        data = os.urandom(SIZES[number % len(SIZES)])
        fresh, path = folder / f".{number}.part", folder / f"{number}.dcm"
        with fresh.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        fresh.rename(path)
        if not number % 3:
            with path.open("r+b") as file:
                file.seek(len(data) // 2)
                file.write(b"corrected")
            data = data[: len(data) // 2] + b"corrected" + data[len(data) // 2 + 9 :]
        moment = (1_600_000_000 + number) * 10**9 + number * 1_000_000
        os.utime(path, ns=(moment, moment))
        expected[path.name] = (data, moment)
        if not number % 5:
            path.unlink()
            del expected[path.name]
    for name, (data, moment) in expected.items():
        status = (folder / name).stat()
        if (folder / name).read_bytes() != data or status.st_size != len(data):
            wrong.append(f"{name} differs")
        if status.st_mtime_ns != moment:
            wrong.append(f"{name} is dated {status.st_mtime_ns}, not {moment}")
    if {path.name for path in folder.iterdir()} != expected.keys():
        wrong.append("other names are there")
    return {"wrong": wrong, "hashes": {name: hashlib.sha256(data).hexdigest() for name, (data, _) in expected.items()}}


def list_slowly(folder: Path) -> dict[str, object]:
    """Which names of those that stay are not seen exactly once."""
    stays = {name for name in os.listdir(folder) if name.startswith("stays-")}
    part = len(stays) // 3
    drop_caches()
    seen: list[str] = []
    with os.scandir(folder) as found:
        for number, entry in enumerate(found):
            seen.append(entry.name)
            if not number % part:
                (folder / f"comes-{number}").mkdir()
                drop_caches()
    for number in range(0, len(seen), part):
        (folder / f"comes-{number}").rmdir()
    steady = [name for name in seen if name.startswith("stays-")]
    missing, twice = sorted(stays - set(steady)), len(steady) - len(set(steady))
    return {"there": len(stays), "missing": missing[:10], "twice": twice}


def drop_caches() -> None:
    Path("/proc/sys/vm/drop_caches").write_text("3")


def kills(folder: Path, listed: int, until: Path, without: list[str]) -> dict[str, object]:
    """The clients that must not notice kills of the mount process (`python -m tests.bench.takeover`), over NFS."""
    clients = Clients(folder, 1, listed=listed, without=without)
    clients.start()
    end = time.monotonic() + SECONDS_MAX
    while not until.exists() and not clients.wrong and time.monotonic() < end:
        time.sleep(0.2)
    clients.stop(patience_seconds=300.0)
    while list(folder.rglob(".nfs*")) and time.monotonic() < end:  # names of closed files go a moment later (nfs(5))
        time.sleep(0.2)
    longest, what = clients.longest
    wrong = clients.wrong + ([] if clients.wrong else compare(folder, clients.expected))
    return {"wrong": wrong[:10], "calls": clients.calls, "longest_seconds": round(longest, 2), "what": what}


def hashes(folder: Path) -> dict[str, str]:
    found = (Path(top) / name for top, _, names in os.walk(folder) for name in names)
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(found)}


def main(words: list[str]) -> object:
    """The command line; see the module."""
    deed, folder, rest = words[0], Path(words[1]), words[2:]
    if deed == "images":
        return images(folder, int(rest[0]))
    if deed == "list":
        return list_slowly(folder)
    if deed == "kills":
        return kills(folder, int(rest[0]), Path(rest[1]), rest[2:])
    return hashes(folder)


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1:])))
