"""What must be on stable storage before an answer that promises it: local bytes, their names there, and rows.

It says what to wait for (`vnafs.fs.commitment.Commitment`) and waits for nothing. One thread.
"""

from __future__ import annotations

import contextlib
import os

from vnafs.domain.errors import Suspect
from vnafs.domain.files import FileState
from vnafs.domain.ids import Inode
from vnafs.fs.commitment import Commitment
from vnafs.fs.core import Core
from vnafs.fs.data import Data
from vnafs.fs.handles import Handle, OpenFile
from vnafs.fs.recall import RecallNeeded
from vnafs.index.inodes import InodeRow


class Durability:
    """Commitments of files."""

    def __init__(self, core: Core, data: Data) -> None:
        self._core = core
        self._data = data

    def flush(self, handle: Handle) -> Commitment | None:
        """What close(2) of one duplicate must wait for; None when there is nothing, so at most the first waits.

        At `written` nothing; at `durable` the bytes that this handle wrote, and everything that was logged. Raises
        Suspect there, as fsync.
        """
        file = handle.file
        if handle.is_unseen and handle.writable:
            file.written += 1
            handle.wrote_at = file.written
            self._data.note_size(file)
        if handle.wrote_at <= file.settled:
            return None
        row = self._core.find(file.inode)
        if row is None or row.nlink == 0 or not self._core.is_durable(row.repository):
            return None
        _refuse_suspect(file.inode, row)
        return self._commitment(file)

    def fsync(self, handle: Handle) -> Commitment | None:
        """What fsync(2) and fdatasync(2) must wait for, at any level: bytes, names and attributes of the file.

        Raises Suspect of a file whose bytes the disk did not keep before.
        """
        file = handle.file
        core = self._core
        row = core.find(file.inode)
        if row is not None:
            _refuse_suspect(file.inode, row)
        file.written += file.unseen_writers > 0
        is_unsynced = file.written > file.settled or file.times_set > file.times_settled
        if file.descriptor >= 0 and (is_unsynced or not file.directory_settled):
            return self._commitment(file)
        if core.engine.synced >= core.engine.position:
            return None
        return Commitment(core.engine.position)

    def _commitment(self, file: OpenFile) -> Commitment:
        core = self._core
        directory = "" if file.directory_settled else core.spool.local_directory(file.inode)
        times = file.times_set if file.times_set > file.times_settled else 0
        descriptor = os.dup(file.descriptor)
        return Commitment(core.engine.position, descriptor, directory, file, file.written, file.inode, times)

    def times(self, inode: Inode) -> Commitment | None:
        """What setting times must wait for: while a file is open for write its local file has them, not its row."""
        core = self._core
        file = core.handles.files.get(inode)
        if file is not None and file.times_set > file.times_settled and file.writing >= 0:
            return self._commitment(file)
        position = core.engine.position
        return Commitment(position) if core.engine.synced < position else None

    def commitment_of(self, inode: Inode, row: InodeRow) -> Commitment | None:
        """The local bytes and the row of one file, open or not."""
        core = self._core
        file = core.handles.files.get(inode)
        if file is not None and file.descriptor >= 0:
            return self._commitment(file)
        if row.is_file and row.state is not FileState.STUB:
            with contextlib.suppress(RecallNeeded):  # verified copies have its bytes
                descriptor = self._data.open_local(inode, row, write=False)
                directory = core.spool.local_directory(inode)
                return Commitment(core.engine.position, descriptor, directory, inode=inode)
        position = core.engine.position
        return Commitment(position) if core.engine.synced < position else None

    def settled(self, commitment: Commitment) -> None:
        """Everything a commitment names survives loss of power now."""
        file = commitment.file
        if file is not None:
            file.settled = max(file.settled, commitment.written)
            file.times_settled = max(file.times_settled, commitment.times)
            if commitment.directory:
                file.directory_settled = True


def _refuse_suspect(inode: Inode, row: InodeRow) -> None:
    """What the disk did not keep before is not made good by what it keeps now."""
    if row.is_suspect:
        raise Suspect(what=f"inode {inode}", why="an earlier sync failed")
