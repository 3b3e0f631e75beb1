"""A share's speed beside the disk under it and beside other file systems in front of that disk.

    python -m tests.bench.share [--rounds 5] [--scale 1.0] [--disk ext4|xfs] [--places NAME,…] [--workloads NAME,…]

Everything is mounted at once on one fresh disk; each round runs each workload in every place, beginning with another
place each time, so that whatever else the machine does falls on all of them. Medians, and ratios of medians; a single
round gives no ratio. It needs root, loop devices and Debian's mergerfs, rclone, gocryptfs and bindfs, of which
`--places` can leave some out. What is missed is listed, and makes the exit code 1.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from tests.bench import workloads
from tests.bench.places import DURABLE, KERNEL, LOCAL, MAKERS, WRITTEN, Place, emptied, places, settle
from tests.bench.report import bars, keep
from tests.bench.workloads import Workload
from tests.servers.processes import servers
from tests.system.loopdisks import KINDS, a_disk

DISK_BYTES = 16 << 30
"""Sparse."""
TABLE_COLUMNS = 140
ROUNDS_MIN = 2
"""For a ratio."""
WORKLOADS = (
    Workload(workloads.images, "files/s", WRITTEN, (("mergerfs", 1.6), ("rclone", 2.5), (LOCAL, 0.35))),
    Workload(workloads.small_files, "files/s", WRITTEN, (("mergerfs", 1.2),)),
    Workload(workloads.processor, "µs a file", WRITTEN, most=250.0),
    Workload(workloads.stable_images, "files/s", DURABLE, ((LOCAL, 0.8),)),
    Workload(workloads.stream_write, "MB/s", WRITTEN, ((LOCAL, 0.9),)),
    Workload(workloads.stream_read, "MB/s", WRITTEN, ((LOCAL, 0.9),)),
    Workload(workloads.warm_read, "MB/s", WRITTEN, ((LOCAL, 0.7),)),
    Workload(workloads.random_read, "ms", WRITTEN, most=2.0),
    Workload(workloads.empty_files, "files/s", WRITTEN, (("mergerfs", 1.2),)),
    Workload(workloads.cold_stat, "files/s", WRITTEN, (("mergerfs", 1.5),)),
    Workload(workloads.smb_put, "files/s", WRITTEN, ((LOCAL, 0.8),)),
    Workload(workloads.smb_get, "files/s", WRITTEN, ((LOCAL, 0.8),)),
    Workload(workloads.nfs_put, "files/s", WRITTEN, ((LOCAL, 0.9),)),
)

Figures = dict[str, dict[str, list[float]]]
"""By workload and place, one for each round."""


def measure(found: Sequence[Place], chosen: Sequence[Workload], rounds: int, scale: float, console: Console) -> Figures:
    """Run everything so often, in turns."""
    figures: Figures = {work.title: {place.name: [] for place in found} for work in chosen}
    with Progress(console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("measuring", total=rounds * len(chosen) * len(found))
        for number in range(rounds):
            first = number % len(found)
            for work in chosen:
                for place in [*found[first:], *found[:first]]:
                    progress.update(task, description=f"{work.title}: {place.name}")
                    folder = emptied(place.folder / "bench")
                    settle()
                    figures[work.title][place.name].append(work.run(place, folder, scale))
                    shutil.rmtree(folder)
                    progress.advance(task)
    return figures


def judge(figures: Figures, chosen: Sequence[Workload]) -> list[dict[str, object]]:
    """What is wanted, what there is, and whether that is enough; nothing of a figure that was taken only once."""
    rows: list[dict[str, object]] = []
    for work in chosen:
        if any(len(values) < ROUNDS_MIN for values in figures[work.title].values()):
            continue
        medians = {name: statistics.median(values) for name, values in figures[work.title].items()}
        for place in (work.ours, KERNEL.get(work.ours, "")):
            if place not in medians:
                continue
            ours = medians[place]
            if work.most is not None:
                rows.append(
                    {"workload": work.title, "place": place, "at most": work.most, "is": round(ours, 2),
                     "holds": ours <= work.most}
                )  # fmt: skip
            for name, factor in work.wanted:
                if name in medians:
                    ratio = ours / medians[name]
                    rows.append(
                        {"workload": work.title, "place": place, "beside": name, "at least": factor,
                         "is": round(ratio, 2), "holds": ratio >= factor}
                    )  # fmt: skip
    return rows


def shown(figures: Figures, chosen: Sequence[Workload]) -> Table:
    """Medians of all places."""
    names = list(next(iter(figures.values())))
    table = Table("workload", "unit", *names)
    for work in chosen:
        medians = [statistics.median(figures[work.title][name]) for name in names]
        table.add_row(work.title, work.unit, *(f"{one:,.0f}" if one >= 100 else f"{one:.3g}" for one in medians))
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers of files and bytes")
    parser.add_argument("--disk", choices=KINDS, default="ext4")
    parser.add_argument("--places", default=",".join(MAKERS))
    parser.add_argument("--workloads", default=",".join(work.title for work in WORKLOADS))
    args = parser.parse_args()
    wanted = args.workloads.split(",")
    unknown = set(wanted) - {work.title for work in WORKLOADS} | set(args.places.split(",")) - MAKERS.keys()
    if unknown:
        parser.error(f"nobody knows {', '.join(sorted(unknown))}")
    chosen = [work for work in WORKLOADS if work.title in wanted]
    console = Console(width=None if sys.stdout.isatty() else TABLE_COLUMNS)
    with contextlib.ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vnafs-bench-")))
        disk = stack.enter_context(a_disk(home, args.disk, DISK_BYTES))
        started = stack.enter_context(servers(str(home)))
        shared = any(work.run in workloads.OVER_SMB for work in chosen)
        exported = any(work.run in workloads.OVER_NFS for work in chosen)
        found = stack.enter_context(places(disk, started, args.places.split(","), shared=shared, exported=exported))
        figures = measure(found, chosen, args.rounds, args.scale, console)
    rows = judge(figures, chosen)
    path = keep("share", {"disk": args.disk, "rounds": args.rounds, "figures": figures, "wanted": rows})
    medians = {work: {name: statistics.median(values) for name, values in of.items()} for work, of in figures.items()}
    bars(path.with_suffix(".svg"), {f"{work.title}, {work.unit}": medians[work.title] for work in chosen})
    console.print(shown(figures, chosen))
    for row in rows:
        print(json.dumps(row))
    return int(not all(row["holds"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
