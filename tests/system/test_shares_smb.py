"""Shares as `vna share render` writes them, served by a real Samba and used by smbclient."""

from __future__ import annotations

import dataclasses
import os
import shutil
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers.processes import free_port
from tests.servers.samba import PASSWORD, Samba, rendered_samba
from tests.system.archives import QUICK, Archive, an_archive, with_engine
from tests.system.mounts import ENGINES
from vnafs import store
from vnafs.domain.clock import NANOSECONDS
from vnafs.index import entries, inodes

pytestmark = pytest.mark.system

PLAIN_USER = "games"
"""A user of any Debian who is not root."""
DAY_SECONDS = 86400
SHARES = {
    "images": ("archive",),
    "folder": ("archive/below",),
    "cased": ("archive", "--case-sensitive"),
    "secret": ("archive", "--encryption", "required"),
    "elsewhere": ("archive", "--host", "10.9.9.9"),
    "here": ("archive", "--host", "127.0.0.0/8"),
    "reading": ("archive", "--read-only"),
    "theirs": ("archive", "--user", PLAIN_USER),
    "present": ("archive", "--no-previous-versions"),
}


@dataclasses.dataclass(frozen=True)
class Shared:
    """An archive and the Samba that shares it."""

    archive: Archive
    server: Samba

    def ask(self, command: str, *words: str, share: str = "images", **login: str) -> str:
        return self.server.ask(command, *words, share=share, **login)


def is_three_days_old(archive: Path) -> None:
    """As if the repository had been made then."""
    engine = store.open_namespace(str(archive))
    with engine.write() as tx:
        top = entries.follow(tx, [b"archive"])
        row = inodes.find(tx, top.inode)
        inodes.put(tx, top.inode, row._replace(birth_ns=row.birth_ns - 3 * DAY_SECONDS * NANOSECONDS))
    engine.close()


@pytest.fixture(scope="module", params=ENGINES)
def shared(request):
    with tempfile.TemporaryDirectory(prefix="shares") as folder:
        os.chmod(folder, 0o755)  # pytest's own folders keep everybody else out
        yield from serving(Path(folder), request.param)


def serving(tmp_path: Path, engine: str) -> Iterator[Shared]:
    port = free_port()
    settings = with_engine(QUICK, engine) + (
        f'\n[sharing]\naddresses = ["127.0.0.1"]\nsmb_port = {port}\nsmb_version_min = "SMB2_10"\n'
    )
    with an_archive(tmp_path, settings=settings, serve=False) as archive:
        is_three_days_old(archive.archive)
        archive.start("serve")
        (archive.share / "below").mkdir()
        for name, words in SHARES.items():
            archive.vna("share", "add", name, *words, "--protocol", "smb")
        archive.vna("share", "render")
        file = archive.archive / "shares" / "smb.conf"
        with rendered_samba(tmp_path / "samba", file, port, ("root", PLAIN_USER)) as server:
            yield Shared(archive, server)


@pytest.fixture
def folder(shared, request):
    """A folder of its own for a test."""
    found = shared.archive.share / request.node.name.partition("[")[0]
    shutil.rmtree(found, ignore_errors=True)
    found.mkdir()
    return found


def now() -> str:
    time.sleep(1.1)  # a moment of the past has whole seconds
    found = time.strftime("@GMT-%Y.%m.%d-%H.%M.%S", time.gmtime())
    time.sleep(1.1)
    return found


def test_what_is_put_comes_back_byte_for_byte(shared, folder, tmp_path):
    data = os.urandom(3_000_001)
    (tmp_path / "a").write_bytes(data)
    told = shared.ask(f"cd {folder.name}; put {tmp_path}/a image.dcm; get image.dcm {tmp_path}/b")
    assert (tmp_path / "b").read_bytes() == data, told
    assert (folder / "image.dcm").read_bytes() == data


def test_a_stub_comes_back_when_it_is_read(shared, folder, tmp_path):
    data = os.urandom(600_000)
    (folder / "image.dcm").write_bytes(data)
    shared.archive.wait()
    shared.archive.evict(folder)
    assert (folder / "image.dcm").stat().st_blocks == 0
    told = shared.ask(f"get {folder.name}/image.dcm {tmp_path}/b")
    assert (tmp_path / "b").read_bytes() == data, told


def test_what_is_renamed_or_deleted_is_so_in_the_tree(shared, folder):
    (folder / "a").write_bytes(b"a")
    (folder / "b").write_bytes(b"b")
    shared.ask(f"cd {folder.name}; rename a c; del b; mkdir d; rename c d/e")
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) == ["d", "d/e"]


def test_names_differ_by_case_only_where_the_share_says_so(shared, folder, tmp_path):
    (folder / "Image.DCM").write_bytes(b"one")
    assert "OBJECT_NAME_NOT_FOUND" in shared.ask(f"get {folder.name}/image.dcm {tmp_path}/none", share="cased")
    told = shared.ask(f"get {folder.name.upper()}/iMAGE.dcm {tmp_path}/a")
    assert (tmp_path / "a").read_bytes() == b"one", told
    (tmp_path / "new").write_bytes(b"two")
    told = shared.ask(f"put {tmp_path}/new {folder.name}/IMAGE.dcm")
    assert [(path.name, path.read_bytes()) for path in folder.iterdir()] == [("Image.DCM", b"two")], told


def test_samba_asks_the_index_for_a_name_of_another_case(shared, folder, tmp_path):
    (folder / "IMAGE.dcm").write_bytes(b"first in the directory")
    (folder / "image.dcm").write_bytes(b"first in the index")
    told = shared.ask(f"get {folder.name}/Image.Dcm {tmp_path}/a")
    assert (tmp_path / "a").read_bytes() == b"first in the index", told


def test_a_name_that_is_too_long_to_ask_for_is_refused_unless_case_matters(shared, folder, tmp_path):
    (tmp_path / "a").write_bytes(b"a")
    fits, too_long = "N" * 227, "N" * 228
    told = shared.ask(f"put {tmp_path}/a {folder.name}/{fits}; get {folder.name}/{fits.lower()} {tmp_path}/b")
    assert (tmp_path / "b").read_bytes() == b"a", told
    assert "NT_STATUS" in shared.ask(f"put {tmp_path}/a {folder.name}/{too_long}")
    shared.ask(f"put {tmp_path}/a {folder.name}/{too_long}", share="cased")
    assert {path.name for path in folder.iterdir()} == {fits, too_long}


def test_dos_attributes_are_kept_apart_from_permissions(shared, folder):
    (folder / "image.dcm").write_bytes(b"x")
    mode = (folder / "image.dcm").stat().st_mode
    shared.ask(f"setmode {folder.name}/image.dcm +hsr")
    assert "attributes: RHS" in shared.ask(f"allinfo {folder.name}/image.dcm")
    assert (folder / "image.dcm").stat().st_mode == mode
    shared.ask(f"setmode {folder.name}/image.dcm -hsr")
    assert "RHS" not in shared.ask(f"allinfo {folder.name}/image.dcm")


def test_a_stub_is_offline_until_its_bytes_are_back(shared: Shared, folder: Path, tmp_path: Path) -> None:
    names = ("image.dcm", "hidden.dcm")

    def letters() -> list[str]:
        """Attributes as smbclient lists them: offline, hidden, system, or none (MS-FSCC 2.6)."""
        listed = [line.split() for line in shared.ask(f"ls {folder.name}/*").splitlines()]
        return ["".join(sorted(words[1].upper())) for name in names for words in listed if words[:1] == [name]]

    for name in names:
        (folder / name).write_bytes(os.urandom(60_000))
    shared.ask(f"setmode {folder.name}/hidden.dcm +h")
    assert letters() == ["N", "H"]
    shared.archive.wait()
    shared.archive.evict(folder)
    assert letters() == ["O", "HO"]
    assert [shared.archive.state(folder / name) for name in names] == ["stub", "stub"], "looking recalls nothing"
    shared.ask(f"setmode {folder.name}/hidden.dcm +s")
    for name in names:
        shared.ask(f"get {folder.name}/{name} {tmp_path}/{name}")
    assert letters() == ["N", "HS"]


def test_alternate_streams_stay_with_their_file(shared, folder, tmp_path):
    (tmp_path / "zone").write_bytes(b"[ZoneTransfer]\r\nZoneId=3\r\n")
    (folder / "image.dcm").write_bytes(b"x")
    shared.ask(f"put {tmp_path}/zone {folder.name}/image.dcm:Zone.Identifier")
    told = shared.ask(f"cd {folder.name}; rename image.dcm b.dcm; get b.dcm:Zone.Identifier {tmp_path}/back")
    assert (tmp_path / "back").read_bytes() == (tmp_path / "zone").read_bytes(), told
    assert (folder / "b.dcm").read_bytes() == b"x"


def test_a_share_of_a_folder_shows_that_folder_and_its_past(shared, tmp_path):
    (shared.archive.share / "below" / "a").write_bytes(b"first")
    shared.archive.wait()
    before = now()
    (shared.archive.share / "below" / "a").write_bytes(b"later")
    told = shared.ask(f"get a {tmp_path}/now; get {before}/a {tmp_path}/then", share="folder")
    assert ((tmp_path / "now").read_bytes(), (tmp_path / "then").read_bytes()) == (b"later", b"first"), told
    assert "NT_STATUS" in shared.ask(f"get ../before {tmp_path}/none", share="folder")


def test_previous_versions_are_listed_and_read(shared, folder, tmp_path):
    (folder / "Report.txt").write_bytes(b"first" * 100)
    shared.archive.wait()
    before = now()
    (folder / "Report.txt").write_bytes(b"second" * 100)
    told = shared.ask(f"allinfo {folder.name}/Report.txt")
    listed = [line for line in told.splitlines() if line.startswith("@GMT-")]
    assert len(listed) >= 24, told
    assert listed == sorted(listed, reverse=True)
    assert "@GMT-" not in shared.ask(f"allinfo {folder.name}/Report.txt", share="present")
    told = shared.ask(f"get {before}/{folder.name}/report.TXT {tmp_path}/then")
    assert (tmp_path / "then").read_bytes() == b"first" * 100, told
    assert "500" in shared.ask(f"allinfo {before}/{folder.name}/Report.txt")
    assert "NT_STATUS" in shared.ask(f"del {before}/{folder.name}/Report.txt")


def test_who_has_no_password_stays_outside(shared):
    for login in ({"password": "wrong"}, {"user": "daemon"}, {"user": "nobody", "password": ""}):
        assert "LOGON_FAILURE" in shared.ask("ls", **login), login
    anonymous = shared.server.ask("ls", "-N", share="images", user="", password="")
    assert "LOGON_FAILURE" in anonymous or "ACCESS_DENIED" in anonymous


def test_hosts_and_users_that_are_not_named_are_refused(shared):
    assert "ACCESS_DENIED" in shared.ask("ls", share="elsewhere")
    assert "blocks of size" in shared.ask("ls", share="here")
    assert "ACCESS_DENIED" in shared.ask("ls", share="theirs")
    assert "blocks of size" in shared.ask("ls", share="theirs", user=PLAIN_USER)


def test_rights_in_the_tree_hold_for_whoever_logged_in(shared, folder, tmp_path):
    (tmp_path / "a").write_bytes(b"a")
    assert "ACCESS_DENIED" in shared.ask(f"put {tmp_path}/a {folder.name}/a", user=PLAIN_USER)
    folder.chmod(0o777)
    shared.ask(f"put {tmp_path}/a {folder.name}/a", user=PLAIN_USER)
    assert (folder / "a").owner() == PLAIN_USER


def test_a_share_to_be_read_refuses_changes(shared, folder, tmp_path):
    (folder / "a").write_bytes(b"a")
    (tmp_path / "new").write_bytes(b"new")
    told = shared.ask(f"cd {folder.name}; put {tmp_path}/new b; del a; rename a c; get a {tmp_path}/a", share="reading")
    assert told.count("NT_STATUS") >= 3, told
    assert [(path.name, path.read_bytes()) for path in folder.iterdir()] == [("a", b"a")]
    assert (tmp_path / "a").read_bytes() == b"a"


def test_a_client_that_cannot_encrypt_is_refused_where_that_is_required(shared):
    assert "blocks of size" in shared.ask("ls", share="secret")
    assert "ACCESS_DENIED" in shared.ask("ls", "-m", "SMB2_10", share="secret")
    assert "blocks of size" in shared.ask("ls", "-m", "SMB2_10", share="images")


def negotiate(port: int, dialect: int) -> tuple[int, int]:
    """Status and security mode of an SMB2 NEGOTIATE (MS-SMB2 2.2.3 and 2.2.4)."""
    header = b"\xfeSMB" + struct.pack("<HHIHHIIQIIQ16s", 64, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, b"")
    body = struct.pack("<HHHHI16sQH", 36, 1, 1, 0, 0, b"c" * 16, 0, dialect)
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        client.sendall(struct.pack(">I", len(header + body)) + header + body)
        answer = client.recv(4096)[4:]
    return struct.unpack_from("<I", answer, 8)[0], struct.unpack_from("<H", answer, 66)[0]


def test_every_client_has_to_sign_and_old_ones_are_refused(shared):
    not_supported, signing_required = 0xC00000BB, 2
    status, mode = negotiate(shared.server.port, 0x0210)
    assert (status, mode & signing_required) == (0, signing_required)
    assert negotiate(shared.server.port, 0x0202)[0] == not_supported


def test_samba_knows_every_line_that_is_rendered(shared):
    file = shared.archive.archive / "shares" / "smb.conf"
    done = subprocess.run(["testparm", "-s", file], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    said = [
        line for line in done.stderr.splitlines() if not line.startswith(("Load smb config files", "Loaded services"))
    ]
    assert not [line for line in said if "nknown" in line or "gnoring" in line or "deprecated" in line], said


def test_no_password_is_in_what_is_rendered_or_logged(shared):
    files = [*(shared.archive.archive / "shares").iterdir(), shared.archive.log, shared.server.home / "log"]
    assert not [file for file in files if file.exists() and PASSWORD.encode() in file.read_bytes()]
