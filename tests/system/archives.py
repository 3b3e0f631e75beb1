"""A whole archive for a test: made by `vna init`, served by the real daemons, driven through the mount and `vna`."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from appliance.control.wire import address

VNA = (sys.executable, "-m", "appliance")
ROOT = Path(__file__).parents[2]

QUICK = """
[file_system]
quiet_seconds = 0.3

[spool]
reserve_bytes = 1048576
high_watermark_percent = 99.0
low_watermark_percent = 98.0

[packs]
age_seconds_max = 0.5
"""
"""Short times, and no eviction because of what else is on the machine's disk."""
AT_ONCE = """
[file_system]
quiet_seconds = 0.1
recall_seconds_max = 30.0

[spool]
reserve_bytes = 1048576
high_watermark_percent = 99.0
low_watermark_percent = 98.0

[packs]
age_seconds_max = 0.2
target_bytes = 1048576
"""
"""Sealed and packed as soon as may be, so that what lasts seconds meets every state."""


def with_engine(settings: str, engine: str) -> str:
    """The same, served by that engine."""
    return settings.replace("[file_system]", f'[file_system]\nengine = "{engine}"')


def require_fuse() -> None:
    """Fails loudly: these tests are never skipped."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        raise AssertionError(
            "/dev/fuse is missing or not ours: run as root on a machine with FUSE, with fuse3 installed"
        )


class Archive:
    """One archive in a folder of its own."""

    def __init__(self, folder: Path, targets: Mapping[str, str], environ: Mapping[str, str], settings: str) -> None:
        require_fuse()
        self.folder = folder
        self.archive = folder / "archive"
        self.mount = folder / "mnt"
        self.share = self.mount / "archive"
        self.targets = dict(targets)
        self.log = folder / "daemons.log"
        self.program = ROOT
        """Where the modules of its daemons are."""
        self._environ = {**os.environ, **environ, "VNA_ARCHIVE": str(self.archive)}
        self._processes: list[subprocess.Popen[bytes]] = []
        self.settings = settings

    # -- the command line --------------------------------------------------------------------------------------

    def vna(self, *words: object, check: int | None = 0) -> Any:
        """Run `vna … --json`; its document. *check* is the exit code it must have, None for any."""
        done = subprocess.run(
            [*VNA, *map(str, words), "--json"],
            env=self._environ,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
            cwd=ROOT,
        )
        if check is not None:
            assert done.returncode == check, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}\n{self.tail()}"
        return json.loads(done.stdout) if done.stdout.strip() else None

    def evict(self, *paths: object) -> None:
        """None of them is local any more."""
        assert self.vna("evict", *paths)["refused"] == []

    def init(self, *words: str) -> Archive:
        targets = [word for name, url in self.targets.items() for word in ("--target", f"{name}={url}")]
        self.vna("init", self.archive, "--mount", self.mount, *targets, *words)
        config = self.archive / "vnafs.toml"
        head, separator, tail = config.read_text().partition("\n[[target]]")
        config.write_text(head + "\n" + self.settings + separator + tail)
        return self

    # -- daemons -----------------------------------------------------------------------------------------------

    def start(self, name: str, *words: str, wait: bool = True) -> subprocess.Popen[bytes]:
        """Start one daemon, or `serve`."""
        with self.log.open("ab") as log:
            command = [*VNA, name, *words]
            process = subprocess.Popen(command, env=self._environ, stdout=log, stderr=log, cwd=self.program)
        self._processes.append(process)
        if wait:
            self.ready({"mount": ("mount",), "tierd": ("tierd",), "serve": ("mount", "tierd")}[name], process)
        return process

    def ready(self, names: Sequence[str], process: subprocess.Popen[bytes] | None = None) -> None:
        def is_ready() -> bool:
            if process is not None and process.poll() is not None:
                raise AssertionError(f"the daemon ended with {process.returncode}\n{self.tail()}")
            return all(self._answers(name) and (name != "mount" or self.is_mounted()) for name in names)

        until(is_ready, lambda: f"{names} answer\n{self.tail()}", 60)

    def is_mounted(self) -> bool:
        """Whether the tree is there and alive; stat(2) of a dead mount may be answered from the kernel's cache."""
        try:
            os.statvfs(self.mount)
        except OSError:
            return False
        return os.path.ismount(self.mount)

    def _answers(self, name: str) -> bool:
        path = str(self.archive / "run" / f"{name}.sock")
        with socket.socket(socket.AF_UNIX) as probe, address(path) as reachable:
            try:
                probe.connect(reachable)
            except OSError:
                return False
        return True

    def stop(self) -> None:
        """End every process this archive started, politely first."""
        for process in reversed(self._processes):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(30)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
        self._processes.clear()
        with contextlib.suppress(OSError):
            if os.path.ismount(self.mount) or not os.path.exists(self.mount):
                subprocess.run(["umount", "-l", str(self.mount)], check=False, capture_output=True)

    def tail(self, lines: int = 40) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:]) if self.log.exists() else ""

    # -- what tests ask for --------------------------------------------------------------------------------------

    def state(self, path: Path) -> str:
        return os.getxattr(path, "user.vna.state").decode()

    def wait(self, copies: int = 1, seconds: float = 120) -> None:
        self.vna("wait", "--copies", copies, "--timeout", seconds)


def until(condition: Callable[[], object], what: str | Callable[[], str], seconds: float = 30.0) -> None:
    """Return once *condition* holds; fail with *what* after *seconds*."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what if isinstance(what, str) else what()}")
        time.sleep(0.02)


@contextlib.contextmanager
def an_archive(
    folder: Path,
    targets: Mapping[str, str] | None = None,
    *words: str,
    environ: Mapping[str, str] | None = None,
    settings: str = QUICK,
    serve: bool = True,
) -> Iterator[Archive]:
    """An archive with one directory target unless told otherwise, served unless told otherwise."""
    chosen = {"one": f"file://{folder}/one"} if targets is None else targets
    archive = Archive(folder, chosen, environ or {}, settings).init(*words)
    try:
        if serve:
            archive.start("serve")
        yield archive
    finally:
        archive.stop()


@contextlib.contextmanager
def in_background(work: Callable[[], None]) -> Iterator[threading.Event]:
    """Run *work* over and over in a thread until the block ends; its first failure fails the test."""
    stop = threading.Event()
    failure: list[BaseException] = []

    def loop() -> None:
        try:
            while not stop.is_set():
                work()
        except BaseException as problem:
            failure.append(problem)

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield stop
    finally:
        stop.set()
        thread.join()
    if failure:
        raise failure[0]
