"""Returned: versions that came back from kept ones (U rows), until the store has noted that they use their content.

Written with the file's row, removed when tiering says that it has heard. Reads and changes happen in the caller's
transaction.
"""

from __future__ import annotations

import itertools
import struct
from typing import NamedTuple

from vnafs.domain.ids import Inode, RepositoryId, Sha256, Version
from vnafs.index import keys
from vnafs.index.engine import Reader, Transaction, prefix_stop

_NUMBER = struct.Struct(">Q")


class Returned(NamedTuple):
    """A version whose bytes are a content that the store knows from another one."""

    inode: Inode
    version: Version
    repository: RepositoryId
    sha256: Sha256


def put(tx: Transaction, found: Returned) -> None:
    """Note one."""
    tx.put(keys.returned(found.inode, found.version), _NUMBER.pack(found.repository) + found.sha256)


def remove(tx: Transaction, inode: Inode, version: Version) -> None:
    """The store has heard of it."""
    tx.delete(keys.returned(inode, version))


def some(reader: Reader, limit: int) -> list[Returned]:
    """At most *limit* of them, in order of inode."""
    found = []
    for key, value in itertools.islice(reader.scan(keys.RETURNED, prefix_stop(keys.RETURNED)), limit):
        inode, version = keys.returned_of(bytes(key))
        (repository,) = _NUMBER.unpack_from(value)
        found.append(Returned(inode, version, RepositoryId(repository), Sha256(bytes(value[_NUMBER.size :]))))
    return found
