"""Open files: one local descriptor for each inode that is open, shared by all its handles.

Readers share a read-only descriptor, so that a lease on the local file (how sealing sees writers) is refused only
while somebody may write. One thread.
"""

from __future__ import annotations

import os

from vnafs.domain.errors import BadHandle, TooManyOpen
from vnafs.domain.ids import Inode


class OpenFile:
    """An inode while at least one handle is open."""

    __slots__ = (
        "directory_settled",
        "handles",
        "inode",
        "is_fixed",
        "privileged_bits",
        "reading",
        "settled",
        "times_set",
        "times_settled",
        "unseen_handles",
        "unseen_writers",
        "writers",
        "writing",
        "written",
    )

    def __init__(self, inode: Inode, mode: int) -> None:
        self.inode = inode
        self.handles = 0
        self.writers = 0
        self.unseen_handles = 0
        """Those for which the kernel reads and writes the local file itself: nobody tells us."""
        self.unseen_writers = 0
        """Of them, those that are open for write."""
        self.reading = -1
        """A read-only descriptor, or -1."""
        self.writing = -1
        """A descriptor for both, or -1; while there is one, reads use it too."""
        self.written = 1
        """Counts writes. What earlier opens wrote may be unsynced, so it begins above `settled`."""
        self.settled = 0
        """The write count up to which bytes survive loss of power."""
        self.times_set = 0
        """Counts how often somebody set its times while it was open for write: the local file has them."""
        self.times_settled = 0
        """The count up to which these survive loss of power."""
        self.directory_settled = False
        self.is_fixed = False
        """It was committed while it was open: nothing more is written."""
        self.privileged_bits = bool(mode & 0o6000)
        """Whether the next write by an ordinary user must clear set-user-ID or set-group-ID."""

    @property
    def descriptor(self) -> int:
        """Where to read, or -1 when there are no local bytes."""
        return self.writing if self.writing >= 0 else self.reading

    def close_descriptors(self) -> None:
        """Let go of the local file."""
        for descriptor in (self.reading, self.writing):
            if descriptor >= 0:
                os.close(descriptor)
        self.reading = self.writing = -1


class Handle:
    """One successful open."""

    __slots__ = ("file", "is_unseen", "number", "privileged", "readable", "writable", "wrote_at")

    def __init__(self, number: int, file: OpenFile, *, readable: bool, writable: bool, privileged: bool) -> None:
        self.number = number
        self.file = file
        self.readable = readable
        self.writable = writable
        self.is_unseen = False
        """The kernel reads and writes the local file for it, past us."""
        self.privileged = privileged
        """Opened by root: writes keep set-user-ID bits."""
        self.wrote_at = 0
        """The file's write count at this handle's last write; 0 when it wrote nothing."""


class Handles:
    """Every open handle by number, up to a limit."""

    def __init__(self, open_max: int) -> None:
        self._open_max = open_max
        self._by_number: dict[int, Handle] = {}
        self._next = 1
        self.files: dict[Inode, OpenFile] = {}
        self.ending: dict[Inode, OpenFile] = {}
        """Files whose end of writing or of life could not be logged yet; they keep their descriptor until it is."""

    def __len__(self) -> int:
        return len(self._by_number)

    def check_room(self) -> None:
        """Raises TooManyOpen."""
        if len(self._by_number) + len(self.ending) >= self._open_max:
            raise TooManyOpen(limit=self._open_max)

    def add(self, file: OpenFile, *, readable: bool, writable: bool, privileged: bool) -> Handle:
        """A new handle of *file*. Its writer count is the opener's business."""
        number = self._next
        self._next = number + 1
        return self.adopt(number, file, readable=readable, writable=writable, privileged=privileged)

    def adopt(self, number: int, file: OpenFile, *, readable: bool, writable: bool, privileged: bool) -> Handle:
        """As `add`, with the number that a process before gave."""
        handle = Handle(number, file, readable=readable, writable=writable, privileged=privileged)
        self._by_number[number] = handle
        file.handles += 1
        return handle

    def skip_to(self, number: int) -> None:
        """No number below this is given any more."""
        self._next = max(self._next, number)

    def get(self, number: int) -> Handle:
        """The handle of that number. Raises BadHandle."""
        handle = self._by_number.get(number)
        if handle is None:
            raise BadHandle
        return handle

    def drop(self, handle: Handle) -> None:
        """Forget a handle. Raises BadHandle when it was closed before."""
        if self._by_number.pop(handle.number, None) is None:
            raise BadHandle
        handle.file.handles -= 1

    def every(self) -> list[Handle]:
        """All that are open now."""
        return list(self._by_number.values())
