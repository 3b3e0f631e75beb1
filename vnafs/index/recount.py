"""Recount: what the counts should be, found by walking all rows.

For tests, for archives from before there were counts, and where what is counted changes for all rows at once.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Iterable

from vnafs.domain.copies import CopyState
from vnafs.domain.ids import RepositoryId
from vnafs.index import contents, copies, counts, inodes, keys, migrations, packs, targets
from vnafs.index.counts import Count
from vnafs.index.engine import Reader, Transaction, prefix_stop

TRANSFERS_AT_ONCE = 10_000
"""In one transaction of the migration."""
INODES_AT_ONCE = 50_000
"""The same, of that which counts what repositories have."""


def found(reader: Reader) -> dict[str, Count]:
    """Every count that is not zero, from the rows alone. Takes as long as there are rows."""
    tally = _of_packs(reader)
    for content in contents.every(reader):
        tally.one(counts.CONTENTS, content.size_bytes)
    for row in targets.every(reader):
        for transfer in copies.transfers(reader, row.number):
            tally.one((counts.removing if transfer.is_removal else counts.waiting)(row.number))
    return tally.counts()


class _Tally:
    def __init__(self) -> None:
        self._rows: collections.Counter[str] = collections.Counter()
        self._sizes: collections.Counter[str] = collections.Counter()

    def one(self, name: str, size_bytes: int = 0) -> None:
        self._rows[name] += 1
        self._sizes[name] += size_bytes

    def counts(self) -> dict[str, Count]:
        return {name: Count(rows, self._sizes[name]) for name, rows in self._rows.items()}


def _of_packs(reader: Reader) -> _Tally:
    tally = _Tally()
    counted = targets.current(reader).keys()
    for pack in packs.every(reader):
        tally.one(counts.PACKS, pack.size_bytes)
        if pack.local:
            tally.one(counts.LOCAL, pack.size_bytes)
        held = {c.target for c in copies.of_pack(reader, pack.number) if c.state is CopyState.VERIFIED}
        for target in held:
            tally.one(counts.verified(target), pack.size_bytes)
        tally.one(counts.held(len(held & counted)), pack.size_bytes)
    return tally


def correct(tx: Transaction) -> bool:
    """Set all counts to what is found; always True: nothing is left to do."""
    _set(tx, found(tx), set(counts.every(tx)))
    return True


def tell_removals_apart(tx: Transaction, at_once: int = TRANSFERS_AT_ONCE) -> bool:
    """Transfers of packs that are no more are removals, which earlier programs did not say; *at_once* in a step."""
    rows = itertools.islice(copies.transfers_after(tx, migrations.resume(tx)), at_once)
    seen = list(rows)
    for _, transfer in seen:
        if not transfer.is_removal and packs.get(tx, transfer.pack) is None:
            copies.enqueue(tx, dataclasses.replace(transfer, is_removal=True))
    if len(seen) < at_once:
        return True
    migrations.set_resume(tx, seen[-1][0])
    return False


def used(rows: Iterable[tuple[bytes, bytes]]) -> dict[RepositoryId, Count]:
    """What the inodes in *rows*, pairs of key and value, take of each repository."""
    tally: dict[RepositoryId, Count] = {}
    for _, value in rows:
        row = inodes.decode(value)
        counts.tally(tally, row.repository, inodes.bytes_used(row))
    return tally


def every_used(reader: Reader) -> dict[RepositoryId, Count]:
    """What each repository has, from its inodes alone. Takes as long as there are inodes."""
    return used(reader.scan(keys.INODES, prefix_stop(keys.INODES)))


def count_used(tx: Transaction, at_once: int = INODES_AT_ONCE) -> bool:
    """Of a tree from before there were such counts: what each repository has; *at_once* inodes in a step."""
    begin = migrations.resume(tx) or keys.INODES
    rows = list(itertools.islice(tx.scan(begin, prefix_stop(keys.INODES)), at_once))
    for number, count in used(rows).items():
        counts.add(tx, counts.used(number), count.rows, count.size_bytes)
    if len(rows) < at_once:
        return True
    migrations.set_resume(tx, bytes(rows[-1][0]) + b"\0")
    return False


def correct_held(tx: Transaction) -> None:
    """Set the counts of packs by how many targets hold them: other targets count now."""
    name_begin = counts.held(0)[:-1]
    right = {name: count for name, count in _of_packs(tx).counts().items() if name.startswith(name_begin)}
    _set(tx, right, {name for name in counts.every(tx) if name.startswith(name_begin)})


def _set(tx: Transaction, right: dict[str, Count], known: set[str]) -> None:
    for name in known - right.keys():
        counts.put(tx, name, counts.NONE)
    for name, count in right.items():
        counts.put(tx, name, count)
