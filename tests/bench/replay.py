"""Start after a crash with the longest log there can be: both segments full, nothing of them folded.

    python -m tests.bench.replay [--segment-bytes N] [--files-before N] [--scattered] [--rounds 3] [--folder DIR]

A child makes and closes files, with the rows of `tests.bench.ten_million`, while its committer stands still, until
the log refuses; then it dies. With `--scattered` it changes one row of a random file each time instead, so that
nearly every change of the log is about another page. The time is that of opening the environment again: reading the
log, folding it in synced commits, and making it ready for new records.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

from tests.bench.report import keep
from tests.bench.ten_million import Namespace
from vnafs.domain.errors import NoSpace
from vnafs.domain.faults import NoFaults
from vnafs.index import keys
from vnafs.index.engines.lmdb import LmdbEngine, LogSettings


class StandStill(NoFaults):
    """The committer never gets past the beginning of a fold, once it is told to stop there."""

    def __init__(self) -> None:
        self.stands = False

    def reach(self, point: str) -> None:
        if point == "log.folding" and self.stands:
            threading.Event().wait()


def fill(folder: str, files_before: int, log: LogSettings, *, scattered: bool) -> None:
    faults, chance = StandStill(), random.Random(1)
    namespace = Namespace(folder, log=log, faults=faults)
    for first in range(0, files_before, 1024):
        namespace.grow(first, 1024)
    faults.stands = True
    try:
        for number in range(files_before, sys.maxsize):
            if scattered:
                namespace.touch(chance.randrange(files_before))
            else:
                namespace.make(number)
    except NoSpace:
        os._exit(0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--segment-bytes", type=int, default=LogSettings().segment_bytes)
    parser.add_argument(
        "--files-before", type=int, default=51_200, help="folded before, so that the tree has some depth"
    )
    parser.add_argument("--scattered", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", default=None)
    args = parser.parse_args()
    log = LogSettings(segment_bytes=args.segment_bytes, full_wait_seconds_max=10)
    took: list[float] = []
    replayed = 0
    with tempfile.TemporaryDirectory(prefix="vnafs-bench-", dir=args.folder) as text:
        full = Path(text) / "full"
        child = multiprocessing.get_context("fork").Process(
            target=fill, args=(str(full), args.files_before, log), kwargs={"scattered": args.scattered}
        )
        child.start()
        child.join()
        assert child.exitcode == 0
        for number in range(args.rounds):
            copy = Path(text) / str(number)
            shutil.copytree(full, copy)
            os.sync()
            mark = LmdbEngine(str(copy), read_only=True, tables=keys.NAMESPACE_TABLES)
            folded = mark.position
            mark.close()
            began = time.perf_counter()
            engine = LmdbEngine(str(copy), log=log, tables=keys.NAMESPACE_TABLES)
            took.append(time.perf_counter() - began)
            replayed = engine.position - folded
            engine.close()
            shutil.rmtree(copy)
            print(f"{took[-1]:.2f} s for {replayed} transactions", flush=True)
    result = {
        "segment_bytes": args.segment_bytes,
        "files_before": args.files_before,
        "scattered": args.scattered,
        "transactions": replayed,
        "median_seconds": round(statistics.median(took), 2),
        "seconds": [round(one, 2) for one in took],
    }
    print(json.dumps(result))
    keep("replay", result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
