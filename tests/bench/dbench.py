"""dbench beside the disk: its load on the mount itself, and over SMB.

    python -m tests.bench.dbench [--rounds 5] [--seconds 10] [--clients 4] [--ack written|durable]

Debian's dbench knows only local directories, and Linux's SMB client is a module that not every kernel has. So over SMB
the same load file (/usr/share/dbench/client.txt) is played by smbtorture's `bench.nbench`, dbench's sibling, which asks
one smbd for two shares that differ only in where they are. Places take turns; medians, and their ratios, of which there
are none of a single round. Any error ends it.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.bench.report import keep
from tests.servers.processes import need
from tests.servers.smbtorture import Share, pairs

OLD_CLIENT, OLD_SERVER = "    client min protocol = NT1\n", "    server min protocol = NT1\n"
"""That test speaks nothing newer than SMB1, which no share of ours is otherwise served by."""
LOAD = "/usr/share/dbench/client.txt"
NO_SEMAPHORE = "failed to create barrier semaphore"
"""What dbench says where there is no System V IPC; it starts its clients another way then."""
ROUNDS_MIN = 2
_THROUGHPUT = re.compile(r"^Throughput ([0-9.]+) MB/sec", re.MULTILINE)
_TROUBLE = re.compile(r"NT_STATUS_\w+|failed|error", re.IGNORECASE)


def over_smb(share: Share, clients: int, seconds: int) -> float:
    """MB/s. Raises AssertionError with what was said when anything failed."""
    words = [*share.words("bench.nbench", OLD_CLIENT), "--loadfile", LOAD]
    return _throughput([*words, "--timelimit", str(seconds), "--num-progs", str(clients)], seconds)


def locally(share: Share, clients: int, seconds: int) -> float:
    """The same without a server between."""
    folder = share.folder / "local"
    folder.mkdir()
    return _throughput(["dbench", "-c", LOAD, "-D", str(folder), "-t", str(seconds), str(clients)], seconds)


def _throughput(words: list[str], seconds: int) -> float:
    done = subprocess.run(words, capture_output=True, text=True, timeout=20 * seconds + 120, check=False)
    said = done.stdout + done.stderr
    found = _THROUGHPUT.search(said)
    assert done.returncode == 0, said[-3000:]
    assert found is not None, said[-3000:]
    assert not _TROUBLE.search(said.replace(NO_SEMAPHORE, "")), said[-3000:]
    return float(found[1])


WAYS: dict[str, Callable[[Share, int, int], float]] = {"local": locally, "smb": over_smb}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--ack", choices=("written", "durable"), default="written")
    parser.add_argument("--engine", choices=("kernel", "pyfuse3"), default="kernel")
    args = parser.parse_args()
    need(("dbench", "smbtorture"), "dbench samba-testsuite")
    figures: dict[str, dict[str, list[float]]] = {way: {"ours": [], "disk": []} for way in WAYS}
    with tempfile.TemporaryDirectory(prefix="dbench") as folder:
        Path(folder).chmod(0o755)
        with pairs(Path(folder), args.engine, ack=args.ack, settings=OLD_SERVER) as (_, [pair]):
            places = {"ours": pair.ours, "disk": pair.disk}
            for turn in range(args.rounds):
                for way, run in WAYS.items():
                    for name in list(places) if turn % 2 else reversed(places):
                        places[name].empty()
                        figures[way][name].append(run(places[name], args.clients, args.seconds))
                print(json.dumps(figures), flush=True)
    result: dict[str, object] = {"ack": args.ack, "engine": args.engine, "clients": args.clients, "figures": figures}
    for way, found in figures.items():
        medians = {name: statistics.median(values) for name, values in found.items()}
        result[f"{way} MB/s"] = medians
        if args.rounds >= ROUNDS_MIN:
            result[f"{way} ratio"] = round(medians["ours"] / medians["disk"], 2)
    print(json.dumps(result, indent=2))
    keep("dbench", result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
