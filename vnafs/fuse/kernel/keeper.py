"""Who keeps a mount while its process is replaced: a port, and what it means to be given one.

Whoever has a descriptor of /dev/fuse keeps the connection; when the last is closed the kernel ends it. A keeper has
one, and the estate beside it, and gives both to the next process.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
from typing import Protocol

from vnafs.domain.errors import Refused
from vnafs.domain.ids import Inode
from vnafs.fs.takeover import OpenBefore, Survivor
from vnafs.fuse.kernel.channel import Channel
from vnafs.fuse.kernel.estate import Estate, KeptMount
from vnafs.fuse.stale import connection_at, is_connected, place_of

_LOG = logging.getLogger(__name__)


class Keeper(Protocol):
    """Keeps two descriptors for the process after this one. Calls do not block."""

    def keep(self, control: int, estate: int) -> None:
        """From now on it has copies of these: /dev/fuse, mounted and spoken, and its estate. Raises Refused."""

    def serves(self) -> None:
        """The mount answers."""

    def let_go(self) -> None:
        """It has them no more: the mount is taken away."""


@dataclasses.dataclass(frozen=True, slots=True)
class Inheritance:
    """A mount that another process served."""

    control: int
    """Descriptor of /dev/fuse."""
    estate: Estate

    def open_before(self) -> OpenBefore:
        """What is open on it."""
        return OpenBefore(
            tuple(
                Survivor(
                    one.number,
                    Inode(one.inode),
                    readable=one.readable,
                    writable=one.writable,
                    privileged=one.privileged,
                    is_unseen=one.unseen,
                )
                for one in self.estate.handles()
            ),
            self.estate.next_handle,
        )


def inherited(control: int, estate: int, *, archive: bytes, mountpoint: str) -> Inheritance | None:
    """What a keeper gave; None, and nothing mounted any more, when it cannot be gone on with.

    It must be the mount of this *archive* (its id) at this *mountpoint*, and still be what is mounted there.
    """
    kept: Estate | None = None
    try:
        kept = Estate(estate)
        _check(control, kept.mount, archive, mountpoint)
    except Refused as why:
        _LOG.warning("fuse.not_taken_over", extra={"why": str(why)})
        if kept is not None:
            abandon(control, kept.mount)
            kept.close()
        else:  # whose it was is not known: what is mounted where it should be
            abandon(control, KeptMount(archive, place_of(mountpoint), connection_at(mountpoint)))
            with contextlib.suppress(OSError):
                os.close(estate)
        return None
    return Inheritance(control, kept)


def _check(control: int, mount: KeptMount, archive: bytes, mountpoint: str) -> None:
    why = ""
    if mount.archive != archive:
        why = "it is the mount of another archive"
    elif mount.place != place_of(mountpoint):
        why = "it is mounted somewhere else"
    elif not is_connected(control, mount.connection) or connection_at(mountpoint) != mount.connection:
        why = "it is mounted no more"
    if why:
        raise Refused(what="Taking over", why=why)


def abandon(control: int, mount: KeptMount) -> None:
    """End a connection that nobody goes on with: clients get ENOTCONN, and may open their files on the next mount.

    Where it is not what is mounted any more, only the descriptor is closed: it ends with the last.
    """
    channel = Channel(control)
    if mount.connection and is_connected(control, mount.connection) and connection_at(mount.place) == mount.connection:
        channel.adopt(mount.place, mount.connection)
    channel.unmount()
