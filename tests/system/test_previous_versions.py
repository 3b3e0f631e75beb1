"""Windows' Previous Versions through a real Samba, with the lines for `smb.conf` that README gives."""

from __future__ import annotations

import re
import socket
import subprocess
import time
from pathlib import Path

import pytest

from tests.servers.processes import free_port, need, servers
from tests.system.archives import ROOT, an_archive, until

pytestmark = pytest.mark.system

GLOBAL = """
[global]
    server role = standalone server
    security = user
    passdb backend = smbpasswd:{home}/smbpasswd
    private dir = {home}
    lock directory = {home}
    state directory = {home}
    cache directory = {home}
    pid directory = {home}
    ncalrpc dir = {home}/ncalrpc
    log file = {home}/log
    interfaces = lo
    bind interfaces only = yes
    disable spoolss = yes
    load printers = no
[share]
    path = {share}
    read only = no
"""
PASSWORD = "only for this test"


def readme_lines(share: Path) -> str:
    """What README tells an administrator to write."""
    text = (ROOT / "README.md").read_text()
    block = re.search(r"For Windows' Previous Versions.*?\n\n((?:    .*\n)+)", text, re.DOTALL)
    assert block is not None
    assert "/srv/share/archive" in block[1]
    return block[1].replace("/srv/share/archive", str(share))


class Samba:
    """One smbd on loopback, with one share."""

    def __init__(self, home: Path, share: Path, started) -> None:
        need(("smbd", "smbclient", "smbpasswd"), "samba samba-vfs-modules smbclient")
        self.home = home
        self.port = free_port()
        self.configuration = home / "smb.conf"
        self.configuration.write_text(GLOBAL.format(home=home, share=share) + readme_lines(share))
        words = ["smbpasswd", "-c", str(self.configuration), "-L", "-s", "-a", "root"]
        subprocess.run(words, input=f"{PASSWORD}\n{PASSWORD}\n".encode(), check=True, capture_output=True)
        started.start("smbd", "smbd", "-F", "--no-process-group", "-s", str(self.configuration), "-p", str(self.port))
        until(self.answers, "smbd answers", 30)

    def answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def ask(self, command: str) -> str:
        """What smbclient says."""
        login = self.home / "login"
        login.write_text(f"username = root\npassword = {PASSWORD}\n")
        done = subprocess.run(
            ["smbclient", "-s", str(self.configuration), "//127.0.0.1/share", "-p", str(self.port), "-A", str(login),
             "-c", command],
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        return done.stdout + done.stderr


def now() -> str:
    time.sleep(1.1)  # a moment of the past has whole seconds
    found = time.strftime("@GMT-%Y.%m.%d-%H.%M.%S", time.gmtime())
    time.sleep(1.1)
    return found


def test_samba_shows_what_was_overwritten_and_deleted_and_gives_it_back(tmp_path):
    with an_archive(tmp_path) as archive, servers(str(tmp_path)) as started:
        folder = archive.share / "study"
        folder.mkdir()
        (folder / "report.txt").write_bytes(b"first" * 100)
        (folder / "image.dcm").write_bytes(b"image" * 1000)
        archive.wait()
        before = now()
        (folder / "report.txt").write_bytes(b"second" * 100)
        (folder / "image.dcm").unlink()
        archive.wait()
        archive.vna("evict", folder)
        home = tmp_path / "samba"
        home.mkdir()
        samba = Samba(home, archive.share, started)
        assert "image.dcm" not in samba.ask("ls study/*")
        assert ".as-of" not in samba.ask("ls *")
        listing = samba.ask(f"ls study/{before}/*")
        assert "image.dcm" in listing, listing
        assert "500" in samba.ask(f"allinfo {before}/study/report.txt")
        for name, data in (("report.txt", b"first" * 100), ("image.dcm", b"image" * 1000)):
            told = samba.ask(f"get {before}/study/{name} {tmp_path}/{name}")
            assert (tmp_path / name).read_bytes() == data, told
        (tmp_path / "other").write_bytes(b"x")
        samba.ask(f"put {tmp_path}/other {before}/study/report.txt")
        samba.ask(f"del {before}/study/report.txt")
        samba.ask(f"get {before}/study/report.txt {tmp_path}/again")
        assert (tmp_path / "again").read_bytes() == b"first" * 100, "the past does not change"
        assert (folder / "report.txt").read_bytes() == b"second" * 100
