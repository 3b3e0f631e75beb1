"""Draining 512 KiB DICOM files to an S3 server, in turns with `rclone copy --transfers 8` to the same server.

    python -m tests.bench.drain [--files 1000] [--rounds 3] [--latency SECONDS] [--sustained SECONDS]

Each round: fresh files (no two rounds share a byte of pixels), rclone from a plain folder, then ours from the share,
where the time counts from the start of tierd until every file has a copy that was verified, which rclone's has not.
With `--latency` each answer of the server comes so much later, for both, as from a site that is far away.
`--sustained` then keeps writing while draining for that long and reports rates and the time from last close to
verified copy. Medians and ratios; a single round gives no ratio.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from tests import studies
from tests.bench.report import keep
from tests.servers.endpoints import S3Endpoint
from tests.servers.proxy import proxy
from tests.servers.radosgw import radosgw
from tests.system.archives import Archive, an_archive

CAPACITY_BYTES = 12 << 30
"""Of the server, in memory: what ten minutes of draining leave there."""

SETTINGS = """
[file_system]
quiet_seconds = {quiet}

[spool]
high_watermark_percent = 99.0
low_watermark_percent = 98.0

[packs]
age_seconds_max = 2.0
"""


def files(seed: int, count: int) -> Iterator[tuple[str, bytes]]:
    for number, item in enumerate(studies.synthetic_ct_study(seed, count)):
        yield f"{number:06d}.dcm", item.data


def fill(folder: Path, seed: int, count: int) -> int:
    folder.mkdir(parents=True)
    return sum((folder / name).write_bytes(data) for name, data in files(seed, count))


def rclone(server: S3Endpoint, source: Path) -> float:
    """Seconds that rclone takes."""
    bucket = server.make_bucket()
    environ = {
        "PATH": os.environ["PATH"],
        "HOME": os.environ.get("HOME", "/"),
        "RCLONE_CONFIG": os.devnull,
        "RCLONE_CONFIG_S_TYPE": "s3",
        "RCLONE_CONFIG_S_PROVIDER": "Ceph",
        "RCLONE_CONFIG_S_ENDPOINT": server.url,
        "RCLONE_CONFIG_S_ACCESS_KEY_ID": server.access_key_id,
        "RCLONE_CONFIG_S_SECRET_ACCESS_KEY": server.secret_access_key,
    }
    began = time.monotonic()
    subprocess.run(["rclone", "copy", "--transfers", "8", str(source), f"s:{bucket}"], env=environ, check=True)
    took = time.monotonic() - began
    empty(server, bucket)
    return took


def empty(server: S3Endpoint, bucket: str) -> None:
    client = server.client()
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
        keys = [{"Key": item["Key"]} for item in page.get("Contents", [])]
        if keys:
            client.delete_objects(Bucket=bucket, Delete={"Objects": keys})


def ours(server: S3Endpoint, folder: Path, seed: int, count: int) -> float:
    """Seconds from the start of tierd until every file has a verified copy."""
    bucket = server.make_bucket()
    targets = {"s3": server.target_url(bucket)}
    settings = SETTINGS.format(quiet=0.1)
    with an_archive(folder, targets, environ=server.environ(), settings=settings, serve=False) as archive:
        archive.start("mount")
        fill(archive.share / "study", seed, count)
        os.sync()
        began = time.monotonic()
        archive.start("tierd")
        archive.wait(seconds=600)
        took = time.monotonic() - began
    empty(server, bucket)
    shutil.rmtree(folder)
    return took


def sustained(server: S3Endpoint, folder: Path, seconds: float, quiet_seconds: float) -> dict:
    """Write and drain together; what was written a second, and how long after the last close copies were verified."""
    bucket = server.make_bucket()
    settings = SETTINGS.format(quiet=quiet_seconds)
    stop = time.monotonic() + seconds
    closed: dict[str, float] = {}
    delays: list[float] = []
    written = 0
    with an_archive(folder, {"s3": server.target_url(bucket)}, environ=server.environ(), settings=settings) as archive:
        watching = threading.Thread(target=watch, args=(archive, closed, delays, stop))
        watching.start()
        seed = 1000
        while time.monotonic() < stop:
            seed += 1
            place = archive.share / f"study{seed}"
            place.mkdir()
            for name, data in files(seed, 200):
                if time.monotonic() >= stop:
                    break
                (place / name).write_bytes(data)
                closed[str(place / name)] = time.monotonic()
                written += 1
            for old in [p for p in archive.share.iterdir() if p != place][:-(20)]:
                if all(archive.state(p) == "replicated" for p in list(old.iterdir())[-1:]):
                    shutil.rmtree(old)
        wrote_until = time.monotonic()
        archive.wait(seconds=600)
        drained = time.monotonic()
        watching.join()
    empty(server, bucket)
    delays.sort()
    total = seconds + drained - wrote_until
    return {
        "seconds": seconds,
        "files": written,
        "written_files_per_second": round(written / seconds, 1),
        "sustained_files_per_second": round(written / total, 1),
        "quiet_seconds": quiet_seconds,
        "close_to_verified_seconds_p50": round(statistics.median(delays), 1) if delays else None,
        "close_to_verified_seconds_p99": round(delays[int(len(delays) * 0.99)], 1) if delays else None,
        "samples": len(delays),
    }


def watch(archive: Archive, closed: dict[str, float], delays: list[float], stop: float) -> None:
    """Ask each of a sample of files for its state until it is replicated."""
    waiting: dict[str, float] = {}
    seen = 0
    while time.monotonic() < stop + 300 and (waiting or time.monotonic() < stop):
        names = list(closed)
        waiting |= {name: closed[name] for name in names[seen::50]}
        seen = max(seen, len(names) - len(names[seen:]) % 50)
        for name, when in list(waiting.items()):
            try:
                if os.getxattr(name, "user.vna.state") == b"replicated":
                    delays.append(time.monotonic() - when)
                    del waiting[name]
            except FileNotFoundError:
                del waiting[name]
        time.sleep(0.2)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--latency", type=float, default=0.0, metavar="SECONDS")
    parser.add_argument("--sustained", type=float, default=0.0, metavar="SECONDS")
    parser.add_argument("--quiet-seconds", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=100)
    args = parser.parse_args()
    result: dict = {"files": args.files, "latency_seconds": args.latency, "rounds": []}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vnafs-bench-")))
        server = stack.enter_context(radosgw(CAPACITY_BYTES))
        if args.latency:
            far = stack.enter_context(proxy(server.url, delay_seconds=args.latency))
            server = dataclasses.replace(server, url=far.url)
        for number in range(args.rounds):
            seed = args.seed + number
            source = folder / "plain"
            size = fill(source, seed, args.files)
            theirs = args.files / rclone(server, source)
            shutil.rmtree(source)
            mine = args.files / ours(server, folder / "ours", seed, args.files)
            row = {"rclone_files_per_second": round(theirs, 1), "vnafs_files_per_second": round(mine, 1)}
            result["rounds"].append({**row, "ratio": round(mine / theirs, 2), "bytes": size})
            print(json.dumps(result["rounds"][-1]), flush=True)
        if args.rounds > 1:
            for key in ("rclone_files_per_second", "vnafs_files_per_second", "ratio"):
                result[f"median_{key}"] = statistics.median(row[key] for row in result["rounds"])
        if args.sustained:
            result["sustained"] = sustained(server, folder / "sustained", args.sustained, args.quiet_seconds)
    print(json.dumps(result, indent=2))
    keep("drain", result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
