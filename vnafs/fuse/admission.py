"""Who may make bytes come back from targets, and how often somebody was refused. One thread; status may read.

A program is known by its name (comm(5) of proc, 15 bytes), which any program can choose: this keeps indexers away, not
attackers. File servers ask for their clients under their own name; refusing hosts is the business of shares.
"""

from __future__ import annotations

import collections
import logging
import os
from collections.abc import Callable, Collection, Mapping
from typing import TypeVar

from vnafs.domain.clock import Clock, SystemClock
from vnafs.domain.errors import RecallForbidden, RecallRefused
from vnafs.fs.caller import Caller

log = logging.getLogger(__name__)

COMM_BYTES = 15
"""TASK_COMM_LEN of Linux, without its NUL."""
LOG_SECONDS = 60.0
"""A storm of refusals for one reason leaves one line in so long."""
_R = TypeVar("_R")


class Admission:
    """*never_processes* are names of programs, *never_uids* users; *proc* is where proc(5) is mounted."""

    def __init__(
        self,
        never_processes: Collection[str] = (),
        never_uids: Collection[int] = (),
        *,
        clock: Clock | None = None,
        proc: str = "/proc",
    ) -> None:
        self._never_processes = frozenset(os.fsencode(name)[:COMM_BYTES] for name in never_processes)
        self._never_uids = frozenset(never_uids)
        self._clock = clock or SystemClock()
        self._proc = proc
        self._refused: collections.Counter[str] = collections.Counter()
        self._logged: dict[str, tuple[float, int]] = {}

    def check(self, caller: Caller) -> None:
        """Raises RecallForbidden."""
        if caller.uid in self._never_uids:
            raise RecallForbidden(who=f"user {caller.uid}", why="recall.never_uids names it")
        if self._never_processes:
            for name in self._names_of(caller.pid):
                if name in self._never_processes:
                    shown = name.decode("utf-8", "backslashreplace")
                    raise RecallForbidden(who=f"process {shown}", why="recall.never_processes names it")

    def _names_of(self, pid: int) -> list[bytes]:
        """Of a thread and of the process that it is of; the kernel tells us the thread. None for one that is gone."""
        if not pid:
            return []  # of another namespace of processes
        folder = os.path.join(self._proc, str(pid))
        try:
            with open(os.path.join(folder, "status"), "rb") as file:
                group = next((line.split()[1] for line in file if line.startswith(b"Tgid:")), b"")
            names = [_comm(folder)]
            if group and group != b"%d" % pid:
                names.append(_comm(os.path.join(self._proc, group.decode("ascii"))))
        except (OSError, IndexError):
            return []
        return names

    def counted(self, call: Callable[[], _R]) -> _R:
        """The result of a call; a refusal is counted on its way."""
        try:
            return call()
        except RecallRefused as refused:
            self.note(refused)
            raise

    def note(self, refused: RecallRefused) -> None:
        """Somebody was refused."""
        code = refused.code
        self._refused[code] += 1
        now = self._clock.monotonic()
        since, before = self._logged.get(code, (float("-inf"), 0))
        if now >= since + LOG_SECONDS:
            self._logged[code] = (now, self._refused[code])
            times = self._refused[code] - before
            log.warning("recall.refused", extra={"code": code, "why": str(refused), "times": times})

    def refused(self) -> Mapping[str, int]:
        """How many were refused since we began, by reason."""
        return dict(self._refused)


def _comm(folder: str) -> bytes:
    with open(os.path.join(folder, "comm"), "rb") as file:
        return file.read(64).rstrip(b"\n")
