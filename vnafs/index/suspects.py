"""Suspects (X rows of the store): versions that the local disk did not keep whole, of which the tree has not heard yet.

Linux says that once and never again, so it must survive whoever heard it. Reads and changes happen in the caller's
transaction.
"""

from __future__ import annotations

from collections.abc import Iterator

from vnafs.domain.ids import Inode, Version
from vnafs.index import keys
from vnafs.index.engine import Reader, Transaction, prefix_stop


def put(tx: Transaction, inode: Inode, version: Version) -> None:
    """Note a version."""
    tx.put(keys.suspect(inode, version), b"")


def remove(tx: Transaction, inode: Inode, version: Version) -> None:
    """The tree has heard."""
    tx.delete(keys.suspect(inode, version))


def every(reader: Reader) -> Iterator[tuple[Inode, Version]]:
    """All of them, in order."""
    for key, _ in reader.scan(keys.SUSPECTS, prefix_stop(keys.SUSPECTS)):
        yield keys.suspect_of(key)
