"""A real Samba on loopback: one share, one user."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.servers.processes import Servers, children_of, free_port, need, servers

OWN = """
[global]
    passdb backend = smbpasswd:{home}/smbpasswd
    private dir = {home}
    lock directory = {home}
    state directory = {home}
    cache directory = {home}
    pid directory = {home}
    ncalrpc dir = {home}/ncalrpc
    log file = {home}/log
"""
"""Where an smbd keeps what is its own."""
INCLUDING = OWN + "    include = {rendered}\n"
"""All else is the file that is tried."""
GLOBAL = (
    OWN
    + """
    server role = standalone server
    security = user
    interfaces = lo
    bind interfaces only = yes
    disable spoolss = yes
    load printers = no
[share]
    path = {share}
    read only = no
"""
)
PASSWORD = "only for this test"
PATIENCE_SECONDS = 60
"""For one call, as clients of Windows have it; smbclient gives up after 20 otherwise."""


class Samba:
    """One smbd with the configuration *text*, and *users* who log in with PASSWORD."""

    def __init__(
        self, home: Path, text: str, started: Servers, port: int = 0, users: Sequence[str] = ("root",)
    ) -> None:
        need(("smbd", "smbclient", "smbpasswd"), "samba samba-vfs-modules smbclient")
        self.home = home
        self.port = port or free_port()
        self.configuration = home / "smb.conf"
        self.configuration.write_text(text)
        for user in users:
            words = ["smbpasswd", "-c", str(self.configuration), "-L", "-s", "-a", user]
            subprocess.run(words, input=f"{PASSWORD}\n{PASSWORD}\n".encode(), check=True, capture_output=True)
        self._started = started
        self.start()

    def start(self) -> None:
        """Start it, again after `kill`."""
        words = ("smbd", "-F", "--no-process-group", "-s", str(self.configuration), "-p", str(self.port))
        self.process = self._started.start("smbd", *words)
        self._started.wait("smbd answers", self.answers, 30)

    def sessions(self) -> list[int]:
        """Processes that serve a client, or help."""
        return children_of(self.process.pid)

    def kill(self) -> None:
        """kill -9 of all its processes at once."""
        pids = [self.process.pid, *self.sessions()]
        self._started.forget(self.process)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def ask(
        self,
        command: str,
        *words: str,
        share: str = "share",
        user: str = "root",
        password: str = PASSWORD,
        client_name: str = ".",
    ) -> str:
        """What smbclient says; *words* are more arguments for it. Clients that ask at once have names of their own."""
        done = subprocess.run(
            [*self.client(share, user=user, password=password, name=client_name), *words, "-c", command],
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        return done.stdout + done.stderr

    def client(self, share: str, *, user: str = "root", password: str = PASSWORD, name: str = ".") -> list[str]:
        """The command line of an smbclient that logs in, with files of its own below *name*."""
        home = self.home / name
        home.mkdir(exist_ok=True)
        login, settings = home / "login", home / "client.conf"
        text = f"username = {user}\npassword = {password}\n"
        if not login.exists() or login.read_text() != text:  # others may be reading it
            login.write_text(text)
            login.chmod(0o600)
        if not settings.exists():
            settings.write_text(f"[global]\n    private dir = {home}/client\n    lock directory = {home}/client\n")
        return [
            "smbclient", "-s", str(settings), f"//127.0.0.1/{share}", "-p", str(self.port), "-A", str(login),
            "-t", str(PATIENCE_SECONDS),
        ]  # fmt: skip


@contextlib.contextmanager
def samba(home: Path, share: Path, lines: str = "") -> Iterator[Samba]:
    """An smbd for the length of the block; *home* is made."""
    home.mkdir()
    with servers(str(home)) as started:
        yield Samba(home, GLOBAL.format(home=home, share=share) + lines, started)


@contextlib.contextmanager
def rendered_samba(home: Path, rendered: Path, port: int, users: Sequence[str] = ("root",)) -> Iterator[Samba]:
    """An smbd that serves what `vna share render` wrote; *home* is made."""
    home.mkdir()
    with servers(str(home)) as started:
        yield Samba(home, INCLUDING.format(home=home, rendered=rendered), started, port, users)
