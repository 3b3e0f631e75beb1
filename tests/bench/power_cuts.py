"""Power cuts of archives at `durable` under mixed load, on ext4 and XFS, at any write that reached the disk.

    python -m tests.bench.power_cuts [--cuts 520] [--recordings 8] [--seconds 6] [--seed 1]
    python -m tests.bench.power_cuts --again FOLDER --position P --cut-seed S

Each recording is an archive on a disk of which every write and flush is recorded, with local programs, an NFS client
that never calls fsync and tiering at work. Then the power is cut at points drawn by lot: the disk has everything
that was flushed, any subset of what was written since, one write perhaps in part. The file system is mounted, the
archive is started, and must have all that was answered before the cut. Exits with 1 when it has not, and leaves the
recording; the second form looks at one cut of it again.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import pickle
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.bench.report import keep
from tests.cuts.cutting import PowerCutFailed, chosen, cut_all
from tests.cuts.disks import Cut
from tests.cuts.recordings import Recording, record

PLANS = (("ext4", "kernel"), ("xfs", "kernel"), ("ext4", "pyfuse3"), ("xfs", "kernel"), ("ext4", "kernel"))
PLANS += (("xfs", "pyfuse3"),)
_CLONE_NEWNS, _MS_REC, _MS_PRIVATE = 0x00020000, 0x4000, 1 << 18
MEMORY = "/dev/shm"
KEPT = "failed"
"""A file in the folder of a run whose recording is to be looked at."""


def isolate() -> None:
    """Mounts are this process's own: a namespace that somebody else makes meanwhile would keep them busy."""
    libc = ctypes.CDLL(None, use_errno=True)
    if (
        libc.unshare(_CLONE_NEWNS) != 0
        or libc.mount(None, b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None) != 0
    ):
        raise OSError(ctypes.get_errno(), "a namespace for mounts (this needs root)")


def again(args: argparse.Namespace) -> int:
    recording: Recording = pickle.loads((args.again / "recording").read_bytes())
    for mounted_each in (1 << 30, 1):
        cut_all(recording, [Cut(args.position, args.cut_seed)], mounted_each=mounted_each)
    print("all is well")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cuts", type=int, default=520)
    parser.add_argument("--recordings", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--mounted-each", type=int, default=25)
    parser.add_argument("--again", type=Path)
    parser.add_argument("--position", type=int)
    parser.add_argument("--cut-seed", type=int)
    args = parser.parse_args()
    isolate()
    if args.again:
        return again(args)
    folder = Path(tempfile.mkdtemp(prefix="vnafs-cuts-", dir=MEMORY if os.path.isdir(MEMORY) else None))
    try:
        return cut_recordings(folder, args)
    finally:
        if not (folder / KEPT).exists():
            shutil.rmtree(folder)


def cut_recordings(folder: Path, args: argparse.Namespace) -> int:
    began, totals = time.monotonic(), {"cuts": 0, "mounted": 0, "replicated": 0, "deeds": 0, "writes and flushes": 0}
    for number in range(args.recordings):
        kind, engine = PLANS[number % len(PLANS)]
        seed, home = args.seed * 1000 + number, folder / str(number)
        recording = record(home, folder / "place", kind, engine, seed, args.seconds)
        (home / "recording").write_bytes(pickle.dumps(recording))
        cuts = chosen(recording, -(-args.cuts // args.recordings), random.Random(seed))
        try:
            counts = cut_all(recording, cuts, mounted_each=args.mounted_each)
        except PowerCutFailed as failed:
            (folder / KEPT).touch()
            look = f"--again {home} --position {failed.cut.position} --cut-seed {failed.cut.seed}"
            print(f"FAILED, seed {args.seed}, recording {number}: {failed}", flush=True)
            print(f"python -m tests.bench.power_cuts {look}", flush=True)
            return 1
        totals = {name: totals[name] + counts.get(name, 0) for name in totals}
        totals["deeds"] += sum(len(deeds) for deeds in recording.clients.values())
        totals["writes and flushes"] += recording.last - recording.first
        print(f"{kind}, {engine}, seed {seed}: {counts}, {time.monotonic() - began:.0f} s", flush=True)
        shutil.rmtree(home)
    print(f"all acknowledged is there: {totals}", flush=True)
    keep("power-cuts", {"seed": args.seed, **totals})
    return 0


if __name__ == "__main__":
    sys.exit(main())
