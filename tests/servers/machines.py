"""Machines for tests, made of namespaces: a host name, an address, a /etc and processes of their own (unshare(1)).

What the real machine has mounted when one starts is there too, and so is what is mounted later in a shared folder.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.servers.processes import ServerFailed, need

PRIVATE = ("run/samba", "var/lib/samba", "var/cache/samba", "var/log/samba")
"""Where Debian's Samba keeps what is its own."""
SECONDS_MAX = 120


class Machine:
    """One of them; everything in it dies with it."""

    def __init__(self, home: Path, name: str, domain: str, hosts: str = "") -> None:
        need(("unshare", "nsenter", "ip", "mount"), "util-linux iproute2 mount")
        self.home = home / name
        self.name = name
        for folder in PRIVATE:
            (self.home / folder).mkdir(parents=True)
            Path("/", folder).mkdir(parents=True, exist_ok=True)
        (self.home / "var/lib/samba/private").mkdir()
        shutil.copytree("/etc", self.home / "etc", symlinks=True)
        shutil.rmtree(self.etc / "samba", ignore_errors=True)
        (self.etc / "samba").mkdir()
        (self.etc / "hosts").write_text(f"127.0.0.1 localhost\n{hosts}")
        for path in (self.etc / "krb5.keytab", self.etc / "krb5.conf", self.etc / "resolv.conf"):
            path.unlink(missing_ok=True)
        binds = [f"mount --bind {self.home}/{folder} /{folder}" for folder in ("etc", *PRIVATE)]
        script = [*binds, "mount -t proc proc /proc", f"hostname {name}", "ip link set lo up", "echo ready"]
        self._outer = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "--mount", "--uts", "--pid", "--fork",
             "--kill-child", "--propagation", "slave", "sh", "-ec", "; ".join([*script, "exec sleep infinity"])],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        assert self._outer.stdout is not None
        if (said := self._outer.stdout.readline()) != "ready\n":
            self.end()
            raise ServerFailed(f"a machine of namespaces cannot be made: {said}")
        children = Path(f"/proc/{self._outer.pid}/task/{self._outer.pid}/children").read_text()
        self.pid = int(children.split()[0])

    @property
    def etc(self) -> Path:
        return self.home / "etc"

    def words(self, *command: str) -> list[str]:
        """*command* as the real machine runs it in this one."""
        return ["nsenter", "-t", str(self.pid), "-n", "-m", "-u", "-p", "--", *command]

    def start(self, *command: str) -> None:
        """Run a server until the machine ends; what it says is in `log`."""
        with self.log.open("ab") as log:
            subprocess.Popen(self.words(*command), stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/")

    @property
    def log(self) -> Path:
        return self.home / "log"

    def run(
        self, *command: str, text: str = "", environ: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(
            self.words(*command), input=text, capture_output=True, text=True, timeout=SECONDS_MAX, check=False,
            cwd="/", env={**os.environ, **(environ or {})},
        )  # fmt: skip

    def must(self, *command: str, text: str = "") -> str:
        """Run a command that succeeds; what it says."""
        done = self.run(*command, text=text)
        if done.returncode:
            raise ServerFailed(f"{command[:3]} failed on {self.name}:\n{done.stdout}{done.stderr}\n{self.tail()}")
        return done.stdout

    def until(self, *command: str, seconds: float = 60) -> str:
        """Run a command until it succeeds; what it says."""
        end = time.monotonic() + seconds
        while (done := self.run(*command)).returncode:
            if time.monotonic() > end:
                raise ServerFailed(f"{command} on {self.name}: {done.stdout}{done.stderr}\n{self.tail()}")
            time.sleep(0.2)
        return done.stdout

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-3000:] if self.log.exists() else ""

    def end(self) -> None:
        """Everything in it is killed."""
        with contextlib.suppress(ProcessLookupError, AttributeError):
            os.kill(self.pid, signal.SIGKILL)
        self._outer.kill()
        self._outer.wait()


def connect(one: Machine, other: Machine, addresses: Sequence[str]) -> None:
    """A cable between two of them."""
    for machine, end, peer in ((one, "eth0", other),):
        words = ["ip", "link", "add", end, "netns", str(machine.pid), "type", "veth"]
        subprocess.run([*words, "peer", "name", end, "netns", str(peer.pid)], check=True)
    for machine, address in zip((one, other), addresses, strict=True):
        machine.must("ip", "addr", "add", f"{address}/24", "dev", "eth0")
        machine.must("ip", "link", "set", "eth0", "up")


@contextlib.contextmanager
def shared_folder(folder: Path) -> Iterator[None]:
    """What is mounted below *folder* is mounted on machines that started meanwhile, too."""
    subprocess.run(["mount", "--bind", str(folder), str(folder)], check=True)
    subprocess.run(["mount", "--make-shared", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
