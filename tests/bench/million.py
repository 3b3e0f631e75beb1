"""An archive of a million files: bytes of index a file, memory of mount, start, a cold listing.

    python -m tests.bench.million [--files 1000000] [--folder DIR]

The rows are made by the tree and the store's own tables without a mount, because a million real closes take an hour;
local files are empty, and contents, pieces, packs and copies are those of one study in each 64 files on two targets.
Then the real mount is started on it. `tests.bench.ten_million` makes only rows, more of them, with little memory.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.bench.report import keep
from tests.system.archives import an_archive
from vnafs import store as archive_store
from vnafs.domain.clock import Instant, SystemClock
from vnafs.domain.copies import CopyState, VerifiedBy
from vnafs.domain.faults import NoFaults
from vnafs.domain.files import FileState, Proposal, Seal
from vnafs.domain.ids import ContentNumber, Inode, PackId, PackNumber, PieceNumber, Sha256, Span, Version
from vnafs.domain.recipes import Codec, PieceKind
from vnafs.fs.caller import Caller
from vnafs.fs.settings import Settings
from vnafs.index import contents, copies, keys, packs, pieces
from vnafs.index.engine import Transaction, prefix_stop
from vnafs.index.engines.lmdb import LmdbEngine

BOUNDS = {
    "index_bytes_a_file": 700,
    "anonymous_bytes_at_start": 300_000_000,
    "anonymous_bytes_after_work": 300_000_000,
    "start_seconds": 2.0,
    "cold_listing_seconds": 1.5,
}
"""What a million files may cost. Seconds are for a machine that does nothing else."""
LISTED = 100_000
IN_A_FOLDER = 1000
IN_A_PACK = 64


def make(archive: Path, count: int) -> dict:
    """Create *count* files; seconds it took."""
    engine = archive_store.open_namespace(str(archive))
    tree = archive_store.open_tree(
        str(archive),
        engine,
        Settings(quiet_seconds=0),
        clock=SystemClock(),
        faults=NoFaults(),
        copies_of=lambda _, __: (),
        boot_id="",
    )
    repository = tree.repositories.list()[0]
    who = Caller(0, 0, 1)
    began = time.monotonic()
    store = archive_store.open_store(str(archive))
    made: list[tuple[Inode, Seal]] = []
    folder = Inode(0)
    pack = 0
    for number in range(count):
        if number == 0 or (number >= LISTED and number % IN_A_FOLDER == 0):
            folder = Inode(tree.mkdir(Inode(repository.id), f"study{number:08d}".encode(), 0o755, who).inode)
        name = f"1.2.276.0.7230010.3.{number:010d}.dcm".encode()
        handle, found = tree.create(folder, name, 0o644, os.O_WRONLY, who)
        tree.release(handle)
        inode = Inode(found.inode)
        local = os.stat(tree.local_path(inode, Version(1)))
        seal = Seal(Sha256(hashlib.sha256(name).digest()), fingerprint(local))
        made.append((inode, seal))
        if len(made) == IN_A_PACK * 16:
            pack = settle(tree, store, repository.id, made, pack)
            made.clear()
    settle(tree, store, repository.id, made, pack)
    store.close()
    tree.close()
    engine.close()
    return {"made_files_per_second": round(count / (time.monotonic() - began))}


def fingerprint(status: os.stat_result):
    from vnafs.local.spool import fingerprint_of  # noqa: PLC0415 - keeps the list of imports above readable

    return fingerprint_of(status)


def settle(tree, store: LmdbEngine, repository: int, made: list[tuple[Inode, Seal]], pack: int) -> int:
    with store.write() as tx:
        for start in range(0, len(made), IN_A_PACK):
            pack += 1
            rows(tx, repository, pack, made[start : start + IN_A_PACK])
    tree.advance([Proposal(inode, Version(1), FileState.REPLICATED, seal) for inode, seal in made])
    return pack


def rows(
    tx: Transaction, repository: int, pack: int, files: list[tuple[Inode, Seal]], *, verified: Sequence[int] = (1, 2)
) -> None:
    """What the store keeps of one pack of *files* with a header and pixels each, and of its verified copies."""
    number, first = PackNumber(pack), ContentNumber(pack * IN_A_PACK)
    digest = Sha256(hashlib.sha256(str(pack).encode()).digest())
    packs.put(
        tx,
        packs.Pack(
            number, PackId(digest[:16]), digest, 20 << 20, repository, 0, Instant(1), first, len(files), False, ()
        ),
    )
    for place, (inode, seal) in enumerate(files):
        content = ContentNumber(first + place)
        offset = place * 300_000
        contents.add(
            tx, contents.Content(content, seal.sha256, 530_000, repository, number, Span(offset + 290_000, 200), ())
        )
        contents.add_use(tx, content, inode, Version(1))
        pixels = Sha256(hashlib.sha256(seal.sha256).digest())
        pieces.add(
            tx,
            PieceNumber(content),
            pieces.Piece(number, offset, 280_000, 524_288, Codec.SHUFFLED_ZSTD, PieceKind.PIXELS, pixels),
        )
    for target in verified:
        copies.put(tx, copies.PackCopy(number, target, CopyState.VERIFIED, VerifiedBy.READ_BACK, Instant(1)))


def used_bytes(path: Path, *, drop_feed: bool) -> int:
    """Pages in use; with the feed's rows removed first if asked."""
    import lmdb  # noqa: PLC0415 - looks below the engine on purpose

    env = lmdb.open(str(path), map_size=1 << 40, max_readers=4, lock=True, max_dbs=32)
    names = keys.NAMESPACE_TABLES if path.name == "namespace" else keys.STORE_TABLES
    tables = {name: env.open_db(b"\1%c" % name) for name in names}
    try:
        while drop_feed:
            with env.begin(write=True) as tx, tx.cursor(tables[ord("F")]) as cursor:
                gone = 0
                while gone < 100_000 and cursor.set_range(keys.FEED) and cursor.key() < prefix_stop(keys.FEED):
                    cursor.delete()
                    gone += 1
            if not gone:
                break
        with env.begin() as tx:
            stats = [env.stat(), *(tx.stat(table) for table in tables.values())]
        pages = sum(stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"] for stat in stats)
        return pages * stats[0]["psize"]
    finally:
        env.close()


def anonymous_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Anonymous:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("the kernel says nothing of anonymous memory")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--folder", default=None)
    args = parser.parse_args()
    result: dict = {"files": args.files}
    with (
        tempfile.TemporaryDirectory(prefix="vnafs-bench-", dir=args.folder) as text,
        an_archive(Path(text) / "a", settings="", serve=False) as archive,
    ):
        result |= make(archive.archive, args.files)
        print(json.dumps(result), flush=True)
        began = time.monotonic()
        mount = archive.start("mount")
        result["start_seconds"] = round(time.monotonic() - began, 2)
        big = min(archive.share.iterdir(), key=lambda path: path.name)
        result["anonymous_bytes_at_start"] = anonymous_bytes(mount.pid)
        began = time.monotonic()
        names = os.listdir(big)
        result["cold_listing_seconds"] = round(time.monotonic() - began, 2)
        result["listed"] = len(names)
        for name in names[:20_000]:
            os.stat(big / name)
        for folder in list(archive.share.iterdir())[:200]:
            for entry in os.scandir(folder):
                entry.stat()
        result["anonymous_bytes_after_work"] = anonymous_bytes(mount.pid)
        archive.stop()
        for part in ("namespace", "store"):
            path = archive.archive / part
            with_feed = used_bytes(path, drop_feed=False)
            without = used_bytes(path, drop_feed=True)
            result[f"{part}_bytes_a_file"] = round(without / args.files)
            result[f"{part}_bytes_a_file_with_feed"] = round(with_feed / args.files)
        result["index_bytes_a_file"] = result["namespace_bytes_a_file"] + result["store_bytes_a_file"]
    result["missed"] = [name for name, most in BOUNDS.items() if result[name] > most]
    print(json.dumps(result, indent=2))
    keep("million", result)
    return 1 if any("bytes" in name for name in result["missed"]) else 0


if __name__ == "__main__":
    sys.exit(main())
