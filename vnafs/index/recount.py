"""Recount: what the counts should be, found by walking all rows.

For tests, for archives from before there were counts, and where what is counted changes for all rows at once.
"""

from __future__ import annotations

import collections

from vnafs.domain.copies import CopyState
from vnafs.index import contents, copies, counts, packs, targets
from vnafs.index.counts import Count
from vnafs.index.engine import Reader, Transaction


def found(reader: Reader) -> dict[str, Count]:
    """Every count that is not zero, from the rows alone. Takes as long as there are rows."""
    tally = _of_packs(reader)
    for content in contents.every(reader):
        tally.one(counts.CONTENTS, content.size_bytes)
    for row in targets.every(reader):
        for _ in copies.transfers(reader, row.number):
            tally.one(counts.waiting(row.number))
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
