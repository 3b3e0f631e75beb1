"""Who is whose child: what a process does when its parent dies, and children that others started for us.

A process whose parent died is the child of the nearest ancestor that adopts (PR_SET_CHILD_SUBREAPER, prctl(2)). So the
supervisor gets whole children from a process that copies itself twice over and lets the one in between end: it waits
for them, and they notice its death, as if it had started them. Whatever else is orphaned below it must be reaped.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
from collections.abc import Callable, Collection

_SET_PDEATHSIG, _GET_PDEATHSIG, _SET_CHILD_SUBREAPER = 1, 2, 36
"""prctl(2)"""


def ends_with(parent: int, number: int) -> Callable[[], None]:
    """To be called in a child: it gets this signal when *parent* dies, however that dies."""
    libc = ctypes.CDLL(None)

    def prepare() -> None:
        libc.prctl(_SET_PDEATHSIG, number)
        if os.getppid() != parent:
            os.kill(os.getpid(), number)

    return prepare


def at_parents_end() -> int:
    """The signal that this process gets when its parent dies, 0 for none."""
    number = ctypes.c_int()
    ctypes.CDLL(None).prctl(_GET_PDEATHSIG, ctypes.byref(number))
    return number.value


def adopt_orphans() -> None:
    """From now on whatever is orphaned below this process is its child."""
    ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1)


def reap_others(ours: Collection[int]) -> None:
    """Put away children that ended and nobody here waits for. One of *ours* that ended is left, and looked at first."""
    with contextlib.suppress(ChildProcessError):
        while found := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            if found.si_pid in ours:
                return
            os.waitpid(found.si_pid, 0)


class Adopted:
    """A child that somebody else started; to be used like a process that one started oneself."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Its exit code, or less than zero for a signal; None while it runs. One that is not ours counts as killed."""
        if self.returncode is None:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:
                self.returncode = -signal.SIGKILL
            else:
                self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end. Raises TimeoutError."""
        while (code := self.poll()) is None:
            descriptor = os.pidfd_open(self.pid)
            try:
                if not select.select([descriptor], [], [], timeout)[0]:
                    raise TimeoutError
            finally:
                os.close(descriptor)
        return code

    def terminate(self) -> None:
        """Ask it to end."""
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        """End it."""
        self._send(signal.SIGKILL)

    def _send(self, number: int) -> None:
        if self.poll() is None:  # nobody else gets its number before we waited for it
            os.kill(self.pid, number)
