"""Plain mirrors behind a real mount: a directory, a bucket and a container, read as other software reads them."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.mirrorreader import rebuilt
from tests.servers.endpoints import AzureEndpoint, S3Endpoint
from tests.servers.fixtures import *  # noqa: F403  # fixtures work by being names here
from tests.system.archives import QUICK, Archive, an_archive, until
from tests.system.test_restore import SETTINGS, everything_sent
from vnafs.targets.mirror import MARKER

pytestmark = pytest.mark.system

NAMES = [b"slice 1.dcm", b"%41", b"\xff\xfe", b"tab\tnew\nline", b"trail.", b".vna-metadata.jsonl", b"n" * 255]
NAMES += ["Müller^Änne".encode(), b"back\\slash", b"\xfe" * 255]


def in_directory(root: Path) -> Callable[[], dict[str, bytes]]:
    def objects() -> dict[str, bytes]:
        found = {}
        for folder, _, names in os.walk(root):
            for name in names:
                path = os.path.join(folder, name)
                with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
                    found[os.path.relpath(path, root)] = file.read()
        return {name: data for name, data in found.items() if name != MARKER}

    return objects


def in_bucket(server: S3Endpoint, bucket: str, prefix: str) -> Callable[[], dict[str, bytes]]:
    client = server.client()

    def objects() -> dict[str, bytes]:
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/")
        keys = [row["Key"] for page in pages for row in page.get("Contents", [])]
        found = {key[len(prefix) + 1 :]: client.get_object(Bucket=bucket, Key=key)["Body"].read() for key in keys}
        return {name: data for name, data in found.items() if name != MARKER}

    return objects


def in_container(server: AzureEndpoint, container: str, prefix: str) -> Callable[[], dict[str, bytes]]:
    def objects() -> dict[str, bytes]:
        with server.client(container) as client:
            names = [str(name) for name in client.list_blob_names(name_starts_with=f"{prefix}/")]
            found = {name[len(prefix) + 1 :]: client.download_blob(name).readall() for name in names}
        return {name: data for name, data in found.items() if name != MARKER}

    return objects


def paths(share: bytes) -> Iterator[bytes]:
    yield share
    for folder, folders, names in os.walk(share):
        yield from (os.path.join(folder, name) for name in (*folders, *names))


def compare(objects: dict[str, bytes], share: Path) -> None:
    """What a mirror has is what the mount shows."""
    there = rebuilt(objects)
    there.pop(b"")
    top = os.fsencode(share.parent)
    assert set(there) == {os.path.relpath(path, top) for path in paths(os.fsencode(share))}
    for name, found in there.items():
        path = os.path.join(top, name)
        shown = os.lstat(path)
        told = found["own"] if found["type"] == "directory" else found
        attributes = (f"{stat.S_IMODE(shown.st_mode):04o}", shown.st_uid, shown.st_gid, shown.st_mtime_ns)
        assert (told["mode"], told["uid"], told["gid"], told["mtime_ns"]) == attributes, name
        if stat.S_ISLNK(shown.st_mode):
            assert found["target"] == os.readlink(path)
            continue
        xattrs = {os.fsencode(x): os.getxattr(path, x) for x in os.listxattr(path)}
        assert told.get("xattrs", {}) == xattrs
        if stat.S_ISREG(shown.st_mode):
            assert "pending" not in found
            with open(path, "rb") as file:
                assert file.read() == found["bytes"]
            assert ("inode" in found) == (shown.st_nlink > 1)


def mirrored(archive: Archive, seconds: float = 60) -> None:
    """Return once every mirror has everything."""

    def is_done() -> bool:
        rows = archive.vna("mirror", "list")
        return all(row["reachable"] and not (row["waiting"] or row["walks"] or row["unread_events"]) for row in rows)

    until(is_done, lambda: f"mirrored: {archive.vna('mirror', 'list')}\n{archive.tail()}", seconds)


def fill(share: Path) -> None:
    top = os.fsencode(share)
    for number, name in enumerate(NAMES):
        with open(os.path.join(top, name), "wb") as file:
            file.write(b"top %d" % number * 1000)
        below = os.path.join(top, b"patient", name)
        os.makedirs(below)
        for leaf in (name, b"other"):
            with open(os.path.join(below, leaf), "wb") as file:
                file.write(os.urandom(2_000))
    deep = os.path.join(top, *[b"%d" % n + b"d" * 100 for n in range(11)])
    os.makedirs(deep)
    with open(os.path.join(deep, b"leaf"), "wb") as file:
        file.write(b"far down")
    os.symlink(b"../\xfeelse%", os.path.join(top, b"link"))
    os.link(os.path.join(top, NAMES[0]), os.path.join(top, b"patient", b"second name"))
    os.setxattr(os.path.join(top, NAMES[0]), "user.study", b"\0\xff")
    os.chmod(os.path.join(top, NAMES[1]), 0o640)
    os.utime(os.path.join(top, NAMES[2]), ns=(1, 1_600_000_000_123_456_789))
    (share / "large.bin").write_bytes(os.urandom(20_000_000))
    (share / "empty").write_bytes(b"")


def change(share: Path) -> None:
    top = os.fsencode(share)
    os.rename(os.path.join(top, b"patient"), os.path.join(top, b"moved \xff"))
    os.unlink(os.path.join(top, NAMES[1]))
    os.mkdir(os.path.join(top, NAMES[1]))
    with open(os.path.join(top, NAMES[1], b"in a folder now"), "wb") as file:
        file.write(b"1")
    with open(os.path.join(top, NAMES[0]), "wb") as file:
        file.write(b"overwritten")
    os.removexattr(os.path.join(top, NAMES[0]), "user.study")
    (share / "large.bin").rename(share / "empty")


def add(archive: Archive, name: str, url: str) -> None:
    archive.vna("mirror", "add", name, url, "--removals-after", "0")


def test_a_directory_a_bucket_and_a_container_follow_a_tree(
    tmp_path: Path, moto_server: S3Endpoint, azurite_server: AzureEndpoint
) -> None:
    bucket, container = moto_server.make_bucket(), azurite_server.make_container()
    there = {
        "folder": in_directory(tmp_path / "plain"),
        "bucket": in_bucket(moto_server, bucket, "p"),
        "container": in_container(azurite_server, container, "p"),
    }
    with an_archive(tmp_path, environ={**moto_server.environ(), **azurite_server.environ()}) as archive:
        add(archive, "folder", f"file://{tmp_path}/plain")
        fill(archive.share)
        archive.wait()
        mirrored(archive)
        compare(there["folder"](), archive.share)
        assert archive.vna("evict", archive.share)["evicted"]
        add(archive, "bucket", moto_server.target_url(bucket, "p"))  # a first mirror, of stubs
        add(archive, "container", azurite_server.target_url(container, "p"))
        mirrored(archive)
        for objects in there.values():
            compare(objects(), archive.share)
        change(archive.share)
        archive.wait()
        mirrored(archive)
        for objects in there.values():
            compare(objects(), archive.share)

        listed = moto_server.client().get_object(Bucket=bucket, Key="p/archive/slice 1.dcm")
        assert listed["Body"].read() == b"overwritten"
        assert len(listed["Metadata"]["sha256"]) == 64
        status = archive.vna("status")
        assert {row["name"] for row in status["mirrors"]} == set(there)
        assert all(row["objects"] and not row["oldest_seconds"] for row in status["mirrors"])
        assert {target["name"] for target in status["targets"]} == {"one"}, "a mirror is no target"
        for name in ("bucket", "container"):
            archive.vna("mirror", "test", name)
            archive.vna("mirror", "remove", name)
        assert [row["name"] for row in archive.vna("mirror", "list")] == ["folder"]
        compare(there["bucket"](), archive.share)
        compare(there["container"](), archive.share)
        log = archive.log.read_bytes()
        for word in (b"slice 1.dcm", b"patient", b"far down", b"moved"):
            assert word not in log, "a name is in a log"


def test_a_tierd_that_is_killed_in_the_middle_goes_on(tmp_path: Path) -> None:
    with an_archive(tmp_path, serve=False) as archive:
        archive.start("mount")
        tierd = archive.start("tierd")
        fill(archive.share)
        archive.wait()
        tierd.send_signal(signal.SIGTERM)
        tierd.wait(30)
        add(archive, "folder", f"file://{tmp_path}/plain")
        for point, count in (("put", 1), ("put", 7), ("noted", 9), ("staged", 5)):
            dying = archive.start("tierd", "--fault", f"mirror.{point}=kill:{count}", wait=False)
            assert dying.wait(60) == -signal.SIGKILL
        change(archive.share)
        dying = archive.start("tierd", "--fault", "mirror.removed=kill:3", wait=False)
        assert dying.wait(60) == -signal.SIGKILL
        archive.start("tierd")
        archive.wait()
        mirrored(archive)
        compare(in_directory(tmp_path / "plain")(), archive.share)
        assert os.listdir(archive.archive / "mirrors" / "folder" / "staged") == []


def test_a_mirror_that_is_gone_holds_up_nobody_and_is_told_of(tmp_path: Path) -> None:
    with an_archive(tmp_path) as archive:
        add(archive, "folder", f"file://{tmp_path}/plain")
        (archive.share / "before").write_bytes(b"1")
        archive.wait()
        mirrored(archive)
        (tmp_path / "plain").rename(tmp_path / "away")
        (archive.share / "meanwhile").write_bytes(b"2")
        archive.wait(seconds=30)
        assert archive.vna("evict", archive.share / "meanwhile")["evicted"] == 1

        def is_told() -> bool:
            [row] = archive.vna("status")["mirrors"]
            return not row["reachable"] and bool(row["why"]) and row["oldest_seconds"] > 1

        until(is_told, lambda: f"told: {archive.vna('mirror', 'list')}", 30)
        archive.vna("mirror", "test", "folder", check=1)
        assert not (tmp_path / "plain").exists()
        (tmp_path / "away").rename(tmp_path / "plain")
        archive.vna("mirror", "test", "folder")
        mirrored(archive)
        compare(in_directory(tmp_path / "plain")(), archive.share)


def test_places_and_repositories_that_a_mirror_may_not_have_are_refused(tmp_path: Path) -> None:
    paper = str(tmp_path / "paper.txt")
    with an_archive(tmp_path, None, "--encryption", "on", "--recovery-key", paper) as archive:
        archive.vna("repository", "add", "open", "--encryption", "off")
        refused = archive.vna("mirror", "add", "m", f"file://{tmp_path}/plain", check=3)
        assert "--plain" in str(refused)
        archive.vna("mirror", "add", "m", f"file://{tmp_path}/one/below", "--plain", check=2)
        archive.vna("mirror", "add", "m", f"file://{tmp_path}/plain", "--repository", "nothing", check=3)
        archive.vna("mirror", "add", "m", f"file://{tmp_path}/plain", "--repository", "open")
        (archive.share / "secret").write_bytes(b"SECRET")
        (archive.mount / "open" / "public").write_bytes(b"PUBLIC")
        archive.wait()
        mirrored(archive)
        assert in_directory(tmp_path / "plain")()["open/public"] == b"PUBLIC"
        assert not (tmp_path / "plain" / "archive").exists()
        archive.vna("mirror", "add", "all", f"file://{tmp_path}/all", "--plain")
        mirrored(archive)
        assert in_directory(tmp_path / "all")()["archive/secret"] == b"SECRET"
        shown = {row["name"]: row["in_plain"] for row in archive.vna("status")["mirrors"]}
        assert shown == {"m": [], "all": ["archive"]}


def test_a_tripwire_stops_a_mirror_from_following_an_attack(tmp_path: Path) -> None:
    with an_archive(tmp_path, settings=QUICK) as archive:
        archive.vna("mirror", "add", "folder", f"file://{tmp_path}/plain", "--removals-after", "5")
        names = [f"{number}.dcm" for number in range(40)]
        for name in names:
            (archive.share / name).write_bytes(name.encode() * 100)
        archive.wait()
        mirrored(archive)
        before = in_directory(tmp_path / "plain")()
        archive.vna("repository", "set", "archive", "--tripwire-per-minute", "20")
        for name in names:
            (archive.share / name).write_bytes(os.urandom(1000))
            (archive.share / name).rename(archive.share / f"{name}.locked")
        archive.wait()

        def is_held() -> bool:
            [row] = archive.vna("mirror", "list")
            return row["held"] >= len(names) and not row["waiting"]

        until(is_held, lambda: f"held: {archive.vna('mirror', 'list')}", 60)
        after = in_directory(tmp_path / "plain")()
        assert {name: after.get(name) for name in before} == before
        archive.vna("repository", "set", "archive", "--reset-tripwire")
        mirrored(archive)
        compare(in_directory(tmp_path / "plain")(), archive.share)


def test_a_restored_archive_leaves_mirrors_alone_until_it_is_told(tmp_path: Path) -> None:
    plain = f"file://{tmp_path}/plain"
    with an_archive(tmp_path, settings=SETTINGS) as archive:
        archive.vna("mirror", "add", "folder", plain, "--removals-after", "0")
        fill(archive.share)
        archive.wait()
        mirrored(archive)
        until(lambda: everything_sent(archive), "manifests sent", 60)
    before = in_directory(tmp_path / "plain")()
    (tmp_path / "again").mkdir()
    again = Archive(tmp_path / "again", {}, {}, "")
    report = again.vna(
        "restore", "--from", f"file://{tmp_path}/one", "--into", again.archive, "--mount", again.mount, "--no-serve"
    )
    assert report["mirrors_left_out"] == ["folder"]
    try:
        again.start("serve")
        change(again.share)
        assert again.vna("mirror", "list") == []
        assert in_directory(tmp_path / "plain")() == before
        again.vna("mirror", "add", "folder", plain, "--removals-after", "0")
        again.wait()
        mirrored(again)
        compare(in_directory(tmp_path / "plain")(), again.share)
    finally:
        again.stop()
