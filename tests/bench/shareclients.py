"""Clients of shares that nobody here wrote: smbclient(1) in one session and in many, libnfs as a library and as tools.

Each has a folder of its own, knows what must be in it, and writes down what went wrong and its longest call.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.servers.ganesha import HERE, Ganesha
from tests.servers.samba import Samba

ROOT = Path(__file__).parents[2]
FAILED = ("NT_STATUS_", "Error", "failed", "timed out", "does not exist")
"""In what smbclient says."""
SIZES = (0, 100, 5000, 200_000, 2_000_000)


class SmbSession:
    """One smbclient that stays connected and does what it is told, one command after the other."""

    def __init__(self, server: Samba, share: str) -> None:
        words = ["stdbuf", "-oL", *server.client(share)]
        # it polls for a line, but reads all there are: each line is a packet (pipe(2), O_DIRECT)
        reading, self._writing = os.pipe2(os.O_DIRECT | os.O_CLOEXEC)
        try:
            self._process = subprocess.Popen(
                words, stdin=reading, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        finally:
            os.close(reading)
        self._number = 0

    def do(self, command: str) -> str:
        """What it says. Raises OSError when it is not connected any more."""
        assert self._process.stdout is not None
        self._number += 1
        end, said = f"@end-of-{self._number}@", ""
        try:
            for line in (command, f"!echo; echo {end}"):
                os.write(self._writing, f"{line}\n".encode())
        except OSError as error:
            raise ConnectionResetError(f"{command}: smbclient ended") from error
        for line in self._process.stdout:
            if line.strip() == end:
                return said
            said += line
        raise ConnectionResetError(f"{command}: {said}")

    def close(self) -> None:
        os.close(self._writing)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(20)
        self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


class Client(threading.Thread):
    """Does deeds until it is told to stop. Paths in `expected` are relative to the share's folder."""

    def __init__(self, name: str, scratch: Path, seed: int) -> None:
        super().__init__(name=name)
        self.scratch = scratch
        self.dice = random.Random(f"{seed} {name}")
        self.wrong: list[str] = []
        self.longest = (0.0, "")
        self.calls = 0
        self.expected: dict[str, str] = {}
        self._contents: dict[str, bytes] = {}
        self._stop_asked = threading.Event()
        self._count = 0
        scratch.mkdir()

    def run(self) -> None:
        try:
            self.work()
        except (OSError, AssertionError, subprocess.TimeoutExpired) as error:
            self.wrong.append(f"{self.name}: {error!r}")

    def work(self) -> None:
        self.begin()
        while not self._stop_asked.is_set():
            self.step()
        self.expected = {name: hashlib.sha256(data).hexdigest() for name, data in self._contents.items()}

    def begin(self) -> None: ...

    def step(self) -> None: ...

    def end(self, seconds: float = 90) -> None:
        self._stop_asked.set()
        self.join(seconds)
        if self.is_alive():
            self.wrong.append(f"{self.name} hangs")

    @contextlib.contextmanager
    def timed(self, what: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.calls += 1
        self.longest = max(self.longest, (time.monotonic() - began, f"{self.name} {what}"))

    def fresh(self) -> tuple[str, bytes, Path]:
        """A name that never was, bytes for it, and a local file that has them."""
        self._count += 1
        data = self.dice.randbytes(self.dice.choice(SIZES))
        local = self.scratch / "put"
        local.write_bytes(data)
        return f"{self.name}/f{self._count}.dcm", data, local

    def some(self) -> str:
        return self.dice.choice(sorted(self._contents))

    def took(self, local: Path, name: str) -> None:
        """What was got is what was put."""
        assert local.exists(), f"{name} was not brought"
        assert local.read_bytes() == self._contents[name], f"{name} came with other bytes"
        local.unlink()


class SmbClient(Client):
    """put, get, rename, ls, allinfo, mkdir, rmdir and del over a share; *run_command* is how smbclient is told."""

    def __init__(self, name: str, scratch: Path, seed: int, run_command: Callable[[str], str]) -> None:
        super().__init__(name, scratch, seed)
        self._run_command = run_command

    def ask(self, command: str) -> str:
        with self.timed(command.split(" ", maxsplit=1)[0]):
            said = self._run_command(command)
        assert not any(word in said for word in FAILED), f"{command}: {said}"
        return said

    def begin(self) -> None:
        self.ask(f"mkdir {self.name}")

    def step(self) -> None:
        there, deed = self._contents, self.dice.random()
        if deed < 0.35 or len(there) < 3:
            name, data, local = self.fresh()
            self.ask(f"put {local} {name}")
            there[name] = data
        elif deed < 0.55:
            name, local = self.some(), self.scratch / "got"
            self.ask(f"get {name} {local}")
            self.took(local, name)
        elif deed < 0.65:
            old, (new, _, _) = self.some(), self.fresh()
            self.ask(f"rename {old} {new}")
            there[new] = there.pop(old)
        elif deed < 0.75:
            name = self.some()
            said = self.ask(f"allinfo {name}")
            assert f"stream: [::$DATA], {len(there[name])} bytes" in said, f"{name}: {said}"
        elif deed < 0.85:
            said = self.ask(f"ls {self.name}/*")
            lines = [line.split() for line in said.splitlines() if line.startswith("  ")]
            seen = {words[0]: int(words[2]) for words in lines if words and words[0].endswith(".dcm")}
            sizes = {name.rpartition("/")[2]: len(data) for name, data in there.items()}
            assert seen == sizes, f"a listing shows {seen} instead of {sizes}"
        elif deed < 0.9:
            self._count += 1
            self.ask(f"mkdir {self.name}/d{self._count}")
            self.ask(f"rmdir {self.name}/d{self._count}")
        else:
            name = self.some()
            self.ask(f"del {name}")
            del there[name]


class SmbSessionClient(SmbClient):
    """All of it in one session, which must never end."""

    def __init__(self, scratch: Path, seed: int, server: Samba, share: str) -> None:
        self._session = SmbSession(server, share)
        super().__init__("session", scratch, seed, self._session.do)

    def work(self) -> None:
        try:
            super().work()
        finally:
            self._session.close()


class NfsTools(Client):
    """nfs-cp, nfs-cat and nfs-ls, a new client for each command."""

    def __init__(self, scratch: Path, seed: int, server: Ganesha, folder: Path) -> None:
        super().__init__("tools", scratch, seed)
        self._server = server
        self._folder = folder

    def _tool(self, *words: object) -> str:
        with self.timed(str(words[0])):
            done = self._server.run(*words)
        assert done.returncode == 0, f"{words}: {done.stderr} {done.stdout}"
        assert "NFS3ERR" not in done.stdout + done.stderr, f"{words}: {done.stderr} {done.stdout}"
        return done.stdout

    def step(self) -> None:
        there, deed = self._contents, self.dice.random()
        if deed < 0.5 or len(there) < 3:
            name, data, local = self.fresh()
            flat = name.replace("/", "-")
            self._tool("nfs-cp", local, self._server.url(self._folder / flat))
            there[flat] = data
        elif deed < 0.8:
            name, local = self.some(), self.scratch / "got"
            self._tool("nfs-cp", self._server.url(self._folder / name), local)
            self.took(local, name)
        else:
            said = self._tool("nfs-ls", self._server.url(self._folder))
            assert set(there) <= {line.split()[-1] for line in said.splitlines()}, f"a listing shows {said}"


class NfsClient(Client):
    """`tests.bench.nfsload` where the server listens: one client that keeps its handles."""

    def __init__(self, scratch: Path, seed: int, server: Ganesha, folder: Path) -> None:
        super().__init__("nfs", scratch, seed)
        words = (sys.executable, "-m", "tests.bench.nfsload", HERE, str(folder), str(seed))
        self._process = subprocess.Popen(
            server.inside(*words), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
        )

    def work(self) -> None:
        while self._process.poll() is None and not self._stop_asked.wait(0.05):
            pass
        try:
            said = json.loads(self._process.communicate(timeout=80)[0])
        except ValueError as problem:
            raise AssertionError("it ended without a word") from problem
        finally:
            self._process.kill()
            self._process.wait()
        self.calls, self.expected = said["calls"], said["expected"]
        self.longest = (said["longest"][0], f"{self.name} {said['longest'][1]}")
        self.wrong += said["wrong"]
