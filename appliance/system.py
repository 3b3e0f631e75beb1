"""What only the system around an archive knows. Later rooms that must run commands run them here."""

from __future__ import annotations

import contextlib
import os
import resource
import signal

from vnafs.domain.errors import Refused

STOPPING = frozenset({signal.SIGTERM, signal.SIGINT})
"""What asks a daemon to stop."""


def boot_id() -> str:
    """What the kernel calls this boot (random(4)); empty where it does not say."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


def raise_open_files() -> int:
    """Lift the soft limit of open files to the hard one (getrlimit(2)); what it is now."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def hold_stop_signals() -> None:
    """Block them, here and in every thread that starts from now on; `signal.sigwait(STOPPING)` waits for one."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)


def make_mount_point(path: str) -> None:
    """Make the directory to mount on, unless something is there, be it a mount whose server died. Raises Refused."""
    try:
        with contextlib.suppress(FileExistsError):
            os.makedirs(path, mode=0o755)
    except OSError as problem:
        raise Refused(what=f"Making the mount point {path}", why=str(problem)) from problem
