"""Ten million files' rows in an index four times as large as the memory for it: rates and bytes a file, as a curve.

    python -m tests.bench.ten_million [--files 10000000] [--memory-fraction 0.25] [--folder DIR]

Every file goes through its whole life, OPEN to REPLICATED on two targets, with the rows that mount and tierd write
for it, by the index's own functions and engine: mount's in one transaction a call through the log, tierd's in one
transaction a pack and a copy (`--packs-together` joins several). Two processes, as there are two daemons; bytes,
mounts and targets are left out. Both live in one control group that limits anonymous memory and page cache together.
At each step the store and the namespace stand still and are asked: random lookups, each in a view of its own, and
listings of random directories with the attributes of each name.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import multiprocessing
import os
import random
import stat
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.bench.memorylimit import limited
from tests.bench.million import IN_A_PACK, anonymous_bytes, rows
from tests.bench.report import draw, keep
from vnafs.domain.clock import Instant
from vnafs.domain.copies import CopyState, VerifiedBy
from vnafs.domain.events import Event, EventKind
from vnafs.domain.faults import Faults
from vnafs.domain.files import Candidate, FileState, Fingerprint, Seal
from vnafs.domain.ids import Inode, PackNumber, RepositoryId, Sha256, Version
from vnafs.fs.core import FEED_EVENTS_TRIMMED_MAX
from vnafs.fs.settings import Settings
from vnafs.fs.tiering import PROPOSALS_PER_CHANGE_MAX
from vnafs.index import contents, copies, entries, inodes, keys, queue
from vnafs.index.engine import Transaction
from vnafs.index.engines.lmdb import LmdbEngine, LogSettings
from vnafs.index.entries import COOKIE_FIRST, Entry, kind_of
from vnafs.index.feeds import Feed
from vnafs.index.inodes import NOT_QUEUED, InodeRow
from vnafs.index.ranges import Numbers

BATCH = 1024
"""Files between two barriers: made and closed in one round, packed in the next, replicated in the one after."""
IN_A_FOLDER = 1000
REPOSITORY = RepositoryId(2)
BYTES_A_FILE = 650
"""Of both environments, to know a quarter of the index before it is there; the result says what it came to."""
LIMIT_BYTES_MIN = 192 << 20
"""Two Python processes need some memory for themselves."""
LOOKUPS = 2000
LISTED_FOLDERS = 50
SIZE_BYTES = 530_000
QUIET_NS = 30_000_000_000
TARGETS = (1, 2)
MODE = stat.S_IFREG | 0o644


def name_of(number: int) -> bytes:
    return b"1.2.276.0.7230010.3.%010d.dcm" % number


def folder_of(number: int) -> Inode:
    """The inode of the directory that file *number* is in; numbers are given in order, a directory's first."""
    return Inode(REPOSITORY + 1 + number // IN_A_FOLDER * (IN_A_FOLDER + 1))


def inode_of(number: int) -> Inode:
    return Inode(folder_of(number) + 1 + number % IN_A_FOLDER)


def seal_of(number: int) -> Seal:
    when = number * 1000
    return Seal(Sha256(hashlib.sha256(name_of(number)).digest()), Fingerprint(SIZE_BYTES, when, when))


# -- the rows that mount writes ------------------------------------------------------------------------------


class Namespace:
    """Files in the namespace environment."""

    def __init__(self, folder: str, *, log: LogSettings | None = None, faults: Faults | None = None) -> None:
        self.engine = LmdbEngine(folder, log=log or LogSettings(), faults=faults, tables=keys.NAMESPACE_TABLES)
        settings = Settings()
        self._inodes = Numbers(self.engine, "inodes", first=REPOSITORY + 1, ahead=settings.numbers_ahead)
        self._cookies = Numbers(self.engine, "cookies", first=COOKIE_FIRST, ahead=settings.cookies_ahead)
        self._feed = Feed()
        self._events_max = settings.feed_events_max
        self._above: tuple[Inode, InodeRow] | None = None
        self._now = 1_700_000_000_000_000_000

    def grow(self, first: int, count: int) -> None:
        """One round: *count* new files from number *first* on; those of the rounds before move on."""
        for number in range(first, first + count):
            self.make(number)
        self._advance(first - BATCH, FileState.OPEN, FileState.PACKED)
        self._advance(first - 2 * BATCH, FileState.PACKED, FileState.REPLICATED)
        while self._feed.trim(self.engine, self._events_max, FEED_EVENTS_TRIMMED_MAX):
            pass
        self.engine.fold()  # tierd asks for it before it looks for work

    def make(self, number: int) -> None:
        """Make a file and close it; numbers follow each other."""
        self._now += 1000
        if number % IN_A_FOLDER == 0:
            self._make_folder(number)
        self._create(number)
        self._close(number)

    def touch(self, number: int) -> None:
        """Change a file's time of access."""
        self._now += 1000
        inode = inode_of(number)
        with self.engine.write() as tx:
            row = inodes.find(tx, inode)
            assert row is not None
            inodes.put(tx, inode, row._replace(atime_ns=self._now))

    def _row(self, mode: int, parent: Inode, cookie: int, due: int) -> InodeRow:
        now = self._now
        version, links = (Version(1), 1) if stat.S_ISREG(mode) else (Version(0), 2)
        return InodeRow(
            mode, 1000, 1000, links, 0, 0, now, now, now, now,
            REPOSITORY, parent, cookie, version, FileState.OPEN, Instant(due),
        )  # fmt: skip

    def _make_folder(self, number: int) -> None:
        inode, cookie = Inode(self._inodes.take()), self._cookies.take()
        assert inode == folder_of(number)
        row = self._row(stat.S_IFDIR | 0o755, Inode(REPOSITORY), cookie, NOT_QUEUED)
        with self.engine.write() as tx:
            entries.put(tx, Inode(REPOSITORY), b"study%08d" % number, Entry(inode, cookie, kind_of(row.mode)))
            inodes.put(tx, inode, row)
            self._feed.append(tx, Event(EventKind.CREATED, inode, Version(0), Inode(REPOSITORY), b"study"))
        self._above = inode, row

    def _create(self, number: int) -> None:
        assert self._above is not None
        (parent, above), name = self._above, name_of(number)
        inode, cookie, now = Inode(self._inodes.take()), self._cookies.take(), self._now
        row = self._row(MODE, parent, cookie, queue.DUE_NEVER)
        above = above._replace(mtime_ns=now, ctime_ns=now)
        with self.engine.write() as tx:
            assert tx.get(keys.entry(parent, name)) is None
            entries.put(tx, parent, name, Entry(inode, cookie, kind_of(MODE)))
            self._feed.append(tx, Event(EventKind.CREATED, inode, Version(1), parent, name))
            self._set(tx, inode, None, row)
            inodes.put(tx, parent, above)
        self._above = parent, above

    def _close(self, number: int) -> None:
        inode = inode_of(number)
        with self.engine.write() as tx:
            row = inodes.find(tx, inode)
            assert row is not None
            mark = seal_of(number).fingerprint
            self._set(
                tx,
                inode,
                row,
                row._replace(
                    size_bytes=SIZE_BYTES, blocks=SIZE_BYTES >> 9, mtime_ns=mark.mtime_ns, due=self._now + QUIET_NS
                ),
            )

    def _advance(self, first: int, before: FileState, after: FileState) -> None:
        for begin in range(max(first, 0), first + BATCH, PROPOSALS_PER_CHANGE_MAX):
            with self.engine.write() as tx:
                for number in range(begin, begin + PROPOSALS_PER_CHANGE_MAX):
                    inode = inode_of(number)
                    row = inodes.find(tx, inode)
                    assert row is not None
                    assert row.state is before
                    seal = seal_of(number) if row.seal is None else row.seal
                    self._set(tx, inode, row, row._replace(state=after, seal=seal, due=Instant(self._now)))
                    self._feed.append(tx, Event(EventKind.STATE, inode, Version(1), detail=after))

    @staticmethod
    def _set(tx: Transaction, inode: Inode, before: InodeRow | None, row: InodeRow) -> None:
        """As a change of the tree does: the queue row follows the inode row."""
        if before is not None:
            queue.remove(tx, Candidate(inode, before.version, before.state, before.due))
        queue.put(tx, Candidate(inode, row.version, row.state, row.due))
        inodes.put(tx, inode, row)

    def ask(self, files: int, chance: random.Random) -> dict:
        def by_name() -> bool:
            number = chance.randrange(files)
            with self.engine.read() as reader:
                return entries.find(reader, folder_of(number), name_of(number)) is not None

        def by_inode() -> bool:
            with self.engine.read() as reader:
                return inodes.find(reader, inode_of(chance.randrange(files))) is not None

        listed, began = 0, time.perf_counter()
        for _ in range(LISTED_FOLDERS):
            with self.engine.read() as reader:
                for place in entries.listing(reader, folder_of(chance.randrange(files))):
                    assert inodes.find(reader, place.inode) is not None
                    listed += 1
        rate = round(listed / (time.perf_counter() - began))
        return {"by_name": timed(by_name), "by_inode": timed(by_inode), "listed_per_second": rate}


# -- the rows that tierd writes ------------------------------------------------------------------------------


class Store:
    """The same files in the store environment."""

    def __init__(self, folder: str, packs_together: int) -> None:
        self.engine = LmdbEngine(folder, tables=keys.STORE_TABLES)
        self._together = packs_together

    def grow(self, first: int, count: int) -> None:
        """One round: the packs of *count* files from number *first* on; the transfers of the round before."""
        packs = range(first // IN_A_PACK, (first + count) // IN_A_PACK)
        for group in self._groups(packs):
            with self.engine.write() as tx:
                for pack in group:
                    files = [(inode_of(n), seal_of(n)) for n in range(pack * IN_A_PACK, (pack + 1) * IN_A_PACK)]
                    rows(tx, REPOSITORY, pack + 1, files, verified=())
                    for target in TARGETS:
                        copies.enqueue(tx, copies.Transfer(target, Instant(pack), PackNumber(pack + 1), 0))
        if first:
            for group in self._groups(range(packs.start - BATCH // IN_A_PACK, packs.start)):
                for target in TARGETS:
                    with self.engine.write() as tx:
                        for pack in group:
                            self._verified(tx, pack, target)

    def _groups(self, packs: range) -> Iterator[range]:
        return (packs[at : at + self._together] for at in range(0, len(packs), self._together))

    @staticmethod
    def _verified(tx: Transaction, pack: int, target: int) -> None:
        number = PackNumber(pack + 1)
        copies.dequeue(tx, copies.Transfer(target, Instant(pack), number, 0))
        copies.put(tx, copies.PackCopy(number, target, CopyState.VERIFIED, VerifiedBy.READ_BACK, Instant(1)))

    def ask(self, files: int, chance: random.Random) -> dict:
        def by_sha256() -> bool:
            sha256 = seal_of(chance.randrange(files)).sha256
            with self.engine.read() as reader:
                return contents.find(reader, sha256, REPOSITORY) is not None

        return {"by_sha256": timed(by_sha256)}


# -- both ----------------------------------------------------------------------------------------------------


def timed(look: Callable[[], bool]) -> dict:
    """Rate and percentiles of LOOKUPS calls."""
    took = []
    for _ in range(LOOKUPS):
        began = time.perf_counter()
        assert look()
        took.append(time.perf_counter() - began)
    cuts = statistics.quantiles(took, n=100)
    return {
        "per_second": round(LOOKUPS / sum(took)),
        "p50_us": round(cuts[49] * 1e6),
        "p99_us": round(cuts[98] * 1e6),
    }


def sizes(engine: LmdbEngine) -> dict[str, int]:
    """Bytes of the pages of each table, by its letter."""
    environment = engine._environment  # looks below the engine on purpose
    reading = environment.begin()
    try:
        found = {"other": environment._lmdb.stat(), **{chr(t): reading.stat(d) for t, d in environment._tables.items()}}
    finally:
        environment.end(reading)
    return {
        name: (one["branch_pages"] + one["leaf_pages"] + one["overflow_pages"]) * one["psize"]
        for name, one in found.items()
    }


def read_bytes() -> int:
    """What this process had to read from the disk. (What it writes is not counted well: whole folios.)"""
    counted = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(counted["read_bytes"])


def daemon(kind: str, folder: str, packs_together: int, asked: Connection) -> None:
    """One of the two processes: grows to each number it is sent, looks around, and says what it saw."""
    part: Namespace | Store = Namespace(folder) if kind == "namespace" else Store(folder, packs_together)
    chance = random.Random(kind)
    with contextlib.closing(part.engine):
        reached = 0
        while stop := asked.recv():
            began, busy, read = time.perf_counter(), time.process_time(), read_bytes()
            for first in range(reached, stop, BATCH):
                part.grow(first, BATCH)
            reached = stop
            grown = {
                "seconds": time.perf_counter() - began,
                "processor_seconds": time.process_time() - busy,
                "read_bytes": read_bytes() - read,
            }
            asked.send(grown)
            assert asked.recv() == "ask"  # the other one stands still too
            held = {"tables": sizes(part.engine), "anonymous_bytes": anonymous_bytes(os.getpid())}
            asked.send({**held, **part.ask(reached, chance)})


def step(daemons: dict[str, Connection], done: int, stop: int) -> dict:
    """Let both grow to *stop* files and ask them."""
    began = time.perf_counter()
    for one in daemons.values():
        one.send(stop)
    grown = {kind: one.recv() for kind, one in daemons.items()}
    took = time.perf_counter() - began
    point: dict = {"files": stop, "files_per_second": round((stop - done) / took)}
    for kind, one in daemons.items():
        one.send("ask")
        seen = one.recv()
        tables = seen.pop("tables")
        size = sum(size for table, size in tables.items() if table != "F")
        point[kind] = {
            "files_per_second": round((stop - done) / grown[kind]["seconds"]),
            "processor_us_a_file": round(grown[kind]["processor_seconds"] / (stop - done) * 1e6),
            "read_bytes_a_file": round(grown[kind]["read_bytes"] / (stop - done)),
            "bytes_a_file": round(size / stop),
            "size_bytes": size,
            "table_bytes_a_file": {table: round(size / stop, 1) for table, size in tables.items()},
            **seen,
        }
    point["bytes_a_file"] = sum(point[kind]["bytes_a_file"] for kind in daemons)
    return point


def show(point: dict) -> str:
    space, store = point["namespace"], point["store"]
    looks = " ".join(
        f"{name} {one['per_second']}/s p99 {one['p99_us']} us"
        for name, one in (
            ("name", space["by_name"]),
            ("inode", space["by_inode"]),
            ("sha256", store["by_sha256"]),
        )
    )
    return f"{point['files']} files, {point['files_per_second']} files/s, {point['bytes_a_file']} B a file; {looks}"


def table(points: list[dict]) -> Table:
    made = Table("files", "files/s", "names B", "store B", "memory MB")
    for name in ("name", "inode", "SHA-256"):
        made.add_column(f"by {name}/s")
        made.add_column("p50, p99 us")
    made.add_column("listed/s")
    for point in points:
        space, store = point["namespace"], point["store"]
        looks = [space["by_name"], space["by_inode"], store["by_sha256"]]
        made.add_row(
            f"{point['files']:,}",
            str(point["files_per_second"]),
            str(space["bytes_a_file"]),
            str(store["bytes_a_file"]),
            f"{space['anonymous_bytes'] >> 20} + {store['anonymous_bytes'] >> 20}",
            *(text for one in looks for text in (str(one["per_second"]), f"{one['p50_us']}, {one['p99_us']}")),
            str(space["listed_per_second"]),
        )
    return made


def report(result: dict) -> None:
    """Keep the curve, print it and draw it."""
    points = result["curve"]
    if not points:
        return
    draw(
        keep("ten_million", result).with_suffix(".svg"),
        [point["files"] for point in points],
        {
            "files a second": [point["files_per_second"] for point in points],
            "files a second, namespace alone": [point["namespace"]["files_per_second"] for point in points],
            "files a second, store alone": [point["store"]["files_per_second"] for point in points],
            "bytes of index a file": [point["bytes_a_file"] for point in points],
            "lookups by name a second": [point["namespace"]["by_name"]["per_second"] for point in points],
            "lookups by SHA-256 a second": [point["store"]["by_sha256"]["per_second"] for point in points],
            "names listed a second": [point["namespace"]["listed_per_second"] for point in points],
        },
    )
    Console(width=150).print(table(points))


def run(folder: Path, files: int, every: int, packs_together: int) -> Generator[dict]:
    """The points of the curve, as they are reached."""
    context = multiprocessing.get_context("fork")  # from one thread, before any environment is open
    daemons: dict[str, Connection] = {}
    processes = []
    for kind in ("namespace", "store"):
        daemons[kind], theirs = context.Pipe()
        process = context.Process(target=daemon, args=(kind, str(folder / kind), packs_together, theirs), daemon=True)
        process.start()
        processes.append(process)
    done = 0
    try:
        while done < files:
            stop = min(done + every, files)
            yield step(daemons, done, stop)
            done = stop
        for one in daemons.values():
            one.send(0)
        for process in processes:
            process.join()
    finally:  # nobody may be left in the control group
        for process in processes:
            process.kill()
            process.join()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=10_000_000)
    parser.add_argument("--every", type=int, default=500_000, help="files between two points of the curve")
    parser.add_argument("--memory-fraction", type=float, default=0.25, help="of the whole index; 0: no limit")
    parser.add_argument("--packs-together", type=int, default=1, help="in one transaction of the store")
    parser.add_argument("--folder", default=None)
    args = parser.parse_args()
    files, every = (-(-number // BATCH) * BATCH for number in (args.files, args.every))
    limit = max(int(files * BYTES_A_FILE * args.memory_fraction), LIMIT_BYTES_MIN) if args.memory_fraction else 0
    result: dict = {"files": files, "memory_limit_bytes": limit, "packs_together": args.packs_together, "curve": []}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vnafs-bench-", dir=args.folder)))
        result["memory_limited_by"] = stack.enter_context(limited(limit)) if limit else "nothing"
        stack.callback(report, result)  # what there is, also when it is interrupted
        points = stack.enter_context(contextlib.closing(run(folder, files, every, args.packs_together)))
        for point in points:
            result["curve"].append(point)
            print(show(point), flush=True)
            whole = point["namespace"]["size_bytes"] + point["store"]["size_bytes"]
            result["memory_limit_of_index"] = round(limit / whole, 3)
    return 0


if __name__ == "__main__":
    sys.exit(main())
