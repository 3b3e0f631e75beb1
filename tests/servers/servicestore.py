"""A service manager for tests that does what systemd does: listens, keeps descriptors, and starts the service anew.

Only sd_notify(3), sd_listen_fds(3), and of a unit: Restart=always, KillMode=mixed, and the store of descriptors, which
goes when the service is stopped and not restarted. It is a process of its own: one that has files open on a mount may
wait for that mount as soon as it starts another process, which closes them.

    python -m tests.servers.servicestore PLACE LOG COMMAND…
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.servers.processes import children_of

ROOT = Path(__file__).parents[2]
RECEIVED_BYTES_MAX = 4096
RECEIVED_DESCRIPTORS_MAX = 16
STOP_SECONDS_MAX = 90.0
START = """
LISTEN_PID=$$ exec "$@"
"""
"""For bash, before which come redirections to 3, 4 and so on."""


class Manager:
    """Owns NOTIFY_SOCKET. Close it in the end."""

    def __init__(self, place: str, log: str, command: Sequence[str], environ: Mapping[str, str]) -> None:
        self._command = list(command)
        self._environ = {**environ, "NOTIFY_SOCKET": place}
        self._log = log
        self.store: list[tuple[str, int]] = []
        self.times_ready = 0
        self.unknown: list[str] = []
        self._changed = threading.Condition()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(place)
        self.process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    # -- what the service says -----------------------------------------------------------------------------------

    def _listen(self) -> None:
        while True:
            data, ancillary, _, _ = self._socket.recvmsg(
                RECEIVED_BYTES_MAX, socket.CMSG_SPACE(4 * RECEIVED_DESCRIPTORS_MAX), socket.MSG_CMSG_CLOEXEC
            )
            if not data:
                return
            descriptors = array.array("i")
            for level, kind, payload in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    descriptors.frombytes(payload[: len(payload) - len(payload) % descriptors.itemsize])
            with self._changed:
                self._heard(dict(line.split("=", 1) for line in data.decode().splitlines()), descriptors.tolist())
                self._changed.notify_all()

    def _heard(self, words: dict[str, str], descriptors: list[int]) -> None:
        name = words.pop("FDNAME", "stored")
        words.pop("FDPOLL", None)
        if words.pop("FDSTORE", "") == "1":
            self.store += [(name, descriptor) for descriptor in descriptors]
        if words.pop("FDSTOREREMOVE", "") == "1":
            for known, descriptor in self.store:
                if known == name:
                    os.close(descriptor)
            self.store = [(known, descriptor) for known, descriptor in self.store if known != name]
        self.times_ready += words.pop("READY", "") == "1"
        words.pop("STOPPING", None)
        self.unknown += words

    def state(self) -> dict[str, object]:
        """What is kept, how often it was ready, and what it said that nobody understands."""
        with self._changed:
            names = sorted(name for name, _ in self.store)
            return {"names": names, "times_ready": self.times_ready, "unknown": self.unknown}

    def lose(self, name: str) -> None:
        """What has this name is kept no more."""
        with self._changed:
            self._heard({"FDSTOREREMOVE": "1", "FDNAME": name}, [])

    def wait_ready(self, times: int, seconds: float = 60.0) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self.times_ready >= times, seconds), "the service is not ready"

    # -- what becomes of the service -----------------------------------------------------------------------------

    def start(self) -> None:
        """Start it with what is kept."""
        with self._changed:
            store, before = list(self.store), self.times_ready
        # first far away, so that no redirection hides what the next one needs
        far = [os.dup(descriptor) for _, descriptor in store]
        redirections = " ".join(f"{3 + number}<&{descriptor} {descriptor}<&-" for number, descriptor in enumerate(far))
        environ = dict(self._environ)
        if store:
            environ |= {"LISTEN_FDS": str(len(store)), "LISTEN_FDNAMES": ":".join(name for name, _ in store)}
        script = f"exec {redirections}\n{START}" if store else START
        with open(self._log, "ab") as log:
            self.process = subprocess.Popen(
                ["bash", "-c", script, "bash", *self._command],
                env=environ, stdout=log, stderr=log, pass_fds=far,
            )  # fmt: skip
        for descriptor in far:
            os.close(descriptor)
        self.wait_ready(before + 1)

    def kill(self) -> None:
        """kill -9 of the main process, then of whatever it left."""
        assert self.process is not None
        family = children_of(self.process.pid)
        self.process.kill()
        self.process.wait()
        self._end(family)

    def restart(self) -> None:
        """As `systemctl restart`."""
        self._terminate()
        self.start()

    def stop(self) -> int:
        """As `systemctl stop`: nothing is kept any more."""
        code = self._terminate()
        with self._changed:
            for _, descriptor in self.store:
                os.close(descriptor)
            self.store = []
        return code

    def _terminate(self) -> int:
        assert self.process is not None
        family = children_of(self.process.pid) if self.process.poll() is None else []
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(STOP_SECONDS_MAX)
        self._end(family)
        return code

    @staticmethod
    def _end(family: Sequence[int]) -> None:
        """SIGKILL to what is left of the control group."""
        for pid in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + STOP_SECONDS_MAX
        while any(os.path.exists(f"/proc/{pid}") for pid in family) and time.monotonic() < deadline:
            time.sleep(0.01)

    def close(self) -> None:
        """End it for good."""
        if self.process is not None and self.process.poll() is None:
            self.stop()
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._socket.close()


def main() -> int:
    """Do what each line says, and answer with a line."""
    place, log, *command = sys.argv[1:]
    manager = Manager(place, log, command, os.environ)
    try:
        for line in sys.stdin:
            deed, *words = line.split()
            said = getattr(manager, deed)(*words)
            print(json.dumps(said), flush=True)
    finally:
        manager.close()
    return 0


class ManagerProcess:
    """One, as tests tell it what to do."""

    def __init__(self, place: Path, log: Path, command: Sequence[str], environ: Mapping[str, str]) -> None:
        words = [sys.executable, "-m", "tests.servers.servicestore", str(place), str(log), *command]
        self._process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=dict(environ), cwd=ROOT
        )

    def do(self, *words: str) -> Any:
        """start, kill, restart, stop, state or lose NAME; what it comes to, once it is done."""
        self.begin(*words)
        return self.end()

    def begin(self, *words: str) -> None:
        """As `do`, without waiting for it."""
        assert self._process.stdin is not None
        self._process.stdin.write(" ".join(words) + "\n")
        self._process.stdin.flush()

    def end(self) -> Any:
        """What was begun is done."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the service manager failed"
        return json.loads(line)

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(2 * STOP_SECONDS_MAX)
        self._process.stdout.close()


@contextlib.contextmanager
def managed(place: Path, log: Path, command: Sequence[str], environ: Mapping[str, str]) -> Iterator[ManagerProcess]:
    """A manager that started the service, for the length of the block."""
    manager = ManagerProcess(place, log, command, environ)
    try:
        manager.do("start")
        yield manager
    finally:
        manager.close()


if __name__ == "__main__":
    sys.exit(main())
