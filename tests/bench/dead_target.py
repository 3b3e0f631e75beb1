"""Writers beside readers that wait for a dead target: the time to write a file, with and without 64 opens of stubs.

    python -m tests.bench.dead_target [--rounds 3] [--seconds 20] [--openers 64] [--ack durable]

The target is a real S3 server that stands still (SIGSTOP): it takes connections and never answers. In each round two
writers make 64 KiB files, open to close, first beside nobody, then beside 64 threads that each open a stub of their
own; both times the target is dead. Afterwards it goes on, and every open must give the right bytes. Reports p50, p99
and the longest of all rounds, and the ratio of the p99s.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from tests.bench.report import keep
from tests.servers.moto import moto_servers
from tests.servers.processes import Servers
from tests.system.archives import ROOT, Archive, an_archive

WRITERS = 2
FILE_BYTES = 64 * 1024
SETTLE_SECONDS = 1.0
"""After the opens began and before writers are looked at."""
SETTINGS = """
[file_system]
quiet_seconds = 1.0

[spool]
reserve_bytes = 1048576
high_watermark_percent = 99.0
low_watermark_percent = 98.0

[packs]
age_seconds_max = 2.0
"""
OPENERS = """
import concurrent.futures, hashlib, json, sys, time
def read(path):
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest(), time.time()
paths = sys.argv[1:]
with concurrent.futures.ThreadPoolExecutor(len(paths)) as pool:
    print(json.dumps(list(pool.map(read, paths))))
"""


def writers(folder: Path, seconds: float) -> list[float]:
    """Seconds that each file took, from open to close."""
    took: list[list[float]] = [[] for _ in range(WRITERS)]
    folder.mkdir()

    def write(number: int) -> None:
        until = time.monotonic() + seconds
        count = 0
        while time.monotonic() < until:
            data = os.urandom(FILE_BYTES)
            began = time.perf_counter()
            with open(folder / f"{number}-{count:06d}", "wb", buffering=0) as file:
                file.write(data)
            took[number].append(time.perf_counter() - began)
            count += 1

    threads = [threading.Thread(target=write, args=(number,)) for number in range(WRITERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [value for values in took for value in values]


def one_round(
    archive: Archive, server: Servers, openers_count: int, number: int, seconds: float
) -> tuple[list[float], list[float]]:
    """Times alone and beside the openers. Stubs are new each time: packs of old ones may be in the recall cache."""
    stubs = {}
    for stub in range(openers_count):
        data = os.urandom(30_000)
        path = archive.share / f"stub-{number}-{stub:03d}"
        path.write_bytes(data)
        stubs[path] = hashlib.sha256(data).hexdigest()
    archive.wait(seconds=300)
    archive.vna("evict", *stubs)
    server.hang(hangs=True)
    try:
        alone = writers(archive.share / f"alone-{number}", seconds)
        openers = subprocess.Popen([sys.executable, "-c", OPENERS, *map(str, stubs)], cwd=ROOT, stdout=subprocess.PIPE)
        time.sleep(SETTLE_SECONDS)
        beside = writers(archive.share / f"beside-{number}", seconds)
        back = time.time()
    finally:
        server.hang(hangs=False)
    found = json.loads(openers.communicate(timeout=300)[0])
    assert [digest for digest, _ in found] == list(stubs.values()), "wrong bytes"
    assert all(when >= back for _, when in found), "an open of a stub did not wait for its target"
    return alone, beside


def measure(folder: Path, *, rounds: int, seconds: float, openers: int, ack: str = "durable") -> dict[str, Any]:
    with moto_servers() as (server, endpoint):
        targets = {"dead": endpoint.target_url(endpoint.make_bucket())}
        with an_archive(folder, targets, "--ack", ack, environ=endpoint.environ(), settings=SETTINGS) as archive:
            alone: list[float] = []
            beside: list[float] = []
            for number in range(rounds):
                found = one_round(archive, server, openers, number, seconds)
                alone += found[0]
                beside += found[1]
    shown = {"alone": _shown(alone), "beside": _shown(beside)}
    return {**shown, "openers": openers, "ack": ack, "p99_ratio": shown["beside"]["p99_ms"] / shown["alone"]["p99_ms"]}


def _shown(times: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(times, n=100)
    return {
        "files": len(times),
        "p50_ms": round(cuts[49] * 1000, 2),
        "p99_ms": round(cuts[98] * 1000, 2),
        "max_ms": round(max(times) * 1000, 2),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--openers", type=int, default=64)
    parser.add_argument("--ack", default="durable")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vnafs-dead-target-") as folder:
        result = measure(Path(folder), rounds=args.rounds, seconds=args.seconds, openers=args.openers, ack=args.ack)
    print(json.dumps(result, indent=2))
    keep("dead_target", result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
