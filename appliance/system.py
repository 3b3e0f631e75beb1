"""What only the system around an archive knows. Later rooms that must run commands run them here."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import signal
import subprocess
from collections.abc import Sequence

from appliance.domain.commands import SECRET, Ran
from vnafs.domain.errors import Refused

PASSTHROUGH_SINCE = (6, 9)
"""The first Linux that reads and writes the local files of a FUSE mount itself."""
CAP_SYS_ADMIN = 21
"""capabilities(7), as linux/capability.h numbers it; FUSE_DEV_IOC_BACKING_OPEN and mount(2) ask for it."""
STOPPING = frozenset({signal.SIGTERM, signal.SIGINT})
"""What asks a daemon to stop."""
HURRY = -15
"""nice(1) of whoever loads the mount's program or takes the mount over: the sooner it answers the better."""
COMMAND_SECONDS_MAX = 120
"""A command of the system that takes longer is ended."""
COMMAND_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
"""All that commands get to know of ours."""


def boot_id() -> str:
    """What the kernel calls this boot (random(4)); empty where it does not say."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


def engine_for(wanted: str, *, release: str | None = None, status: str | None = None) -> str:
    """The engine that serves the mount: *wanted*, or for "auto" the kernel's where it can read and write itself.

    *release* is what uname(2) calls the kernel, *status* proc_pid_status(5) of this process; both as they are unless
    told.
    """
    if wanted != "auto":
        return wanted
    if status is None:
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            status = file.read()
    effective = re.search(r"^CapEff:\s*([0-9a-f]+)$", status, re.MULTILINE)
    version = re.match(r"(\d+)\.(\d+)", release or os.uname().release)
    if effective is None or version is None:
        return "pyfuse3"
    may = int(effective[1], 16) >> CAP_SYS_ADMIN & 1
    return "kernel" if may and (int(version[1]), int(version[2])) >= PASSTHROUGH_SINCE else "pyfuse3"


def raise_open_files() -> int:
    """Lift the soft limit of open files to the hard one (getrlimit(2)); what it is now."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def hurry() -> None:
    """Go before others on the processor, with every thread; a no-op for who may not."""
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, int(thread), HURRY)


def as_whoever_started_us() -> None:
    """No hurry any more, neither here nor in the processes that were started from here."""
    usual = os.getpriority(os.PRIO_PROCESS, os.getppid())
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError), open(f"/proc/self/task/{thread}/children", encoding="ascii") as children:
            for number in (thread, *children.read().split()):
                with contextlib.suppress(OSError):  # it ended meanwhile
                    os.setpriority(os.PRIO_PROCESS, int(number), usual)


def call_itself(name: str) -> None:
    """What ps(1) calls this process; at most 15 bytes."""
    with contextlib.suppress(OSError), open("/proc/self/comm", "w", encoding="ascii") as comm:
        comm.write(name)


def hold_stop_signals() -> None:
    """Block them, here and in every thread that starts from now on; `signal.sigwait(STOPPING)` waits for one."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)


def let_stop_signals() -> None:
    """Have them again in this thread, also those that came meanwhile."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)


def make_mount_point(path: str) -> None:
    """Make the directory to mount on, unless something is there, be it a mount whose server died. Raises Refused."""
    try:
        with contextlib.suppress(FileExistsError):
            os.makedirs(path, mode=0o755)
    except OSError as problem:
        raise Refused(what=f"Making the mount point {path}", why=str(problem)) from problem


def run(words: Sequence[str], *, text: str = "", secret: str = "") -> Ran:
    """Run a command to its end; *text* is its standard input.

    Where *words* say SECRET it reads the name of a file that has *secret*: memory of this process and of that one,
    which no disk, no list of processes and no environment shows. Raises Refused when it is not there or takes too long.
    """
    descriptor = os.memfd_create("secret") if secret else None
    try:
        if descriptor is not None:
            os.write(descriptor, secret.encode("utf-8", "surrogateescape"))
            words = [word.replace(SECRET, f"/proc/self/fd/{descriptor}") for word in words]
        done = subprocess.run(  # noqa: S603 - words of ours, no shell
            words,
            input=text,
            capture_output=True,
            encoding="utf-8",
            errors="surrogateescape",
            timeout=COMMAND_SECONDS_MAX,
            env=COMMAND_ENVIRONMENT,
            pass_fds=() if descriptor is None else (descriptor,),
            check=False,
        )
    except FileNotFoundError:
        raise Refused(what=f"Running {words[0]}", why="it is not installed here") from None
    except OSError as problem:
        raise Refused(what=f"Running {words[0]}", why=os.strerror(problem.errno or 0)) from problem
    except subprocess.TimeoutExpired:
        raise Refused(what=f"Running {words[0]}", why=f"it took more than {COMMAND_SECONDS_MAX} s") from None
    finally:
        if descriptor is not None:
            os.close(descriptor)
    return Ran(done.returncode, done.stdout, done.stderr)
