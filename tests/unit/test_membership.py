"""A domain: what is refused, what Samba and Kerberos are told, and what is said before anything is tried."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import tomlkit

from appliance import config, system
from appliance.cli.main import main
from appliance.config import Configuration
from appliance.domain import accounts, member, standing, surroundings
from appliance.domain.commands import SECRET, Ran
from appliance.domain.member import Login
from appliance.domain.surroundings import Controller
from appliance.shares import files
from vnafs.domain.errors import ConfigurationInvalid, InvalidArgument, Refused

DOMAIN = {"realm": "ad.example", "workgroup": "adx", "machine": "images1"}
IMAGES = {"name": "images", "repository": "archive", "protocol": "smb"}
EXPORT = {
    "name": "modality",
    "repository": "archive",
    "protocol": "nfs",
    "hosts": ["10.1.0.0/16"],
    "fsid": "6a4a5b0e-7a7f-4b7e-9d43-0d2a4a1f6a10",
    "read_only": True,
}


def parse(*shares: Mapping[str, Any], **domain: Any) -> Configuration:
    document = {"mount": "/srv/share", "share": list(shares), "domain": {**DOMAIN, **domain}}
    return config.parse(document, archive="/srv/a", file="vnafs.toml")


def rendered(*shares: Mapping[str, Any], **domain: Any) -> dict[str, str]:
    found = parse(*shares, **domain)
    return files.render(found.sharing, found.shares, found.mount, found.domain)


def section(text: str, name: str) -> dict[str, str]:
    body = text.partition(f"[{name}]\n")[2].partition("\n[")[0]
    return {key.strip(): value.strip() for key, _, value in (line.partition("=") for line in body.splitlines()) if key}


class Commands:
    """Commands that answer what they are told to, and remember what was asked of them."""

    def __init__(self, **answers: Ran) -> None:
        self.answers = answers
        self.asked: list[tuple[list[str], str, str]] = []

    def __call__(self, words: Sequence[str], *, text: str = "", secret: str = "") -> Ran:
        self.asked.append((list(words), text, secret))
        key = next((key for key in self.answers if " ".join(words).startswith(key)), "")
        return self.answers[key] if key else Ran(0, "", "")


@pytest.mark.parametrize(
    ("domain", "key"),
    [
        ({"realm": "ad"}, "domain.realm"),
        ({"realm": "ad.example\nadmin users = x"}, "domain.realm"),
        ({"realm": ""}, "domain.workgroup"),
        ({"workgroup": ""}, "domain.workgroup"),
        ({"workgroup": "a.b"}, "domain.workgroup"),
        ({"machine": "sixteen-letters1"}, "domain.machine"),
        ({"machine": "ADX"}, "domain.machine"),
        ({"servers": ["10.1.2.3,x"]}, "domain.servers[0]"),
        ({"unit": "a=b"}, "domain.unit"),
        ({"id_first": 1000}, "domain.id_first"),
        ({"id_last": 2**32}, "domain.id_last"),
        ({"id_last": 1_000_001}, "domain.id_last"),
    ],
)
def test_what_samba_would_misread_is_refused_with_its_key(domain: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigurationInvalid) as caught:
        parse(**domain)
    assert str(caught.value).startswith(f"vnafs.toml: {key} = ")


def test_ids_are_counted_from_where_they_begin_and_nobody_else_is_let_in() -> None:
    found = section(rendered(IMAGES)["smb.conf"], "global")
    assert found["security"] == "ads"
    assert (found["realm"], found["workgroup"], found["netbios name"]) == ("AD.EXAMPLE", "ADX", "IMAGES1")
    assert found["idmap config ADX : backend"] == "rid"
    assert found["idmap config ADX : range"] == "1000000-99999999"
    assert found["idmap config * : range"] == "900000-999999"
    assert found["allow trusted domains"] == "no"
    assert "password server" not in found
    servers = section(rendered(IMAGES, servers=["dc1.ad.example"])["smb.conf"], "global")
    assert servers["password server"] == "dc1.ad.example, *"


def test_without_a_domain_nothing_is_said_of_one() -> None:
    found = config.parse({"mount": "/srv/share", "share": [IMAGES]}, archive="/srv/a", file="vnafs.toml")
    texts = files.render(found.sharing, found.shares, found.mount, found.domain)
    assert section(texts["smb.conf"], "global")["server role"] == "standalone server"
    assert "ignore system acls" not in texts["smb.conf"]
    assert not [line for line in texts["krb5.conf"].splitlines() if line and not line.startswith("#")]


def test_acls_decide_unless_nfs_is_there_which_knows_permission_bits_alone() -> None:
    key = "acl_xattr:ignore system acls"
    assert section(rendered(IMAGES)["smb.conf"], "images")[key] == "yes"
    assert key not in section(rendered(IMAGES, {**EXPORT, "both_write_because": "so it is"})["smb.conf"], "images")


@pytest.mark.parametrize(
    "shares",
    [(IMAGES, EXPORT), (EXPORT, IMAGES), ({**IMAGES, "folder": "ct"}, EXPORT), ({**IMAGES, "read_only": True}, EXPORT)],
)
def test_nfs_shows_what_acls_protect_only_for_a_reason(shares: tuple[dict[str, Any], ...]) -> None:
    with pytest.raises(ConfigurationInvalid, match=r"share\[1\]\.protocol.*NT ACLs"):
        parse(*shares)
    parse(shares[0], {**shares[1], "both_write_because": "the viewer reads by NFS, from one host"})
    parse(IMAGES, {**EXPORT, "repository": "other"})


@pytest.mark.parametrize(
    "user", ["@AD_X\\Röntgen", "@ADX\\PACS (read)", "ADX\\O'Neil", "ADX\\R&D", "ADX\\a.b@c", "@ADX\\放射線科", "_samba"]
)
def test_users_and_groups_are_called_what_domains_call_them(user: str) -> None:
    text = rendered({**IMAGES, "users": [user]}, workgroup="AD_X")["smb.conf"]
    assert section(text, "images")["valid users"] == (f'"{user}"' if " " in user else user)
    assert section(text, "global")["workgroup"] == "AD_X"


@pytest.mark.parametrize(
    "user",
    ["a\nb", "a,b", 'a"b', "%U", "a%U", ";a", "#a", "a;b", "a#b", "[a]", "a]", "a\\", "A\\b\\c", "(a", "'a", "&&a", "@",
     "a ", " a", "", "a\u2028b", "a\u00a0b", "a\x85b", "a=b", "a$b", "$a", "a`b", "a\x7fb", "a{b}", "a:b", "a/b"],
)  # fmt: skip
def test_users_that_samba_would_misread_are_refused(user: str) -> None:
    with pytest.raises(ConfigurationInvalid, match=r"share\[0\]\.users\[0\]"):
        parse({**IMAGES, "users": [user]})


def test_a_domain_that_was_forgotten_too_early_is_named_again_to_remove_accounts() -> None:
    shares = [{**IMAGES, "name": "of us", "break_glass": "glass"}]
    with pytest.raises(ConfigurationInvalid, match=r"domain\.realm again.*vna share break-glass 'of us' --remove"):
        config.parse({"mount": "/srv/share", "share": shares}, archive="/srv/a", file="vnafs.toml")


def test_an_account_opens_its_share_and_no_other() -> None:
    shares = ({**IMAGES, "users": ["@ADX\\ct readers"], "break_glass": "glass"}, {**IMAGES, "name": "b"})
    text = rendered(*shares)["smb.conf"]
    images, other = section(text, "images"), section(text, "b")
    assert images["valid users"] == 'IMAGES1\\glass, "@ADX\\ct readers"'
    assert images["admin users"] == "IMAGES1\\glass"
    assert "invalid users" not in images
    assert other["invalid users"] == "IMAGES1\\glass"
    assert not {"admin users", "valid users"} & set(other)


@pytest.mark.parametrize(
    ("shares", "domain", "key"),
    [
        ([{**IMAGES, "break_glass": "Glass"}], DOMAIN, "share[0].break_glass"),
        ([{**IMAGES, "break_glass": "a, b"}], DOMAIN, "share[0].break_glass"),
        ([{**IMAGES, "break_glass": "glass"}], {}, "share[0].break_glass"),
        ([{**EXPORT, "break_glass": "glass"}], DOMAIN, "share[0].break_glass"),
        (
            [{**IMAGES, "break_glass": "glass"}, {**IMAGES, "name": "b", "break_glass": "glass"}],
            DOMAIN,
            "share[1].break_glass",
        ),
    ],
)
def test_an_account_that_would_open_more_than_its_share_is_refused(
    shares: list[dict[str, Any]], domain: dict[str, str], key: str
) -> None:
    with pytest.raises(ConfigurationInvalid) as caught:
        config.parse({"mount": "/srv/share", "share": shares, "domain": domain}, archive="/srv/a", file="vnafs.toml")
    assert str(caught.value).startswith(f"vnafs.toml: {key} = ")


def test_a_password_goes_to_commands_in_memory_alone() -> None:
    run = Commands(**{"net ads testjoin": Ran(255, "", "")})
    assert member.join(parse().domain, Login("admin", "a secret password"), run)
    (joining,) = [asked for asked in run.asked if asked[0][:3] == ["net", "ads", "join"]]
    assert joining[0] == ["net", "ads", "join", "-A", SECRET]
    assert joining[2] == "username = admin\npassword = a secret password\n"
    assert not [words for words, text, _ in run.asked if "a secret password" in f"{words} {text}"]
    assert "a secret password" not in repr(Login("admin", "a secret password"))


def test_a_secret_is_read_by_the_command_and_by_nobody_afterwards() -> None:
    script = 'cat "$0"; echo; tr "\\0" "\\n" < /proc/self/environ; echo "$0"; ls -l "$0"'
    ran = system.run(["sh", "-c", script, SECRET], secret="name = x")
    assert ran.output.startswith("name = x\n")
    assert "memfd" in ran.output
    assert ran.output.count("name = x") == 1
    names = {line.partition("=")[0] for line in ran.output.splitlines()[1:] if "=" in line}
    assert names <= {"PATH", "LC_ALL", "PWD", "OLDPWD", "SHLVL", "_"}
    with pytest.raises(Refused, match="not installed"):
        system.run(["no-such-command"])


@pytest.mark.parametrize("password", ["a\nb", " a", "a\x00"])
def test_a_password_that_samba_would_misread_is_refused(password: str) -> None:
    with pytest.raises(InvalidArgument):
        Login("admin", password)


def test_a_member_that_was_cut_short_gets_the_names_that_are_missing() -> None:
    listed = "Registered SPNs for IMAGES1\n\tHOST/IMAGES1.ad.example\n\tcifs/images1.ad.example\n"
    run = Commands(**{"net ads setspn list": Ran(0, listed, "")})
    assert not member.join(parse().domain, Login("admin", "x"), run)
    assert [words[4] for words, _, _ in run.asked if words[:4] == ["net", "ads", "setspn", "add"]] == [
        "nfs/images1.ad.example"
    ]


def test_what_the_domain_said_is_what_is_told() -> None:
    said = "Failed to join domain: the account may not add machines"
    run = Commands(**{"net ads testjoin": Ran(255, "", ""), "net ads join": Ran(255, f"Enter\n{said}\n", "")})
    with pytest.raises(Refused, match=said):
        member.join(parse().domain, Login("admin", "x"), run)


@pytest.mark.parametrize(("seconds", "side"), [(301, "behind"), (-4000, "ahead of")])
def test_clocks_that_differ_are_said_with_what_to_do(seconds: int, side: str) -> None:
    told = f"LDAP server name: dc1.ad.example\nServer time offset: {seconds}\n"
    controller, (problem,) = surroundings.of_domain(parse().domain, Commands(**{"net ads info": Ran(0, told, "")}))
    assert controller == Controller("dc1.ad.example", seconds)
    assert f"{abs(seconds)} s {side} that of dc1.ad.example" in problem.what
    assert "chrony" in problem.fix
    assert surroundings.of_clock(Controller("dc1", 300)) == []


def test_dns_that_knows_no_domain_is_said_with_whom_it_asked(tmp_path: Path) -> None:
    (tmp_path / "resolv.conf").write_text("search x\nnameserver 10.1.2.3\nnameserver 10.1.2.4\n")
    run = Commands(**{"net lookup": Ran(255, "", "")})
    controller, (problem,) = surroundings.of_domain(parse().domain, run, str(tmp_path))
    assert controller is None
    assert "10.1.2.3, 10.1.2.4" in problem.what
    assert "resolv.conf" in problem.fix


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ("passwd: files winbind\ngroup: files winbind\n", 0),
        ("passwd: files\ngroup: files winbind\n", 1),
        ("passwd: files # winbind\ngroup: files winbind\n", 1),
        ("", 1),
    ],
)
def test_a_machine_that_does_not_ask_winbind_is_told_so(tmp_path: Path, text: str, missing: int) -> None:
    (tmp_path / "nsswitch.conf").write_text(text)
    assert len(surroundings.of_names(str(tmp_path))) == missing


@pytest.mark.parametrize(("text", "problems"), [("default_realm = AD.EXAMPLE", 0), ("default_realm = X", 1), ("", 1)])
def test_kerberos_must_know_the_realm(tmp_path: Path, text: str, problems: int) -> None:
    (tmp_path / "krb5.conf").write_text(f"[libdefaults]\n    {text}\n")
    assert len(surroundings.of_kerberos(parse().domain, "/srv/a/shares/krb5.conf", str(tmp_path))) == problems


def test_samba_that_reads_something_else_is_found_out() -> None:
    told = rendered(IMAGES)["smb.conf"]
    assert surroundings.of_configuration(parse().domain, "/x", Commands(testparm=Ran(0, told, ""))) == []
    other = told.replace("1000000-", "2000000-")
    (problem,) = surroundings.of_configuration(parse().domain, "/x", Commands(testparm=Ran(0, other, "")))
    assert "idmap config adx : range" in problem.what
    assert "`include = /x` the last line of its [global]" in problem.fix


@pytest.mark.parametrize("key", surroundings.COMPARED)
def test_samba_that_lets_in_others_than_was_rendered_is_found_out(key: str) -> None:
    told = re.sub(rf"^    {key} = .*$", f"    {key} = else", rendered(IMAGES)["smb.conf"], flags=re.MULTILINE)
    (problem,) = surroundings.of_configuration(parse().domain, "/x", Commands(testparm=Ran(0, told, "")))
    assert f"`{key}` is else" in problem.what


@pytest.mark.parametrize(
    ("behind", "found"),
    [
        ("", ""),
        ("# a remark\n\n", ""),
        ("[other]\n    path = /x\n", ""),
        ("; x\n    guest ok = yes\n", "guest ok = yes"),
    ],
)
def test_a_line_that_samba_takes_for_a_shares_is_found_out(tmp_path: Path, behind: str, found: str) -> None:
    (tmp_path / "samba").mkdir()
    (tmp_path / "samba" / "smb.conf").write_text(f"[global]\n    log level = 1\n    Include = /x/smb.conf\n{behind}")
    run = Commands(testparm=Ran(0, rendered(IMAGES)["smb.conf"], ""))
    problems = surroundings.of_configuration(parse().domain, "/x/smb.conf", run, str(tmp_path))
    assert [problem.what.split("`")[1] for problem in problems] == ([found] if found else [])
    assert all("last line" in problem.fix for problem in problems)


@pytest.mark.parametrize("is_included", [True, False])
def test_samba_is_asked_what_it_will_read_before_anything_is_rendered(tmp_path: Path, is_included: bool) -> None:
    (tmp_path / "samba").mkdir()
    (tmp_path / "x").write_text("[global]\n    security = user\n")
    include = f"    include = {tmp_path}/x\n" if is_included else ""
    (tmp_path / "samba" / "smb.conf").write_text(f"[global]\n    log level = 1\n{include}")
    planned = rendered(IMAGES)["smb.conf"]
    problems = surroundings.of_configuration(
        parse().domain, f"{tmp_path}/x", system.run, str(tmp_path), planned=planned
    )
    assert [problem.what.partition(": ")[2].split("`")[1] for problem in problems] == (
        [] if is_included else ["security"]
    )
    run = Commands(**{"net lookup": Ran(0, "", ""), "net ads info": Ran(255, "", "")})
    surroundings.of_domain(parse().domain, run, str(tmp_path), planned=planned)
    assert [(words[-2:], secret) for words, _, secret in run.asked] == [(["-s", SECRET], planned)] * 2


def test_a_join_that_is_refused_has_written_nothing_that_samba_reads(tmp_path: Path) -> None:
    file = an_archive_in_a_domain(tmp_path, IMAGES)
    document = tomlkit.parse(file.read_text())
    del document["domain"]
    file.write_text(tomlkit.dumps(document))
    before = file.read_text()
    named = ("--realm", "no.example", "--workgroup", "NO", "--machine", "images1", "--user", "x")
    command = [sys.executable, "-m", "appliance", "domain", "join", *named, "--archive", str(file.parent)]
    done = subprocess.run(command, input="x\n", capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 3
    assert "Joining no.example" in done.stderr
    assert file.read_text() == before
    assert [path.name for path in (file.parent / "shares").iterdir()] == ["krb5.conf"]


def test_accounts_that_a_restore_did_not_bring_are_found_out() -> None:
    run = Commands(pdbedit=Ran(255, "", ""))
    found = surroundings.of_accounts({"of us": "vnafs-no-such", "b": "games"}, run)
    assert [problem.what.rpartition(", ")[2] for problem in found] == ["is not on this machine", "is somebody's"]
    assert found[0].fix == "`vna share break-glass 'of us'`"
    assert found[0] in standing.look(parse().domain, "/x", run, accounts={"of us": "vnafs-no-such"}).problems


def test_while_the_domain_is_away_nobody_says_whether_this_is_a_member() -> None:
    away = Commands(**{"net lookup": Ran(255, "", "")})
    found = standing.look(parse().domain, "/x", away)
    assert found.is_joined is None
    assert ["net", "ads", "testjoin"] not in [words for words, _, _ in away.asked]


def test_ids_that_winbind_counts_otherwise_are_found_out() -> None:
    listed = "cifs/images1.ad.example\nnfs/images1.ad.example\n"
    answers = {
        "net ads info": Ran(0, "LDAP server name: dc1.ad.example\nServer time offset: 0\n", ""),
        "net ads setspn": Ran(0, listed, ""),
        "wbinfo -D": Ran(0, "SID : S-1-5-21-1-2-3\n", ""),
        "wbinfo --sid-to-uid=S-1-5-21-1-2-3-500": Ran(0, "1000500\n", ""),
    }
    good = standing.look(parse().domain, "/x", Commands(**answers))
    assert (good.is_joined, good.domain_sid, good.services) == (True, "S-1-5-21-1-2-3", tuple(listed.split()))
    assert not [problem for problem in good.problems if "RID" in problem.what]
    answers["wbinfo --sid-to-uid=S-1-5-21-1-2-3-500"] = Ran(0, "900003\n", "")
    bad = standing.look(parse().domain, "/x", Commands(**answers))
    assert [problem.what for problem in bad.problems if "RID" in problem.what] == [
        "RID 500 should be user 1000500, and winbind says 900003"
    ]


def test_an_account_of_somebody_is_never_taken() -> None:
    run = Commands()
    with pytest.raises(Refused, match="somebody's already"):
        accounts.make("root", "a long password", run)
    assert not accounts.remove("root", run)
    with pytest.raises(Refused, match="12 characters"):
        accounts.make("glass", "short", run)
    assert run.asked == []


def test_a_domain_is_named_before_it_is_joined(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = str(tmp_path / "archive")
    assert main(["init", archive, "--mount", str(tmp_path / "mnt")]) == 0
    capsys.readouterr()
    assert main(["domain", "status", "--archive", archive, "--json"]) == 2
    assert "vna domain join" in json.loads(capsys.readouterr().out)["error"]["message"]


def an_archive_in_a_domain(folder: Path, *shares: Mapping[str, Any]) -> Path:
    """Its vnafs.toml."""
    assert main(["init", str(folder / "archive"), "--mount", str(folder / "mnt")]) == 0
    file = folder / "archive" / "vnafs.toml"
    document = tomlkit.parse(file.read_text())
    document["domain"] = dict(DOMAIN)
    document["share"] = [dict(share) for share in shares]
    file.write_text(tomlkit.dumps(document))
    return file


def glass(file: Path, *words: str, text: str = "") -> subprocess.CompletedProcess[str]:
    """`vna share break-glass images`, as a person at no terminal runs it."""
    command = [sys.executable, "-m", "appliance", "share", *words, "--archive", str(file.parent)]
    return subprocess.run(command, input=text, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("words", "password", "why"),
    [
        (("--account", "games"), "a password that is long", "somebody's already"),
        (("--account", "vnafs-no-such"), "short", "12 characters"),
        (("--account", "Not A Name"), "a password that is long", "break_glass"),
    ],
)
def test_an_account_that_is_refused_is_not_named_to_samba_either(
    tmp_path: Path, words: tuple[str, ...], password: str, why: str
) -> None:
    file = an_archive_in_a_domain(tmp_path, IMAGES)
    before = file.read_text()
    done = glass(file, "break-glass", "images", *words, text=f"{password}\n")
    assert done.returncode in {2, 3}
    assert why in " ".join(done.stderr.split())
    assert file.read_text() == before


def test_a_name_that_somebody_has_is_taken_out_and_its_owner_stays(tmp_path: Path) -> None:
    file = an_archive_in_a_domain(tmp_path, {**IMAGES, "break_glass": "games"})
    assert glass(file, "break-glass", "images", "--remove").returncode == 0
    assert "games" not in file.read_text()
    assert pwd.getpwnam("games")


@contextlib.contextmanager
def an_account(name: str) -> Iterator[None]:
    """One that was made here."""
    subprocess.run(["useradd", "--system", "--no-create-home", "--comment", accounts.MARK, name], check=True)
    try:
        yield
    finally:
        subprocess.run(["userdel", name], check=False, capture_output=True)


@pytest.mark.parametrize("words", [("break-glass", "images", "--remove"), ("remove", "images")])
def test_an_account_that_cannot_be_removed_is_still_named_and_a_repeat_finishes(
    tmp_path: Path, words: tuple[str, ...]
) -> None:
    name = f"vnafs-{words[0]}-{os.getpid() % 10000}"[:20]
    file = an_archive_in_a_domain(tmp_path, {**IMAGES, "break_glass": name})
    before = file.read_text()
    with an_account(name):
        # userdel(8) refuses while a process is its
        with subprocess.Popen(["setpriv", f"--reuid={name}", "--clear-groups", "sleep", "60"]) as busy:
            try:
                until(lambda: os.stat(f"/proc/{busy.pid}").st_uid == pwd.getpwnam(name).pw_uid)
                refused = glass(file, *words)
            finally:
                busy.kill()
        assert refused.returncode == 3, refused.stderr
        assert file.read_text() == before
        assert glass(file, *words).returncode == 0
        assert name not in file.read_text()
        assert name not in {user.pw_name for user in pwd.getpwall()}


def until(is_so: Callable[[], bool]) -> None:
    """Wait for it, 10 s at most."""
    end = time.monotonic() + 10
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize(("again", "said"), [("one two three", "'one two three'"), ("one two", "differ")])
def test_a_new_password_is_asked_for_twice_at_a_terminal(again: str, said: str) -> None:
    script = (
        "from appliance.cli.console import Console; print(repr(Console(as_json=False).password('P: ', is_new=True)))"
    )
    master, slave = os.openpty()
    with subprocess.Popen(["setsid", "--ctty", sys.executable, "-c", script], stdin=slave, stdout=slave, stderr=slave):
        os.close(slave)
        told = ""
        for question, answer in (("P: ", "one two three"), ("Once more: ", again)):
            while question not in told:
                told += os.read(master, 1000).decode()
            os.write(master, f"{answer}\n".encode())
        with contextlib.suppress(OSError):  # that is how a terminal ends
            while data := os.read(master, 1000):
                told += data.decode()
    os.close(master)
    assert said in told
