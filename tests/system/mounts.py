"""Real mounts for tests: a tree served by a process of its own that can be stopped, killed and started again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

REPOSITORY_ROOT = Path(__file__).parent.parent.parent
WAIT_SECONDS = 20.0
ENGINES = ("pyfuse3", "kernel")


def check_fuse() -> None:
    """Raises RuntimeError that says what to install."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        raise RuntimeError("these tests mount: they need /dev/fuse, readable and writable (apt-get install fuse3)")


def wait_until(condition: object, what: str) -> None:
    """Raises AssertionError when *condition()* stays false."""
    until = time.monotonic() + WAIT_SECONDS
    while not condition():  # type: ignore[operator] # any callable
        assert time.monotonic() < until, f"no sign of: {what}"
        time.sleep(0.01)


class Mount:
    """One archive and the process that serves it at `point`; repositories `archive` and `other`."""

    def __init__(self, directory: Path, *arguments: str) -> None:
        check_fuse()
        self.archive = directory / "vna"
        self.point = directory / "mnt"
        self.arguments = arguments
        self.process: subprocess.Popen[str] | None = None
        for made in (self.archive, self.point, self.archive / "namespace"):
            made.mkdir(parents=True, exist_ok=True)

    @property
    def root(self) -> Path:
        """The repository that tests write to."""
        return self.point / "archive"

    def start(self) -> float:
        """Serve; returns the seconds until it was mounted."""
        begun = time.monotonic()
        command = [
            sys.executable,
            "-m",
            "tests.system.mountdriver",
            str(self.archive),
            str(self.point),
            *self.arguments,
        ]
        with (self.archive / "driver.log").open("a") as log:
            self.process = subprocess.Popen(command, cwd=REPOSITORY_ROOT, stdout=subprocess.PIPE, stderr=log, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line == "ready\n", (self.archive / "driver.log").read_text()[-3000:]
        return time.monotonic() - begun

    def stop(self) -> None:
        """End it properly."""
        if self.process is not None:
            self.process.terminate()
            code = self.process.wait(WAIT_SECONDS)
            self._forget()
            assert code == 0, (self.archive / "driver.log").read_text()[-3000:]
            assert not os.path.ismount(self.point)

    def kill(self) -> None:
        """kill -9, leaving the dead mount for the next start to clear."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(WAIT_SECONDS)
        self._forget()

    def restart(self) -> None:
        """Stop and start: the kernel forgets everything."""
        self.stop()
        self.start()

    def evict(self, *paths: Path) -> None:
        """Seal and evict files, through the tree's tiering port."""
        assert self.process is not None
        inodes = {str(path.stat().st_ino) for path in paths}

        def none_is_open() -> bool:
            """Linux tells a file system of a close after close() has returned."""
            inodes.difference_update(self.evicted(inodes))
            return not inodes

        wait_until(none_is_open, f"{len(paths)} files are evicted")

    def evicted(self, inodes: Iterable[str]) -> list[str]:
        """Try once; those of them that are stubs now."""
        assert self.process is not None
        answer = self.archive / "evicted"
        answer.unlink(missing_ok=True)
        (self.archive / "evict").write_text("\n".join(sorted(inodes)))
        self.process.send_signal(signal.SIGUSR1)
        wait_until(answer.exists, "the answer to SIGUSR1")
        lines = answer.read_text().splitlines()
        assert all(line.endswith((" done", " busy")) for line in lines), lines
        return [line.split()[0] for line in lines if line.endswith(" done")]

    def close(self) -> None:
        """Whatever happened, leave nothing behind."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(WAIT_SECONDS)
            self._forget()
        while str(self.point) in Path("/proc/self/mountinfo").read_text():
            subprocess.run(["fusermount3", "-u", "-z", str(self.point)], check=True)

    def _forget(self) -> None:
        assert self.process is not None
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.process = None
