"""A mount point whose process died: the kernel keeps it and answers ENOTCONN until somebody unmounts it.

A restart after kill -9 must not need a hand, so whoever mounts clears it first; only if it is ours.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import subprocess

from vnafs.domain.errors import Refused

_LOG = logging.getLogger(__name__)
_MNT_DETACH = 2
FSTYPE = "fuse.vnafs"


def is_ours(mountpoint: str) -> bool:
    """Whether the topmost mount at *mountpoint* is one of vnafs; proc(5), mountinfo."""
    wanted = os.path.abspath(mountpoint)
    kind = ""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
        for line in mounts:
            before, _, after = line.partition(" - ")
            place = before.split(" ")[4].encode("utf-8", "surrogateescape").decode("unicode_escape")
            if place.encode("latin-1", "replace") == os.fsencode(wanted):
                kind = after.split(" ")[0]
    return kind == FSTYPE


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
