"""`vna serve`: mount and tierd in one foreground command; what dies is started again, SIGTERM stops all cleanly."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence

log = logging.getLogger(__name__)

RESTART_SECONDS_MIN = 0.2
RESTART_SECONDS_MAX = 10.0
STEADY_SECONDS = 30.0
"""Alive for this long, a daemon's earlier deaths are forgotten."""
STOP_SECONDS_MAX = 60.0
LOOK_SECONDS = 0.1
DRILL_LOOK_SECONDS = 6 * 3600.0
NICE = 15
"""A drill takes what the daemons leave."""
FINAL = frozenset({2, 3})
"""Exit codes that a restart will not mend: wrong configuration, refused."""
REFUSED = 3
PREDECESSOR_SECONDS_MAX = 20.0
"""So long after the start a refusal may be for daemons whose supervisor was killed and that are still ending."""
PR_SET_PDEATHSIG = 1
"""prctl(2)"""


class _Child:
    """One daemon, started again as often as it dies."""

    def __init__(self, name: str, arguments: Sequence[str], environ: Mapping[str, str]) -> None:
        self.name = name
        self._command = [sys.executable, "-m", "appliance", *arguments]
        self._environ = dict(environ)
        self.process: subprocess.Popen[bytes] | None = None
        self._first: float | None = None
        self._began = 0.0
        self._next = 0.0
        self._delay = RESTART_SECONDS_MIN

    def look(self) -> int | None:
        """Start it if it is time to; an exit code that is final, or None."""
        now = time.monotonic()
        if self.process is None:
            if now >= self._next:
                self.process = subprocess.Popen(  # noqa: S603 - our own program
                    self._command,
                    env=self._environ,
                    preexec_fn=_end_with(os.getpid()),  # noqa: PLW1509 - this process has one thread
                )
                self._began = now
                self._first = self._first or now
                log.info("supervisor.started", extra={"daemon": self.name, "pid": self.process.pid})
            return None
        code = self.process.poll()
        if code is None:
            if now - self._began > STEADY_SECONDS:
                self._delay = RESTART_SECONDS_MIN
            return None
        log.warning("supervisor.ended", extra={"daemon": self.name, "code": code})
        self.process = None
        self._next = now + self._delay
        self._delay = min(RESTART_SECONDS_MAX, self._delay * 2)
        if code == REFUSED and now - (self._first or now) < PREDECESSOR_SECONDS_MAX:
            return None
        return code if code in FINAL else None

    def stop(self) -> None:
        """SIGTERM, and SIGKILL to one that does not heed it."""
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
                preexec_fn=_end_with(os.getpid(), NICE),  # noqa: PLW1509 - this process has one thread
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


def _end_with(supervisor: int, nice: int = 0) -> Callable[[], None]:
    """To be called in a child: it gets SIGTERM when the supervisor dies, however that dies."""
    libc = ctypes.CDLL(None)

    def prepare() -> None:
        os.nice(nice)
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != supervisor:
            os.kill(os.getpid(), signal.SIGTERM)

    return prepare


def run(archive: str, extra: Mapping[str, Sequence[str]], environ: Mapping[str, str]) -> int:
    """Serve until SIGTERM or SIGINT; the exit code of a daemon that cannot be started at all otherwise."""
    stopping: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        # a handler may run inside any lock of this thread, so it takes none
        signal.signal(number, lambda signum, _: stopping.append(signum))
    children = [
        _Child(name, [name, "--archive", archive, *extra.get(name, ())], environ) for name in ("mount", "tierd")
    ]
    drills = Drills(archive, environ)
    code: int | None = None
    while code is None and not stopping:
        time.sleep(LOOK_SECONDS)
        for child in children:
            code = child.look() if code is None else code
        drills.look()
    drills.stop()
    # tiering first: what it still proposes needs the tree
    for child in reversed(children):
        child.stop()
    return code or 0
