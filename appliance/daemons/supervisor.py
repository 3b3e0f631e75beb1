"""`vna serve`: mount and tierd in one foreground command; what dies is started again, SIGTERM stops all cleanly.

It keeps the mount of the kernel engine while its process is replaced (`keeping`): clients wait, and go on. SIGHUP
replaces the processes, by whatever program is installed now, in the same way: it kills them, the mount's when the next
one has loaded. Where a service manager
keeps the mount too (`--keep-mount`), this process may be replaced like them, and neither its death nor SIGTERM ends the
mount: the service manager does, when it keeps it no more.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence

from appliance import system
from appliance.daemons import kinship
from appliance.daemons.keeping import Keeping
from appliance.daemons.kinship import Adopted
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
"""Between two spares, or two templates of them, that ended without being needed."""
LOAD_SECONDS_MAX = 15.0
"""A spare that takes longer from when it was wanted is not waited for: its template hangs."""
DRILL_LOOK_SECONDS = 6 * 3600.0
NICE = 15
"""A drill takes what the daemons leave."""
FINAL = frozenset({2, 3})
"""Exit codes that a restart will not mend: wrong configuration, refused."""
REFUSED = 3
PREDECESSOR_SECONDS_MAX = 20.0
"""So long after the start a refusal may be for daemons whose supervisor was killed and that are still ending."""


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
        self.process: subprocess.Popen[bytes] | Adopted | None = None
        self._template: subprocess.Popen[bytes] | None = None
        self._template_next = 0.0
        self._spare: Adopted | None = None
        self._spare_next = 0.0
        self._patient_until = 0.0
        self._replaces = False
        self._first: float | None = None
        self._began = 0.0
        self._next = 0.0
        self._delay = RESTART_SECONDS_MIN

    @property
    def pids(self) -> set[int]:
        """Of all processes that are waited for here."""
        return {one.pid for one in (self.process, self._template, self._spare) if one is not None}

    def look(self) -> int | None:
        """Start it if it is time to; an exit code that is final, or None."""
        now = time.monotonic()
        if self.process is None:
            self._look_after_spare(now)
            if now >= self._next and not self._promoted(now) and not self._is_spare_near():
                self._start(now)
            return None
        if self._keeping is not None:
            self._keeping.look()
        code = self.process.poll()
        if code is None:
            self._look_after_spare(now)
            self._go_on_replacing()
            if now - self._began > STEADY_SECONDS:
                self._delay = RESTART_SECONDS_MIN
            return None
        log.warning("supervisor.ended", extra={"daemon": self.name, "code": code})
        self.process = None
        is_early = code == REFUSED and now - (self._first or now) < PREDECESSOR_SECONDS_MAX
        since = now
        if self._keeping is not None:
            if not is_early:
                self._keeping.ended()
            if self._keeping.descriptors:  # clients wait
                self._delay = 0.0 if self._keeping.has_served else self._delay
                since = self._began
        self._replaces, self._spare_next = False, 0.0
        self._next = since + self._delay
        self._delay = min(RESTART_SECONDS_MAX, max(self._delay * 2, RESTART_SECONDS_MIN))
        if self._spare is not None and (now < self._next or self._promoted(now)):
            return None
        return code if code in FINAL and not is_early else None

    def _look_after_spare(self, now: float) -> None:
        """Where a mount is kept, a template of processes that have their modules loaded waits, and one such process."""
        keeping = self._keeping
        if keeping is None:
            return
        if self._template is not None and (code := self._template.poll()) is not None:
            log.warning("supervisor.template_ended", extra={"code": code})
            keeping.forget_template()
            self._template = None
        if self._spare is not None and self._spare.poll() is not None:
            keeping.forget_spare()
            self._spare = None
        if not keeping.descriptors:
            self._end_spare()
            return
        if self._template is None and now >= self._template_next:
            self._template = self._run(*keeping.begin_template())
            self._template_next = now + SPARE_SECONDS_MIN
        if self._spare is None and not keeping.awaited and self._template and now >= self._spare_next:
            keeping.ask_spare()
            self._spare_next = now + SPARE_SECONDS_MIN
            self._patient_until = now + LOAD_SECONDS_MAX
        if self._spare is None and (pid := keeping.spare()) is not None:
            self._spare = Adopted(pid)
        if keeping.awaited and now >= self._patient_until:
            log.warning("supervisor.no_spare")
            self._end_spare()

    def _is_spare_near(self) -> bool:
        """Whether one is being made, which began sooner than whatever would be started now."""
        keeping = self._keeping
        return keeping is not None and bool(keeping.descriptors) and bool(keeping.awaited)

    def _promoted(self, now: float) -> bool:
        spare = self._spare
        if spare is None or self._keeping is None or spare.poll() is not None:
            return False
        if not self._keeping.promote():
            self._end_spare()
            return False
        self.process, self._spare, self._began, self._spare_next = spare, None, now, 0.0
        log.info("supervisor.promoted", extra={"daemon": self.name, "pid": spare.pid})
        return True

    def _end_spare(self) -> None:
        """It and its template wait, and have nothing that they could lose."""
        waiting = (self._template, self._spare)
        self._template = self._spare = None
        if self._keeping is not None:
            self._keeping.forget_template()
            self._keeping.forget_spare()
        for one in waiting:
            if one is not None:
                one.kill()
                one.wait()

    def _run(self, words: Sequence[str], inherited: Sequence[int]) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(  # noqa: S603 - our own program
            [*self._command, *words],
            env=self._environ,
            preexec_fn=_end_with(os.getpid(), self._at_our_end, system.HURRY if self._keeping else 0),  # noqa: PLW1509 - this process has one thread
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
        """Kill it; `look` starts it again. It is made to be killed, and so nothing is done twice over.

        Where clients would wait until the next one has loaded, that loads before.
        """
        self._end_spare()  # it has loaded what is replaced
        if self.process is None or self.process.poll() is not None:
            return
        log.info("supervisor.replaces", extra={"daemon": self.name, "pid": self.process.pid})
        if self._keeping is None or not self._keeping.descriptors:
            self.process.kill()
            return
        now = time.monotonic()
        self._template_next = self._spare_next = 0.0
        self._replaces = True
        self._look_after_spare(now)

    def _go_on_replacing(self) -> None:
        """Kill it now that the next one has loaded, or never will."""
        if self._replaces and self.process is not None and (self._spare is not None or self._template is None):
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
        except (subprocess.TimeoutExpired, TimeoutError):
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

    @property
    def pids(self) -> set[int]:
        """Of the process that is waited for here."""
        return set() if self._process is None else {self._process.pid}

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
    """To be called in a child: it gets this signal when the supervisor dies, and has that much less to say."""
    ends_with_supervisor = kinship.ends_with(supervisor, number)

    def prepare() -> None:
        with contextlib.suppress(PermissionError):
            os.nice(nice)
        ends_with_supervisor()

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
    kinship.adopt_orphans()  # spares are
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
        _wait([woken, *keeping.awaited])
        if replacing:
            replacing.clear()
            for child in children:
                child.replace()
        for child in children:
            code = child.look() if code is None else code
        drills.look()
        kinship.reap_others(drills.pids.union(*(child.pids for child in children)))
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


def _wait(for_these: Sequence[socket.socket]) -> None:
    """For a signal, which the first of these tells of, or another; but not for long: there is more to look after."""
    woken = for_these[0]
    if woken in select.select(for_these, [], [], LOOK_SECONDS)[0]:
        with contextlib.suppress(BlockingIOError):
            while woken.recv(4096):
                pass
