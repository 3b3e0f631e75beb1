"""Shares: what is refused, and what servers are told."""

import argparse
import configparser
import json
import re

import pytest
import tomlkit

from appliance import config
from appliance.cli import recovery
from appliance.cli.main import main
from appliance.domain.commands import Ran
from appliance.shares import files, sessions
from vnafs.domain.errors import ConfigurationInvalid, Refused

FSID = "6a4a5b0e-7a7f-4b7e-9d43-0d2a4a1f6a10"
OTHER = "6a4a5b0e-7a7f-4b7e-9d43-0d2a4a1f6a11"


def smb(**values):
    return {"name": "images", "repository": "archive", "protocol": "smb", **values}


def nfs(**values):
    return {
        "name": "modality",
        "repository": "archive",
        "protocol": "nfs",
        "hosts": ["10.1.0.0/16"],
        "fsid": FSID,
        **values,
    }


def parse(*shares, **document):
    return config.parse({"mount": "/srv/share", "share": list(shares), **document}, archive="/srv/a", file="vnafs.toml")


def rendered(*shares, **document):
    found = parse(*shares, **document)
    return files.render(found.sharing, found.shares, found.mount)


def samba_of(*shares, **document):
    parser = configparser.ConfigParser(strict=True, interpolation=None, comment_prefixes=("#",), delimiters=("=",))
    parser.read_string(rendered(*shares, **document)["smb.conf"])
    return parser


def exports_of(*shares):
    return [line for line in rendered(*shares)["vnafs.exports"].splitlines() if line and not line.startswith("#")]


@pytest.mark.parametrize(
    ("shares", "key"),
    [
        ([smb(protocol="afp")], "share[0].protocol"),
        ([smb(name="a/b")], "share[0].name"),
        ([smb(name="a]\nguest ok = yes")], "share[0].name"),
        ([smb(name="Homes")], "share[0].name"),
        ([smb(name="x" * 81)], "share[0].name"),
        ([smb(name="a "), smb()], "share[0].name"),
        ([smb(), smb(name="IMAGES", repository="b")], "share[1].name"),
        ([smb(repository="..")], "share[0].repository"),
        ([smb(repository="a/b")], "share[0].repository"),
        ([smb(repository="%U")], "share[0].repository"),
        ([smb(folder="../other")], "share[0].folder"),
        ([smb(folder="a//b")], "share[0].folder"),
        ([smb(folder=".as-of")], "share[0].folder"),
        ([smb(folder="a\n[global]")], "share[0].folder"),
        ([smb(encryption="maybe")], "share[0].encryption"),
        ([smb(users=["pacs", "x\nguest ok = yes"])], "share[0].users[1]"),
        ([smb(users=["pacs,root"])], "share[0].users[0]"),
        ([smb(hosts=["ct.example"])], "share[0].hosts[0]"),
        ([smb(hosts=["10.1.2.3 ro"])], "share[0].hosts[0]"),
        ([smb(squash="all")], "share[0].squash"),
        ([smb(fsid=FSID)], "share[0].fsid"),
        ([nfs(users=["pacs"])], "share[0].users"),
        ([nfs(hosts=[])], "share[0].hosts"),
        ([nfs(hosts=["10.1.2.3 no_root_squash"])], "share[0].hosts[0]"),
        ([nfs(hosts=["10.1.2.3/8"])], "share[0].hosts[0]"),
        ([nfs(squash="some")], "share[0].squash"),
        ([nfs(owner="pacs")], "share[0].owner"),
        ([nfs(owner="4294967295:1")], "share[0].owner"),
        ([nfs(security=["none"])], "share[0].security[0]"),
        ([nfs(security=[])], "share[0].security"),
        ([nfs(versions=["2"])], "share[0].versions[0]"),
        ([nfs(versions=["3", "3"])], "share[0].versions"),
        ([nfs(fsid="")], "share[0].fsid"),
        ([nfs(), nfs(name="b", repository="other")], "share[1].fsid"),
        ([nfs(), nfs(name="b", folder="ct", fsid=OTHER)], "share[1].folder"),
        ([nfs(folder="ct"), nfs(name="b", fsid=OTHER)], "share[1].repository"),
        ([smb(both_write_because="a\nb")], "share[0].both_write_because"),
    ],
)
def test_what_a_server_would_misread_is_refused_with_its_key(shares, key):
    with pytest.raises(ConfigurationInvalid) as caught:
        parse(*shares)
    assert str(caught.value).startswith(f"vnafs.toml: {key} = ")


@pytest.mark.parametrize(
    ("sharing", "key"),
    [
        ({"folder": "here"}, "sharing.folder"),
        ({"smb_version_min": "NT1"}, "sharing.smb_version_min"),
        ({"smb_port": 0}, "sharing.smb_port"),
        ({"nfs_port": 65536}, "sharing.nfs_port"),
        ({"addresses": ["eth0\nguest account = root"]}, "sharing.addresses[0]"),
    ],
)
def test_what_all_shares_have_in_common_is_checked(sharing, key):
    with pytest.raises(ConfigurationInvalid) as caught:
        parse(sharing=sharing)
    assert str(caught.value).startswith(f"vnafs.toml: {key} = ")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (smb(), nfs()),
        (nfs(), smb()),
        (smb(folder="ct/2026"), nfs(folder="ct")),
        (smb(), nfs(folder="ct", hosts=["10.1.2.3 ro", "10.1.2.4"])),
    ],
)
def test_smb_and_nfs_do_not_both_write_one_place_unless_somebody_says_why(first, second):
    with pytest.raises(ConfigurationInvalid, match=r"share\[1\]\.protocol.*leases and locks"):
        parse(first, second)
    parse(first, {**second, "both_write_because": "the CT writes by NFS, and nobody changes its files"})


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (smb(read_only=True), nfs()),
        (smb(), nfs(read_only=True)),
        (smb(), nfs(hosts=["10.1.0.0/16 ro"])),
        (smb(folder="ct"), nfs(folder="ct2")),
        (smb(), smb(name="b", read_only=True)),
    ],
)
def test_one_writing_protocol_is_fine(first, second):
    parse(first, second)


def test_where_both_write_smb_clients_get_no_leases_and_nfs_sees_their_locks():
    found = samba_of(smb(), nfs(both_write_because="so it is"), smb(name="apart", repository="b"))
    assert (found["images"]["oplocks"], found["images"]["durable handles"]) == ("no", "no")
    assert found["images"]["posix locking"] == "yes"
    assert (found["apart"].get("oplocks"), found["apart"]["durable handles"]) == (None, "yes")
    assert found["apart"]["posix locking"] == "no"


def test_samba_lets_nobody_in_without_a_password_and_signs_everything():
    found = samba_of(smb())["global"]
    assert found["map to guest"] == "never"
    assert found["server signing"] == "mandatory"
    assert found["server min protocol"] == "SMB3"
    assert samba_of(smb())["images"]["guest ok"] == "no"


def test_a_share_of_samba_says_who_may_use_it_and_how():
    share = smb(
        folder="ct/2026", users=["pacs", "@AD\\domain users"], hosts=["10.1.0.0/16", "10.2.0.7"], read_only=True
    )
    found = samba_of({**share, "encryption": "required", "case_sensitive": True})["images"]
    assert found["path"] == "/srv/share/archive/ct/2026"
    assert found["read only"] == "yes"
    assert found["valid users"] == 'pacs, "@AD\\domain users"'
    assert found["hosts allow"] == "10.1.0.0/255.255.0.0 10.2.0.7"
    assert found["hosts deny"] == "ALL"
    assert found["server smb encrypt"] == "required"
    assert found["case sensitive"] == "yes"
    assert found["shadow:mountpoint"] == "/srv/share/archive"


def test_without_previous_versions_nothing_shows_them():
    found = samba_of(smb(previous_versions=False))["images"]
    assert "shadow_copy2" not in found["vfs objects"]
    assert not [key for key in found if key.startswith("shadow")]


def test_an_export_names_each_host_with_what_it_may():
    assert exports_of(nfs(hosts=["10.1.0.0/16", "10.2.0.7 ro"], owner="1000:1001", security=["krb5p", "sys"])) == [
        f"/srv/share/archive 10.1.0.0/16(rw,sync,no_subtree_check,fsid={FSID},root_squash,anonuid=1000,anongid=1001,"
        f"sec=krb5p:sys) 10.2.0.7(ro,sync,no_subtree_check,fsid={FSID},root_squash,anonuid=1000,anongid=1001,"
        "sec=krb5p:sys)"
    ]


def test_a_folder_with_a_space_is_one_word_in_exports():
    (line,) = exports_of(nfs(folder="ct é (2)", squash="all", read_only=True))
    path, host = line.split(" ")
    assert path == r"/srv/share/archive/ct\040\303\251\040\0502\051"
    assert host.startswith("10.1.0.0/16(ro,")
    assert ",all_squash," in host


def test_the_kernel_speaks_the_versions_that_are_wanted_and_asks_for_all_groups():
    found = rendered(nfs(versions=["3"]))["nfs.conf"]
    assert "vers3 = y\nvers4 = n\n" in found
    assert "manage-gids = y" in found
    assert "vers4.2 = y" in rendered(nfs())["nfs.conf"]


def test_ganesha_lets_in_whom_exports_let_in():
    found = rendered(nfs(hosts=["10.1.0.0/16", "10.2.0.7 ro"], squash="none"))["ganesha.conf"]
    (export,) = re.findall(r"^EXPORT \{\n(.*?)^\}", found, re.MULTILINE | re.DOTALL)
    assert "Access_Type = None;" in export.partition("CLIENT")[0]
    assert re.findall(r"Clients = (\S+);\s+Access_Type = (\w+);", export) == [("10.1.0.0/16", "RW"), ("10.2.0.7", "RO")]
    assert "Squash = No_Root_Squash;" in export


def test_exports_of_ganesha_have_numbers_of_their_own():
    shares = [nfs(name=f"n{number}", repository=f"r{number}", fsid=_uuid(number * 65535)) for number in range(5)]
    numbers = re.findall(r"Export_Id = (\d+);", rendered(*shares)["ganesha.conf"])
    assert len(numbers) == len(set(numbers)) == 5


def _uuid(number):
    text = f"{number:032x}"
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def test_the_same_shares_in_another_order_give_the_same_bytes():
    shares = [smb(), smb(name="b", repository="b"), nfs(repository="c"), nfs(name="d", repository="d", fsid=OTHER)]
    assert rendered(*shares) == rendered(*reversed(shares))


def test_a_mount_that_no_server_can_name_is_refused_when_something_is_shared_there():
    found = parse(smb(), mount="/srv/50%")
    with pytest.raises(Refused):
        files.render(found.sharing, found.shares, found.mount)
    assert files.render(found.sharing, (), found.mount)


def test_what_is_written_is_written_once(tmp_path):
    texts = rendered(smb(), nfs(repository="other"))
    folder = tmp_path / "there"
    assert files.write(str(folder), texts) == list(texts)
    before = {path.name: path.stat().st_ino for path in folder.iterdir()}
    assert sorted(before) == sorted(texts), "and nothing else is left"
    assert files.write(str(folder), texts) == []
    (folder / "smb.conf").write_text("guest ok = yes")
    assert files.differing(str(folder), texts) == ["smb.conf"]
    assert files.write(str(folder), texts) == ["smb.conf"]
    assert (folder / "smb.conf").read_text() == texts["smb.conf"]
    assert {name for name, number in before.items() if (folder / name).stat().st_ino != number} <= {"smb.conf"}


def test_writing_follows_no_link_that_somebody_left(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "smb.conf.new").symlink_to(victim)
    files.write(str(tmp_path), rendered(smb()))
    assert victim.read_text() == "mine"


def test_add_list_render_check_and_remove_by_command(tmp_path, capsys):
    archive = str(tmp_path / "archive")
    assert main(["init", archive, "--mount", str(tmp_path / "mnt")]) == 0
    with (tmp_path / "archive" / "vnafs.toml").open("a") as stream:
        stream.write("# a remark of mine\n")

    def vna(*words):
        return main(["share", *words, "--archive", archive])

    assert vna("add", "images", "archive/ct", "--protocol", "smb", "--user", "pacs", "--host", "10.1.0.0/16") == 0
    assert vna("add", "IMAGES", "archive", "--protocol", "smb") == 3
    assert vna("add", "modality", "archive", "--protocol", "nfs", "--host", "10.1.2.3") == 2
    assert "leases" in " ".join(capsys.readouterr().err.split())
    because = ("--both-write-because", "the CT knows no SMB")
    assert vna("add", "modality", "archive", "--protocol", "nfs", "--host", "10.1.2.3", *because) == 0
    assert vna("render", "--check") == 1
    assert vna("render") == 0
    assert vna("render", "--check") == 0
    assert sorted(path.name for path in (tmp_path / "archive" / "shares").iterdir()) == sorted(files.USES)
    capsys.readouterr()
    assert vna("list", "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["name"], row["path"], row["access"]) for row in rows] == [
        ("images", f"{tmp_path}/mnt/archive/ct", "read and write"),
        ("modality", f"{tmp_path}/mnt/archive", "read and write"),
    ]
    assert "both write: the CT knows no SMB" in rows[1]["how"]
    assert vna("remove", "modality") == 0
    assert vna("remove", "modality") == 3
    assert vna("render", "--check") == 1
    text = (tmp_path / "archive" / "vnafs.toml").read_text()
    assert "# a remark of mine" in text
    assert "modality" not in text


def test_a_restored_archive_has_its_shares_wherever_it_is_mounted():
    recorded = tomlkit.document()
    recorded.update({"version": 1, "mount": "/srv/share", "share": [smb(), nfs(repository="other")]})
    args = argparse.Namespace(mount="/mnt/50%", source="file:///copy", credentials_file="")
    document, _ = recovery._document(tomlkit.parse(tomlkit.dumps(recorded)), args, [])
    found = config.parse(document.unwrap(), archive="/srv/b", file="vnafs.toml")
    assert found.shares == parse(smb(), nfs(repository="other")).shares


def test_clients_of_smb_are_told_that_their_tree_is_gone_and_those_of_nfs_cannot_be():
    shares, said = parse(smb(), smb(name="other"), nfs(read_only=True)).shares, []

    def run(words, *, text="", secret=""):
        said.append(words)
        return Ran(int("other" in words), "", "")

    assert sessions.close(shares, run) == ["images"]
    assert said == [["smbcontrol", "smbd", "close-share", name] for name in ("images", "other")]


def test_a_machine_without_samba_has_no_clients_to_tell():
    def run(words, *, text="", secret=""):
        raise Refused(what="Running smbcontrol", why="it is not installed here")

    assert sessions.close(parse(smb()).shares, run) == []


def test_the_kernels_nfs_server_looks_again_where_something_is_shared_by_nfs():
    said = []

    def run(words, *, text="", secret=""):
        said.append(words)
        return Ran(0, "", "")

    assert not sessions.look_again(parse(smb()).shares, run)
    assert said == []
    assert sessions.look_again(parse(smb(folder="a"), nfs(folder="b")).shares, run)
    assert said == [("exportfs", "-f")]


def test_a_machine_without_the_kernels_nfs_server_has_nothing_to_look_at():
    def run(words, *, text="", secret=""):
        raise Refused(what="Running exportfs", why="it is not installed here")

    assert not sessions.look_again(parse(nfs()).shares, run)
