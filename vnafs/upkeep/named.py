"""Named: which contents the tree needs, from its own rows and nothing that was derived from them.

The last question before bytes go for good. Walks all inodes first and all kept versions after them, in short views:
what is overwritten or removed meanwhile has a kept version before its inode says otherwise, and what comes back does
so from a kept version that stays until the store has heard of it. Ask after a barrier of the tree.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

from vnafs.domain.ids import RepositoryId, Sha256
from vnafs.index import inodes, keys, past
from vnafs.index.engine import Engine, in_batches
from vnafs.index.inodes import InodeRow

ROWS_AT_ONCE = 2000

Name = tuple[RepositoryId, Sha256]


def named(namespace: Engine, wanted: Collection[Name], pause: Callable[[], None]) -> set[Name]:
    """Those of *wanted* that some file or kept version has, or had before bytes that have no copy yet.

    *pause* is called between batches; it may raise to end the walk. Takes as long as there are rows.
    """
    found: set[Name] = set()
    for batch in in_batches(namespace, keys.INODES, ROWS_AT_ONCE):
        for _, value in batch:
            found.update(name for name in _names(inodes.decode(value)) if name in wanted)
        pause()
    for batch in in_batches(namespace, keys.PAST_VERSIONS, ROWS_AT_ONCE):
        for key, value in batch:
            found.update(name for name in _names(past.decode_version(key, value).row) if name in wanted)
        pause()
    return found


def _names(row: InodeRow) -> Iterator[Name]:
    if row.seal is not None:
        yield row.repository, row.seal.sha256
    if row.before is not None:
        yield row.repository, row.before
