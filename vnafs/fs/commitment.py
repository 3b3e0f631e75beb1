"""What must reach stable storage before an answer may be given, as a value that any thread can settle.

The tree decides what; `settle` does the waiting, off the tree's thread. A failed sync is never retried.
"""

from __future__ import annotations

import dataclasses
import os

from vnafs.domain.errors import StorageFailed
from vnafs.fs.handles import OpenFile
from vnafs.index.engine import Engine, Position
from vnafs.local.spool import fsync_directory


@dataclasses.dataclass(frozen=True, slots=True)
class Commitment:
    """Settle once; then tell the tree (`Filesystem.settled`)."""

    position: Position
    """Of the index: what it holds up to here must survive loss of power."""
    descriptor: int = -1
    """Of local bytes, owned by this value; -1 when there are none to sync."""
    directory: str = ""
    """The spool directory whose names must survive, or empty."""
    file: OpenFile | None = None
    written: int = 0
    """The write count of *file* that this covers."""


def settle(commitment: Commitment, engine: Engine) -> None:
    """Wait until everything it names survives loss of power. Blocks; any thread. Raises StorageFailed."""
    try:
        if commitment.descriptor >= 0:
            os.fdatasync(commitment.descriptor)
        if commitment.directory:
            fsync_directory(commitment.directory)
    except OSError as error:
        raise StorageFailed(doing="syncing local bytes", why=error.strerror or str(error)) from error
    finally:
        if commitment.descriptor >= 0:
            os.close(commitment.descriptor)
    engine.sync(commitment.position)
