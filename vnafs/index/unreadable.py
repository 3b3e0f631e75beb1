"""Unreadable versions (Y rows): files that came back from manifests although nobody knows a content of their bytes.

Restore writes a row for each; it is of no use any more once the version is no more, or once a content with its bytes
is known. Reads and changes happen in the caller's transaction.
"""

from __future__ import annotations

from collections.abc import Iterator

from vnafs.domain.ids import Inode, Version
from vnafs.index import keys
from vnafs.index.engine import Reader, Transaction, prefix_stop


def put(tx: Transaction, inode: Inode, version: Version) -> None:
    """Note a version."""
    tx.put(keys.unreadable(inode, version), b"")


def remove(tx: Transaction, inode: Inode, version: Version) -> None:
    """Forget a version."""
    tx.delete(keys.unreadable(inode, version))


def every(reader: Reader) -> Iterator[tuple[Inode, Version]]:
    """All of them, in order."""
    for key, _ in reader.scan(keys.UNREADABLE, prefix_stop(keys.UNREADABLE)):
        yield keys.unreadable_of(key)
