"""Mounts a tree in a process of its own, for tests that write to a real mount and kill what serves it.

    python -m tests.system.mountdriver ARCHIVE MOUNTPOINT [--engine lmdb|memory] [--ack LEVEL] [--profile FILE]
        [--fuse pyfuse3|kernel] [--backings-max NUMBER] [--quota-bytes NUMBER] [--quota-files NUMBER]

Prints `ready` when mounted; unmounts on SIGTERM. Stubs are recalled from ARCHIVE/store/SHA256,
where SIGUSR1 put them.
"""

from __future__ import annotations

import argparse
import cProfile
import hashlib
import os
import signal
import sys
from pathlib import Path

import trio

from vnafs.domain.errors import RecallFailed
from vnafs.domain.files import FileState, Proposal, Seal, Verdict
from vnafs.domain.ids import Inode, Version
from vnafs.domain.repositories import Acknowledgement
from vnafs.fs.filesystem import Filesystem
from vnafs.fs.settings import Settings
from vnafs.fuse import pyfuse3
from vnafs.fuse.kernel import engine as kernel
from vnafs.fuse.serving import MountOptions
from vnafs.index.engine import Engine
from vnafs.index.engines.lmdb import LmdbEngine, LogSettings
from vnafs.index.engines.memory import MemoryEngine
from vnafs.local.fileclock import FileClock
from vnafs.local.spool import Spool, fingerprint_of


class StoreDirectory:
    """A recaller over plain files named by SHA-256."""

    def __init__(self, filesystem: Filesystem, archive: Path, recall_seconds: float) -> None:
        self._filesystem = filesystem
        self._recall_seconds = recall_seconds
        self._store = archive / "store"
        self._staging = archive / "staging"
        self._staging.mkdir(exist_ok=True)

    def _source(self, inode: Inode) -> Path:
        sha256 = self._filesystem.facts(inode).sha256
        if sha256 is None or not (self._store / sha256.hex()).exists():
            raise RecallFailed(what=f"inode {inode}", why="the test put no bytes there")
        return self._store / sha256.hex()

    async def recall(self, inode: Inode, version: Version) -> None:
        source = self._source(inode)
        staged = self._staging / f"{inode:x}.{version:x}.{trio.current_time()}"
        await trio.sleep(self._recall_seconds)
        staged.write_bytes(source.read_bytes())
        self._filesystem.adopt(inode, version, str(staged))

    async def fetch_range(self, inode: Inode, version: Version, offset: int, length: int) -> str:
        await trio.lowlevel.checkpoint()
        return str(self._source(inode))


def engine_of(kind: str, archive: Path) -> Engine:
    return (
        MemoryEngine()
        if kind == "memory"
        else LmdbEngine(str(archive / "namespace"), log=LogSettings(segment_bytes=16 << 20))
    )


async def run(options: argparse.Namespace, filesystem: Filesystem, archive: Path) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGUSR1) as signals:
        async with trio.open_nursery() as nursery:

            async def mounted() -> None:
                await (kernel if options.fuse == "kernel" else pyfuse3).serve(
                    filesystem,
                    options.mountpoint,
                    StoreDirectory(filesystem, archive, options.recall_seconds),
                    ready=lambda: print("ready", flush=True),
                    options=MountOptions(backings_max=options.backings_max, poll_seconds=options.poll_seconds),
                )
                nursery.cancel_scope.cancel()

            nursery.start_soon(mounted)
            async for signum in signals:
                if signum == signal.SIGTERM:
                    nursery.cancel_scope.cancel()
                    break
                tier(filesystem, archive)


def tier(filesystem: Filesystem, archive: Path) -> None:
    """On SIGUSR1: seal, 'replicate' and evict every file named in ARCHIVE/evict (inode numbers, one a line)."""
    (archive / "store").mkdir(exist_ok=True)
    lines = []
    for word in (archive / "evict").read_text().split():
        facts = filesystem.facts(Inode(int(word)))
        path = filesystem.local_path(facts.inode, facts.version)
        data = Path(path).read_bytes()
        digest = hashlib.sha256(data).digest()
        (archive / "store" / digest.hex()).write_bytes(data)
        seal = Seal(digest, fingerprint_of(os.stat(path)))  # type: ignore[arg-type] # a test's digest
        if facts.state is FileState.OPEN:
            [verdict] = filesystem.advance([Proposal(facts.inode, facts.version, FileState.REPLICATED, seal)])
            if verdict is not Verdict.DONE:
                lines.append(f"{word} {verdict.value}\n")
                continue
        lines.append(f"{word} {filesystem.evict(facts.inode, facts.version).value}\n")
    (archive / "evicted.part").write_text("".join(lines))
    (archive / "evicted.part").rename(archive / "evicted")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("archive", type=Path)
    parser.add_argument("mountpoint")
    parser.add_argument("--engine", default="lmdb")
    parser.add_argument("--fuse", default="pyfuse3", choices=["pyfuse3", "kernel"])
    parser.add_argument("--backings-max", type=int, default=16384)
    parser.add_argument("--poll-seconds", type=float, default=0.0)
    parser.add_argument("--ack", default="written")
    parser.add_argument("--recall-whole-bytes-max", type=int, default=1 << 20)
    parser.add_argument("--recall-seconds", type=float, default=0.05)
    parser.add_argument("--profile")
    parser.add_argument("--quota-bytes", type=int, default=0)
    parser.add_argument("--quota-files", type=int, default=0)
    options = parser.parse_args()
    archive: Path = options.archive
    engine = engine_of(options.engine, archive)
    settings = Settings(reserve_bytes=1 << 20, recall_whole_bytes_max=options.recall_whole_bytes_max)
    filesystem = Filesystem(engine, Spool(str(archive / "spool")), FileClock(), settings=settings)
    if not filesystem.repositories.list():
        quotas = {"quota_bytes": options.quota_bytes, "quota_files": options.quota_files}
        filesystem.repositories.add("archive", acknowledgement=Acknowledgement(options.ack), mode=0o777, **quotas)
        filesystem.repositories.add("other", acknowledgement=Acknowledgement(options.ack), mode=0o777)
    profile = cProfile.Profile() if options.profile else None
    try:
        if profile:
            profile.enable()
        trio.run(run, options, filesystem, archive)
    finally:
        if profile:
            profile.disable()
            profile.dump_stats(options.profile)
        filesystem.close()
        engine.close()


if __name__ == "__main__":
    sys.exit(main())
