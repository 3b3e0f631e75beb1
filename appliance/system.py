"""The only place that runs other programs: what the kernel or the system must be asked through a command."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess

from vnafs.domain.errors import Refused

COMMAND_SECONDS_MAX = 20.0


def boot_id() -> str:
    """What the kernel calls this boot (random(4)); empty where it does not say."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


def prepare_mount_point(path: str) -> None:
    """Make the directory, and clear away a mount whose server died. Raises Refused."""
    try:
        os.makedirs(path, mode=0o755, exist_ok=True)
        os.stat(path)
    except FileExistsError:
        raise Refused(what=f"Mounting at {path}", why="it is not a directory") from None
    except OSError as problem:
        if problem.errno not in {errno.ENOTCONN, errno.EIO, errno.ECONNABORTED}:
            raise Refused(what=f"Mounting at {path}", why=str(problem)) from problem
        detach(path)
    if os.path.ismount(path) and _is_ours(path):
        detach(path)
    if os.path.ismount(path):
        raise Refused(what=f"Mounting at {path}", why="something else is mounted there")


def detach(path: str) -> None:
    """Take a FUSE mount out of the tree at once, whoever still uses it. Raises Refused."""
    command = ["umount", "-l", path] if os.geteuid() == 0 else [_fusermount(), "-u", "-z", path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_SECONDS_MAX, check=False)  # noqa: S603 - fixed words and the configured path
    if done.returncode:
        raise Refused(what=f"Detaching {path}", why=done.stderr.strip())


def _fusermount() -> str:
    found = shutil.which("fusermount3")
    if found is None:
        raise Refused(what="Unmounting", why="fusermount3 is missing; install the package fuse3")
    return found


def _is_ours(path: str) -> bool:
    """Whether a vnafs mount is there: only one process serves an archive, so it is what a dead one left."""
    wanted = os.fsencode(path).replace(b" ", b"\\040")
    with open("/proc/self/mounts", "rb") as mounts:
        return any(line.split(b" ")[1:3] == [wanted, b"fuse.vnafs"] for line in mounts)
