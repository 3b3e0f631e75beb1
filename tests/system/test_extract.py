"""Leaving: one file, run where nothing of ours can be imported, gives back everything that is on a target."""

import base64
import dataclasses
import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest
import xxhash

from tests import studies
from tests.servers.fixtures import azurite_server, radosgw_server  # noqa: F401 - fixtures work by name
from tests.system.archives import QUICK, ROOT, an_archive, until
from vnafs.extract.vna_extract import shown

pytestmark = pytest.mark.system

SETTINGS = f"{QUICK}\n[manifests]\nseconds_max = 0.5\n"
LIBRARIES = ("zstandard", "xxhash", "imagecodecs", "imagecodecs.libs", "numpy", "numpy.libs")
EVERY_BYTE = bytes(byte for byte in range(1, 256) if byte != ord("/"))


@dataclasses.dataclass
class Extractor:
    """A copy of the one file, with a Python that has public packages only."""

    python: Path
    script: Path

    def run(self, *words, environ=None, check=0):
        done = subprocess.run(
            [self.python, "-I", self.script, *words],
            env={"PATH": os.environ["PATH"], **(environ or {})},
            cwd=self.script.parent,
            capture_output=True,
            timeout=300,
            check=False,
        )
        assert check in {None, done.returncode}, (done.returncode, done.stdout[-3000:], done.stderr[-3000:])
        return done

    def listed(self, *words, check=0, **options):
        """What `--list --json` says, by path."""
        lines = self.run(*words, "--list", "--json", check=check, **options).stdout.splitlines()
        return {path_of(line): line for line in map(json.loads, lines)}

    def results(self, *words, check=0, **options):
        """What became of each path."""
        lines = self.run(*words, "--json", check=check, **options).stdout.splitlines()
        return {path_of(line): line["result"] for line in map(json.loads, lines)}


def path_of(line):
    return line["path"] if "path" in line else base64.b64decode(line["path_base64"])


@pytest.fixture(scope="session")
def machines(tmp_path_factory):
    """Makes bare machines: environments without pip, ours or anything but the packages that are named."""

    def make(*libraries):
        folder = tmp_path_factory.mktemp("elsewhere")
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
        python = folder / "venv" / "bin" / "python"
        (there,) = (folder / "venv").glob("lib/python*/site-packages")
        here = Path(sysconfig.get_paths()["platlib"])
        for entry in here.iterdir():
            ours = entry.name.startswith(("vnafs", "_editable")) or entry.suffix == ".pth"
            if not ours and (not libraries or entry.name in libraries):
                os.symlink(entry, there / entry.name)
        script = folder / "vna_extract.py"
        shutil.copy(ROOT / "vnafs" / "extract" / "vna_extract.py", script)
        for package in ("vnafs", "appliance"):
            looked = subprocess.run(
                [python, "-I", "-c", f"import {package}"], cwd=folder, capture_output=True, check=False
            )
            assert b"ModuleNotFoundError" in looked.stderr
        return Extractor(python, script)

    return make


@pytest.fixture(scope="session")
def bare(machines):
    return machines(*LIBRARIES)


@pytest.fixture(scope="session")
def with_clients(machines):
    """The same with boto3 and azure-storage-blob, and what they need."""
    return machines()


# -- trees -------------------------------------------------------------------------------------------------------


def a_tree(share):
    """Files of every kind below *share*, some of which were written, renamed and removed in other ways before."""
    os.makedirs(share / "study" / "series")
    for number, item in enumerate(studies.real_ct_study()[:6]):
        (share / "study" / "series" / f"{number}.dcm").write_bytes(item.data)
    names = os.fsencode(share / "names")
    os.mkdir(names)
    for name in (EVERY_BYTE[:127], EVERY_BYTE[127:], b"caf\xe9", b"new\nline", b"-rf", "Ünï".encode(), b"...", b" "):
        with open(os.path.join(names, name), "wb") as file:
            file.write(b"named " + name)
    (share / "empty").write_bytes(b"")
    studies.a_large_slide(str(share / "large"), 40 * 1024 * 1024 + 17)
    (share / "shuffled").write_bytes(b"".join(n.to_bytes(2, "little") for n in range(1000, 60_000)) * 2 + b"x")
    for link in ("study/one-name", "study/series/another"):
        if link == "study/one-name":
            (share / link).write_bytes(b"linked" * 1000)
        else:
            os.link(share / "study/one-name", share / link)
    os.symlink("../study/series/0.dcm", share / "names" / "symbolic")
    os.symlink("/etc/passwd", share / "absolute")
    os.setxattr(share / "study/one-name", "user.comment", b"\x00\xff bytes")
    os.setxattr(share / "study", "user.folder", b"too")
    (share / "private").write_bytes(b"private")
    os.chmod(share / "private", 0o400)
    os.chown(share / "private", 1234, 2345)
    os.chown(share / "names" / "symbolic", 12, 23, follow_symlinks=False)
    os.mkdir(share / "readonly")
    (share / "readonly" / "inside").write_bytes(b"inside")
    os.chmod(share / "readonly", 0o555)
    os.utime(share / "private", ns=(1, 1_234_567_890_123_456_789))
    os.utime(share / "study", ns=(5, 987_654_321_000_000_001))
    (share / "before").write_bytes(b"renamed after it was packed " * 500)
    (share / "over").write_bytes(b"first " * 5000)
    (share / "doomed").write_bytes(b"doomed " * 5000)


def changed_after_packing(share):
    os.rename(share / "before", share / "names" / "after")
    (share / "over").write_bytes(b"second " * 5000)
    os.unlink(share / "doomed")
    os.mkdir(share / "late")


def described(top):
    """Everything below a directory that has to be equal, by path; names of one file share a number."""
    top = os.fsencode(top)
    found, files = {}, {}
    for folder, folders, names in os.walk(top):
        for name in folders + names:
            path = os.path.join(folder, name)
            status = os.lstat(path)
            what = [stat.filemode(status.st_mode), status.st_mtime_ns]
            if stat.S_ISREG(status.st_mode):
                with open(path, "rb") as file:
                    what += [hashlib.file_digest(file, "sha256").hexdigest()]
                what += [status.st_size, files.setdefault(status.st_ino, len(files)) if status.st_nlink > 1 else None]
            if stat.S_ISLNK(status.st_mode):
                what += [os.readlink(path)]
            else:
                what += [{key: os.getxattr(path, key) for key in os.listxattr(path)}]
            found[os.path.relpath(path, top)] = what
    return found


def named_files(description):
    """The same without what numbers of files depend on."""
    return {path: what[:4] for path, what in description.items()}


def sent(archive, copies=1):
    """Wait until the targets have everything, bytes and manifests: a whole interval passes without news."""
    archive.wait(copies=copies)

    def is_sent():
        before = archive.vna("status")["manifests"]
        time.sleep(1.2)
        now = archive.vna("status")["manifests"]
        return now == before and all(there["number"] == now["number"] for there in now["targets"].values())

    until(is_sent, lambda: f"manifests are sent: {archive.vna('status')['manifests']}")


@pytest.fixture(scope="module")
def left(tmp_path_factory):
    """An archive with a history that has ended: (its folder, what its tree was)."""
    folder = tmp_path_factory.mktemp("left")
    with an_archive(folder, settings=SETTINGS) as archive:
        a_tree(archive.share)
        archive.wait()
        changed_after_packing(archive.share)
        sent(archive)
        tree = described(archive.mount)
    shutil.rmtree(folder / "archive")
    return folder / "one", tree


def a_copy(target, folder):
    shutil.copytree(target, folder / "target")
    return folder / "target"


# -- promises ----------------------------------------------------------------------------------------------------


def test_the_whole_tree_comes_back_byte_for_byte(left, bare, tmp_path):
    target, tree = left
    bare.run(f"file://{target}", tmp_path / "out")
    assert described(tmp_path / "out") == tree
    assert b"archive/doomed" not in tree
    assert b"archive/late" in tree


def test_a_listing_says_path_size_hash_and_pack(left, bare):
    target, tree = left
    listed = bare.listed(f"file://{target}")
    assert {os.fsencode(path) for path in listed} == set(tree)
    line = listed["archive/names/after"]
    data = b"renamed after it was packed " * 500
    assert (line["size"], line["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    assert (target / "packs" / line["pack"][:2] / f"{line['pack']}.pack").exists()
    text = bare.run(target, "--list").stdout.decode()
    (shown,) = [row for row in text.splitlines() if row.endswith(" archive/names/after")]
    assert shown.split() == [str(len(data)), line["sha256"], line["pack"], "archive/names/after"]
    assert r"archive/names/new\nline" in text


def test_only_what_is_asked_for_comes(left, bare, tmp_path):
    target, tree = left
    bare.run(target, tmp_path / "out", "--path", "archive/study")
    wanted = {path: what for path, what in tree.items() if path.startswith(b"archive/study")}
    assert named_files({p: w for p, w in described(tmp_path / "out").items() if p != b"archive"}) == named_files(wanted)
    assert bare.listed(target, "--repository", "elsewhere") == {}
    assert bare.listed(target, "--path", "archive/stud") == {}


def test_it_goes_on_where_it_was_interrupted_and_only_when_told_to(left, bare, tmp_path):
    target, tree = left
    out = tmp_path / "out"
    bare.run(target, out)
    os.unlink(out / "archive" / "large")
    (out / "archive" / "over").write_bytes(b"first " * 5000)
    os.rename(out / "archive" / "study" / "one-name", out / "archive" / "study" / "gone")
    os.rename(out / "archive" / "study" / "gone", tmp_path / "gone")
    bare.run(target, out, check=2)
    results = bare.results(target, out, "--resume")
    assert described(out) == tree
    rewritten = {path for path, result in results.items() if result == "written" and path in results}
    assert {"archive/large", "archive/over"} <= rewritten
    assert results["archive/shuffled"] == "kept"


def test_owners_come_back_for_root_who_asks_for_them(left, bare, tmp_path):
    target, _ = left
    listed = bare.listed(target)
    bare.run(target, tmp_path / "mine")
    bare.run(target, tmp_path / "theirs", "--owner")
    for path, line in listed.items():
        status = os.lstat(os.path.join(os.fsencode(tmp_path / "theirs"), os.fsencode(path)))
        assert (status.st_uid, status.st_gid) == (line["uid"], line["gid"]), path
    assert os.stat(tmp_path / "theirs/archive/private").st_uid == 1234
    assert os.lstat(tmp_path / "theirs/archive/names/symbolic").st_gid == 23
    assert os.stat(tmp_path / "mine/archive/private").st_uid == os.geteuid()


def test_links_that_stand_in_the_way_are_not_followed(left, bare, tmp_path):
    target, _ = left
    out, outside = tmp_path / "out", tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_bytes(b"not ours")
    (out / "archive").mkdir(parents=True)
    os.symlink(outside, out / "archive" / "study")
    os.symlink(outside / "file", out / "archive" / "over")
    results = bare.results(target, out, "--resume", check=1)
    assert results["archive/study/one-name"] == "failed"
    assert (out / "archive" / "over").read_bytes() == b"second " * 5000
    assert os.listdir(outside) == ["file"]
    assert (outside / "file").read_bytes() == b"not ours"


# -- damage ------------------------------------------------------------------------------------------------------


def flip(path, at):
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 0x10]))


def test_one_damaged_pack_costs_only_what_it_held(left, bare, tmp_path):
    target = a_copy(left[0], tmp_path)
    listed = bare.listed(target)
    damaged = listed["archive/shuffled"]["pack"]
    flip(target / "packs" / damaged[:2] / f"{damaged}.pack", 300)
    done = bare.run(target, tmp_path / "out", "--json", check=4)
    results = {path_of(line): line for line in map(json.loads, done.stdout.splitlines())}
    lost = {os.fsencode(path) for path, line in results.items() if line["result"] == "damaged"}
    assert lost
    assert all(f"damaged: {shown(path)}" in done.stderr.decode() for path in lost)
    tree = {path: what for path, what in left[1].items() if path not in lost}
    assert named_files(described(tmp_path / "out")) == named_files(tree)


def test_a_missing_pack_is_told_before_anything_is_extracted(left, bare, tmp_path):
    target = a_copy(left[0], tmp_path)
    gone = bare.listed(target)["archive/large"]["pack"]
    os.unlink(target / "packs" / gone[:2] / f"{gone}.pack")
    listed = bare.listed(target, check=4)
    assert gone in listed["archive/large"]["why"]
    results = bare.results(target, tmp_path / "out", check=4)
    lost = {path for path, line in listed.items() if "why" in line}
    assert {path for path, result in results.items() if result == "missing"} == lost
    assert named_files(described(tmp_path / "out")) == named_files(
        {path: what for path, what in left[1].items() if path not in {os.fsencode(path) for path in lost}}
    )


def test_a_damaged_last_segment_leaves_the_state_before_it(left, bare, tmp_path):
    target = a_copy(left[0], tmp_path)
    last = max((target / "manifests" / "segments").iterdir())
    flip(last, 200)
    done = bare.run(target, "--list", check=4)
    assert b"cannot be used" in done.stderr
    assert b" archive/shuffled\n" in done.stdout


# -- without manifests -------------------------------------------------------------------------------------------


def test_without_manifests_files_come_back_under_the_names_they_were_packed_with(left, bare, tmp_path):
    target = a_copy(left[0], tmp_path)
    shutil.rmtree(target / "manifests")
    done = bare.run(target, tmp_path / "out")
    assert b"no usable manifests" in done.stderr
    found = {path: what[2:4] for path, what in described(tmp_path / "out").items() if what[0][0] == "-"}
    expected = {path: what[2:4] for path, what in left[1].items() if what[0][0] == "-"}
    expected[b"archive/before"] = expected.pop(b"archive/names/after")
    assert found.pop(b"archive/doomed")
    (unnamed,) = expected.keys() - found.keys()
    assert unnamed in {b"archive/study/one-name", b"archive/study/series/another"}  # one name of a file is remembered
    assert found == {path: what for path, what in expected.items() if path != unnamed}
    assert stat.S_IMODE(os.stat(tmp_path / "out/archive/private").st_mode) == 0o400


def test_catalogues_have_older_versions_too(left, bare, tmp_path):
    bare.run(left[0], tmp_path / "out", "--catalogues", "--all-versions", "--path", "archive/over")
    bare.run(left[0], tmp_path / "all", "--catalogues", "--all-versions")
    assert (tmp_path / "all/archive/over").read_bytes() == b"second " * 5000
    (older,) = [name for name in os.listdir(tmp_path / "all/archive") if name.startswith("over.~v")]
    assert (tmp_path / "all/archive" / older).read_bytes() == b"first " * 5000
    assert os.listdir(tmp_path / "out/archive") == ["over"]
    bare.run(left[0], tmp_path / "none", "--all-versions", check=2)


# -- what it cannot know -----------------------------------------------------------------------------------------


def test_encrypted_objects_are_refused_by_name(left, bare, tmp_path):
    target = a_copy(left[0], tmp_path)
    pack = bare.listed(target)["archive/large"]["pack"]
    path = target / "packs" / pack[:2] / f"{pack}.pack"
    encrypt(path, 256, 72)
    assert b"no keyring" in bare.run(target, tmp_path / "out", "--key", "key", check=3).stderr
    done = bare.run(target, tmp_path / "out", check=3)
    assert b"refused: archive/large: pack " + pack.encode() + b" was made with encryption 7" in done.stderr
    assert (tmp_path / "out/archive/over").read_bytes() == b"second " * 5000
    encrypt(max((target / "manifests" / "snapshots").iterdir()), 384, 136)
    done = bare.run(target, tmp_path / "other", check=3)
    assert b"was made with encryption 7; use a newer vna-extract" in done.stderr
    assert os.listdir(tmp_path / "other") == []


def encrypt(path, header_bytes, field_at):
    """As if it had been: another number in the header, with a right guard."""
    data = bytearray(path.read_bytes())
    data[field_at] = 7
    data[header_bytes - 8 : header_bytes] = xxhash.xxh3_64_intdigest(bytes(data[: header_bytes - 8])).to_bytes(
        8, "little"
    )
    path.write_bytes(data)


def test_a_file_whose_bytes_never_came_is_missing_and_everything_else_is_there(bare, tmp_path):
    with an_archive(tmp_path, settings=SETTINGS) as archive:
        (archive.share / "safe").write_bytes(b"safe")
        sent(archive)
        with open(archive.share / "being-written", "wb") as file:
            file.write(b"half")
            file.flush()
            until(lambda: "archive/being-written" in bare.listed(tmp_path / "one", check=None), "the name is sent")
            results = bare.results(tmp_path / "one", tmp_path / "out", check=4)
    assert results["archive/being-written"] == "missing"
    assert (tmp_path / "out/archive/safe").read_bytes() == b"safe"


def test_a_target_that_is_not_there_is_no_damage(bare, tmp_path):
    done = bare.run(f"file://{tmp_path}/nowhere", tmp_path / "out", check=1)
    assert b"is the disk mounted" in done.stderr
    bare.run("gopher://somewhere", "--list", check=2)
    bare.run(tmp_path, check=2)


# -- from servers ------------------------------------------------------------------------------------------------


def test_everything_comes_back_from_s3_and_from_azure(tmp_path, with_clients, radosgw_server, azurite_server):  # noqa: F811
    s3, azure = radosgw_server, azurite_server
    urls = {
        "ceph": s3.target_url(s3.make_bucket(), "some/where"),
        "azure": azure.target_url(azure.make_container(), "else"),
    }
    environ = {**s3.environ(), **azure.environ()}
    with an_archive(tmp_path, urls, environ=environ, settings=SETTINGS) as archive:
        a_tree(archive.share)
        archive.wait(copies=2)
        changed_after_packing(archive.share)
        sent(archive, copies=2)
        tree = described(archive.mount)
    for name, url in urls.items():
        with_clients.run(url, tmp_path / name, environ=environ)
        assert described(tmp_path / name) == tree, name
    listed = with_clients.listed(urls["ceph"], "--catalogues", environ=environ)
    assert listed["archive/over"]["sha256"] == hashlib.sha256(b"second " * 5000).hexdigest()
    wrong = {"AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "nothing"}
    assert b"check the credentials" in with_clients.run(urls["ceph"], "--list", environ=wrong, check=3).stderr
