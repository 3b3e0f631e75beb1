"""Backing ids: which local file the kernel reads and writes itself for an inode (FUSE passthrough, Linux 6.9).

All opens of an inode that live at one time must use the same way: either every one goes past us, to the same local
file, or none does; the kernel answers EIO otherwise (fs/fuse/iomode.c). The first open chooses, the last close frees
the choice: the kernel ends its side before it sends RELEASE. One thread.
"""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import logging
import os
from collections.abc import Callable, Mapping, Set

from vnafs.domain.errors import Busy
from vnafs.domain.ids import Inode
from vnafs.fuse.kernel import wire
from vnafs.fuse.kernel.estate import Estate, KeptBacking

_LOG = logging.getLogger(__name__)

THROUGH_US = 0
"""Instead of a backing id: reads and writes are requests."""
_NEVER = frozenset({errno.EPERM, errno.ELOOP, errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL})
"""Not root, a stacked local file system, or a kernel without passthrough: it will not work for the next file either."""


@dataclasses.dataclass(slots=True)
class _Backing:
    number: int
    """The kernel's id; THROUGH_US for none."""
    opens: int
    local: tuple[int, int] = (0, 0)
    """Device and inode of the local file."""


class Backings:
    """The way of each open inode. *control* is the descriptor of /dev/fuse; ids are noted in *estate*, if there is one.

    What an estate has of a process before is given back by `adopt`, or the kernel has it until the unmount.
    """

    def __init__(self, control: int, backings_max: int, estate: Estate | None = None) -> None:
        self._control = control
        self._estate = estate
        self._backings_max = backings_max
        self._ways: dict[Inode, _Backing] = {}
        self._taken = 0
        self.works = True
        """Whether the kernel gives backing ids at all."""

    @property
    def taken(self) -> int:
        """Backing ids in use."""
        return self._taken

    def is_open(self, inode: Inode) -> bool:
        """Whether the way of *inode* is chosen."""
        return inode in self._ways

    def passes(self, inode: Inode) -> bool:
        """Whether opens of *inode* go past us now."""
        way = self._ways.get(inode)
        return way is not None and way.number != THROUGH_US

    def adopt(self, opens: Mapping[Inode, int], unseen: Set[Inode], local_of: Callable[[Inode], int]) -> None:
        """Go on with what is open: how often, and of which inodes the kernel reads and writes the local file.

        *local_of* gives the descriptor of an inode's local file. Raises Busy when the kernel has another file.
        """
        assert self._estate is not None  # noqa: S101 - there is nothing to adopt without
        for kept in self._estate.backings():
            inode = Inode(kept.inode)
            if kept.closing or inode not in unseen:
                self._end(kept.number, expected=not kept.closing)
                continue
            descriptor = local_of(inode)
            if inode in self._ways or descriptor < 0 or _local(descriptor) != kept.local:
                raise Busy(what=f"inode {inode}", why="its local file is not the one that the kernel has")
            self._ways[inode] = _Backing(kept.number, opens[inode], kept.local)
            self._taken += 1
        for inode in unseen - self._ways.keys():
            raise Busy(what=f"inode {inode}", why="nobody knows which local file the kernel has")
        for inode in opens.keys() - self._ways.keys():
            self._ways[inode] = _Backing(THROUGH_US, opens[inode])

    def way_of(self, inode: Inode) -> int:
        """The way of an open inode: a backing id, or THROUGH_US."""
        return self._ways[inode].number

    def take(self, inode: Inode, descriptor: int, *, wanted: bool) -> int:
        """The way for one more open of *inode*: a backing id, or THROUGH_US.

        *descriptor* is of its local file, -1 when there is none; *wanted* says whether a first open may go past us.
        Raises Busy when opens that live go to another local file than this one.
        """
        way = self._ways.get(inode)
        if way is None:
            way = self._ways[inode] = self._choose(inode, descriptor) if wanted else _Backing(THROUGH_US, 0)
        elif way.number != THROUGH_US and (descriptor < 0 or _local(descriptor) != way.local):
            raise Busy(what=f"inode {inode}", why="its local file was replaced while programs have it open")
        way.opens += 1
        return way.number

    def drop(self, inode: Inode) -> None:
        """One open less."""
        way = self._ways.get(inode)
        if way is None:
            return
        way.opens -= 1
        if way.opens:
            return
        del self._ways[inode]
        if way.number != THROUGH_US:
            self._taken -= 1
            self._end(way.number)

    def _choose(self, inode: Inode, descriptor: int) -> _Backing:
        if descriptor < 0 or not self.works or self._taken >= self._backings_max:
            return _Backing(THROUGH_US, 0)
        estate = self._estate
        if estate is not None and not estate.backing_wanted():
            return _Backing(THROUGH_US, 0)
        reading, given = -1, None
        try:
            # read-only: a writer's descriptor would refuse the lease of sealing for as long as readers have it open
            reading = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)
            local = _local(reading)
            asked = bytearray(wire.BACKING_MAP.pack(reading, 0, 0))  # of bytes, ioctl would not return the id
            number = fcntl.ioctl(self._control, wire.BACKING_OPEN, asked)
            given = KeptBacking(number, inode, local, closing=False)
        except OSError as error:
            if reading >= 0 and error.errno in _NEVER:
                self.works = False
                _LOG.warning("fuse.passthrough_off", extra={"why": os.strerror(error.errno)})
            return _Backing(THROUGH_US, 0)
        finally:
            if estate is not None:
                estate.backing_given(given)
            if reading >= 0:
                os.close(reading)
        self._taken += 1
        return _Backing(number, 0, local)

    def _end(self, number: int, *, expected: bool = True) -> None:
        if self._estate is not None:
            self._estate.backing_closing(number)
        try:
            fcntl.ioctl(self._control, wire.BACKING_CLOSE, wire.BACKING_ID.pack(number))
        except OSError as error:
            if expected:
                _LOG.warning("fuse.backing_not_closed", extra={"errno": error.errno})
        if self._estate is not None:
            self._estate.backing_closed(number)


def _local(descriptor: int) -> tuple[int, int]:
    found = os.fstat(descriptor)
    return found.st_dev, found.st_ino
