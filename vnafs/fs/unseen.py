"""Reads and writes that the kernel makes itself on a local file, past the tree (FUSE passthrough).

The tree was told that the file is open for write before the first of them, and looks at the local file for all the
rest: its size and times, and at each flush its bytes count as written. What it judges at each write of its own cannot
hold here, so `may_pass` says where it does without: fences, freezes, quotas and the reserve. One thread.
"""

from __future__ import annotations

from vnafs.domain.ids import Inode
from vnafs.fs.asof import BASE
from vnafs.fs.core import Core
from vnafs.fs.data import Data
from vnafs.fs.handles import Handle


class Unseen:
    """Which handles the kernel serves itself."""

    def __init__(self, core: Core, data: Data) -> None:
        self._core = core
        self._data = data

    def may_pass(self, handle: Handle) -> bool:
        """Whether the kernel may read and write the local file of *handle* itself, without telling us.

        Not in a repository where something may be retained, because a file can be committed while it is open; and not
        while the disk or the repository's quota is nearly full, because only we keep the reserve, and to the quota.
        """
        core, file = self._core, handle.file
        if file.descriptor < 0 or file.inode >= BASE or core.failure is not None:
            return False
        row = core.row(file.inode)
        wanted_bytes = core.settings.unseen_room_bytes_min
        if row.repository in core.guarded or not core.usage.has_room(row.repository, wanted_bytes):
            return False
        return core.space.has_room(wanted_bytes)

    def pass_by(self, handle: Handle) -> None:
        """From now on it does. What no single write can do any more is done now: bits of privilege go."""
        handle.is_unseen = True
        core, file = self._core, handle.file
        file.unseen_handles += 1
        if handle.writable:
            file.unseen_writers += 1
            if core.usage.limited:
                core.watch_size(file, core.row(file.inode))
            if file.privileged_bits and not handle.privileged:
                self._data.clear_set_id(file)

    def is_written(self, inode: Inode) -> bool:
        """Whether the size and times of a file may change without a call of ours."""
        file = self._core.handles.files.get(inode)
        return file is not None and file.unseen_writers > 0

    def flush_matters(self, handle: Handle) -> bool:
        """Whether closing *handle* may have to wait for something."""
        if not handle.writable:
            return False
        row = self._core.find(handle.file.inode)
        return row is not None and self._core.is_durable(row.repository)
