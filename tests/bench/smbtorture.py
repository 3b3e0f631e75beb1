"""All of smbtorture's smb2 suites, on a share of ours beside the same share on the disk under it.

    python -m tests.bench.smbtorture [--engine kernel|pyfuse3] [--ack written|durable] [--suites NAME,…] [--pairs 3]
        [--again 5]

Each test runs on both at once, from an empty folder. One that passes on the disk and not on ours is run again, on one
after the other: it is ours unless chance explains it, which is so if the disk fails it too, or we pass it more often
than not. Exit code 1 if any is ours that is not among those we know of.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import queue
import sys
import tempfile
from collections import Counter
from pathlib import Path

from rich.console import Console

from tests.bench.report import keep
from tests.servers.smbtorture import SUCCESS, Outcome, Pair, known_tests, pairs

SUITE = "smb2"
_TIMES = "P-26: a row holds times up to 2262"
KNOWN = {"smb2.timestamps.time_t_10000000000": _TIMES, "smb2.timestamps.time_t_15032385535": _TIMES}
"""What passes on the disk alone, and why."""
TOLD_EACH = 50
PATIENT_SECONDS_MAX = 600.0
"""For a test that is run again by itself: that one takes longer is no failure."""
LEFT_OUT = (
    *("smb2.bench.", "smb2.hold-oplock", "smb2.hold-sharemode", "smb2.check-sharemode"),
    *("smb2.aio_delay", "smb2.async_dosmode", "smb2.compound_async.", "smb2.durable-v2-delay."),
    *("smb2.kernel-oplocks.", "smb2.change_notify_disabled"),
)
"""They measure, or wait for somebody, or for a server that was made so on purpose: slow, or with kernel oplocks."""


def both(pair: Pair, test: str) -> tuple[Outcome, Outcome]:
    """Ours and the disk's."""
    with concurrent.futures.ThreadPoolExecutor(1) as beside:
        disk = beside.submit(pair.disk.torture, test)
        return pair.ours.torture(test), disk.result()


def is_ours(pair: Pair, test: str, again: int) -> bool:
    """Whether the disk passes a test each time and we do not."""
    failed = 0
    for passed in range(again):
        if pair.disk.torture(test, PATIENT_SECONDS_MAX).result != SUCCESS:
            return False
        failed += pair.ours.torture(test, PATIENT_SECONDS_MAX).result != SUCCESS
        if max(failed, passed + 1 - failed) > again // 2:
            break
    return failed > again // 2


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=("kernel", "pyfuse3"), default="kernel")
    parser.add_argument("--suites", default=SUITE)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--again", type=int, default=5)
    parser.add_argument("--ack", choices=("written", "durable"), default="written")
    args = parser.parse_args()
    chosen = [test for suite in args.suites.split(",") for test in known_tests(suite) if not test.startswith(LEFT_OUT)]
    console = Console(highlight=False, soft_wrap=True)
    found: dict[str, tuple[Outcome, Outcome]] = {}
    with tempfile.TemporaryDirectory(prefix="torture") as folder:
        Path(folder).chmod(0o755)
        with pairs(Path(folder), args.engine, args.pairs, ack=args.ack) as (_, free):
            turns: queue.SimpleQueue[Pair] = queue.SimpleQueue()
            for pair in free:
                turns.put(pair)

            def run(test: str) -> None:
                pair = turns.get()
                try:
                    ours, disk = found[test] = both(pair, test)
                finally:
                    turns.put(pair)
                if len(found) % TOLD_EACH == 0:
                    console.print(f"{len(found)} of {len(chosen)}")
                if disk.result == SUCCESS != ours.result:
                    console.print(f"{test}: {ours.result} on ours alone")

            with concurrent.futures.ThreadPoolExecutor(args.pairs) as pool:
                list(pool.map(run, chosen))
            worse = [test for test, (ours, disk) in found.items() if disk.result == SUCCESS != ours.result]
            by_us = [test for test in worse if is_ours(free[0], test, args.again)]
    counts = {
        "ours": Counter(ours.result for ours, _ in found.values()),
        "disk": Counter(disk.result for _, disk in found.values()),
    }
    result = {
        "engine": args.engine,
        "ack": args.ack,
        "counts": counts,
        "passed on the disk alone": by_us,
        "by chance": sorted(set(worse) - set(by_us)),
        "passed on ours alone": [test for test, (ours, disk) in found.items() if ours.result == SUCCESS != disk.result],
    }
    console.print(json.dumps(result, indent=2))
    results = {test: {"ours": ours.result, "disk": disk.result} for test, (ours, disk) in sorted(found.items())}
    keep("smbtorture", {**result, "results": results, "said": {test: found[test][0].said[-5000:] for test in worse}})
    return int(not KNOWN.keys() >= set(by_us))


if __name__ == "__main__":
    sys.exit(main())
