"""Everything is destroyed but one bucket and the recovery key: how long until the first file is read, and all of them.

    python -m tests.bench.worst_day [--files 1000] [--seed 1]

An encrypted archive on Ceph's gateway, with files as mixed as in `tests.bench.roundtrip`, loses its whole folder. Then
`vna restore` with the recovery key makes it anew elsewhere, as on a new machine, `vna serve` serves it, and one file
after the other is read. Exits with 1 when one byte or inode number differs, or the first file took more than 2 minutes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.bench.report import keep
from tests.bench.roundtrip import contents
from tests.servers.endpoints import S3Endpoint
from tests.servers.shared import shared
from tests.system.archives import Archive, an_archive, until
from tests.system.test_restore import SETTINGS, everything_sent

FIRST_SECONDS_MAX = 120.0


def filled(folder: Path, key: Path, target: str, s3: S3Endpoint, files: int, seed: int) -> dict[str, tuple[int, str]]:
    """Live and die; inode number and SHA-256 of each file, by its path below the repository."""
    words, wanted = ("--encryption", "on", "--recovery-key", str(key)), dict[str, tuple[int, str]]()
    with an_archive(folder, {"ceph": target}, *words, environ=s3.environ(), settings=SETTINGS) as archive:
        for number, data in enumerate(contents(files, seed)):
            path = archive.share / f"{number % 10}" / f"{number:06d}.dcm"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)
            wanted[str(path.relative_to(archive.share))] = (path.stat().st_ino, hashlib.sha256(data).hexdigest())
        archive.wait(seconds=1800)
        until(lambda: everything_sent(archive), "manifests sent", 120)
    shutil.rmtree(folder)
    return wanted


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vnafs-bench-") as text, shared("radosgw") as s3:
        assert isinstance(s3, S3Endpoint)
        key, before, after = (Path(text) / name for name in ("key", "before", "after"))
        before.mkdir()
        target = s3.target_url(s3.make_bucket())
        wanted = filled(before, key, target, s3, args.files, args.seed)
        after.mkdir()
        archive = Archive(after, {}, s3.environ(), SETTINGS)
        began, first = time.monotonic(), 0.0
        words = ("restore", "--from", target, "--into", archive.archive, "--mount", archive.mount)
        archive.vna(*words, "--no-serve", "--key", key)
        archive.start("serve")
        different = 0
        try:
            for name, (inode, sha256) in wanted.items():
                path = archive.share / name
                different += (path.stat().st_ino, hashlib.sha256(path.read_bytes()).hexdigest()) != (inode, sha256)
                first = first or time.monotonic() - began
            every = time.monotonic() - began
        finally:
            archive.stop()
    result = {
        "files": args.files, "seed": args.seed, "different": different,
        "first_file_seconds": round(first, 1), "every_file_seconds": round(every, 1),
    }  # fmt: skip
    print(json.dumps(result))
    keep("worst_day", result)
    return 1 if different or first > FIRST_SECONDS_MAX else 0


if __name__ == "__main__":
    sys.exit(main())
