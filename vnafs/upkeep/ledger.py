"""The ledger: manifests as they are on the local disk, and how far they have come.

The folder is laid out as `manifests/` on every target is, so that sending is copying. Objects appear by rename and are
synced; a row in the store then says that they are there. What a crash left without a row is written again. One thread
writes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
from collections.abc import Iterator

from vnafs.content import manifest
from vnafs.domain.errors import Damaged
from vnafs.domain.ids import ObjectName, Sha256
from vnafs.index import feeds, meta
from vnafs.index.engine import Engine, Reader, Transaction
from vnafs.local.spool import fsync_directory, local_error

NUMBER = "manifest.number"
DIGEST = "manifest.digest"
SNAPSHOT = "manifest.snapshot"
SNAPSHOT_FROM = "manifest.snapshot_from"
SNAPSHOT_BYTES = "manifest.snapshot_bytes"
SINCE_BYTES = "manifest.since_bytes"
FEW = "manifest.few"
NAMESPACE_CURSOR = "manifest.namespace"
STORE_CURSOR = "manifest.store"


@dataclasses.dataclass(frozen=True, slots=True)
class Position:
    """How far the ledger has come."""

    number: int = 0
    """Of the last segment; 0 before the first."""
    digest: Sha256 = manifest.NO_PREVIOUS
    """SHA-256 of that segment as an object."""
    snapshot: int | None = None
    """The number of the last snapshot; None before the first."""
    snapshot_from: int = 0
    """Segments past this one bring the snapshot up to date."""
    snapshot_bytes: int = 0
    since_bytes: int = 0
    """Of segments since the snapshot."""
    few: bytes = b""
    """A digest of what is told whole each time, as it was told last."""
    namespace_cursor: int = 1
    store_cursor: int = 1


@dataclasses.dataclass(frozen=True, slots=True)
class Sent:
    """What one target is known to have, verified."""

    number: int = 0
    snapshot: int | None = None


TRIM = "manifest.trim"


def trim_wanted(reader: Reader) -> int | None:
    """The number up to which everything is to go from targets; 0 while that is not settled, None for none."""
    return meta.get_int(reader, TRIM)


def set_trim_wanted(tx: Transaction, number: int | None) -> None:
    """Want that, or no more."""
    if number is None:
        meta.remove(tx, TRIM)
    else:
        meta.set_int(tx, TRIM, number)


def oldest_of(reader: Reader, target: int) -> int | None:
    """The lowest number of which anything is left on a target, as of the last trim; None before the first."""
    return meta.get_int(reader, f"manifest.oldest.{target}")


def set_oldest(tx: Transaction, target: int, number: int) -> None:
    """Store that."""
    meta.set_int(tx, f"manifest.oldest.{target}", number)


def position(reader: Reader) -> Position:
    """How far the ledger has come, from its rows."""
    digest = meta.get_bytes(reader, DIGEST)
    return Position(
        meta.get_int(reader, NUMBER) or 0,
        manifest.NO_PREVIOUS if digest is None else Sha256(digest),
        meta.get_int(reader, SNAPSHOT),
        meta.get_int(reader, SNAPSHOT_FROM) or 0,
        meta.get_int(reader, SNAPSHOT_BYTES) or 0,
        meta.get_int(reader, SINCE_BYTES) or 0,
        meta.get_bytes(reader, FEW) or b"",
        feeds.cursor_of(reader, NAMESPACE_CURSOR),
        feeds.cursor_of(reader, STORE_CURSOR),
    )


def set_position(tx: Transaction, now: Position) -> None:
    """Store how far the ledger has come."""
    meta.set_int(tx, NUMBER, now.number)
    meta.set_bytes(tx, DIGEST, now.digest)
    if now.snapshot is None:
        meta.remove(tx, SNAPSHOT)
    else:
        meta.set_int(tx, SNAPSHOT, now.snapshot)
    meta.set_int(tx, SNAPSHOT_FROM, now.snapshot_from)
    meta.set_int(tx, SNAPSHOT_BYTES, now.snapshot_bytes)
    meta.set_int(tx, SINCE_BYTES, now.since_bytes)
    meta.set_bytes(tx, FEW, now.few)
    feeds.set_cursor(tx, NAMESPACE_CURSOR, now.namespace_cursor)
    feeds.set_cursor(tx, STORE_CURSOR, now.store_cursor)


def sent(reader: Reader, target: int) -> Sent:
    """What a target has."""
    return Sent(meta.get_int(reader, f"manifest.sent.{target}") or 0, meta.get_int(reader, f"manifest.kept.{target}"))


def set_sent(tx: Transaction, target: int, now: Sent) -> None:
    """Store what a target has."""
    meta.set_int(tx, f"manifest.sent.{target}", now.number)
    if now.snapshot is None:
        meta.remove(tx, f"manifest.kept.{target}")
    else:
        meta.set_int(tx, f"manifest.kept.{target}", now.snapshot)


class Ledger:
    """See the module."""

    def __init__(self, folder: str, store: Engine) -> None:
        self.folder = folder
        self._store = store
        os.makedirs(folder, mode=0o700, exist_ok=True)

    def position(self) -> Position:
        """How far it has come."""
        with self._store.read() as reader:
            return position(reader)

    def path(self, name: ObjectName) -> str:
        """Where an object is on the local disk."""
        return os.path.join(self.folder, *name.split("/")[1:])

    def write(self, name: ObjectName, data: bytes) -> None:
        """Put an object on stable storage, in place of any that has no row. Raises NoSpace, StorageFailed."""
        path = self.path(name)
        partial = f"{path}.partial"
        try:
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            with open(partial, "wb") as file:
                file.write(data)
                file.flush()
                os.fdatasync(file.fileno())
            os.rename(partial, path)
            fsync_directory(os.path.dirname(path))
        except OSError as problem:
            with contextlib.suppress(OSError):
                os.unlink(partial)
            raise local_error(problem, "writing a manifest") from problem

    def read(self, name: ObjectName) -> bytes:
        """An object's bytes. Raises Damaged when it is not there."""
        try:
            with open(self.path(name), "rb") as file:
                return file.read()
        except FileNotFoundError as problem:
            raise Damaged(what=f"The local manifest {name}") from problem
        except OSError as problem:
            raise local_error(problem, "reading a manifest") from problem

    def has(self, name: ObjectName) -> bool:
        """Whether an object is on the local disk."""
        return os.path.exists(self.path(name))

    def remove(self, name: ObjectName) -> None:
        """Give up an object that is not what was written."""
        with contextlib.suppress(OSError):
            os.unlink(self.path(name))

    def names(self) -> Iterator[ObjectName]:
        """Every object that is there."""
        for folder, _, files in os.walk(self.folder):
            for file in files:
                yield ObjectName(f"manifests/{os.path.relpath(os.path.join(folder, file), self.folder)}")

    def keep_only(self, wanted: set[ObjectName], from_number: int) -> None:
        """Remove snapshots and runs that are not *wanted*, and segments up to *from_number*; never fails."""
        for name in list(self.names()):
            number = manifest.number_in(name)
            keep = number > from_number if name.startswith(manifest.SEGMENTS) and number is not None else name in wanted
            if not keep:
                with contextlib.suppress(OSError):
                    os.unlink(self.path(name))


def digest_of(data: bytes) -> Sha256:
    """An object's identity."""
    return Sha256(hashlib.sha256(data).digest())
