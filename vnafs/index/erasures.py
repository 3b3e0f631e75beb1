"""Erasures: which files are erased for good (S rows), and which of their versions that were, by their hashes (T rows).

No row has a name or a path. They are never removed: they say what was erased, and when. Manifests carry them, so that
whoever rebuilds an index goes on with what was begun. What becomes of packs and targets is next door
(`vnafs.index.erasing`). Reads and changes happen in the caller's transaction.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterator

from vnafs.domain.errors import NotFound
from vnafs.domain.ids import Inode, RepositoryId, Sha256, Version
from vnafs.index import keys
from vnafs.index.engine import Reader, Transaction, prefix_stop
from vnafs.index.records import RecordType

_ERASURE = RecordType("erasure", {1: ">BQqqQ"})  # stage, repository, since, touched, files; the reason follows
_ERASED = RecordType("erased version", {1: ">Q"})  # size; the SHA-256 follows where it is known
SWEPT = "erasure_sweep"
"""The key of the row of the past after which the search for names of what was erased goes on."""


class Stage(enum.IntEnum):
    """How far the tree is. The numbers are stored."""

    TAKING = 1
    """Files are added to it, each with all that it was."""
    SWEEPING = 2
    """The past of other directories is searched for names that they had."""
    OVER = 3
    """The tree knows nothing of them any more."""


@dataclasses.dataclass(frozen=True, slots=True)
class Erasure:
    """One S row. Times are nanoseconds since 1970 UTC."""

    number: int
    stage: Stage
    repository: RepositoryId
    since_ns: int
    touched_ns: int
    """When it last went on."""
    files: int
    reason: str

    @property
    def id(self) -> str:
        """What it is called."""
        return f"{self.number:016x}"


@dataclasses.dataclass(frozen=True, slots=True)
class Erased:
    """One T row."""

    inode: Inode
    version: Version
    sha256: Sha256 | None
    """None of what has no bytes: a directory, or a version that was never sealed."""
    size_bytes: int


def put(tx: Transaction, row: Erasure) -> None:
    """Begin an erasure, or say how far it is."""
    record = _ERASURE.pack(row.stage, row.repository, row.since_ns, row.touched_ns, row.files, tail=row.reason.encode())
    tx.put(keys.erasure(row.number), record)


def find(reader: Reader, number: int) -> Erasure:
    """One of them. Raises NotFound."""
    raw = reader.get(keys.erasure(number))
    if raw is None:
        raise NotFound(what=f"Erasure {number:016x}")
    return _decode(number, bytes(raw))


def every(reader: Reader) -> Iterator[Erasure]:
    """All of them, the oldest first; lazily."""
    for key, raw in reader.scan(keys.ERASURES, prefix_stop(keys.ERASURES)):
        yield _decode(keys.number_of(bytes(key)), bytes(raw))


def _decode(number: int, raw: bytes) -> Erasure:
    (stage, repository, since_ns, touched_ns, files), reason = _ERASURE.unpack(raw)
    return Erasure(number, Stage(stage), RepositoryId(repository), since_ns, touched_ns, files, reason.decode())


def add(tx: Transaction, number: int, erased: Erased) -> None:
    """Note one version that was erased."""
    key = keys.erased(number, erased.inode, erased.version)
    tx.put(key, _ERASED.pack(erased.size_bytes, tail=erased.sha256 or b""))


def versions(reader: Reader, number: int) -> Iterator[Erased]:
    """Whatever one of them erased, in order of inode and version; lazily."""
    prefix = keys.erased_by(number)
    for key, raw in reader.scan(prefix, prefix_stop(prefix)):
        (size_bytes,), sha256 = _ERASED.unpack(bytes(raw))
        _, inode, version = keys.erased_of(bytes(key))
        yield Erased(inode, version, Sha256(sha256) if sha256 else None, size_bytes)


def has(reader: Reader, number: int, inode: Inode) -> bool:
    """Whether an inode is among what one of them erased."""
    prefix = keys.erased_inode(number, inode)
    return next(iter(reader.scan(prefix, prefix_stop(prefix))), None) is not None
