"""An encrypted archive driven by `vna`: what leaves says nothing, and the recovery key brings it all back."""

from __future__ import annotations

import os
import pty
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import studies
from tests.system.archives import ROOT, VNA, Archive, an_archive, until
from tests.system.test_restore import SETTINGS, everything_sent

EXTRACTOR = ROOT / "vnafs" / "extract" / "vna_extract.py"
MARK = b"NOBODY^MAY^READ^THIS"


def fill(share: Path, seed: int = 5) -> dict[str, bytes]:
    found = {f"MARK_{MARK.decode()}_{n}.dcm": item.data for n, item in enumerate(studies.synthetic_ct_study(seed, 6))}
    found |= {"note.txt": MARK * 40, "empty": b"", "sub/large.bin": os.urandom(3_000_000) + MARK}
    (share / "sub").mkdir(exist_ok=True)
    for name, data in found.items():
        (share / name).write_bytes(data)
    return found


def read(share: Path, names: dict[str, bytes]) -> dict[str, bytes]:
    return {name: (share / name).read_bytes() for name in names}


def leaving(folder: Path) -> bytes:
    """Everything on a target, names included."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return b"\n".join([*(str(path).encode() for path in files), *(path.read_bytes() for path in files)])


def sent(archive: Archive) -> None:
    archive.wait()
    until(lambda: everything_sent(archive), "manifests sent", 60)


@pytest.fixture
def secret(tmp_path: Path) -> tuple[str, ...]:
    return "--encryption", "on", "--recovery-key", str(tmp_path / "paper.txt")


def test_bytes_names_and_hashes_never_leave_and_all_of_it_comes_back(tmp_path: Path, secret: tuple[str, ...]) -> None:
    paper = tmp_path / "paper.txt"
    with an_archive(tmp_path, None, *secret, settings=SETTINGS) as archive:
        expected = fill(archive.share)
        sent(archive)
        archive.evict(archive.share)
        assert archive.state(archive.share / "note.txt") == "stub"
        assert read(archive.share, expected) == expected
        sent(archive)
        digests = {os.getxattr(archive.share / name, "user.vna.sha256") for name in expected}
        assert archive.vna("verify")["damaged"] == []
        (repository,) = archive.vna("repository", "list")
        assert repository["encrypted"] is True
        assert archive.vna("key", "check", paper) == {"opens": True}
    there = leaving(tmp_path / "one")
    for word in (MARK, b"note.txt", b"archive/", *digests, *(bytes.fromhex(digest.decode()) for digest in digests)):
        assert word not in there
    assert paper.stat().st_mode & 0o777 == 0o600
    shutil.rmtree(archive.archive)
    wrong = tmp_path / "wrong.txt"
    wrong.write_text("not the key\n")
    wrong.chmod(0o600)
    words = ("restore", "--from", f"file://{tmp_path}/one", "--into", archive.archive, "--mount", archive.mount)
    for more in ((), ("--key", wrong)):
        archive.vna(*words, "--no-serve", *more, check=3)
        assert not (archive.archive / "vnafs.toml").exists()
    report = archive.vna(*words, "--no-serve", "--key", paper)
    assert report["problems"] == []
    archive.start("serve")
    try:
        assert read(archive.share, expected) == expected
        expected |= fill(archive.share, seed=6)
        sent(archive)
        archive.evict(archive.share)
        assert read(archive.share, expected) == expected
    finally:
        archive.stop()
    assert MARK not in leaving(tmp_path / "one")


def test_the_extractor_needs_the_paper_and_nothing_of_ours(tmp_path: Path, secret: tuple[str, ...]) -> None:
    with an_archive(tmp_path, None, *secret, settings=SETTINGS) as archive:
        expected = fill(archive.share)
        sent(archive)
    shutil.rmtree(archive.archive)
    shutil.rmtree(tmp_path / "one" / "probe", ignore_errors=True)
    for number, more in enumerate(((), ("--catalogues",))):
        out = tmp_path / f"out-{number}"
        words = [sys.executable, "-I", str(EXTRACTOR), str(tmp_path / "one"), str(out), *more]
        assert subprocess.run(words, capture_output=True, check=False, timeout=60).returncode == 3
        words += ["--key", str(tmp_path / "paper.txt")]
        done = subprocess.run(words, capture_output=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr
        assert read(out / "archive", expected) == expected


def test_keys_change_while_it_runs_and_nothing_becomes_unreadable(tmp_path: Path, secret: tuple[str, ...]) -> None:
    paper, fresh = tmp_path / "paper.txt", tmp_path / "fresh.txt"
    with an_archive(tmp_path, None, *secret, settings=SETTINGS) as archive:
        expected = fill(archive.share)
        sent(archive)
        assert len(archive.vna("key", "rotate")["keys"]) == 2
        expected["second"] = b"after another key " * 5000
        (archive.share / "second").write_bytes(expected["second"])
        sent(archive)
        archive.vna("key", "renew", "--recovery-key", fresh)
        archive.vna("key", "check", paper, check=3)
        assert archive.vna("key", "check", fresh) == {"opens": True}
        expected["third"] = b"after other secrets " * 5000
        (archive.share / "third").write_bytes(expected["third"])
        sent(archive)
        archive.evict(archive.share)
        assert read(archive.share, expected) == expected
        sent(archive)
        rows = archive.vna("key", "list")
        assert rows["targets"] == {"one": rows["number"]}
        assert len({row["id"] for row in rows["keys"]}) == 8
        assert [row["repository"] for row in rows["keys"]].count(1) == 2  # that of receipts, which rotation leaves
        archive.stop()
        archive.start("serve")  # with the new key file, by itself
        assert read(archive.share, expected) == expected
    shutil.rmtree(archive.archive)
    words = ("restore", "--from", f"file://{tmp_path}/one", "--into", archive.archive, "--mount", archive.mount)
    refused = archive.vna(*words, "--no-serve", "--key", paper, check=3)
    assert "older" in refused["error"]["message"]
    archive.vna(*words, "--no-serve", "--key", fresh)
    archive.start("serve")
    try:
        assert read(archive.share, expected) == expected
    finally:
        archive.stop()


@pytest.mark.parametrize("point", ["keys.saved", "keys.brought"])
def test_death_while_a_key_is_made_or_brought_costs_nothing(
    tmp_path: Path, secret: tuple[str, ...], point: str
) -> None:
    with an_archive(tmp_path, None, *secret, settings=SETTINGS, serve=False) as archive:
        archive.start("mount")
        tierd = archive.start("tierd", "--fault", f"{point}=kill", wait=False)
        until(archive.is_mounted, "mounted", 30)
        expected = fill(archive.share)
        assert tierd.wait(60) == -signal.SIGKILL
        archive.start("tierd")
        sent(archive)
        archive.evict(archive.share)
        assert read(archive.share, expected) == expected


def test_an_encrypted_repository_without_its_keys_is_never_written_in_the_clear(
    tmp_path: Path, secret: tuple[str, ...]
) -> None:
    with an_archive(tmp_path, None, *secret, settings=SETTINGS, serve=False) as archive:
        ring, master = archive.archive / "keys" / "keyring", archive.archive / "keys" / "master.key"
        ring.rename(tmp_path / "ring")
        archive.start("mount")
        tierd = archive.start("tierd", wait=False)
        assert tierd.wait(60) == 3
        (tmp_path / "ring").rename(ring)
        master.chmod(0o644)
        tierd = archive.start("tierd", wait=False)
        assert tierd.wait(60) == 2
        assert "chmod 600" in archive.tail()
        master.chmod(0o600)
        master.write_text("another\n")
        tierd = archive.start("tierd", wait=False)
        assert tierd.wait(60) == 3
        assert not (tmp_path / "one" / "packs").exists()


def test_one_repository_may_be_left_unencrypted_and_says_so(tmp_path: Path, secret: tuple[str, ...]) -> None:
    with an_archive(tmp_path, None, *secret, settings=SETTINGS) as archive:
        assert archive.vna("repository", "add", "open", "--encryption", "off")["encrypted"] is False
        assert archive.vna("repository", "add", "shut")["encrypted"] is True
        (archive.mount / "open" / "file").write_bytes(os.urandom(50_000) + MARK)
        (archive.mount / "shut" / "file").write_bytes(os.urandom(50_000) + b"SHUT" + MARK)
        archive.wait()
        there = leaving(tmp_path / "one")
        assert MARK in there
        assert b"SHUT" not in there
        status = archive.vna("status")
        assert {row["name"]: row["encrypted"] for row in status["repositories"]} == {
            "archive": True, "open": False, "shut": True,
        }  # fmt: skip


def test_an_init_that_was_cut_short_leaves_no_keys_to_the_next_one(tmp_path: Path, secret: tuple[str, ...]) -> None:
    archive = Archive(tmp_path, {"one": f"file://{tmp_path}/one"}, {}, SETTINGS)
    words = ("init", archive.archive, "--mount", archive.mount, "--target", f"one=file://{tmp_path}/one")
    archive.vna(*words, *secret, "--repository", "no/name", check=None)
    assert not (archive.archive / "vnafs.toml").exists()
    archive.vna(*words)
    assert not (archive.archive / "keys" / "keyring").exists()


def test_a_target_whose_keyrings_were_removed_is_not_taken_for_one_without_encryption(
    tmp_path: Path, secret: tuple[str, ...]
) -> None:
    with an_archive(tmp_path, None, *secret, settings=SETTINGS) as archive:
        fill(archive.share)
        sent(archive)
    shutil.rmtree(archive.archive)
    shutil.rmtree(tmp_path / "one" / "keys")
    words = ("restore", "--from", f"file://{tmp_path}/one", "--into", archive.archive, "--mount", archive.mount)
    archive.vna(*words, "--no-serve", "--key", tmp_path / "paper.txt", check=3)
    assert not (archive.archive / "vnafs.toml").exists()


def test_a_renewal_that_was_cut_short_costs_no_secret(tmp_path: Path, secret: tuple[str, ...]) -> None:
    """The command died after tierd had changed the keyring, before the new key file took the old one's place."""
    fresh, next_one = tmp_path / "fresh.txt", tmp_path / "next.txt"
    with an_archive(tmp_path, None, *secret, settings=SETTINGS) as archive:
        expected = fill(archive.share)
        sent(archive)
        master = archive.archive / "keys" / "master.key"
        before = master.read_text()
        archive.vna("key", "renew", "--recovery-key", fresh)
        master.rename(f"{master}.new")
        master.write_text(before)
        master.chmod(0o600)
        archive.stop()
        archive.vna("key", "renew", "--recovery-key", next_one, check=1)  # nobody answers
        assert archive.vna("key", "check", fresh) == {"opens": True}
        assert next_one.exists(), "what may have been used is not thrown away"
        archive.start("serve")
        assert read(archive.share, expected) == expected


def test_a_passphrase_that_can_be_guessed_is_refused(tmp_path: Path, secret: tuple[str, ...]) -> None:
    archive, chosen = Archive(tmp_path, {}, {}, SETTINGS), tmp_path / "passphrase"
    chosen.write_text("radiology\n")
    chosen.chmod(0o600)
    words = ("init", archive.archive, "--mount", archive.mount, *secret, "--key-file", chosen)
    refused = archive.vna(*words, check=2)
    assert "passphrase" in refused["error"]["message"]
    assert not (archive.archive / "vnafs.toml").exists()
    chosen.write_text("a whole sentence that nobody says\n")
    archive.vna(*words)
    archive.vna("key", "check", chosen)
    archive.vna("key", "check", tmp_path / "paper.txt")


def test_an_archive_without_keys_has_no_encrypted_repository(tmp_path: Path) -> None:
    with an_archive(tmp_path, settings=SETTINGS) as archive:
        archive.vna("repository", "add", "shut", "--encryption", "on", check=3)
        assert archive.vna("repository", "add", "open")["encrypted"] is False
        archive.vna("key", "list", check=3)


def test_init_ends_only_when_the_recovery_key_was_typed_back(tmp_path: Path) -> None:
    paper, folder = tmp_path / "paper.txt", tmp_path / "archive"
    words = ["init", str(folder), "--mount", str(tmp_path / "mnt"), "--encryption", "on"]

    def on_a_terminal(type_it: bool) -> int:
        ours, theirs = pty.openpty()
        command = [*VNA, *words, "--recovery-key", str(paper)]
        process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=ROOT)
        os.close(theirs)
        said = b""
        try:
            while process.poll() is None:
                try:
                    said += os.read(ours, 4096)
                except OSError:
                    break
                if b"Type it back:" in said:
                    said = b""
                    os.write(ours, paper.read_bytes().lower() if type_it else b"no idea\n")
            return process.wait(60)
        finally:
            os.close(ours)

    assert on_a_terminal(type_it=False) == 1
    assert not (folder / "vnafs.toml").exists()
    assert not paper.exists()
    assert on_a_terminal(type_it=True) == 0
    assert (folder / "vnafs.toml").exists()
    done = subprocess.run([*VNA, *words], capture_output=True, check=False, cwd=ROOT)
    assert done.returncode == 3, "the archive exists"
    words[1] = str(tmp_path / "other")
    done = subprocess.run([*VNA, *words], capture_output=True, check=False, cwd=ROOT)
    assert done.returncode == 2
    assert b"--recovery-key" in done.stderr
