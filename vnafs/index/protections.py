"""Protections: copies of files that stay open, made as the files were at some moment (W rows; `pipeline.protect`).

One row for each file that has been open for a while: since when its bytes are unprotected, the last copy that was
verified on a target, and a younger one on its way there. A copy names its content by SHA-256; the content needs no
row that says who uses it (N), because these bytes are no version's: whoever collects contents must keep what a row
here names. Reads and changes happen in the caller's transaction.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from vnafs.domain.clock import Instant
from vnafs.domain.errors import Damaged
from vnafs.domain.files import Fingerprint
from vnafs.domain.ids import Inode, RepositoryId, Sha256, Version
from vnafs.index import keys
from vnafs.index.engine import Reader, Transaction, prefix_stop
from vnafs.index.records import RecordType

_RECORD = RecordType("protection", {1: ">QQqB"})
_FROZEN = RecordType("frozen copy", {1: ">Q32sqQqq"})
_FROZEN_BYTES = len(_FROZEN.pack(0, bytes(32), 0, 0, 0, 0))
_KEPT, _COMING = 1, 2


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    """A file's bytes as they were at one moment."""

    version: Version
    sha256: Sha256
    taken: Instant
    """Everything that was answered before this is in the copy."""
    fingerprint: Fingerprint
    """Of the local file then; while it has it, nothing was written since. All zero where that could not be told."""


@dataclasses.dataclass(frozen=True, slots=True)
class Protection:
    """One W row."""

    inode: Inode
    repository: RepositoryId
    version: Version
    """The one that is open now."""
    since: Instant
    """When it was first seen open: no byte of it is older than this, as far as is known."""
    kept: Frozen | None = None
    """Verified on a target when it took this place."""
    coming: Frozen | None = None
    """On its way to the targets."""

    def copies(self) -> Iterator[Frozen]:
        """Every copy there is, the youngest first."""
        for copy in (self.coming, self.kept):
            if copy is not None:
                yield copy


def put(tx: Transaction, row: Protection) -> None:
    """Store a row, new or changed."""
    tail = b"".join(
        _FROZEN.pack(
            copy.version,
            copy.sha256,
            copy.taken,
            copy.fingerprint.size_bytes,
            copy.fingerprint.mtime_ns,
            copy.fingerprint.ctime_ns,
        )
        for copy in (row.kept, row.coming)
        if copy is not None
    )
    which = (_KEPT if row.kept else 0) | (_COMING if row.coming else 0)
    tx.put(keys.protection(row.inode), _RECORD.pack(row.repository, row.version, row.since, which, tail=tail))


def get(reader: Reader, inode: Inode) -> Protection | None:
    """What is known of one file that stays open; None for any other."""
    raw = reader.get(keys.protection(inode))
    return None if raw is None else _decode(inode, raw)


def every(reader: Reader) -> Iterator[Protection]:
    """All rows, in order of inode."""
    for key, raw in reader.scan(keys.PROTECTIONS, prefix_stop(keys.PROTECTIONS)):
        yield _decode(Inode(keys.number_of(key)), raw)


def remove(tx: Transaction, inode: Inode) -> None:
    """Forget a file: it is gone, or has copies of its own."""
    tx.delete(keys.protection(inode))


def _decode(inode: Inode, raw: bytes) -> Protection:
    (repository, version, since, which), tail = _RECORD.unpack(raw)
    if len(tail) != _FROZEN_BYTES * which.bit_count() or which & ~(_KEPT | _COMING):
        raise Damaged(what="a protection record")
    kept = _frozen(tail[:_FROZEN_BYTES]) if which & _KEPT else None
    coming = _frozen(tail[-_FROZEN_BYTES:]) if which & _COMING else None
    return Protection(inode, RepositoryId(repository), Version(version), Instant(since), kept, coming)


def _frozen(raw: bytes) -> Frozen:
    (version, sha256, taken, size_bytes, mtime_ns, ctime_ns), _ = _FROZEN.unpack(raw)
    mark = Fingerprint(size_bytes, mtime_ns, ctime_ns)
    return Frozen(Version(version), Sha256(sha256), Instant(taken), mark)
