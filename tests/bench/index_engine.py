"""What the index engine costs. Run it: `python tests/bench/index_engine.py [DIRECTORY]`; prints a table and JSON.

Every figure is the median of several rounds, in which all measures take turns, so that a noisy machine disturbs
all of them alike. DIRECTORY must be on the kind of disk that is asked about (default: the temporary directory).
"""

from __future__ import annotations

import contextlib
import itertools
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable

from vnafs.index.engines.lmdb import LmdbEngine, LogSettings

ROUNDS = 5
UNFOLDED = LogSettings(fold_age_seconds=3600, fold_bytes=1 << 30)
COMMITS = 3000
ROWS = 50_000

_numbers = itertools.count(1)


def create_file(engine: LmdbEngine) -> None:
    """Five rows as a file's creation writes them."""
    number = next(_numbers)
    eight = number.to_bytes(8, "big")
    with engine.write() as tx:
        tx.put(b"I" + eight, b"i" * 110)
        tx.put(b"E\0\0\0\0\0\0\0\1IM%010d.dcm" % number, b"e" * 9)
        tx.put(b"K\0\0\0\0\0\0\0\1" + eight, b"k" * 25)
        tx.put(b"Q\1" + eight + eight, b"\1")
        tx.put(b"F" + eight, b"f" * 30)


def seconds(work: Callable[[], object]) -> float:
    """How long it takes."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def in_threads(count: int, work: Callable[[], None]) -> None:
    """Run *work* in each of so many threads."""
    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def commit_us(directory: str, log: LogSettings) -> float:
    with contextlib.closing(LmdbEngine(directory, log=log)) as engine:
        return seconds(lambda: [create_file(engine) for _ in range(COMMITS)]) / COMMITS * 1e6


def synced_commits(directory: str, threads: int, log: LogSettings | None) -> float:
    each = 400 // threads

    def work() -> None:
        for _ in range(each):
            create_file(engine)
            engine.sync(engine.position)

    with contextlib.closing(LmdbEngine(directory, log=log)) as engine:
        return threads * each / seconds(lambda: in_threads(threads, work))


def reads(directory: str) -> dict[str, float]:
    found: dict[str, float] = {}
    keys = [b"I" + (number * 7919 % ROWS).to_bytes(8, "big") for number in range(20_000)]

    def get_each() -> None:
        for key in keys:
            with engine.read() as reader:
                reader.get(key)

    def get_in_one() -> None:
        with engine.read() as reader:
            for key in keys:
                reader.get(key)

    def scan() -> None:
        with engine.read() as reader:
            assert sum(1 for _ in reader.scan(b"I", b"J")) == ROWS

    with contextlib.closing(LmdbEngine(directory, log=UNFOLDED)) as engine:
        for first in range(0, ROWS, 1000):
            with engine.write() as tx:
                for number in range(first, first + 1000):
                    tx.put(b"I" + number.to_bytes(8, "big"), b"i" * 110)
        found["get in its own view, from memory (us)"] = seconds(get_each) / len(keys) * 1e6
        found["scan, from memory (rows/s)"] = ROWS / seconds(scan)
        found["fold (rows/s)"] = ROWS / seconds(engine.fold)
        found["get in its own view, from LMDB (us)"] = seconds(get_each) / len(keys) * 1e6
        found["get in one view, from LMDB (us)"] = seconds(get_in_one) / len(keys) * 1e6
        found["scan, from LMDB (rows/s)"] = ROWS / seconds(scan)
        with engine.write() as tx:
            for number in range(0, ROWS, 10):
                tx.put(b"I" + number.to_bytes(8, "big"), b"j" * 110)
        found["scan, a tenth in memory (rows/s)"] = ROWS / seconds(scan)
    return found


def one_round(base: str) -> dict[str, float]:
    def directory() -> str:
        return f"{base}/{next(_numbers)}"

    return {
        "commit of 5 rows, log (us)": commit_us(directory(), UNFOLDED),
        "commit of 5 rows, log, folding beside (us)": commit_us(directory(), LogSettings()),
        "synced commits, log, 1 thread (1/s)": synced_commits(directory(), 1, LogSettings()),
        "synced commits, log, 8 threads (1/s)": synced_commits(directory(), 8, LogSettings()),
        "synced commits, no log, 1 thread (1/s)": synced_commits(directory(), 1, None),
        "synced commits, no log, 8 threads (1/s)": synced_commits(directory(), 8, None),
        **reads(directory()),
    }


def main() -> None:
    rounds: list[dict[str, float]] = []
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as base:
            rounds.append(one_round(base))
    medians = {name: statistics.median(found[name] for found in rounds) for name in rounds[0]}
    for name, median in medians.items():
        each = [found[name] for found in rounds]
        sys.stdout.write(f"{name:48} {median:12.1f}   ({min(each):.1f} to {max(each):.1f})\n")
    sys.stdout.write(json.dumps({"rounds": ROUNDS, "median": medians}) + "\n")


if __name__ == "__main__":
    main()
