"""Named: which contents the tree needs, from its own rows and nothing that was derived from them.

The last question before bytes go for good. Walks all inodes first and all kept versions after them, in short views:
what is overwritten or removed meanwhile has a kept version before its inode says otherwise, and what comes back does
so from a kept version that stays until the store has heard of it. Ask after a barrier of the tree.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import NamedTuple

from vnafs.domain.ids import Inode, Version
from vnafs.index import inodes, keys, past
from vnafs.index.engine import Engine, in_batches
from vnafs.upkeep.needs import Name

ROWS_AT_ONCE = 2000


class Holder(NamedTuple):
    """A version that has a content. None of either: a file that is being written had it before."""

    inode: Inode | None
    version: Version | None


BEFORE = Holder(None, None)


def named(namespace: Engine, wanted: Collection[Name], pause: Callable[[], None]) -> dict[Name, Holder]:
    """Those of *wanted* that some file or kept version has, or had before bytes that have no copy yet.

    *pause* is called between batches; it may raise to end the walk. Takes as long as there are rows.
    """
    found: dict[Name, Holder] = {}
    for batch in in_batches(namespace, keys.INODES, ROWS_AT_ONCE):
        for key, value in batch:
            row = inodes.decode(value)
            if row.seal is not None and (name := (row.repository, row.seal.sha256)) in wanted:
                found[name] = Holder(Inode(keys.number_of(key)), row.version)
            if row.before is not None and (name := (row.repository, row.before)) in wanted:
                found.setdefault(name, BEFORE)
        pause()
    for batch in in_batches(namespace, keys.PAST_VERSIONS, ROWS_AT_ONCE):
        for key, value in batch:
            one = past.decode_version(key, value)
            seal = one.row.seal
            if seal is not None and (name := (one.row.repository, seal.sha256)) in wanted:
                found[name] = Holder(one.inode, one.version)
        pause()
    return found
