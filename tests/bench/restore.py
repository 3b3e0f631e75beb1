"""Rebuilding an index from manifests on a directory: seconds, memory and bytes of manifest, as a curve.

    python -m tests.bench.restore [--files 1000000] [--points 4] [--folder DIR]

The rows are those of files that have lived and are on one target, a header and pixels each, 64 to a pack. Packs are
empty objects with the right names: reading bytes is another bench. What is measured is what `vna restore` does before
it serves: manifests in, both environments out; and what a snapshot of them costs the machine that is restored later.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.bench.million import IN_A_PACK, anonymous_bytes, rows
from tests.bench.report import keep
from tests.bench.ten_million import IN_A_FOLDER, REPOSITORY, folder_of, inode_of, name_of, seal_of
from vnafs import store as archive_store
from vnafs.domain.clock import SystemClock
from vnafs.domain.faults import NoFaults
from vnafs.domain.files import FileState
from vnafs.domain.ids import ROOT, Inode, TargetName, Version, pack_object_name
from vnafs.domain.repositories import Acknowledgement, Repository
from vnafs.index import entries, inodes, keys, meta, packs, repositories
from vnafs.index.engine import Transaction
from vnafs.index.engines.lmdb import LmdbEngine
from vnafs.index.entries import COOKIE_FIRST, Entry, kind_of
from vnafs.index.inodes import NOT_QUEUED, InodeRow
from vnafs.targets.directory import DirectoryTarget
from vnafs.upkeep.ledger import Ledger
from vnafs.upkeep.record import Record
from vnafs.upkeep.restore import rebuild

SECONDS_MAX_A_MILLION = 60.0
FILES_AT_ONCE = 6400


def directory(tx: Transaction, parent: Inode, number: Inode, name: bytes) -> None:
    inodes.put(tx, number, _row(stat.S_IFDIR | 0o755, parent))
    entries.put(tx, parent, name, Entry(number, COOKIE_FIRST + number, kind_of(stat.S_IFDIR)))


def _row(mode: int, parent: Inode) -> InodeRow:
    now = time.time_ns()
    return InodeRow(
        mode, 0, 0, 2 if stat.S_ISDIR(mode) else 1, 530_000, 0, now, now, now, now, REPOSITORY, parent, 0, Version(1),
        FileState.OPEN, NOT_QUEUED,
    )  # fmt: skip


def fill(namespace: LmdbEngine, store: LmdbEngine, count: int) -> None:
    """An archive's rows after so many files were copied to one target."""
    with namespace.write() as tx:
        meta.set_bytes(tx, meta.ARCHIVE_ID, bytes(16))
        inodes.put(tx, ROOT, _row(stat.S_IFDIR | 0o755, ROOT))
        directory(tx, ROOT, Inode(REPOSITORY), b"archive")
        repositories.put(tx, Repository(REPOSITORY, "archive", Acknowledgement.DURABLE, 1, 0))
    for first in range(0, count, FILES_AT_ONCE):
        made = range(first, min(first + FILES_AT_ONCE, count))
        with namespace.write() as tx:
            for number in made:
                folder = folder_of(number)
                if number % IN_A_FOLDER == 0:
                    directory(tx, Inode(REPOSITORY), folder, b"study%08d" % number)
                inode, seal = inode_of(number), seal_of(number)
                row = _row(stat.S_IFREG | 0o644, folder)._replace(state=FileState.REPLICATED, seal=seal)
                inodes.put(tx, inode, row)
                entries.put(tx, folder, name_of(number), Entry(inode, COOKIE_FIRST + number, kind_of(stat.S_IFREG)))
        with store.write() as tx:
            for start in range(made.start, made.stop, IN_A_PACK):
                pack = start // IN_A_PACK + 1
                files = [(inode_of(n), seal_of(n)) for n in range(start, min(start + IN_A_PACK, made.stop))]
                rows(tx, REPOSITORY, pack, files, verified=())


def point(folder: Path, count: int) -> dict:
    """One size, in a process of its own so that its memory is its own."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.restore", "--one", str(count), "--folder", str(folder)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def one(folder: Path, count: int) -> dict:
    old, new = folder / "old", folder / "new"
    archive_store.make(str(old))
    namespace = LmdbEngine(str(old / "rows-n"), tables=keys.NAMESPACE_TABLES)
    store = LmdbEngine(str(old / "rows-s"), tables=keys.STORE_TABLES)
    fill(namespace, store, count)
    target = folder / "target"
    target.mkdir()
    began = time.monotonic()
    record = Record(
        Ledger(str(target / "manifests"), store), store, namespace, archive=bytes(16), fold=lambda: None,
        configuration=lambda: "version = 1\n",
        kept=lambda _: True, clock=SystemClock(), faults=NoFaults(),
    )  # fmt: skip
    record.snapshot()
    snapshot_seconds = time.monotonic() - began
    with store.read() as reader:
        for pack in packs.every(reader):
            place = target / pack_object_name(pack.id)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.touch()
    namespace.close()
    store.close()
    manifest_bytes = sum(path.stat().st_size for path in (target / "manifests").rglob("*") if path.is_file())
    source = DirectoryTarget(TargetName("source"), str(target), SystemClock())
    source.probe()
    before = anonymous_bytes(os.getpid())
    namespace, store = archive_store.open_to_fill(str(new))
    began = time.monotonic()
    cpu = time.process_time()
    report = rebuild(
        source, f"file://{target}", namespace, store, name=lambda _: TargetName("t"), clock=SystemClock(),
        progress=lambda *_: None,
    )  # fmt: skip
    namespace.close()
    store.close()
    seconds = time.monotonic() - began
    assert report.files == count
    assert not report.without_bytes
    assert not report.problems
    return {
        "files": count,
        "restore_seconds": round(seconds, 1),
        "restore_cpu_seconds": round(time.process_time() - cpu, 1),
        "restore_files_per_second": round(count / seconds),
        "anonymous_bytes_more": max(0, anonymous_bytes(os.getpid()) - before),
        "resident_bytes_peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "snapshot_seconds": round(snapshot_seconds, 1),
        "manifest_bytes_a_file": round(manifest_bytes / count, 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--points", type=int, default=4)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(one(args.folder, args.one)))
        return 0
    points = []
    for number in range(args.points):
        count = args.files >> (args.points - 1 - number)
        with tempfile.TemporaryDirectory(prefix="vnafs-bench-", dir=args.folder) as text:
            points.append(point(Path(text), count))
        print(json.dumps(points[-1]), flush=True)
        shutil.rmtree(text, ignore_errors=True)
    keep("restore", {"points": points})
    million = points[-1]["restore_seconds"] * 1_000_000 / points[-1]["files"]
    return 0 if million <= SECONDS_MAX_A_MILLION else 1


if __name__ == "__main__":
    sys.exit(main())
