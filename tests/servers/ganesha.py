"""A real NFS server in user space, in a network of its own: ports that NFS has everywhere, and nobody else there."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.servers.processes import Servers, need, servers

HERE, STRANGER = "127.0.0.1", "10.9.9.9"
"""Two addresses of that network's only machine."""
NETWORK = (
    "mount -t tmpfs none /run && mkdir /run/ganesha && mount -t tmpfs none /var/lib/nfs && mkdir /var/lib/nfs/ganesha "
    f"&& ip link set lo up && ip address add {STRANGER}/32 dev lo && exec rpcbind -f"
)


class Ganesha:
    """One nfs-ganesha that reads *configuration*, which is what is tried."""

    def __init__(self, home: Path, configuration: Path, started: Servers) -> None:
        need(("ganesha.nfsd", "rpcbind", "nfs-ls", "unshare"), "nfs-ganesha nfs-ganesha-vfs rpcbind libnfs-utils")
        self.home = home
        words = ("unshare", "--net", "--mount", "--propagation", "private", "sh", "-c", NETWORK)
        portmapper = started.start("rpcbind", *words)
        self._inside = ("nsenter", "-t", str(portmapper.pid), "--net", "--mount")
        started.wait("rpcbind answers", lambda: self.run("rpcinfo", "-p", HERE).returncode == 0, 30)
        self._words = ("ganesha.nfsd", "-F", "-L", str(home / "log"), "-f", str(configuration), "-p", str(home / "pid"))
        self._started = started
        self.start()

    def start(self) -> None:
        """Start it, again after `kill`."""
        (self.home / "log").unlink(missing_ok=True)
        self.process = self._started.start("ganesha", *self._inside, *self._words, "-N", "EVENT")
        self._started.wait("ganesha answers", self.answers, 60)

    def kill(self) -> None:
        """kill -9."""
        self._started.forget(self.process)
        self.process.kill()
        self.process.wait()

    def answers(self) -> bool:
        return "NFS SERVER INITIALIZED" in self.log()

    def log(self) -> str:
        log = self.home / "log"
        return log.read_text(errors="replace") if log.exists() else ""

    def run(self, *words: object) -> subprocess.CompletedProcess[str]:
        """A client's command in that network."""
        return subprocess.run(self.inside(*words), capture_output=True, text=True, timeout=60, check=False)

    def inside(self, *words: object) -> list[str]:
        """A command line that runs there."""
        return [*self._inside, *map(str, words)]

    def url(self, path: Path, host: str = HERE) -> str:
        """For libnfs: NFSv3, its folder is the whole export."""
        return f"nfs://{host}{path}?version=3"


@contextlib.contextmanager
def rendered_ganesha(home: Path, rendered: Path) -> Iterator[Ganesha]:
    """A server of what `vna share render` wrote; *home* is made."""
    home.mkdir()
    with servers(str(home)) as started:
        yield Ganesha(home, rendered, started)
