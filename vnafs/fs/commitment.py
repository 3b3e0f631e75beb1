"""What must reach stable storage before an answer may be given, as a value that any thread can settle.

The tree decides what; `settle` does the waiting, off the tree's thread. A failed sync is never retried.
"""

from __future__ import annotations

import dataclasses
import os

from vnafs.domain.ids import Inode
from vnafs.fs.handles import OpenFile
from vnafs.index.engine import Engine, Position
from vnafs.local.spool import fsync_directory, sync_error
from vnafs.local.syncing import sync_bytes


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
    inode: Inode = Inode(0)
    """Whose bytes *descriptor* leads to."""
    times: int = 0
    """The same of the times that were set; 0 when there are none to sync, which fdatasync(2) would not do."""


def settle(commitment: Commitment, engine: Engine) -> None:
    """Wait until everything it names survives loss of power. Blocks; any thread. Raises StorageFailed.

    Suspect of bytes that the disk did not keep.
    """
    try:
        if commitment.descriptor >= 0:
            sync_bytes(commitment.descriptor, f"inode {commitment.inode}", times=commitment.times > 0)
        if commitment.directory:
            fsync_directory(commitment.directory)
    except OSError as error:
        raise sync_error(error, "syncing local bytes") from error
    finally:
        if commitment.descriptor >= 0:
            os.close(commitment.descriptor)
    engine.sync(commitment.position)
