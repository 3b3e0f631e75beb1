"""Extended attributes: name and value for an inode, exactly as they were set.

What a name means, who may set it and how large a value may be is decided in `fs`. Reads and changes happen in the
caller's transaction.
"""

from __future__ import annotations

from vnafs.domain.ids import Inode
from vnafs.index import keys
from vnafs.index.engine import Reader, Transaction, prefix_stop


def find(reader: Reader, inode: Inode, name: bytes) -> bytes | None:
    """The value of one attribute, or None if it is not set."""
    value = reader.get(keys.xattr(inode, name))
    return None if value is None else bytes(value)


def put(tx: Transaction, inode: Inode, name: bytes, value: bytes) -> None:
    """Set one attribute."""
    tx.put(keys.xattr(inode, name), value)


def delete(tx: Transaction, inode: Inode, name: bytes) -> None:
    """Remove one attribute if it is there."""
    tx.delete(keys.xattr(inode, name))


def names(reader: Reader, inode: Inode) -> list[bytes]:
    """Every attribute that is set, in byte order."""
    prefix = keys.xattrs(inode)
    return [bytes(key[keys.XATTR_PREFIX_BYTES :]) for key, _ in reader.scan(prefix, prefix_stop(prefix))]
