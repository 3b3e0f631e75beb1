"""A member of a real Active Directory domain: `vna domain`, Kerberos, ids, NT ACLs, and the day without the domain."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.domain.rendering import krb5_conf
from appliance.domain.settings import DomainSettings
from tests.servers.domain import ADMINISTRATOR_PASSWORD, CONTROLLER, MEMBER, REALM, WORKGROUP, Domain, a_domain
from tests.servers.machines import PRIVATE, shared_folder
from tests.system.archives import VNA, Archive, an_archive, until
from tests.system.test_restore import everything_sent

pytestmark = [pytest.mark.system, pytest.mark.xdist_group("domain"), pytest.mark.timeout(600)]

HOST = f"images1.{REALM.lower()}"
NAMED = ("--realm", REALM, "--workgroup", WORKGROUP, "--machine", "images1")
READER, WRITER = "reader", "writer"
PASSWORDS = {READER: "Only-for-this-test-2", WRITER: "Only-for-this-test-3", "Administrator": ADMINISTRATOR_PASSWORD}
GROUP = "CT Readers"
GLASS_PASSWORD = "only for this test, sealed"
ID_FIRST = 1_000_000
SETTINGS = f"""
[file_system]
quiet_seconds = 0.3

[spool]
reserve_bytes = 1048576
high_watermark_percent = 99.0
low_watermark_percent = 98.0

[packs]
age_seconds_max = 0.3

[manifests]
seconds_max = 0.3

[sharing]
addresses = ["{MEMBER}"]
"""


@dataclasses.dataclass(frozen=True)
class Site:
    """An archive, shared by a member of a domain."""

    archive: Archive
    domain: Domain
    folder: Path
    joined: str
    """What `vna domain join` said."""

    def vna(self, *words: object, text: str = "", check: int = 0) -> Any:
        """`vna` as the member runs it; its answer."""
        done = self.domain.member.run(
            *VNA, *map(str, words), "--json", text=text, environ={"VNA_ARCHIVE": str(self.archive.archive)}
        )
        assert done.returncode == check, f"{words}: {done.stdout}{done.stderr}{self.domain.member.tail()}"
        return json.loads(done.stdout)

    def tickets(self, user: str) -> str:
        """A cache with that user's ticket."""
        path = self.folder / f"tickets-{user}"
        if not path.exists():
            self.domain.member.must("kinit", "-c", str(path), f"{user}@{REALM}", text=f"{PASSWORDS[user]}\n")
        return str(path)

    def with_tickets(self, user: str, program: str, share: str, *words: str) -> subprocess.CompletedProcess[str]:
        """A client of somebody who has a ticket, and nothing else to show."""
        cache = self.tickets(user)
        command = (program, f"//{HOST}/{share}", "--use-kerberos=required", f"--use-krb5-ccache={cache}", *words)
        return self.domain.member.run(*command, environ={"KRB5CCNAME": cache})

    def ask(self, command: str, user: str = WRITER, share: str = "images") -> str:
        """What smbclient says to somebody who has a ticket."""
        done = self.with_tickets(user, "smbclient", share, "-c", command)
        return done.stdout + done.stderr

    def ask_by_password(self, command: str, user: str, password: str, share: str = "images") -> str:
        login = self.folder / "login"
        login.write_text(f"username = {user}\npassword = {password}\n")
        done = self.domain.member.run("smbclient", f"//{HOST}/{share}", "-A", str(login), "-c", command)
        return done.stdout + done.stderr

    def acls(self, path: str, *words: str, user: str = "Administrator", share: str = "images") -> str:
        """What smbcacls says of a file."""
        done = self.with_tickets(user, "smbcacls", share, path, *words)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def rid(self, name: str) -> int:
        """The last part of the SID that the domain's own controller says."""
        told = self.domain.controller.must("samba-tool", "user" if name in PASSWORDS else "group", "show", name)
        (sid,) = [line.split()[1] for line in told.splitlines() if line.startswith("objectSid:")]
        return int(sid.rpartition("-")[2])

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """The domain cannot be reached."""
        self.domain.controller.must("ip", "link", "set", "eth0", "down")
        try:
            yield
        finally:
            self.domain.controller.must("ip", "link", "set", "eth0", "up")
            self.domain.member.until("wbinfo", "--ping-dc")


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="domain")))
        folder.chmod(0o755)
        stack.enter_context(shared_folder(folder))
        archive = stack.enter_context(an_archive(folder, settings=SETTINGS))
        domain = stack.enter_context(a_domain(folder / "machines", "images1"))
        for user, group in ((READER, GROUP), (WRITER, "")):
            domain.add_user(user, PASSWORDS[user], group)
        yield joined(Site(archive, domain, folder, ""))


def joined(site: Site) -> Site:
    """A member, with what servers need to know, and servers that know it."""
    member, archive = site.domain.member, site.archive
    (member.etc / "samba" / "smb.conf").write_text(f"[global]\n    include = {archive.archive}/shares/smb.conf\n")
    archive.vna("share", "add", "images", "archive", "--protocol", "smb")
    archive.vna("share", "add", "theirs", "archive", "--protocol", "smb", "--user", f"@{WORKGROUP}\\{GROUP}")
    (member.etc / "krb5.conf").write_text(krb5_conf(DomainSettings(realm=REALM)))
    said = site.vna("domain", "join", *NAMED, "--user", "Administrator", text=f"{ADMINISTRATOR_PASSWORD}\n")
    for share in ("images", "theirs"):
        site.vna("share", "break-glass", share, text=f"{GLASS_PASSWORD} {share}\n")
    archive.vna("share", "render")
    member.start("winbindd", "-F", "--no-process-group")
    member.start("smbd", "-F", "--no-process-group")
    member.until("wbinfo", "--ping-dc")
    archive.share.chmod(0o777)
    os.chown(archive.share, ID_FIRST + site.rid("Administrator"), ID_FIRST + 513)
    until(
        lambda: "blocks" in site.ask("ls", "Administrator"), lambda: site.ask("ls", "Administrator") + member.tail(), 60
    )
    assert "ACCESS_DENIED" in site.ask("ls"), "what has no ACL is its owner's alone"
    site.acls(
        "/", "--add", f"ACL:{WORKGROUP}\\{GROUP}:ALLOWED/OI|CI/READ,ACL:{WORKGROUP}\\{WRITER}:ALLOWED/OI|CI/CHANGE"
    )
    return dataclasses.replace(site, joined=json.dumps(said))


def test_a_member_stands_well_and_says_so(site: Site) -> None:
    found = site.vna("domain", "status")
    assert found["problems"] == []
    assert MEMBER in site.domain.controller.must("getent", "hosts", HOST), "DNS knows where it is"
    assert found["joined"]
    assert found["controller"]["name"] == f"dc1.{REALM.lower()}"
    assert abs(found["controller"]["ahead_seconds"]) < 60
    assert {f"cifs/{HOST}", f"nfs/{HOST}"} <= {name.casefold() for name in found["services"]}


def test_joining_once_more_changes_nothing_and_asks_for_no_rights(site: Site) -> None:
    assert json.loads(site.joined) == {
        "joined": REALM, "machine": HOST, "was_member": False, "controller": f"dc1.{REALM.lower()}"
    }  # fmt: skip
    assert site.vna("domain", "join", "--user", "nobody", text="wrong\n")["was_member"]


def test_a_join_that_is_refused_changes_nothing_that_servers_read(site: Site) -> None:
    files = [site.archive.archive / "vnafs.toml", site.archive.archive / "shares" / "smb.conf"]
    before = [path.read_bytes() for path in files]
    (site.domain.member.etc / "krb5.conf").write_text(krb5_conf(DomainSettings(realm="OTHER.EXAMPLE")))
    try:
        other = ("--realm", "OTHER.EXAMPLE", "--workgroup", "OTHER", "--machine", "images1", "--user", "x")
        refused = site.vna("domain", "join", *other, text="x\n", check=3)
    finally:
        (site.domain.member.etc / "krb5.conf").write_text(krb5_conf(DomainSettings(realm=REALM)))
    assert "DNS knows no domain controller of OTHER.EXAMPLE" in refused["error"]["message"]
    assert [path.read_bytes() for path in files] == before
    site.archive.vna("share", "render")


def test_an_account_without_a_password_is_missed(site: Site) -> None:
    site.domain.member.must("smbpasswd", "-x", "glass-theirs")
    (problem,) = site.vna("domain", "status", check=1)["problems"]
    assert "account glass-theirs" in problem["what"]
    site.vna("share", "break-glass", "theirs", text=f"{GLASS_PASSWORD} theirs\n")
    assert site.vna("domain", "status")["problems"] == []


def test_the_keys_of_both_services_are_in_the_keytab(site: Site) -> None:
    told = site.domain.member.must("klist", "-k", "/etc/krb5.keytab").lower()
    assert f"cifs/{HOST}@" in told
    assert f"nfs/{HOST}@" in told


def test_who_has_a_ticket_puts_and_gets_without_a_password(site: Site, tmp_path: Path) -> None:
    data = os.urandom(1_000_001)
    (tmp_path / "a").write_bytes(data)
    told = site.ask(f"mkdir kerberos; cd kerberos; put {tmp_path}/a image.dcm; get image.dcm {tmp_path}/b")
    assert (tmp_path / "b").read_bytes() == data, told
    assert (site.archive.share / "kerberos" / "image.dcm").read_bytes() == data
    (tmp_path / "tickets").write_bytes(b"")
    none = site.domain.member.run(
        "smbclient", f"//{HOST}/images", "--use-kerberos=required", f"--use-krb5-ccache={tmp_path}/tickets", "-c", "ls"
    )
    assert none.returncode != 0


def test_ids_are_what_the_domain_calls_rid_plus_the_first(site: Site, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    site.ask(f"mkdir ids; put {tmp_path}/a ids/a")
    status = (site.archive.share / "ids" / "a").stat()
    assert (status.st_uid, status.st_gid) == (ID_FIRST + site.rid(WRITER), ID_FIRST + 513)
    group = site.domain.member.must("getent", "group", f"{WORKGROUP}\\{GROUP}")
    assert group.split(":")[2] == str(ID_FIRST + site.rid(GROUP))


def test_a_group_of_the_domain_may_use_what_is_shared_to_it(site: Site) -> None:
    assert "blocks of size" in site.ask("ls", READER, "theirs")
    assert "ACCESS_DENIED" in site.ask("ls", WRITER, "theirs")


def test_no_password_is_on_the_disk_or_in_what_was_logged(site: Site) -> None:
    wanted = [password.encode() for password in (*PASSWORDS.values(), GLASS_PASSWORD)]
    member, archive = site.domain.member, site.archive
    samba = [member.home / folder for folder in PRIVATE] + [member.etc / "samba", member.etc / "krb5.keytab"]
    places = [*samba, member.etc / "passwd", archive.archive / "vnafs.toml", archive.archive / "shares", archive.log]
    files = [path for place in places for path in (place.rglob("*") if place.is_dir() else [place])]
    read = {path: path.read_bytes() for path in files if path.is_file()}
    assert any(path.name == "secrets.tdb" for path in read)
    assert [path for path, data in read.items() if any(password in data for password in wanted)] == []


def test_the_day_without_the_domain_opens_with_the_account_of_each_share(site: Site, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"before")
    site.ask(f"mkdir glass; put {tmp_path}/a glass/a")
    site.acls("glass/a", "--set", f"ACL:{WORKGROUP}\\{WRITER}:ALLOWED/0x0/FULL", user=WRITER)
    user, password = "IMAGES1\\glass-images", f"{GLASS_PASSWORD} images"
    with site.alone():
        assert site.domain.member.run("timeout", "2", "bash", "-c", f"< /dev/tcp/{CONTROLLER}/88").returncode
        told = site.ask_by_password(f"get glass/a {tmp_path}/b; put {tmp_path}/a glass/new", user, password)
        assert (tmp_path / "b").read_bytes() == b"before", told
        assert (site.archive.share / "glass" / "new").read_bytes() == b"before", told
        assert "ACCESS_DENIED" in site.ask_by_password("ls", user, password, share="theirs")
        theirs = ("IMAGES1\\glass-theirs", f"{GLASS_PASSWORD} theirs", "theirs")
        assert "blocks of size" in site.ask_by_password("ls", *theirs)
        assert "LOGON_FAILURE" in site.ask_by_password("ls", user, f"{GLASS_PASSWORD} theirs")


def test_an_acl_decides_whatever_permission_bits_say(site: Site, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    site.ask(f"mkdir acls; put {tmp_path}/a acls/a")
    assert (site.archive.share / "acls" / "a").stat().st_mode & 0o666 == 0o666
    assert "getting file" in site.ask(f"get acls/a {tmp_path}/b", READER), "inherited from the top"
    assert "ACCESS_DENIED" in site.ask(f"put {tmp_path}/a acls/new", READER)
    site.acls("acls/a", "--set", f"ACL:{WORKGROUP}\\{WRITER}:ALLOWED/0x0/FULL", user=WRITER)
    assert "ACCESS_DENIED" in site.ask(f"get acls/a {tmp_path}/c", READER)
    assert not (tmp_path / "c").exists()


def ntacl(path: Path) -> bytes:
    return os.getxattr(path, "security.NTACL")


def with_acl(site: Site, folder: Path, name: str) -> tuple[Path, str]:
    """A file that only WRITER and GROUP may read, and what smbcacls says of it."""
    (folder / "a").write_bytes(os.urandom(50_000))
    told = site.ask(f"mkdir {name}; put {folder}/a {name}/a")
    wanted = f"ACL:{WORKGROUP}\\{WRITER}:ALLOWED/0x0/FULL,ACL:{WORKGROUP}\\{GROUP}:ALLOWED/0x0/READ"
    site.acls(f"{name}/a", "--set", wanted, user=WRITER)
    said = site.acls(f"{name}/a", user=WRITER)
    assert said.count("ACL:") == 2, told
    return site.archive.share / name / "a", said


def test_nt_acls_survive_eviction_and_recall(site: Site, tmp_path: Path) -> None:
    path, said = with_acl(site, tmp_path, "evicted")
    stored = ntacl(path)
    site.archive.wait()
    site.archive.evict(path)
    assert (ntacl(path), site.acls("evicted/a", user=WRITER)) == (stored, said)
    assert path.stat().st_blocks == 0, "asking for ACLs recalls nothing"
    assert "getting file" in site.ask(f"get evicted/a {tmp_path}/b", READER)
    assert (tmp_path / "b").read_bytes() == (tmp_path / "a").read_bytes()
    assert (ntacl(path), site.acls("evicted/a", user=WRITER)) == (stored, said)


def test_nt_acls_are_back_after_a_restore_from_the_target_alone(site: Site, tmp_path: Path) -> None:
    path, said = with_acl(site, tmp_path, "restored")
    status = path.stat()
    site.archive.wait()
    until(lambda: everything_sent(site.archive), "manifests sent", 60)
    elsewhere = site.folder / "elsewhere"
    shutil.copytree(site.folder / "one", elsewhere / "one")
    with contextlib.closing(Restored(elsewhere, {"one": f"file://{elsewhere}/one"}, {}, SETTINGS)) as restored:
        restored.vna(
            "restore", "--from", f"file://{elsewhere}/one", "--into", restored.archive, "--mount", restored.mount,
            "--no-serve",
        )  # fmt: skip
        restored.start("serve")
        found = restored.share / "restored" / "a"
        assert restored.state(found) == "stub"
        assert ntacl(found) == ntacl(path)
        assert (found.stat().st_uid, found.stat().st_gid) == (status.st_uid, status.st_gid)
        restored.vna("share", "render")
        with serving(site, restored.archive):
            assert site.acls("restored/a", user=WRITER) == said
            told = site.ask(f"get restored/a {tmp_path}/b", READER)
            assert (tmp_path / "b").read_bytes() == (tmp_path / "a").read_bytes(), told


class Restored(Archive):
    """An archive that `vna restore` makes."""

    def close(self) -> None:
        self.stop()


@contextlib.contextmanager
def serving(site: Site, archive: Path) -> Iterator[None]:
    """The member's Samba reads the files of another archive."""
    file = site.domain.member.etc / "samba" / "smb.conf"
    before = file.read_text()
    try:
        file.write_text(f"[global]\n    include = {archive}/shares/smb.conf\n")
        site.domain.member.must("smbcontrol", "smbd", "reload-config")
        yield
    finally:
        file.write_text(before)
        site.domain.member.must("smbcontrol", "smbd", "reload-config")


def test_who_left_is_no_member_and_may_come_back(site: Site) -> None:
    password = f"{ADMINISTRATOR_PASSWORD}\n"
    assert site.vna("domain", "leave", "--user", "Administrator", text=password) == {
        "left": REALM, "accounts": ["glass-images", "glass-theirs"]
    }  # fmt: skip
    found = site.vna("domain", "status", check=1)
    assert not found["joined"]
    assert [problem["fix"] for problem in found["problems"]] == ["`vna domain join`"]
    refused = site.vna("domain", "join", "--user", "Administrator", text="a wrong password\n", check=3)
    assert "Failed to join domain" in refused["error"]["message"]
    assert "a wrong password" not in refused["error"]["message"]
    assert not site.vna("domain", "join", "--user", "Administrator", text=password)["was_member"]
    for cache in site.folder.glob("tickets-*"):
        cache.unlink()  # tickets for the account that is gone
    site.domain.member.until("wbinfo", "--ping-dc")
    until(lambda: "blocks of size" in site.ask("ls"), lambda: site.ask("ls"), 60)
