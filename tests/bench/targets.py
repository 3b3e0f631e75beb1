"""How fast targets take and give objects of the size of a pack, on this machine and over loopback.

    python -m tests.bench.targets [--kinds directory,radosgw,azurite,moto] [--runs 3] [--objects 16] [--json]

Medians over the runs. `rclone copy --transfers 8` of 512 KiB files to the same radosgw is there for orientation.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

from tests.servers.endpoints import AzureEndpoint, S3Endpoint
from tests.servers.shared import shared
from vnafs.domain.clock import SystemClock
from vnafs.domain.ids import ObjectName, Sha256, TargetName
from vnafs.targets.address import parse_address
from vnafs.targets.body import FileBody
from vnafs.targets.credentials import find_credentials
from vnafs.targets.limits import MEBIBYTE, Limits
from vnafs.targets.open import open_target
from vnafs.targets.port import Target
from vnafs.targets.verifying import verify

OBJECT_BYTES = 32 * MEBIBYTE
SMALL_BYTES = 512 * 1024
SMALL_FILES = 400
THREADS = (1, 4, 8)


@contextlib.contextmanager
def opened(kind: str) -> Iterator[tuple[Target, S3Endpoint | AzureEndpoint | None]]:
    with contextlib.ExitStack() as stack:
        server = None
        if kind == "directory":
            root = stack.enter_context(tempfile.TemporaryDirectory(prefix="vnafs-bench-", dir="."))
            url, environ = f"file://{os.path.abspath(root)}/target", {}
        else:
            server = stack.enter_context(shared(kind))
            place = server.make_container() if isinstance(server, AzureEndpoint) else server.make_bucket()
            url, environ = server.target_url(place, f"bench{os.urandom(4).hex()}"), server.environ()
        address = parse_address(url)
        target = open_target(
            TargetName(kind), address, find_credentials(address, environ=environ), SystemClock(), Limits(requests_max=8)
        )
        stack.callback(target.close)
        yield target, server


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(target: Target, body: FileBody, threads: int, objects: int) -> dict[str, float]:
    """Seconds for each kind of work on *objects* objects."""
    names = [ObjectName(f"packs/{os.urandom(8).hex()}") for _ in range(objects)]
    known = target.probe()
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:

        def over(work: Callable[[ObjectName], object]) -> float:
            return timed(lambda: list(pool.map(work, names)))

        found = {
            "put": over(lambda name: target.put(name, body)),
            "get": over(lambda name: sum(len(block) for block in target.get(name))),
            "verify": over(lambda name: verify(target, name, body.size_bytes, body.sha256, known)),
        }
        over(target.delete)
    return found


def rclone(server: S3Endpoint) -> float:
    """Seconds for SMALL_FILES files."""
    with tempfile.TemporaryDirectory(prefix="vnafs-bench-") as root:
        for number in range(SMALL_FILES):
            with open(os.path.join(root, f"{number:04d}"), "wb") as file:
                file.write(os.urandom(SMALL_BYTES))
        options = {
            "type": "s3",
            "provider": "Ceph",
            "endpoint": server.url,
            "access-key-id": server.access_key_id,
            "secret-access-key": server.secret_access_key,
        }
        environ = {f"RCLONE_CONFIG_BENCH_{key.replace('-', '_').upper()}": value for key, value in options.items()}
        command = ["rclone", "copy", "--transfers", "8", "--config", "/dev/null", root, f"bench:{server.make_bucket()}"]
        environ |= {key: value for key, value in os.environ.items() if not key.startswith("AWS_")}
        return timed(lambda: subprocess.run(command, env=environ, check=True, capture_output=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", default="directory,radosgw,azurite,moto")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--objects", type=int, default=16)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows: list[dict[str, object]] = []
    with tempfile.NamedTemporaryFile(prefix="vnafs-bench-") as file:
        file.write(os.urandom(OBJECT_BYTES))
        file.flush()
        with open(file.name, "rb") as source:
            body = FileBody(file.name, OBJECT_BYTES, Sha256(hashlib.file_digest(source, "sha256").digest()))
        for kind in arguments.kinds.split(","):
            with opened(kind) as (target, server):
                for threads in THREADS:
                    runs = [measure(target, body, threads, arguments.objects) for _ in range(arguments.runs)]
                    for work in runs[0]:
                        seconds = statistics.median(run[work] for run in runs)
                        rows.append(row(kind, work, threads, arguments.objects, OBJECT_BYTES, seconds))
                if kind == "radosgw" and isinstance(server, S3Endpoint) and shutil.which("rclone"):
                    seconds = statistics.median(rclone(server) for _ in range(arguments.runs))
                    rows.append(row(kind, "rclone", 8, SMALL_FILES, SMALL_BYTES, seconds))
    if arguments.json:
        sys.stdout.write(json.dumps(rows, indent=1) + "\n")


def row(kind: str, work: str, threads: int, objects: int, size_bytes: int, seconds: float) -> dict[str, object]:
    found: dict[str, object] = {
        "kind": kind,
        "work": work,
        "threads": threads,
        "megabytes_per_second": round(objects * size_bytes / seconds / 1e6, 1),
        "objects_per_second": round(objects / seconds, 2),
    }
    sys.stderr.write("  ".join(f"{value!s:>10}" for value in found.values()) + "\n")
    return found


if __name__ == "__main__":
    main()
