"""The kernel's NFS server, Kerberos and a newer Samba on what `vna share render` writes, in a guest with Debian 13.

Units of systemd run there: vnafs.service as rendered, Debian's nfs-server, rpc-gssd, rpc-svcgssd, krb5-kdc and smbd.
`make soak` runs them: making the image and booting it takes many minutes where nothing but emulation runs a guest.
Clients are the kernel's own, NFSv3 and NFSv4.2, in network namespaces with addresses of their own.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence

import pytest

from tests.servers.guest import Guest, a_guest
from tests.system.archives import QUICK, until, with_engine

pytestmark = [pytest.mark.system, pytest.mark.soak, pytest.mark.xdist_group("guest"), pytest.mark.timeout(3600)]

SERVER, CLIENT = "192.0.2.1", "192.0.2.2"
ELSEWHERE, STRANGER = "198.51.100.1", "198.51.100.2"
"""Another network of the same server."""
TREE = "/srv/share/archive"
VERSIONS = {"3": "vers=3,nolock,retry=0", "4.2": "vers=4.2,retry=0"}
SHARES = {
    "ct": ("--host", CLIENT, "--squash", "none"),
    "nobody": ("--host", CLIENT),
    "owned": ("--host", CLIENT, "--squash", "all", "--owner", "1234:1235"),
    "reading": ("--host", f"{CLIENT} ro", "--squash", "none"),
    "readonly": ("--host", CLIENT, "--read-only", "--squash", "none"),
    "elsewhere": ("--host", "10.1.0.0/16"),
    "secret": ("--host", SERVER, "--security", "krb5p"),
}
GROUPS = 20
"""NFS has room for sixteen."""
USERS = {"many": 2000, "alice": 2001, "bob": 2002}
NAMESPACES = f"""
modprobe nfs
for one in 'client {SERVER} {CLIENT}' 'stranger {ELSEWHERE} {STRANGER}'; do
  set -- $one
  ip netns add $1; ip link add $1 type veth peer name eth0 netns $1
  ip addr add $2/24 dev $1; ip link set $1 up
  ip -n $1 addr add $3/24 dev eth0; ip -n $1 link set eth0 up; ip -n $1 link set lo up
  # as machines have it: who has another's name and not its Kerberos principal is refused (NFS4ERR_CLID_INUSE)
  ip netns exec $1 sh -c "echo $1 >/sys/fs/nfs/net/nfs_client/identifier"
done
"""
CONFIGURE = """
import json, sys
from appliance.cli.main import main
for words in json.load(sys.stdin):
    if code := main(words):
        sys.exit(f"{words}: {code}")
"""
KERBEROS = f"""
cat >/etc/krb5.conf <<END
[libdefaults]
    default_realm = EXAMPLE
    dns_lookup_kdc = false
    rdns = false
[realms]
    EXAMPLE = {{
        kdc = {SERVER}
    }}
END
printf '[General]\\nDomain = example\\nLocal-Realms = EXAMPLE\\n' >/etc/idmapd.conf
kdb5_util create -s -P master -r EXAMPLE
for name in nfs/guest.example host/guest.example; do
  kadmin.local -q "addprinc -randkey $name"; kadmin.local -q "ktadd $name"
done
kadmin.local -q 'addprinc -pw secret alice'
systemctl start krb5-kdc rpc-svcgssd rpc-gssd
"""
FOREIGN_SMB = "[global]\n    include = /srv/vna/shares/smb.conf\n"
MOUNT_PID = """
journalctl -u vnafs -o cat | sed -nE 's/.*supervisor\\.(started|promoted) daemon="mount" pid=//p' | tail -n 1
"""
REPLICATED = """
for n in $(seq 1 90); do [ "$(getfattr --only-values -n user.vna.state {path})" = replicated ] && exit; sleep 1; done
exit 1
"""
TAKEN_OVER = "journalctl -u vnafs -o cat | grep -c fuse.taken_over || true"
TOLD = "journalctl -u vnafs -o cat | grep -c nfs_server_told || true"


class Site:
    """An archive that is served in the guest, exported by its kernel, and mounted by its clients."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        self._mounted: set[str] = set()
        self.listed = self.reduced("names in a listing", 3000, 400)
        guest.sh(NAMESPACES)
        self.vna(
            ["init", "/srv/vna", "--mount", "/srv/share", "--target", "one=file:///srv/target"],
            ["service", "render", "--into", "/etc/systemd/system", "--archive", "/srv/vna"],
        )
        guest.put("/run/settings", with_engine(QUICK, "kernel"))
        guest.sh(
            "sed -i '/^mount = /r /run/settings' /srv/vna/vnafs.toml\nsystemctl daemon-reload\nsystemctl start vnafs"
        )
        shares = {**SHARES, "groups": ("--host", CLIENT)}
        guest.sh(f"cd {TREE}; mkdir images {' '.join(shares)}; chmod 777 owned images")
        words = [["repository", "add", "quick", "--ack", "written"]]
        words += [["share", "add", name, f"archive/{name}", "--protocol", "nfs", *how] for name, how in shares.items()]
        words += [["share", "add", "quick", "quick", "--protocol", "nfs", "--host", CLIENT, "--squash", "none"]]
        words += [
            ["share", "add", "images", "archive/images", "--protocol", "smb", "--user", "alice", "--case-sensitive"]
        ]
        self.vna(*words, ["share", "render"])
        names = [(name, number, "") for name, number in USERS.items()]
        names += [(f"g{number}", number, "many") for number in range(3001, 3001 + GROUPS)]
        groups = [f"{name}:x:{number}:{member}\n" for name, number, member in names]
        users = [f"{name}:x:{number}:{number}::/:/bin/sh\n" for name, number in USERS.items()]
        guest.must("tee", "-a", "/etc/group", text="".join(groups))
        guest.must("tee", "-a", "/etc/passwd", text="".join(users))
        guest.sh(
            "mkdir -p /etc/exports.d /etc/nfs.conf.d; cp /srv/vna/shares/vnafs.exports /etc/exports.d/\n"
            "cp /srv/vna/shares/nfs.conf /etc/nfs.conf.d/vnafs.conf; systemctl start nfs-server"
        )

    def reduced(self, what: str, usual: int, emulated: int) -> int:
        """So many of *what*; an emulated guest is too slow for the usual number."""
        if not self.guest.is_emulated:
            return usual
        warnings.warn(f"reduced, as the guest is emulated: {emulated} {what} instead of {usual}", stacklevel=1)
        return emulated

    def vna(self, *commands: Sequence[str]) -> str:
        """Commands in one process: it takes seconds to load where all is emulated."""
        words, text = ("/opt/venv/bin/python", "-c", CONFIGURE), json.dumps(commands)
        return self.guest.must(*words, text=text, VNA_ARCHIVE="/srv/vna")

    def mounted(self, version: str, share: str) -> str:
        """Where a client has that mounted."""
        place = f"/mnt/{version}/{share}"
        if place not in self._mounted:
            done = self.mount(version, "quick" if share == "quick" else f"archive/{share}", place)
            assert done == "", done
            self._mounted.add(place)
        return place

    def mount(self, version: str, path: str, place: str, *, machine: str = "client", server: str = SERVER) -> str:
        """What mount(8) says when it fails."""
        self.guest.sh(f"mkdir -p {place}")
        inside = ("nsenter", f"--net=/run/netns/{machine}") if machine else ()
        options = VERSIONS.get(version, version)
        done = self.guest.run(*inside, "mount", "-t", "nfs", "-o", options, f"{server}:/srv/share/{path}", place)
        return done.err if done.code else ""

    def load(self, *words: object, seconds: float = 300) -> dict:
        """What `tests.servers.guest_load` finds."""
        python = ("/opt/venv/bin/python", "-m", "tests.servers.guest_load")
        return json.loads(self.guest.must(*python, *words, seconds=seconds))

    def hashes(self, folder: str) -> Mapping[str, str]:
        return self.load("hashes", folder)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Iterator[Site]:
    with a_guest(tmp_path_factory.mktemp("kernel-nfs") / "guest") as guest:
        yield Site(guest)


@pytest.fixture(scope="module")
def realm(site) -> Site:
    """With Kerberos; the server is its own client there."""
    site.guest.sh(KERBEROS)
    site.guest.sh(f"chown alice {TREE}/secret && chmod 711 {TREE}/secret")
    said = site.mount("vers=4.2,sec=krb5p,retry=0", "archive/secret", "/mnt/secret", machine="", server="guest.example")
    assert said == "", said + site.guest.sh("journalctl -u rpc-gssd -u rpc-svcgssd -o cat | tail -n 30")
    return site


# -- NFS ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_a_pacs_stores_renames_dates_corrects_and_deletes_images(site, version):
    assert "passthrough=true" in site.guest.sh("journalctl -u vnafs -o cat | grep fuse.spoken")
    folder = f"{site.mounted(version, 'ct')}/images-{version}"
    site.guest.sh(f"mkdir {folder}")
    found = site.load("images", folder, site.reduced("images", 60, 16))
    assert found["wrong"] == []
    assert site.hashes(f"{TREE}/ct/images-{version}") == found["hashes"]


@pytest.mark.parametrize("version", VERSIONS)
def test_root_is_nobody_and_everybody_is_the_forced_owner(site, version):
    nobody, owned, own = (site.mounted(version, name) for name in ("nobody", "owned", "ct"))
    done = site.guest.run("touch", f"{nobody}/a")
    assert "Permission denied" in done.err
    site.guest.sh(f"touch {owned}/{version}; touch {own}/ids-{version}; chown 54321:12345 {own}/ids-{version}")
    names = f"{TREE}/owned/{version} {own}/ids-{version} {TREE}/ct/ids-{version}"
    assert site.guest.sh(f"stat -c %u:%g {names}").split() == ["1234:1235", "54321:12345", "54321:12345"]


@pytest.mark.parametrize("share", ["reading", "readonly"])
@pytest.mark.parametrize("version", VERSIONS)
def test_who_may_read_changes_nothing(site, version, share):
    site.guest.sh(f"echo a >{TREE}/{share}/a")
    place = site.mounted(version, share)
    assert site.guest.sh(f"cat {place}/a") == "a\n"
    for change in (f"echo b >{place}/a", f"touch {place}/b", f"rm {place}/a", f"chmod 600 {place}/a"):
        said = site.guest.run("sh", "-c", change).err
        assert "Read-only file system" in said or "Permission denied" in said, (change, said)
    assert site.guest.sh(f"ls {TREE}/{share}") == "a\n"


@pytest.mark.parametrize("version", VERSIONS)
def test_hosts_that_are_not_named_are_refused(site, version):
    answers = ("access denied", "No such file or directory")  # NFSv4 shows them no such path
    said = site.mount(version, "archive/elsewhere", "/mnt/refused")
    assert any(answer in said for answer in answers), said
    said = site.mount(version, "archive/ct", "/mnt/refused", machine="stranger", server=ELSEWHERE)
    assert any(answer in said for answer in answers), said


@pytest.mark.parametrize("version", VERSIONS)
def test_a_user_in_more_than_sixteen_groups_has_them_all(site, version):
    place = site.mounted(version, "groups")
    last = f"{TREE}/groups/of-the-last-{version}"
    site.guest.sh(f"mkdir {last}; chgrp {3000 + GROUPS} {last}; chmod 2770 {last}")
    inside = f"{place}/of-the-last-{version}"
    site.guest.must("runuser", "-u", "many", "--", "touch", f"{inside}/a")
    assert site.guest.sh(f"stat -c %u:%g {last}/a").strip() == f"{USERS['many']}:{3000 + GROUPS}"
    assert "Permission denied" in site.guest.run("runuser", "-u", "bob", "--", "touch", f"{inside}/b").err


@pytest.mark.parametrize("version", VERSIONS)
def test_a_stub_comes_back_when_it_is_read(site, version):
    path, name = f"{TREE}/ct/stub-{version}", f"{site.mounted(version, 'ct')}/stub-{version}"
    state = f"getfattr --only-values -n user.vna.state {path}"
    # who reads by NFSv4 gets a delegation, with which the file counts as open, so nobody has read this one before
    before = site.guest.sh(f"head -c 600000 /dev/urandom >{path}; sha256sum <{path}")
    site.guest.sh(REPLICATED.format(path=path))
    site.vna(["evict", path])
    assert site.guest.sh(state) == "stub"
    site.guest.sh("echo 3 >/proc/sys/vm/drop_caches")
    assert site.guest.sh(f"stat -c %b {name}").strip() == "0"
    assert site.guest.sh(f"sha256sum <{name}") == before
    assert site.guest.sh(state) == "replicated"


@pytest.mark.parametrize("version", VERSIONS)
def test_a_listing_shows_each_name_once_while_others_come_and_caches_are_dropped(site, version):
    folder = f"list-{version}"
    script = f"import os\nos.mkdir('/srv/share/quick/{folder}')\nfor n in range({site.listed}):\n" + (
        f"    os.close(os.open(f'/srv/share/quick/{folder}/stays-{{n}}', os.O_CREAT | os.O_EXCL))\n"
    )
    site.guest.must("python3", "-c", script, seconds=300)
    found = site.load("list", f"{site.mounted(version, 'quick')}/{folder}")
    assert found == {"there": site.listed, "missing": [], "twice": 0}


@pytest.mark.parametrize("version", VERSIONS)
def test_handles_lead_to_files_that_linux_and_the_tree_have_forgotten(site, version):
    place = site.mounted(version, "ct")
    name = f"{place}/forgotten-{version}"
    script = (
        f"mkdir -p {name}/below; echo bytes >{name}/below/a; exec 7<{name}/below/a 8>>{name}/below/b\n"
        f"before=$(stat -c %i {name}/below/a); cd {name}/below\n"
        "for n in 1 2 3; do sync; echo 3 >/proc/sys/vm/drop_caches; done\n"
        "cat <&7; echo more >&8; cat a; ls; ls ..; [ $before = $(stat -c %i a) ] && echo same"
    )
    assert site.guest.sh(script).split() == ["bytes", "bytes", "a", "b", "below", "same"]
    assert site.guest.sh(f"cat {TREE}/ct/forgotten-{version}/below/b") == "more\n"


@pytest.mark.parametrize("share", ["ct", "quick"])
@pytest.mark.parametrize("version", VERSIONS)
def test_what_a_client_commits_is_synced_at_either_level(site, version, share):
    place = site.mounted(version, share)
    script = f"""
        strace -f -y -e trace=fsync,fdatasync -o /run/trace -p $({MOUNT_PID}) 2>/run/traced &
        until grep -q attached /run/traced; do sleep 0.1; done
        dd if=/dev/urandom of={place}/commit-{version} bs=1M count=2 conv=fsync 2>/dev/null
        kill $!; wait; cat /run/trace
    """
    assert "/spool/" in site.guest.sh(script)


# -- what ends under clients ---------------------------------------------------------------------------------------


def test_clients_do_not_notice_kills_of_the_mount_process(site):
    over, loads = "/run/over", {}
    site.guest.sh(f"rm -f {over}")
    listed = site.reduced("names in the directory that is listed meanwhile", 600, 40)
    for version in VERSIONS:
        folder = f"{site.mounted(version, 'quick')}/kills-{version}"
        loads[version] = f"load-{version.replace('.', '-')}"
        site.guest.sh(f"mkdir {folder}")
        # extended attributes: the kernel's server offers none of a FUSE file system
        words = ("kills", folder, listed, over, "attributes")
        site.guest.must(
            "systemd-run", "--quiet", f"--unit={loads[version]}", "--working-directory=/opt/vnafs",
            f"--property=StandardOutput=truncate:/run/{loads[version]}",
            "/opt/venv/bin/python", "-m", "tests.servers.guest_load", *words,
        )  # fmt: skip
    kills = site.reduced("kills", 12, 4)
    for number in range(kills):
        before = site.guest.sh(TAKEN_OVER)
        site.guest.sh(f"sleep {2 + number % 3}; kill -9 $({MOUNT_PID})")
        until(lambda before=before: site.guest.sh(TAKEN_OVER) != before, "a process took over", 300)
    site.guest.sh(f"sleep 5; touch {over}")
    for unit in loads.values():
        site.guest.sh(f"while systemctl is-active --quiet {unit}; do sleep 0.5; done", seconds=400)
    for unit in loads.values():
        found = json.loads(site.guest.sh(f"cat /run/{unit}"))
        assert found["wrong"] == [], unit
        assert found["calls"] > 50
    said = site.guest.sh("journalctl -u vnafs -o cat")
    assert "not_taken_over" not in said
    assert "mount_given_up" not in said


def test_after_a_stop_and_a_start_clients_go_on_with_the_handles_that_they_had(site):
    names = {version: f"{site.mounted(version, 'ct')}/stays-{version}" for version in VERSIONS}
    for version, name in names.items():
        site.guest.sh(f"echo {version} >{name}")
    numbers = site.guest.sh(f"stat -c %i {' '.join(names.values())}")
    site.guest.sh("systemctl stop vnafs; while grep -q ' /srv/share ' /proc/mounts; do sleep 0.2; done")
    for name in names.values():
        done = site.guest.run("sh", "-c", f"echo >{name}.new", seconds=30)
        assert "Input/output error" in done.err, done
    told = site.guest.sh(TOLD)
    site.guest.sh("systemctl start vnafs")
    until(lambda: site.guest.sh(TOLD) != told, "the NFS server is told", 60)
    for version, name in names.items():
        assert site.guest.sh(f"cat {name}; echo new >{name}.new; cat {name}.new") == f"{version}\nnew\n"
    assert site.guest.sh(f"stat -c %i {' '.join(names.values())}") == numbers


# -- Kerberos ------------------------------------------------------------------------------------------------------


def test_who_has_a_ticket_reads_and_writes_and_all_of_it_is_encrypted(realm):
    as_alice = ("runuser", "-u", "alice", "--")
    realm.guest.must(*as_alice, "kinit", "alice", text="secret\n")
    realm.guest.must(*as_alice, "sh", "-euc", "cd /mnt/secret; echo bytes >a; mv a b; cat b")
    assert realm.guest.sh(f"cat {TREE}/secret/b; stat -c %U {TREE}/secret/b") == "bytes\nalice\n"
    assert "sec=krb5p" in realm.guest.sh("grep /mnt/secret /proc/mounts")


def test_who_has_no_ticket_is_refused(realm):
    realm.guest.sh(f"echo open >{TREE}/secret/open; chmod 777 {TREE}/secret; chmod 666 {TREE}/secret/open")
    for words in (("cat", "/mnt/secret/open"), ("touch", "/mnt/secret/mine")):
        done = realm.guest.run("runuser", "-u", "bob", "--", *words)
        assert done.code, words
        assert "Permission denied" in done.err, done.err
    assert "mine" not in realm.guest.sh(f"ls {TREE}/secret")


@pytest.mark.parametrize("security", ["sys", "krb5", "krb5i"])
def test_whoever_does_not_encrypt_is_refused(realm, security):
    for version in ("3,nolock", "4.2"):
        options = f"vers={version},sec={security},retry=0"
        said = realm.mount(options, "archive/secret", "/mnt/plain", machine="", server="guest.example")
        assert "access denied" in said or "not permitted" in said, (version, said)


# -- SMB -----------------------------------------------------------------------------------------------------------


def test_the_rendered_settings_work_with_a_newer_samba(site):
    guest = site.guest
    guest.put("/etc/samba/smb.conf", FOREIGN_SMB)
    assert "Unknown parameter" not in guest.run("testparm", "-s").err
    guest.must("smbpasswd", "-L", "-s", "-a", "alice", text="secret\nsecret\n")
    guest.sh("systemctl start smbd")
    guest.put("/run/login", "username = alice\npassword = secret\n", 0o600)

    def ask(command: str) -> str:
        done = guest.run("smbclient", "//127.0.0.1/images", "-A", "/run/login", "-t", "120", "-c", command)
        return done.out + done.err

    before = guest.sh("head -c 600000 /dev/urandom >/run/a; sha256sum </run/a")
    assert "NT_STATUS" not in (said := ask("put /run/a a.dcm; rename a.dcm b.dcm; get b.dcm /run/b")), said
    assert guest.sh("sha256sum </run/b") == before
    path = f"{TREE}/images/b.dcm"
    guest.sh(REPLICATED.format(path=path))
    moment = guest.sh("sleep 1.1; date -u +@GMT-%Y.%m.%d-%H.%M.%S; sleep 1.1").strip()
    assert "NT_STATUS" not in (said := ask("del b.dcm")), said
    assert "b.dcm" in (said := ask(f"ls {moment}/*")), said
    assert "NT_STATUS" not in (said := ask(f"get {moment}/b.dcm /run/was")), said
    assert guest.sh("sha256sum </run/was") == before
    assert "Samba 4.2" in guest.sh("smbd --version | sed 's/^Version /Samba /'")
    assert "NT_STATUS_ACCESS_DENIED" in guest.run("smbclient", "//127.0.0.1/images", "-N", "-c", "ls").out
