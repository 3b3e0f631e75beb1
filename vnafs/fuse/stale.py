"""A mount point whose process died: the kernel keeps it and answers ENOTCONN until somebody unmounts it.

A restart after kill -9 must not need a hand, so whoever mounts clears it first; only if it is ours.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import logging
import os
import select
import subprocess

from vnafs.domain.errors import Refused

_LOG = logging.getLogger(__name__)
_MNT_DETACH = 2
FSTYPE = "fuse.vnafs"
_CONNECTIONS = "/sys/fs/fuse/connections"
_LINKS_MAX = 40
"""As path_resolution(7)."""


def is_ours(mountpoint: str) -> bool:
    """Whether the topmost mount at *mountpoint* is one of vnafs."""
    return connection_at(mountpoint) != 0


def clear_stale(mountpoint: str) -> bool:
    """Unmount what dead processes of vnafs left at *mountpoint*; says whether there was anything.

    Raises Refused when something lives there, or something dead that is not ours.
    """
    cleared = False
    while not _answers(mountpoint):
        if not is_ours(mountpoint):
            raise Refused(what=f"Mounting at {mountpoint}", why="a dead mount of another program is there; unmount it")
        if os.geteuid() == 0:
            _detach(mountpoint)
        else:
            _fusermount(mountpoint)
        cleared = True
        _LOG.warning("fuse.stale_mount_cleared")
    if is_ours(mountpoint):
        raise Refused(what=f"Mounting at {mountpoint}", why="another vnafs is mounted there and answers; stop it first")
    return cleared


def take_away(mountpoint: str) -> bool:
    """Unmount what is ours at *mountpoint*, answered or not; says whether there was anything. Raises Refused.

    The connection is ended first: what the kernel still wants to know nobody answers.
    """
    is_there = False
    while is_ours(mountpoint):
        end_connection(connection_at(mountpoint))
        _detach(mountpoint)
        is_there = True
    return is_there


def end_connection(connection: int) -> bool:
    """End it, whoever has a descriptor of it; False where the kernel does not offer that (fusectl)."""
    try:
        with open(f"{_CONNECTIONS}/{connection}/abort", "w") as abort:
            abort.write("1")
    except OSError:
        return False
    return True


def connection_at(mountpoint: str) -> int:
    """The number of the connection of the topmost mount there, 0 if that is none of vnafs; proc(5), mountinfo."""
    wanted, found = os.fsencode(place_of(mountpoint)), 0
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
        for line in mounts:
            before, _, after = line.partition(" - ")
            fields = before.split(" ")
            place = fields[4].encode("utf-8", "surrogateescape").decode("unicode_escape")
            if place.encode("latin-1", "replace") == wanted:
                found = int(fields[2].partition(":")[2]) if after.split(" ")[0] == FSTYPE else 0
    return found


def place_of(mountpoint: str) -> str:
    """Its path without symbolic links, as mountinfo has it. What is mounted there is not asked: it may not answer."""
    place = os.path.abspath(mountpoint)
    for _ in range(_LINKS_MAX):
        place = os.path.join(os.path.realpath(os.path.dirname(place)), os.path.basename(place))
        try:
            place = os.path.normpath(os.path.join(os.path.dirname(place), os.readlink(place)))
        except OSError:
            break
    return place


def is_connected(control: int, connection: int) -> bool:
    """Whether this descriptor of /dev/fuse has that connection, and it was not ended.

    While it was not, no other file system has its number. Kernels before 6.18 do not say which one it is (fdinfo).
    """
    poll = select.poll()
    poll.register(control, 0)
    if poll.poll(0):  # POLLERR: not mounted, or not any more (fuse_dev_poll)
        return False
    with contextlib.suppress(OSError), open(f"/proc/self/fdinfo/{control}") as lines:
        for line in lines:
            name, _, value = line.partition(":")
            if name == "fuse_connection":
                return int(value) == connection
    return True


def _answers(mountpoint: str) -> bool:
    try:
        os.statvfs(mountpoint)  # never from the kernel's cache, as stat may be
    except OSError as error:
        if error.errno in (errno.ENOTCONN, errno.ECONNABORTED):
            return False
        raise Refused(what=f"Mounting at {mountpoint}", why=os.strerror(error.errno or errno.EIO)) from error
    return True


def _detach(mountpoint: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(mountpoint), _MNT_DETACH) != 0:
        raise Refused(what=f"Clearing the dead mount at {mountpoint}", why=os.strerror(ctypes.get_errno()))


def _fusermount(mountpoint: str) -> None:
    # the set-user-ID program is the only way for an ordinary user
    command = ["fusermount3", "-u", "-z", "--", mountpoint]
    try:
        done = subprocess.run(command, capture_output=True, check=False)  # noqa: S603 - fixed program, no shell
    except FileNotFoundError as error:
        raise Refused(what=f"Clearing the dead mount at {mountpoint}", why="fusermount3 (fuse3) is missing") from error
    if done.returncode:
        raise Refused(what=f"Clearing the dead mount at {mountpoint}", why=done.stderr.decode(errors="replace").strip())
