"""What a writer waits for while tiering drains as fast as it can, beside what it waits for while nothing drains.

    python -m tests.bench.beside_tiering [--rounds 5] [--files 250] [--backlog 1200] [--engine kernel]

Each round makes a backlog without tierd, creates, writes and closes 512 KiB files at a steady pace, starts tierd, and
does the same again as soon as the first file of the backlog is packed. The target is a directory in memory, so that
processors and not a disk are what they share. A round in which the backlog did not last as long as the writer counts
nothing and fails the bench. The 99th of 100 creates in each round, medians of the rounds, and their ratio.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path

from tests.bench.drain import fill
from tests.bench.places import settle
from tests.bench.report import keep
from tests.bench.workloads import BLOCK, IMAGE_BYTES
from tests.system.archives import Archive, an_archive, until, with_engine

RATIO_MAX = 3.0
ROUNDS_MIN = 2
PACE_SECONDS = 0.004
"""Between two files: a writer that comes and goes, and leaves tierd something of two processors."""
SETTINGS = """
[file_system]
quiet_seconds = 0.1

[spool]
high_watermark_percent = 99.0
low_watermark_percent = 98.0

[packs]
age_seconds_max = 2.0
"""
PACKED = (b"packed", b"replicated")


def p99(values: list[float]) -> float:
    """What 99 of 100 take at most."""
    return sorted(values)[int(len(values) * 0.99)]


def creates(folder: Path, count: int) -> dict[str, float]:
    """Milliseconds at p99: to create a file, and to create, write and close it."""
    folder.mkdir()
    made, closed = [], []
    for number in range(count):
        data = number.to_bytes(8, "big") + BLOCK[8:IMAGE_BYTES]
        began = time.perf_counter()
        file = os.open(folder / str(number), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        made.append(time.perf_counter() - began)
        os.write(file, data)
        os.close(file)
        closed.append(time.perf_counter() - began)
        time.sleep(PACE_SECONDS)
    return {"create_ms": p99(made) * 1e3, "whole_ms": p99(closed) * 1e3}


def one_round(archive: Archive, number: int, files: int, backlog: int) -> dict[str, dict[str, float]]:
    """Idle and draining."""
    waiting = archive.share / f"backlog{number}"
    fill(waiting, number, backlog)
    settle()
    idle = creates(archive.share / f"idle{number}", files)
    settle()
    tierd = archive.start("tierd")
    first, last = waiting / f"{0:06d}.dcm", waiting / f"{backlog - 1:06d}.dcm"
    until(lambda: os.getxattr(first, "user.vna.state") in PACKED, "the backlog drains", 60)
    draining = creates(archive.share / f"draining{number}", files)
    if os.getxattr(last, "user.vna.state") == b"replicated":
        raise SystemExit("The backlog was drained before the writer was done: ask for more --backlog.")
    archive.wait(seconds=600)
    tierd.send_signal(signal.SIGTERM)
    tierd.wait(60)
    for folder in archive.share.iterdir():
        shutil.rmtree(folder)
    return {"idle": idle, "draining": draining}


def judge(rounds: list[dict[str, dict[str, float]]]) -> dict[str, object]:
    """Medians and their ratio; nothing of a single round."""
    if len(rounds) < ROUNDS_MIN:
        return {}
    found: dict[str, object] = {}
    for key in ("create_ms", "whole_ms"):
        idle, draining = (statistics.median(one[of][key] for one in rounds) for of in ("idle", "draining"))
        found[key] = {"idle": round(idle, 3), "draining": round(draining, 3), "ratio": round(draining / idle, 2)}
        found[f"{key}_holds"] = draining <= RATIO_MAX * idle
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--files", type=int, default=250)
    parser.add_argument("--backlog", type=int, default=1200)
    parser.add_argument("--engine", choices=("kernel", "pyfuse3"), default="kernel")
    args = parser.parse_args()
    rounds = []
    with (
        tempfile.TemporaryDirectory(prefix="vnafs-bench-") as home,
        tempfile.TemporaryDirectory(prefix="vnafs-bench-", dir="/dev/shm") as memory,
    ):
        settings = with_engine(SETTINGS, args.engine)
        targets = {"memory": f"file://{memory}/target"}
        with an_archive(Path(home), targets, "--ack", "written", settings=settings, serve=False) as archive:
            archive.start("mount")
            for number in range(args.rounds):
                rounds.append(one_round(archive, number, args.files, args.backlog))
                print(json.dumps(rounds[-1]), flush=True)
    wanted = judge(rounds)
    keep("beside_tiering", {"engine": args.engine, "rounds": rounds, "wanted": wanted})
    print(json.dumps(wanted))
    return 0 if wanted.get("create_ms_holds") else 1


if __name__ == "__main__":
    sys.exit(main())
