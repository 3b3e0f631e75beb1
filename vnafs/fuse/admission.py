"""Who may make bytes come back from targets, and how often somebody was refused. One thread; status may read.

A program is known by its name (comm(5) of proc, 15 bytes), which any program can choose: this keeps indexers away, not
attackers. File servers ask for their clients under their own name; whom they ask for `vnafs.fuse.clients` finds out.
"""

from __future__ import annotations

import collections
import ipaddress
import logging
import os
from collections.abc import Callable, Collection, Mapping
from typing import TypeVar

from vnafs.domain.clock import Clock, SystemClock
from vnafs.domain.errors import RecallForbidden, RecallRefused
from vnafs.fs.caller import Caller
from vnafs.fuse import clients

log = logging.getLogger(__name__)

COMM_BYTES = 15
"""TASK_COMM_LEN of Linux, without its NUL."""
LOG_SECONDS = 60.0
"""A storm of refusals for one reason leaves one line in so long."""
_R = TypeVar("_R")


class Admission:
    """*never_processes* are names of programs, *never_uids* users, *never_hosts* addresses or networks of clients.

    *proc* is where proc(5) is mounted. Raises ValueError for what is no network.
    """

    def __init__(
        self,
        never_processes: Collection[str] = (),
        never_uids: Collection[int] = (),
        never_hosts: Collection[str] = (),
        *,
        clock: Clock | None = None,
        proc: str = "/proc",
    ) -> None:
        self._never_processes = frozenset(os.fsencode(name)[:COMM_BYTES] for name in never_processes)
        self._never_uids = frozenset(never_uids)
        self._never_hosts = tuple(ipaddress.ip_network(text) for text in never_hosts)
        self._clock = clock or SystemClock()
        self._proc = proc
        self._refused: collections.Counter[str] = collections.Counter()
        self._logged: dict[str, tuple[float, int]] = {}

    def check(self, caller: Caller) -> None:
        """Raises RecallForbidden."""
        if caller.uid in self._never_uids:
            raise RecallForbidden(who=f"user {caller.uid}", why="recall.never_uids names it")
        if not caller.pid or not (self._never_processes or self._never_hosts):
            return  # 0: of another namespace of processes
        group = self._group_of(caller.pid)
        for pid in {caller.pid, group}:
            name = self._name_of(pid)
            if name in self._never_processes:
                shown = name.decode("utf-8", "backslashreplace")
                raise RecallForbidden(who=f"process {shown}", why="recall.never_processes names it")
        if self._never_hosts:
            self._check_hosts(clients.hosts_of(group, self._proc))

    def _check_hosts(self, hosts: Collection[clients.Address]) -> None:
        """A process that serves others as well may ask for one of them."""
        named = [host for host in hosts if any(host in network for network in self._never_hosts)]
        if hosts and len(named) == len(hosts):
            shown = ", ".join(sorted(map(str, named)))
            raise RecallForbidden(who=f"host {shown}", why="recall.never_hosts names it")

    def _group_of(self, pid: int) -> int:
        """The process that a thread is of; the kernel tells us the thread. Itself, when it is gone."""
        try:
            with open(os.path.join(self._proc, str(pid), "status"), "rb") as file:
                return next((int(line.split()[1]) for line in file if line.startswith(b"Tgid:")), pid)
        except OSError:
            return pid

    def _name_of(self, pid: int) -> bytes:
        """Of a thread or process; empty for one that is gone."""
        try:
            with open(os.path.join(self._proc, str(pid), "comm"), "rb") as file:
                return file.read(64).rstrip(b"\n")
        except OSError:
            return b""

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
