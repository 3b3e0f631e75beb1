"""Rollbacks (J rows): what is left to do of one, what came back as what, and what was done so far.

All of it may be lost: a rollback that begins again from the repository's top finds what is right already. Reads and
changes happen in the caller's transaction.
"""

from __future__ import annotations

import itertools
import json
import struct
from collections.abc import Mapping
from typing import NamedTuple

from vnafs.domain.ids import Inode, RepositoryId
from vnafs.index import keys
from vnafs.index.engine import Reader, Transaction, prefix_stop
from vnafs.index.keys import Rolling

_NUMBER = struct.Struct(">Q")


class Folder(NamedTuple):
    """A directory whose names are to be what those of another one were; the same one, unless that is gone."""

    inode: Inode
    was: Inode
    after: bytes = b""
    """Names up to this one are done."""


def put_folder(tx: Transaction, repository: RepositoryId, folder: Folder) -> None:
    """Leave a directory, or the rest of it, to be done."""
    tx.put(keys.rolling(repository, Rolling.FOLDER, folder.inode), _NUMBER.pack(folder.was) + folder.after)


def remove_folder(tx: Transaction, repository: RepositoryId, inode: Inode) -> None:
    """A directory is done."""
    tx.delete(keys.rolling(repository, Rolling.FOLDER, inode))


def next_folder(reader: Reader, repository: RepositoryId) -> Folder | None:
    """A directory to do, or None when all are done."""
    prefix = keys.rollings(repository, Rolling.FOLDER)
    for key, value in reader.scan(prefix, prefix_stop(prefix)):
        (was,) = _NUMBER.unpack_from(value)
        return Folder(Inode(keys.number_of(bytes(key))), Inode(was), bytes(value[_NUMBER.size :]))
    return None


def put_made(tx: Transaction, repository: RepositoryId, was: Inode, now: Inode) -> None:
    """An inode of the past came back as another one; all its names shall lead there."""
    tx.put(keys.rolling(repository, Rolling.MADE, was), _NUMBER.pack(now))


def made(reader: Reader, repository: RepositoryId, was: Inode) -> Inode | None:
    """What an inode of the past came back as."""
    value = reader.get(keys.rolling(repository, Rolling.MADE, was))
    return None if value is None else Inode(_NUMBER.unpack(value)[0])


def forget_made(tx: Transaction, repository: RepositoryId, first: Inode, limit: int) -> Inode | None:
    """Forget some of that, from inode *first* of the past on; where there may be more, or None.

    Whoever began at the first each time would pass all that is gone already again and again.
    """
    start, stop = keys.rolling(repository, Rolling.MADE, first), prefix_stop(keys.rollings(repository, Rolling.MADE))
    found = [bytes(key) for key, _ in itertools.islice(tx.scan(start, stop), limit)]
    for key in found:
        tx.delete(key)
    return Inode(keys.number_of(found[-1]) + 1) if len(found) == limit else None


def put_counts(tx: Transaction, repository: RepositoryId, counts: Mapping[str, int]) -> None:
    """What was done so far."""
    tx.put(keys.rolling(repository, Rolling.COUNTS), json.dumps(counts).encode())


def counts(reader: Reader, repository: RepositoryId) -> dict[str, int]:
    """What was done so far in the rollback under way, or in the last one."""
    value = reader.get(keys.rolling(repository, Rolling.COUNTS))
    return {} if value is None else json.loads(bytes(value))
