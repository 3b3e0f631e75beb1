"""Many files to two object servers and back through eviction, every hash compared.

    python -m tests.bench.roundtrip [--files 20000] [--seed 1]

Real DICOM files, each many times with corrected headers, files that are none, and synthetic slices, to Ceph's gateway
and Azurite at once; then everything is evicted and read back. Exits with 1 when one byte differs.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import hashlib
import itertools
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests import studies
from tests.bench.report import keep
from tests.servers.endpoints import AzureEndpoint, S3Endpoint
from tests.servers.shared import shared
from tests.system.archives import an_archive

SETTINGS = """
[file_system]
quiet_seconds = 1.0

[spool]
high_watermark_percent = 99.0
low_watermark_percent = 98.0

[packs]
age_seconds_max = 5.0
"""
IN_A_FOLDER = 500


def contents(count: int, seed: int) -> Iterator[bytes]:
    """As mixed as an export: a tenth are whole slices, most are real files with another header, some are no DICOM."""
    dice = random.Random(seed)
    real = [data for data in map(read, studies.real_dicom_files()) if len(data) < 400_000]
    others = [item.data for item in studies.other_files(seed) if len(item.data) < 400_000]
    slices = itertools.chain.from_iterable(studies.synthetic_ct_study(seed + n, 200) for n in itertools.count())
    for number in range(count):
        kind = dice.random()
        if kind < 0.1:
            yield next(slices).data
        elif kind < 0.8:
            yield dice.choice(real) + number.to_bytes(8, "big")  # trailing bytes: no two files are equal
        elif kind < 0.9:
            yield dice.choice(others) + dice.randbytes(dice.randrange(5000))
        else:
            yield dice.choice(real)  # equal to others: costs a row


def read(path: str) -> bytes:
    return Path(path).read_bytes()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    result: dict = {"files": args.files, "seed": args.seed}
    with (
        tempfile.TemporaryDirectory(prefix="vnafs-bench-") as text,
        shared("radosgw") as s3,
        shared("azurite") as azure,
    ):
        assert isinstance(s3, S3Endpoint)
        assert isinstance(azure, AzureEndpoint)
        targets = {"ceph": s3.target_url(s3.make_bucket()), "azure": azure.target_url(azure.make_container())}
        environ = {**s3.environ(), **azure.environ()}
        with an_archive(Path(text) / "a", targets, "--ack", "written", environ=environ, settings=SETTINGS) as archive:
            began = time.monotonic()
            wanted: dict[Path, str] = {}
            total = 0
            for number, data in enumerate(contents(args.files, args.seed)):
                folder = archive.share / f"{number // IN_A_FOLDER:05d}"
                if number % IN_A_FOLDER == 0:
                    folder.mkdir()
                path = folder / f"{number:08d}.dcm"
                path.write_bytes(data)
                wanted[path] = hashlib.sha256(data).hexdigest()
                total += len(data)
            result |= {"bytes": total, "write_seconds": round(time.monotonic() - began, 1)}
            archive.wait(copies=2, seconds=3600)
            result["two_copies_after_seconds"] = round(time.monotonic() - began, 1)
            began = time.monotonic()
            archive.vna("evict", archive.share)
            result["evict_seconds"] = round(time.monotonic() - began, 1)
            local = sum(1 for path in wanted if path.stat().st_blocks)
            began = time.monotonic()
            with concurrent.futures.ThreadPoolExecutor(4) as pool:
                found = list(pool.map(lambda path: hashlib.sha256(path.read_bytes()).hexdigest(), wanted))
            result["read_back_seconds"] = round(time.monotonic() - began, 1)
            result["still_local_after_evict"] = local
            result["different"] = sum(a != b for a, b in zip(found, wanted.values(), strict=True))
    print(json.dumps(result, indent=2))
    keep("roundtrip", result)
    return 1 if result["different"] or result["still_local_after_evict"] else 0


if __name__ == "__main__":
    sys.exit(main())
