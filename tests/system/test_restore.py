"""An archive from one target alone, driven by `vna`: everything else is gone."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time

import pytest

from tests import studies
from tests.system.archives import Archive, an_archive, until

SETTINGS = """
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
"""
ODD = [b"line\nbreak", b"\xff\xfe not UTF-8", "Löwe".encode(), b"x" * 255, b"-rf", b" "]


def everything_sent(archive: Archive) -> bool:
    status = archive.vna("status")
    assert isinstance(status, dict)
    manifests = status["manifests"]
    return all(
        row["number"] == manifests["number"] and row["snapshot"] == manifests["snapshot"] is not None
        for row in manifests["targets"].values()
    )


def fill(share) -> dict[bytes, bytes]:
    """Names, links and attributes of every kind; the bytes of each file."""
    folder = os.fsencode(share)
    expected = {}
    for number, item in enumerate(studies.synthetic_ct_study(11, 12)):
        expected[b"%06d.dcm" % number] = item.data
    for number, name in enumerate(ODD):
        expected[name] = b"bytes %d" % number
    expected[b"empty"] = b""
    for name, data in expected.items():
        with open(os.path.join(folder, name), "wb") as file:
            file.write(data)
    os.mkdir(os.path.join(folder, b"sub"))
    os.rename(os.path.join(folder, b"000001.dcm"), os.path.join(folder, b"sub", b"renamed.dcm"))
    expected[b"sub/renamed.dcm"] = expected.pop(b"000001.dcm")
    os.link(os.path.join(folder, b"000002.dcm"), os.path.join(folder, b"sub", b"hard"))
    expected[b"sub/hard"] = expected[b"000002.dcm"]
    os.symlink(b"../000002.dcm", os.path.join(folder, b"sub", b"soft"))
    os.setxattr(os.path.join(folder, b"000003.dcm"), b"user.note", b"seen \xff")
    os.chmod(os.path.join(folder, b"000003.dcm"), 0o640)
    os.utime(os.path.join(folder, b"000003.dcm"), ns=(1, 1_600_000_000_123_456_789))
    with open(os.path.join(folder, b"000004.dcm"), "wb") as file:
        file.write(b"a new version")
    expected[b"000004.dcm"] = b"a new version"
    os.unlink(os.path.join(folder, b"000005.dcm"))
    del expected[b"000005.dcm"]
    return expected


def look(share) -> dict[bytes, tuple]:
    """All that stat and xattrs show of each name below."""
    found = {}
    base = os.fsencode(share)
    for folder, folders, files in os.walk(base):
        for name in folders + files:
            path = os.path.join(folder, name)
            status = os.lstat(path)
            tags = {} if os.path.islink(path) else {key: os.getxattr(path, key) for key in os.listxattr(path)}
            target = os.readlink(path) if os.path.islink(path) else b""
            found[os.path.relpath(path, base)] = (
                status.st_ino, status.st_mode, status.st_uid, status.st_gid, status.st_nlink, status.st_size,
                status.st_mtime_ns, status.st_ctime_ns, tags, target,
            )  # fmt: skip
    return found


@pytest.fixture
def past(tmp_path):
    """A target, and what the archive that is gone had in it."""
    old = tmp_path / "old"
    old.mkdir()
    targets = {"one": f"file://{tmp_path}/one", "two": f"file://{tmp_path}/two"}
    with an_archive(old, targets, settings=SETTINGS) as archive:
        expected = fill(archive.share)
        archive.wait(copies=2)
        until(lambda: everything_sent(archive), "manifests sent", 60)
        seen = look(archive.share)
        archive.evict(archive.share)
        until(lambda: everything_sent(archive), "manifests sent", 60)
    shutil.rmtree(archive.archive)
    shutil.rmtree(tmp_path / "two")
    return tmp_path, expected, seen


def restored(folder, *words: str) -> Archive:
    """What `vna restore` made, not served yet."""
    archive = Archive(folder, {"one": f"file://{folder}/one"}, {}, SETTINGS)
    report = archive.vna(
        "restore", "--from", f"file://{folder}/one", "--into", archive.archive, "--mount", archive.mount,
        "--no-serve", *words,
    )  # fmt: skip
    assert isinstance(report, dict)
    assert report["problems"] == []
    assert report["files_without_bytes"] == report["packs_missing"] == 0
    return archive


def test_all_is_back_from_one_target_with_names_numbers_and_attributes(past):
    folder, expected, seen = past
    archive = restored(folder)
    archive.start("serve")
    try:
        assert look(archive.share) == seen
        paths = {name: os.path.join(os.fsencode(archive.share), name) for name in expected}
        assert {os.getxattr(path, "user.vna.state") for path in paths.values()} == {b"stub"}
        for name, data in expected.items():
            with open(paths[name], "rb") as file:
                assert file.read() == data
        # the archive goes on as any other: new numbers, new copies, new manifests
        (archive.share / "new").write_bytes(b"after")
        assert (archive.share / "new").stat().st_ino not in {status[0] for status in seen.values()}
        archive.wait()
        until(lambda: everything_sent(archive), "manifests sent", 60)
        assert archive.vna("lost") == []
        assert archive.vna("verify")["damaged"] == []
    finally:
        archive.stop()


def test_it_is_served_while_copies_are_still_verified(past):
    folder, expected, _ = past
    archive = Archive(folder, {"one": f"file://{folder}/one"}, {}, SETTINGS)
    words = ("--from", f"file://{folder}/one", "--into", str(archive.archive), "--mount", str(archive.mount))
    process = archive.start("restore", *words, wait=False)
    try:
        archive.ready(("mount", "tierd"), process)
        name = b"000003.dcm"
        with open(os.path.join(os.fsencode(archive.share), name), "rb") as file:
            assert file.read() == expected[name]
    finally:
        archive.stop()


def test_nothing_is_written_over(past):
    folder, _, _ = past
    archive = Archive(folder, {}, {}, SETTINGS)
    archive.archive.mkdir(exist_ok=True)
    (archive.archive / "precious").write_text("x")
    answer = archive.vna(
        "restore", "--from", f"file://{folder}/one", "--into", archive.archive, "--mount", archive.mount, check=3
    )
    assert answer["error"]["code"] == "AlreadyExists"
    assert [entry.name for entry in archive.archive.iterdir()] == ["precious"]


def test_a_place_without_manifests_is_named(tmp_path):
    (tmp_path / "one").mkdir()
    archive = Archive(tmp_path, {}, {}, SETTINGS)
    answer = archive.vna(
        "restore", "--from", f"file://{tmp_path}/one", "--into", archive.archive, "--mount", archive.mount, check=1
    )
    assert answer["error"]["code"] == "TargetUnavailable"
    assert not (archive.archive / "vnafs.toml").exists()


def words_to_restore(folder, archive: Archive) -> tuple[object, ...]:
    url = f"file://{folder}/one"
    return ("restore", "--from", url, "--into", archive.archive, "--mount", archive.mount, "--no-serve")


def test_a_mount_that_cannot_be_is_refused_before_anything_is_made(past):
    folder, _, _ = past
    archive = Archive(folder, {}, {}, SETTINGS)
    words = [*words_to_restore(folder, archive)]
    words[words.index("--mount") + 1] = archive.archive / "spool"
    answer = archive.vna(*words, check=2)
    assert answer["error"]["code"] == "ConfigurationInvalid"
    assert not archive.archive.exists()


def test_what_is_left_out_and_what_it_means_is_said(tmp_path):
    targets = {"one": f"file://{tmp_path}/one", "two": f"file://{tmp_path}/two"}
    with an_archive(tmp_path, targets, settings=SETTINGS) as archive:
        archive.vna("repository", "set", "archive", "--copies", 2)
        (archive.share / "safe").write_bytes(b"on both")
        archive.wait(copies=2)
        with (archive.share / "young").open("wb") as file:
            file.write(b"nobody else has this")
            file.flush()
            until(lambda: everything_sent(archive), "manifests sent", 60)
            time.sleep(1)
            until(lambda: everything_sent(archive), "manifests sent", 60)
            for name in targets:
                shutil.copytree(tmp_path / name, tmp_path / f"kept-{name}")
    shutil.rmtree(archive.archive)
    for name in targets:  # as when the power went: nothing that came later is there
        shutil.rmtree(tmp_path / name)
        (tmp_path / f"kept-{name}").rename(tmp_path / name)
    archive = Archive(tmp_path, {}, {}, SETTINGS)
    report = archive.vna(*words_to_restore(tmp_path, archive), check=None)
    assert report["problems"] == []
    assert report["targets_left_out"] == ["two"]
    assert report["repositories_wanting_copies"] == {"archive": 2}
    assert report["files_without_bytes"] == 1
    archive.start("serve")
    try:
        assert [os.path.basename(row["path"]) for row in archive.vna("lost")] == ["young"]
        waited = archive.vna("wait", "--timeout", 20, check=None)
        assert not waited["done"]
        assert waited["without_bytes"] == 1
        (archive.share / "young").unlink()
        archive.wait()
        assert archive.vna("lost") == []
    finally:
        archive.stop()


def test_adopting_is_refused_while_a_target_cannot_be_asked(tmp_path):
    targets = {"one": f"file://{tmp_path}/one", "two": f"file://{tmp_path}/two"}
    with an_archive(tmp_path, targets, settings=SETTINGS, serve=False) as archive:
        serve = archive.start("serve")
        (archive.share / "file").write_bytes(b"bytes")
        archive.wait(copies=2)
        stop(serve)
        file = archive.archive / "vnafs.toml"
        text = file.read_text()
        file.write_text("[[target]]".join(part for part in text.split("[[target]]") if '"two"' not in part))
        answer = archive.vna("adopt", check=3)
        assert answer["error"]["code"] == "Refused"
        assert "two" in answer["error"]["message"]
        file.write_text(text)
        assert archive.vna("adopt")["epoch"] == 1


def test_a_disk_from_the_past_stops_and_is_adopted(tmp_path):
    targets = {"one": f"file://{tmp_path}/one"}
    with an_archive(tmp_path, targets, settings=SETTINGS, serve=False) as archive:
        serve = archive.start("serve")
        (archive.share / "old").write_bytes(b"of both times")
        archive.wait()
        until(lambda: everything_sent(archive), "manifests sent", 60)
        stop(serve)
        kept = tmp_path / "kept"
        subprocess.run(["cp", "-a", archive.archive, kept], check=True)
        serve = archive.start("serve")
        (archive.share / "undone").write_bytes(b"only in the time that was undone")
        archive.wait()
        until(lambda: everything_sent(archive), "manifests sent", 60)
        stop(serve)
        shutil.rmtree(archive.archive)
        kept.rename(archive.archive)

        serve = archive.start("serve")
        until(lambda: "older state" in archive.vna("status")["manifests"]["superseded"], "noticed", 60)
        with pytest.raises(OSError, match="Read-only"):
            (archive.share / "new").write_bytes(b"x")
        assert (archive.share / "old").read_bytes() == b"of both times"
        assert archive.vna("adopt", check=3)["error"]["code"] == "ArchiveBusy"
        stop(serve)

        assert archive.vna("adopt")["epoch"] == 1
        archive.start("serve")
        (archive.share / "new").write_bytes(b"goes on")
        archive.wait()
        until(lambda: everything_sent(archive), "manifests sent", 60)
        assert sorted(entry.name for entry in archive.share.iterdir()) == ["new", "old"]


@pytest.mark.parametrize("point", ["manifest.runs", "manifest.snapshot"])
def test_a_tierd_killed_while_it_makes_its_first_snapshot_makes_it_at_its_next_start(tmp_path, point):
    with an_archive(tmp_path, settings=SETTINGS, serve=False) as archive:
        archive.start("mount")
        (archive.share / "file").write_bytes(b"bytes")
        tierd = archive.start("tierd", "--fault", f"{point}=kill", wait=False)
        until(lambda: tierd.poll() is not None, "it dies", 30)
        assert tierd.returncode == -signal.SIGKILL
        archive.start("tierd")
        archive.wait()
        until(lambda: everything_sent(archive), "manifests sent", 60)


def stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    process.wait(30)
