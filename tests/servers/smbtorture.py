"""smbtorture, Samba's own judge of SMB servers, on one Samba with pairs of shares that differ only in where they are.

The settings of both are those that `vna share render` gives; one lies in a mount of ours, the other on the disk that is
under it. So what differs is ours.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from tests.servers.processes import free_port, need
from tests.servers.samba import PASSWORD, Samba, rendered_samba
from tests.system.archives import QUICK, Archive, an_archive, with_engine

USER, OTHER_USER = "games", "daemon"
"""Users of any Debian who are not root: root is asked for no rights."""
_RESULT = re.compile(r"^(success|failure|error|skip): (.+?)(?: \[)?$", re.MULTILINE)
SUCCESS, UNFINISHED = "success", "unfinished"
TEST_SECONDS_MAX = 75.0
EMPTY_SECONDS_MAX = 20.0


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a test, and what was said about it."""

    result: str
    said: str


@dataclasses.dataclass(frozen=True)
class Share:
    """One place to torture."""

    name: str
    folder: Path
    server: Samba

    def words(self, test: str, settings: str = "") -> list[str]:
        """The command that runs a test, with lines for its smb.conf."""
        home = self._home()
        configuration = home / "smb.conf"
        places = "".join(
            f"    {kind} = {home}\n" for kind in ("private dir", "lock directory", "state directory", "cache directory")
        )
        configuration.write_text(f"[global]\n{places}{settings}")
        words = ["smbtorture", f"//127.0.0.1/{self.name}", "-s", str(configuration), "-p", str(self.server.port)]
        words += ["-U", f"{USER}%{PASSWORD}", "--extra-user", f"{OTHER_USER}%{PASSWORD}"]
        return [*words, "--target", "samba3", "--fullname", "--seed", "1", test]

    def _home(self) -> Path:
        home = self.server.home / f"torturer-{self.name}"
        home.mkdir(exist_ok=True)
        return home

    def torture(self, test: str, seconds_max: float = TEST_SECONDS_MAX) -> Outcome:
        """Run one test in an empty folder. What takes too long is UNFINISHED."""
        self.empty()
        words, home = self.words(test), self._home()
        try:
            done = subprocess.run(words, capture_output=True, timeout=seconds_max, check=False, cwd=home)
        except subprocess.TimeoutExpired as late:
            return Outcome(UNFINISHED, (late.stdout or b"").decode(errors="replace"))
        text = (done.stdout + done.stderr).decode(errors="replace")
        results = {name: result for result, name in _RESULT.findall(text)}
        return Outcome(results.get(test, f"ended with {done.returncode}"), text)

    def empty(self) -> None:
        """Nothing is left there. The server may be at it too: what a client that was killed left goes with a close."""
        until = time.monotonic() + EMPTY_SECONDS_MAX
        while names := os.listdir(self.folder):
            assert time.monotonic() < until, names
            for name in names:
                if (self.folder / name).is_dir():
                    shutil.rmtree(self.folder / name, ignore_errors=True)
                else:
                    (self.folder / name).unlink(missing_ok=True)


@dataclasses.dataclass(frozen=True)
class Pair:
    """The same share in both places."""

    ours: Share
    disk: Share


def known_tests(suite: str) -> list[str]:
    """The tests of a suite, by the names that they report."""
    need(("smbtorture",), "samba-testsuite")
    said = subprocess.run(["smbtorture", "--list"], capture_output=True, text=True, check=True).stdout
    return [line.rpartition(".")[0] for line in said.splitlines() if line.startswith(f"{suite}.")]


@contextlib.contextmanager
def pairs(
    home: Path, engine: str, count: int = 1, *, ack: str = "durable", settings: str = ""
) -> Iterator[tuple[Archive, list[Pair]]]:
    """So many pairs, served by one Samba, with more *settings* for all of it; *home* is open to everybody."""
    need(("smbtorture",), "samba-testsuite")
    port = free_port()
    archive_settings = with_engine(QUICK, engine) + f'\n[sharing]\naddresses = ["127.0.0.1"]\nsmb_port = {port}\n'
    with an_archive(home, None, "--ack", ack, settings=archive_settings) as archive:
        names = [(f"ours{number}", f"disk{number}") for number in range(count)]
        folders = {}
        for ours, disk in names:
            folders |= {ours: archive.share / ours, disk: home / disk}
        for folder in folders.values():
            folder.mkdir()
            shutil.chown(folder, USER)
            os.chmod(folder, 0o777)
        for ours, _ in names:
            archive.vna("share", "add", ours, f"archive/{ours}", "--protocol", "smb")
        archive.vna("share", "render")
        text = (archive.archive / "shares" / "smb.conf").read_text()
        sections = text[text.index(f"[{names[0][0]}]") :]
        for ours, disk in names:
            sections = sections.replace(f"[{ours}]", f"[{disk}]").replace(str(folders[ours]), str(folders[disk]))
        both = home / "both.conf"
        both.write_text(f"{text}\n{sections}\n[global]\n{settings}")
        with rendered_samba(home / "samba", both, port, (USER, OTHER_USER)) as server:
            share = {name: Share(name, folder, server) for name, folder in folders.items()}
            yield archive, [Pair(share[ours], share[disk]) for ours, disk in names]
