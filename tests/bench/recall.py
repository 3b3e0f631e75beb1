"""Reading a study back from an S3 server that is far away, in turns with `rclone mount` on the same server.

    python -m tests.bench.recall [--slices 500] [--rounds 3] [--latency 0.1] [--large-bytes 1073741824] [--tiles 20]

A proxy keeps every request for so long before it forwards it. Each round: a fresh study of 512 KiB slices, stored by
vnafs and by `rclone copy`; then all of it is read, one file after the other as a viewer's import does, from our
mount with nothing local left, and from a fresh `rclone mount`. Then single tiles of 64 KiB at random places of a large
stub. Medians and ratios; files are compared.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests import studies
from tests.bench.drain import SETTINGS, empty
from tests.bench.report import keep
from tests.servers.endpoints import S3Endpoint
from tests.servers.proxy import Proxy, proxy
from tests.servers.radosgw import radosgw
from tests.system.archives import an_archive, until

RATIO_MIN = 5.0
TILE_SECONDS_MAX = 0.5
"""And the latency."""
TILE_BYTES = 64 * 1024
BLOCK_BYTES = 16 * 1024 * 1024


def rclone_environ(url: str, server: S3Endpoint) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "HOME": os.environ.get("HOME", "/"),
        "RCLONE_CONFIG": os.devnull,
        "RCLONE_CONFIG_S_TYPE": "s3",
        "RCLONE_CONFIG_S_PROVIDER": "Ceph",
        "RCLONE_CONFIG_S_ENDPOINT": url,
        "RCLONE_CONFIG_S_ACCESS_KEY_ID": server.access_key_id,
        "RCLONE_CONFIG_S_SECRET_ACCESS_KEY": server.secret_access_key,
    }


@contextlib.contextmanager
def rclone_mount(far: Proxy, server: S3Endpoint, bucket: str, place: Path) -> Iterator[None]:
    place.mkdir()
    words = ["rclone", "mount", f"s:{bucket}", str(place), "--read-only"]
    process = subprocess.Popen(words, env=rclone_environ(far.url, server))
    try:
        until(lambda: os.path.ismount(place), "rclone mounts", 30)
        yield
    finally:
        subprocess.run(["umount", "-l", str(place)], check=False)
        process.terminate()
        process.wait(30)


def read_all(folder: Path, expected: dict[str, bytes]) -> float:
    """Seconds to read every file, one after the other."""
    began = time.monotonic()
    found = {name: (folder / name).read_bytes() for name in expected}
    took = time.monotonic() - began
    assert found == expected
    return took


def one_round(server: S3Endpoint, far: Proxy, folder: Path, slices: int, seed: int) -> dict:
    study = {f"{n:05d}.dcm": item.data for n, item in enumerate(studies.synthetic_ct_study(seed, slices))}
    plain = folder / "plain"
    plain.mkdir(parents=True)
    for name, data in study.items():
        (plain / name).write_bytes(data)
    bucket = server.make_bucket()
    copy = ["rclone", "copy", "--transfers", "8", str(plain), f"s:{bucket}"]
    subprocess.run(copy, env=rclone_environ(server.url, server), check=True)
    with rclone_mount(far, server, bucket, folder / "rclone"):
        theirs = read_all(folder / "rclone", study)
    empty(server, bucket)
    bucket = server.make_bucket()
    (folder / "ours").mkdir()
    targets = {"far": server.target_url(bucket, url=far.url)}
    settings = SETTINGS.format(quiet=0.1)
    with an_archive(folder / "ours", targets, environ=server.environ(), settings=settings) as archive:
        place = archive.share / "study"
        place.mkdir()
        for name, data in study.items():
            (place / name).write_bytes(data)
        archive.wait(seconds=600)
        archive.vna("evict", archive.share)
        requests = len(far.requests)
        mine = read_all(place, study)
        requests = len(far.requests) - requests
    empty(server, bucket)
    return {"ours_seconds": mine, "rclone_seconds": theirs, "our_requests": requests, "ratio": theirs / mine}


def tiles(server: S3Endpoint, far: Proxy, folder: Path, size_bytes: int, count: int, seed: int) -> list[float]:
    """Seconds to read one tile, for each of many random ones of a large stub."""
    dice = random.Random(seed)
    bucket, found = server.make_bucket(), []
    (folder / "large").mkdir()
    targets = {"far": server.target_url(bucket, url=far.url)}
    settings = SETTINGS.format(quiet=0.5)
    with an_archive(folder / "large", targets, environ=server.environ(), settings=settings) as archive:
        path, block = archive.share / "slide.svs", dice.randbytes(BLOCK_BYTES)
        with path.open("wb") as file:
            for number in range(size_bytes // BLOCK_BYTES):
                file.write(number.to_bytes(8, "little") + block[8:])
        archive.wait(seconds=1200)
        archive.vna("evict", path)
        for _ in range(count):
            offset = dice.randrange(size_bytes - TILE_BYTES) & ~4095
            began = time.monotonic()
            with path.open("rb", buffering=0) as file:
                data = os.pread(file.fileno(), TILE_BYTES, offset)
            found.append(time.monotonic() - began)
            within = offset % BLOCK_BYTES
            expected = (block[within:] + block)[:TILE_BYTES]
            assert (
                within < 8
                or len(data) != TILE_BYTES
                or data[: BLOCK_BYTES - within] == expected[: BLOCK_BYTES - within]
            )
    empty(server, bucket)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--latency", type=float, default=0.1, metavar="SECONDS")
    parser.add_argument("--large-bytes", type=int, default=1 << 30)
    parser.add_argument("--tiles", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    result: dict = {"slices": args.slices, "latency_seconds": args.latency, "rounds": []}
    with tempfile.TemporaryDirectory(prefix="vnafs-bench-") as text, radosgw() as server:
        folder = Path(text)
        with proxy(server.url, delay_seconds=args.latency) as far:
            for number in range(args.rounds):
                found = one_round(server, far, folder / str(number), args.slices, args.seed + number)
                result["rounds"].append({name: round(value, 2) for name, value in found.items()})
                print(json.dumps(result["rounds"][-1]), flush=True)
            if args.tiles:
                seconds = sorted(tiles(server, far, folder, args.large_bytes, args.tiles, args.seed))
                result["tile_seconds"] = {"median": round(statistics.median(seconds), 3), "most": round(seconds[-1], 3)}
    ratio = statistics.median(row["ratio"] for row in result["rounds"])
    result["ratio_median"] = round(ratio, 2)
    slow_tile = bool(args.tiles) and result["tile_seconds"]["median"] > TILE_SECONDS_MAX + args.latency
    result["missed"] = [name for name, is_so in (("ratio", ratio < RATIO_MIN), ("tile", slow_tile)) if is_so]
    keep("recall", result)
    print(json.dumps(result, indent=2))
    return 1 if result["missed"] else 0


if __name__ == "__main__":
    sys.exit(main())
