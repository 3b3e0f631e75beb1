"""What must hold in every tree at rest, read straight from its rows and its spool."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Set as AbstractSet

from vnafs.domain.files import Candidate, FileState
from vnafs.domain.ids import ROOT, Inode
from vnafs.index import caseless, counts, entries, inodes, keys, recount, repositories
from vnafs.index.engine import Engine, prefix_stop
from vnafs.index.inodes import NOT_QUEUED
from vnafs.index.past import find_version
from vnafs.index.unpacked import some
from vnafs.local.spool import QUARANTINE, Spool, original_of


def check_tree(engine: Engine, spool: Spool, open_inodes: AbstractSet[Inode] = frozenset()) -> None:
    """Raises AssertionError with what does not hold."""
    with engine.read() as reader:
        rows = {
            Inode(keys.number_of(key)): inodes.decode(raw)
            for key, raw in reader.scan(keys.INODES, prefix_stop(keys.INODES))
        }
        queued = {key for key, _ in reader.scan(b"Q", b"R")}
        orphans = {Inode(keys.number_of(key)) for key, _ in reader.scan(keys.ORPHANS, prefix_stop(keys.ORPHANS))}
        unpacked = {(one.inode, one.version): one.place for one in some(reader, 1 << 30)}
        for (inode, version), place in unpacked.items():
            past = find_version(reader, inode, version)
            assert past is not None, f"{inode}.{version} is to be packed and not remembered"
            assert past.row.state is FileState.SEALED, f"{inode}.{version} is packed and to be packed"
            assert original_of(place) == version
        assert counts.every_used(reader) == recount.every_used(reader), "what repositories have is not what is counted"
        dropped = {keys.dropped_of(key) for key, _ in reader.scan(keys.DROPPED, prefix_stop(keys.DROPPED))}
        limbos = {repository.limbo for repository in repositories.every(reader)}
        names: Counter[Inode] = Counter()
        below: Counter[Inode] = Counter()
        by_name = sum(1 for _ in reader.scan(b"E", b"F"))
        by_cookie = 0
        folded = {key for key, _ in reader.scan(keys.FOLDED, prefix_stop(keys.FOLDED))}
        for inode, row in rows.items():
            if row.is_directory:
                for listed in entries.listing(reader, inode):
                    by_cookie += 1
                    entry = entries.find(reader, inode, listed.name)
                    assert entry is not None
                    assert entry[:3] == (listed.inode, listed.cookie, listed.kind), (
                        f"{inode}: a name and its listed differ"
                    )
                    assert rows[listed.inode].mode >> 12 == listed.kind
                    folded.discard(caseless.row_of(inode, listed.name, listed.cookie))
                    other = entries.find_caseless(reader, inode, listed.name.swapcase())
                    assert other is not None or not listed.name.isascii(), f"{inode}: a name is not found by its case"
                    names[listed.inode] += 1
                    if rows[listed.inode].is_directory:
                        below[inode] += 1
                        assert rows[listed.inode].parent == inode
                    assert rows[listed.inode].repository == (row.repository or listed.inode)
        assert by_name == by_cookie, "names and places differ in number"
        assert not folded, "a name is gone and still found by its case"
    for inode, row in rows.items():
        if row.is_directory:
            assert row.nlink == 2 + below[inode], f"directory {inode}"
            assert inode == ROOT or names[inode] == (inode not in limbos)
        else:
            assert row.nlink == names[inode], f"inode {inode}"
        assert (row.nlink == 0) == (inode in orphans), f"inode {inode}"
        assert (row.seal is None) == (row.state is FileState.OPEN), f"inode {inode}"
        assert row.nlink or inode in open_inodes, f"inode {inode} has neither a name nor a handle"
    expected = {
        keys.queue(Candidate(inode, row.version, row.state, row.due))
        for inode, row in rows.items()
        if row.due != NOT_QUEUED
    }
    assert queued == expected, "the queue differs from the rows"
    local = {
        (inode, row.version)
        for inode, row in rows.items()
        if stat.S_ISREG(row.mode) and row.state is not FileState.STUB
    }
    found = {
        tuple(int(part, 16) for part in name.split("."))
        for folder, _, files in os.walk(spool.directory)
        if QUARANTINE not in folder
        for name in files
    }
    left = {(inode, place) for (inode, _), place in unpacked.items()}
    assert not left & (local | dropped), "local bytes have two rows"
    assert local | left <= found, "local files are missing"
    assert found <= local | dropped | left, "local files differ from the rows"
