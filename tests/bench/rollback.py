"""A ransomware overwrites and renames a repository; seconds until it is what it was before.

    python -m tests.bench.rollback [--files 100000] [--folder DIR]

Rows are made as in `tests.bench.million`, without a mount: a third of the files is overwritten, a third renamed after
that, a third deleted with an encrypted one beside it. Then the rollback runs step by step as in the daemon, with the
log and its syncs, and all names are compared. The seconds of creating and unlinking are shown beside it: history must
not make them slow.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path

from tests.bench.million import fingerprint
from tests.bench.report import keep
from vnafs import store as archive_store
from vnafs.domain.clock import SystemClock
from vnafs.domain.faults import NoFaults
from vnafs.domain.files import FileState, Proposal, Seal
from vnafs.domain.ids import Inode, RepositoryId, Sha256
from vnafs.domain.repositories import Acknowledgement
from vnafs.fs.caller import Caller
from vnafs.fs.filesystem import Filesystem
from vnafs.fs.retrace import Outcome
from vnafs.fs.rollback import Preview
from vnafs.fs.settings import Settings

ROLLBACK_SECONDS_MAX = 60.0
IN_A_FOLDER = 1000
AT_ONCE = 1024
WHO = Caller(0, 0, 1)


def seen(tree: Filesystem, folder: Inode) -> dict[bytes, tuple[int, Sha256 | None]]:
    """Every name below a directory, with what it leads to."""
    found = {}
    for _, name, attributes in tree.listing(folder, 2):
        if attributes.mode >> 12 == 4:
            found |= {name + b"/" + below: value for below, value in seen(tree, Inode(attributes.inode)).items()}
        else:
            found[name] = (attributes.mode, tree.facts(attributes.inode).sha256)
    return found


class Bench:
    """One archive without a mount."""

    def __init__(self, folder: Path) -> None:
        archive_store.make(str(folder))
        self.engine = archive_store.open_namespace(str(folder))
        self.tree = archive_store.open_tree(
            str(folder),
            self.engine,
            Settings(quiet_seconds=0, reserve_bytes=0),
            clock=SystemClock(),
            faults=NoFaults(),
            copies_of=lambda _, __: (),
            boot_id="",
        )
        self.top = Inode(self.tree.repositories.add("archive", acknowledgement=Acknowledgement.WRITTEN).id)
        self.waiting: list[Proposal] = []

    def file(self, folder: Inode, name: bytes, data: bytes) -> None:
        """Written, closed and replicated."""
        handle, found = self.tree.create(folder, name, 0o644, os.O_WRONLY | os.O_TRUNC, WHO)
        self.tree.write(handle, 0, data)
        self.tree.release(handle)
        facts = self.tree.facts(Inode(found.inode))
        local = os.stat(self.tree.local_path(facts.inode, facts.version))
        seal = Seal(Sha256(hashlib.sha256(name + data).digest()), fingerprint(local))
        self.waiting.append(Proposal(facts.inode, facts.version, FileState.REPLICATED, seal))
        if len(self.waiting) == AT_ONCE:
            self.settle()

    def settle(self) -> None:
        """Tiering has caught up."""
        self.tree.advance(self.waiting)
        self.waiting.clear()
        self.tree.reap(AT_ONCE)

    def make(self, count: int) -> list[tuple[Inode, bytes]]:
        made, folder = [], self.top
        for number in range(count):
            if number % IN_A_FOLDER == 0:
                folder = Inode(self.tree.mkdir(self.top, b"study%d" % number, 0o755, WHO).inode)
            name = b"1.2.276.0.7230010.3.%010d.dcm" % number
            self.file(folder, name, b"image")
            made.append((folder, name))
        self.settle()
        return made

    def attack(self, files: list[tuple[Inode, bytes]]) -> None:
        for number, (folder, name) in enumerate(files):
            if number % 3 == 2:
                self.tree.unlink(folder, name)
                self.file(folder, name + b".locked", b"encrypted")
                continue
            self.file(folder, name, b"encrypted")
            if number % 3 == 1:
                self.tree.rename(folder, name, folder, name + b".locked")
        self.settle()

    def roll(self, to_ns: int) -> None:
        number = RepositoryId(self.top)
        self.tree.rollbacks.begin(number, to_ns)
        while self.tree.repositories.get(number).rolling_to_ns:
            self.tree.rollbacks.step()


def timed(result: dict, name: str, began: float) -> None:
    result[name] = round(time.monotonic() - began, 1)
    print(json.dumps({name: result[name]}), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--folder", default=None)
    args = parser.parse_args()
    result: dict = {"files": args.files}
    with tempfile.TemporaryDirectory(prefix="vnafs-bench-", dir=args.folder) as text:
        bench = Bench(Path(text) / "a")
        began = time.monotonic()
        files = bench.make(args.files)
        timed(result, "create_seconds", began)
        good, before = seen(bench.tree, bench.top), time.time_ns()
        began = time.monotonic()
        bench.attack(files)
        timed(result, "attack_seconds", began)
        bad, after = seen(bench.tree, bench.top), time.time_ns()
        began = time.monotonic()
        found = Preview()
        for _ in bench.tree.rollbacks.preview(RepositoryId(bench.top), before, found):
            pass
        timed(result, "dry_run_seconds", began)
        began = time.monotonic()
        bench.roll(before)
        timed(result, "rollback_seconds", began)
        result["restored"] = found.counts[Outcome.RESTORED]
        result["equal"] = seen(bench.tree, bench.top) == good
        began = time.monotonic()
        bench.roll(after)
        timed(result, "undone_seconds", began)
        result["undone_equal"] = seen(bench.tree, bench.top) == bad
        began = time.monotonic()
        folders = [(name, Inode(attributes.inode)) for _, name, attributes in bench.tree.listing(bench.top, 2)]
        for name, folder in folders:
            for _, below, _ in list(bench.tree.listing(folder, 2)):
                bench.tree.unlink(folder, below)
            bench.tree.rmdir(bench.top, name)
        timed(result, "unlink_seconds", began)
        bench.tree.close()
        bench.engine.close()
    is_well = result["equal"] and result["undone_equal"] and result["rollback_seconds"] <= ROLLBACK_SECONDS_MAX
    print(json.dumps(result, indent=2))
    keep("rollback", result)
    return 0 if is_well else 1


if __name__ == "__main__":
    sys.exit(main())
