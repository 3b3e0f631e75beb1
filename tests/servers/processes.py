"""Start and end server processes: free ports, logs kept for a failure's message, death with the parent."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping


class ServerFailed(RuntimeError):
    """A server did not start. The tests that need it fail with this; they are never skipped."""


def need(commands: tuple[str, ...], packages: str) -> None:
    """Raises ServerFailed that says what to install when one of *commands* is missing."""
    missing = [command for command in commands if shutil.which(command) is None]
    if missing:
        raise ServerFailed(f"{', '.join(missing)} not found. Install: apt-get install {packages}")


def free_port() -> int:
    """A port nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def children_of(pid: int) -> list[int]:
    """Processes that it started and that live, and theirs."""
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
        near = [int(word) for word in file.read().split()]
    return near + [far for one in near for far in children_of(one)]


class Servers:
    """Processes that end together, in reverse order of their start."""

    def __init__(self, directory: str, environ: Mapping[str, str] | None = None) -> None:
        self.directory = directory
        self._environ = dict(os.environ if environ is None else environ)
        self._running: list[tuple[str, subprocess.Popen[bytes]]] = []

    def start(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        """Run *command* until `stop`; it is killed when the thread that started it dies."""
        with open(os.path.join(self.directory, f"{name}.out"), "wb") as log:
            process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environ,
            )
        self._running.append((name, process))
        return process

    def forget(self, process: subprocess.Popen[bytes]) -> None:
        """It is about to be ended by somebody else."""
        self._running = [(name, one) for name, one in self._running if one is not process]

    def hang(self, *, hangs: bool) -> None:
        """Every process stands still, as a dead server does whose machine still takes connections; or goes on."""
        for _name, process in self._running:
            process.send_signal(signal.SIGSTOP if hangs else signal.SIGCONT)

    def run(self, *command: str, seconds: float = 60) -> str:
        """Run a command to its end; its output."""
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, env=self._environ, check=False)
        if done.returncode:
            raise ServerFailed(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}\n{self.logs()}")
        return done.stdout

    def wait(self, what: str, ready: Callable[[], bool], seconds: float) -> None:
        """Until *ready*; raises ServerFailed with the ends of all logs when a process dies or time is up."""
        end = time.monotonic() + seconds
        while not ready():
            dead = [name for name, process in self._running if process.poll() is not None]
            if dead or time.monotonic() > end:
                raise ServerFailed(f"{what}: {f'{dead} died' if dead else f'not ready in {seconds} s'}\n{self.logs()}")
            time.sleep(0.05)

    def logs(self) -> str:
        """The end of each process's output."""
        parts = []
        for name, _process in self._running:
            with open(os.path.join(self.directory, f"{name}.out"), "rb") as log:
                parts.append(f"--- {name}\n{log.read()[-2000:].decode(errors='replace')}")
        return "\n".join(parts)

    def stop(self) -> None:
        """Kill: they hold nothing that anybody wants to keep."""
        for _name, process in reversed(self._running):
            process.kill()
        for _name, process in self._running:
            process.wait()
        self._running.clear()


@contextlib.contextmanager
def servers(directory: str, environ: Mapping[str, str] | None = None) -> Iterator[Servers]:
    """A set of processes that ends with the block."""
    found = Servers(directory, environ)
    try:
        yield found
    finally:
        found.stop()


def answers(url: str) -> bool:
    """Whether an HTTP server answers at *url*, with whatever status."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        opener.open(url, timeout=5).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True
