"""`vna serve`: mount and tierd in one foreground command; what dies is started again, SIGTERM stops all cleanly.

It keeps the mount of the kernel engine while its process is replaced (`keeping`): clients wait, and go on. SIGHUP
replaces the processes, by whatever program is installed now, in the same way: it kills them. Where a service manager
keeps the mount too (`--keep-mount`), this process may be replaced like them, and neither its death nor SIGTERM ends the
mount: the service manager does, when it keeps it no more.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence

from appliance.daemons.keeping import Keeping
from appliance.service.systemd import ServiceManager
from vnafs.domain.errors import Refused

log = logging.getLogger(__name__)

RESTART_SECONDS_MIN = 0.2
RESTART_SECONDS_MAX = 10.0
STEADY_SECONDS = 30.0
"""Alive for this long, a daemon's earlier deaths are forgotten."""
STOP_SECONDS_MAX = 60.0
LOOK_SECONDS = 0.1
SPARE_SECONDS_MIN = 10.0
"""Between two spares that ended without being needed."""
DRILL_LOOK_SECONDS = 6 * 3600.0
NICE = 15
"""A drill takes what the daemons leave."""
NICE_MOUNT = -15
"""Of whoever loads the mount's program: the sooner it can take over the better. It puts this off when it answers, or
waits."""
FINAL = frozenset({2, 3})
"""Exit codes that a restart will not mend: wrong configuration, refused."""
REFUSED = 3
PREDECESSOR_SECONDS_MAX = 20.0
"""So long after the start a refusal may be for daemons whose supervisor was killed and that are still ending."""
PR_SET_PDEATHSIG = 1
"""prctl(2)"""


class _Child:
    """One daemon, started again as often as it dies."""

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        environ: Mapping[str, str],
        keeping: Keeping | None = None,
        *,
        outlives: bool = False,
    ) -> None:
        """*outlives*: what it mounted is kept when we end, so it is killed and does not take it away."""
        self.name = name
        self._keeping = keeping
        self._outlives = outlives
        self._at_our_end = signal.SIGKILL if outlives else signal.SIGTERM
        self._command = [sys.executable, "-m", "appliance", *arguments]
        self._environ = dict(environ)
        self.process: subprocess.Popen[bytes] | None = None
        self._spare: subprocess.Popen[bytes] | None = None
        self._spare_next = 0.0
        self._first: float | None = None
        self._began = 0.0
        self._next = 0.0
        self._delay = RESTART_SECONDS_MIN

    def look(self) -> int | None:
        """Start it if it is time to; an exit code that is final, or None."""
        now = time.monotonic()
        if self.process is None:
            if now >= self._next:
                self._start(now)
            return None
        if self._keeping is not None:
            self._keeping.look()
        code = self.process.poll()
        if code is None:
            self._look_after_spare(now)
            if now - self._began > STEADY_SECONDS:
                self._delay = RESTART_SECONDS_MIN
            return None
        log.warning("supervisor.ended", extra={"daemon": self.name, "code": code})
        self.process = None
        is_early = code == REFUSED and now - (self._first or now) < PREDECESSOR_SECONDS_MAX
        if self._keeping is not None:
            if not is_early:
                self._keeping.ended()
            if self._keeping.descriptors and self._keeping.has_served:
                self._delay = 0.0  # clients wait
        if self._promoted(now):
            return None
        self._next = now + self._delay
        self._delay = min(RESTART_SECONDS_MAX, max(self._delay * 2, RESTART_SECONDS_MIN))
        return code if code in FINAL and not is_early else None

    def _look_after_spare(self, now: float) -> None:
        """Where a mount is kept, a process that has its modules loaded waits to take over."""
        keeping = self._keeping
        if self._spare is not None and self._spare.poll() is not None:
            self._spare = None
        if keeping is None or not keeping.descriptors:
            return
        if self._spare is None and now >= self._spare_next:
            self._spare = self._run(*keeping.begin_spare())
            self._spare_next = now + SPARE_SECONDS_MIN

    def _promoted(self, now: float) -> bool:
        spare = self._spare
        if spare is None or spare.poll() is not None or self._keeping is None or not self._keeping.promote():
            self._end_spare()
            return False
        self.process, self._spare, self._began, self._spare_next = spare, None, now, 0.0
        log.info("supervisor.promoted", extra={"daemon": self.name, "pid": spare.pid})
        return True

    def _end_spare(self) -> None:
        """It waits, and has nothing that it could lose."""
        spare, self._spare = self._spare, None
        if spare is not None:
            spare.kill()
            spare.wait()

    def _run(self, words: Sequence[str], inherited: Sequence[int]) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(  # noqa: S603 - our own program
            [*self._command, *words],
            env=self._environ,
            preexec_fn=_end_with(os.getpid(), self._at_our_end, NICE_MOUNT if self._keeping else 0),  # noqa: PLW1509 - this process has one thread
            pass_fds=inherited,
        )
        if self._keeping is not None:
            self._keeping.begun()
        return process

    def _start(self, now: float) -> None:
        words, inherited = ([], ()) if self._keeping is None else self._keeping.begin()
        self.process = self._run(words, inherited)
        self._began = now
        self._first = self._first or now
        log.info("supervisor.started", extra={"daemon": self.name, "pid": self.process.pid})

    def replace(self) -> None:
        """Kill it; `look` starts it again. It is made to be killed, and so nothing is done twice over."""
        self._end_spare()  # it has loaded what is replaced
        if self.process is not None and self.process.poll() is None:
            log.info("supervisor.replaces", extra={"daemon": self.name, "pid": self.process.pid})
            self.process.kill()

    def stop(self) -> None:
        """SIGTERM, and SIGKILL to one that does not heed it, or whose mount is kept."""
        self._end_spare()
        keeping = self._keeping
        if self._outlives and keeping is not None:
            keeping.look()
            if keeping.descriptors:
                self._kill()
                keeping.leave()
                return
        self._end()
        if keeping is not None:
            keeping.close()

    def _kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def _end(self) -> None:
        if self.process is None or self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            log.error("supervisor.killed", extra={"daemon": self.name})  # noqa: TRY400 - there is no more to say
            self.process.kill()
            self.process.wait()


class Drills:
    """Now and then a process that rehearses the worst day where that is due; it decides by itself."""

    def __init__(self, archive: str, environ: Mapping[str, str], look_seconds: float = DRILL_LOOK_SECONDS) -> None:
        self._command = [sys.executable, "-m", "appliance", "drill", "--due", "--json", "--archive", archive]
        self._environ = dict(environ)
        self._look_seconds = look_seconds
        self._next = time.monotonic() + look_seconds
        self._process: subprocess.Popen[bytes] | None = None

    def look(self) -> None:
        """Start one if it is time to, and put away one that ended."""
        now = time.monotonic()
        if self._process is None and now >= self._next:
            self._next = now + self._look_seconds
            self._process = subprocess.Popen(  # noqa: S603 - our own program
                self._command,
                env=self._environ,
                stdout=subprocess.DEVNULL,
                preexec_fn=_end_with(os.getpid(), signal.SIGTERM, NICE),  # noqa: PLW1509 - this process has one thread
            )
        elif self._process is not None and (code := self._process.poll()) is not None:
            (log.info if code == 0 else log.warning)("supervisor.drill", extra={"code": code})
            self._process = None

    def stop(self) -> None:
        """A drill that is cut short is held again."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(STOP_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


def _end_with(supervisor: int, number: int, nice: int = 0) -> Callable[[], None]:
    """To be called in a child: it gets this signal when the supervisor dies, however that dies."""
    libc = ctypes.CDLL(None)

    def prepare() -> None:
        with contextlib.suppress(PermissionError):
            os.nice(nice)
        libc.prctl(PR_SET_PDEATHSIG, number)
        if os.getppid() != supervisor:
            os.kill(os.getpid(), number)

    return prepare


def run(
    archive: str,
    extra: Mapping[str, Sequence[str]],
    environ: Mapping[str, str],
    manager: ServiceManager | None = None,
    *,
    keep_mount: bool = False,
) -> int:
    """Serve until SIGTERM or SIGINT; the exit code of a daemon that cannot be started at all otherwise.

    With *keep_mount* what is mounted stays with the service *manager*. Raises Refused when there is none.
    """
    manager = manager or ServiceManager()
    if keep_mount and not manager.listens:
        raise Refused(what="--keep-mount", why="no service manager that could keep it listens (NOTIFY_SOCKET)")
    stopping: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        # a handler may run inside any lock of this thread, so it takes none
        signal.signal(number, lambda signum, _: stopping.append(signum))
    replacing: list[int] = []
    signal.signal(signal.SIGHUP, lambda signum, _: replacing.append(signum))
    woken = _woken_by_signals()
    if not keep_mount:
        manager.drop_given()
    keeping = Keeping(manager if keep_mount else None)
    mount = _Child(
        "mount", ["mount", "--archive", archive, *extra.get("mount", ())], environ, keeping, outlives=keep_mount
    )
    children = [mount, _Child("tierd", ["tierd", "--archive", archive, *extra.get("tierd", ())], environ)]
    drills = Drills(archive, environ)
    code: int | None = None
    is_ready = False
    while code is None and not stopping:
        _wait(woken)
        if replacing:
            replacing.clear()
            for child in children:
                child.replace()
        for child in children:
            code = child.look() if code is None else code
        drills.look()
        if keeping.has_served and not is_ready:
            manager.ready()
            is_ready = True
    manager.stopping()
    drills.stop()
    # tiering first: what it still proposes needs the tree
    for child in reversed(children):
        child.stop()
    return code or 0


def _woken_by_signals() -> socket.socket:
    """Readable when a signal came; the death of a child is one."""
    near, far = socket.socketpair()
    for end in (near, far):
        end.settimeout(0)
    signal.signal(signal.SIGCHLD, lambda *_: None)  # what has no handler wakes nobody
    signal.set_wakeup_fd(far.detach(), warn_on_full_buffer=False)
    return near


def _wait(woken: socket.socket) -> None:
    """For a signal, but not for long: there is more to look after."""
    if select.select([woken], [], [], LOOK_SECONDS)[0]:
        with contextlib.suppress(BlockingIOError):
            while woken.recv(4096):
                pass
