"""What clients of a real Samba and a real NFS server notice when the mount process, smbd or `vna serve` dies."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.shares.sessions import closing
from tests.bench import takeover_shares
from tests.bench.shareclients import SmbSession
from tests.bench.takeover import Served
from tests.servers.ganesha import Ganesha
from tests.servers.processes import free_port
from tests.servers.samba import Samba
from tests.system.archives import Archive, an_archive, until

pytestmark = pytest.mark.system

DISCONNECTED = "NT_STATUS_CONNECTION_"
"""…DISCONNECTED, or …RESET for the one whose process was killed a moment ago."""


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="restarts") as made:
        os.chmod(made, 0o755)  # pytest's own folders keep everybody else out
        yield Path(made)


@contextlib.contextmanager
def shared(folder: Path) -> Iterator[tuple[Served, Archive, Samba, Ganesha]]:
    port = free_port()
    with an_archive(folder, None, settings=takeover_shares.settings(port), serve=False) as archive:
        served = Served(archive)
        with takeover_shares.shares(archive, folder, port) as (smb, nfs):
            yield served, archive, smb, nfs


@contextlib.contextmanager
def session(smb: Samba) -> Iterator[SmbSession]:
    made = SmbSession(smb, "smb")
    try:
        yield made
    finally:
        made.close()


@pytest.mark.parametrize("seed", [1])
def test_clients_of_smb_and_nfs_notice_nothing_of_kills(folder: Path, seed: int) -> None:
    outcome = takeover_shares.run(folder, ack="durable", kills=4, seed=seed, seconds=2.5, twice_chance=0.3)
    assert outcome.wrong == []
    assert all(client.calls for client in outcome.clients)


def test_when_smbd_dies_its_sessions_end_and_nothing_else(folder: Path) -> None:
    data = os.urandom(300_000)
    (folder / "data").write_bytes(data)
    with shared(folder) as (_, archive, smb, nfs), session(smb) as before:
        said = before.do(f"put {folder}/data a.dcm")
        held = os.open(archive.share / "local", os.O_RDWR | os.O_CREAT)
        smb.kill()
        assert DISCONNECTED in before.do("ls"), said
        smb.start()
        assert DISCONNECTED in before.do("ls"), "a session of smbclient does not come back by itself"
        with session(smb) as after:
            said = after.do(f"get a.dcm {folder}/back")
            assert (folder / "back").read_bytes() == data, said
            # whoever held it is gone, and so are its locks: the name is free
            assert "NT_STATUS" not in after.do(f"put {folder}/data a.dcm")
        assert os.write(held, b"bytes") == 5
        os.close(held)
        done = nfs.run("nfs-cp", folder / "data", nfs.url(archive.share / "nfs" / "b.dcm"))
        assert done.returncode == 0, done.stderr


def test_one_session_of_smbd_that_crashes_is_no_other_ones_concern(folder: Path) -> None:
    (folder / "data").write_bytes(b"bytes")
    with shared(folder) as (_, archive, smb, _), session(smb) as stays:
        stays.do(f"put {folder}/data a.dcm")
        others = set(smb.sessions())
        with session(smb) as ends:
            ends.do("ls")
            [its] = set(smb.sessions()) - others
            os.kill(its, signal.SIGKILL)
            assert DISCONNECTED in ends.do("ls")
        assert "NT_STATUS" not in stays.do("rename a.dcm b.dcm")
        assert (archive.share / "smb" / "b.dcm").read_bytes() == b"bytes"


def test_without_a_store_the_death_of_vna_serve_ends_the_mount_and_clients_of_smb_connect_to_the_next(
    folder: Path,
) -> None:
    (folder / "data").write_bytes(b"bytes")
    with shared(folder) as (served, archive, smb, nfs), session(smb) as client:
        client.do(f"put {folder}/data a.dcm")
        number = (archive.share / "smb" / "a.dcm").stat().st_ino
        done = nfs.run("nfs-cp", folder / "data", nfs.url(archive.share / "nfs" / "b.dcm"))
        assert done.returncode == 0, done.stderr
        served.process.kill()
        served.process.wait()
        until(lambda: not os.path.ismount(archive.mount), "the mount is taken away")
        assert "NT_STATUS_" in client.do("ls")
        failed = nfs.run("nfs-ls", nfs.url(archive.share / "nfs"))
        assert "NFS3ERR_SERVERFAULT" in failed.stderr, failed.stderr
        archive.start("serve")
        with session(smb) as after:
            said = after.do(f"get a.dcm {folder}/back")
            assert (folder / "back").read_bytes() == b"bytes", said
        # the session from before stands in a directory that is gone, unless Samba happened to be elsewhere
        words = closing("smb")
        subprocess.run([words[0], "-s", str(smb.configuration), *words[1:]], check=True)
        until(lambda: "NETWORK_NAME_DELETED" in client.do("ls"), "the share is closed")
        client.do("tcon smb")
        (folder / "back").unlink()
        said = client.do(f"get a.dcm {folder}/back")
        assert (folder / "back").read_bytes() == b"bytes", said
        assert (archive.share / "smb" / "a.dcm").stat().st_ino == number
        assert (archive.share / "nfs" / "b.dcm").read_bytes() == b"bytes"
        # nfs-ganesha holds what it exported until it is restarted
        assert nfs.run("nfs-ls", nfs.url(archive.share / "nfs")).returncode != 0
