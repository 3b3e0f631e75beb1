"""Retention and holds on a real mount: the calls that programs make, the command line, and what survives kill -9."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import signal
import subprocess
import time

import pytest

from tests.system.archives import an_archive, until

pytestmark = pytest.mark.system

_renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
AT_FDCWD, EXCHANGE = -100, 2


def refused(call, number=errno.EPERM):
    with pytest.raises(OSError, match=os.strerror(number)):
        call()


def exchange(one, other):
    if _renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), EXCHANGE):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def every_attack(path, other):
    """Whatever a client can do to a file; each must fail."""
    link = path.with_name("link to it")
    return [
        lambda: path.open("r+b"),
        lambda: path.open("wb"),
        lambda: path.open("ab"),
        lambda: os.truncate(path, 0),
        lambda: os.truncate(path, 1 << 20),
        lambda: os.utime(path, (1, 1)),
        lambda: os.chmod(path, 0o777),
        lambda: os.chown(path, 1, 1),
        lambda: os.setxattr(path, "user.x", b"1"),
        lambda: os.removexattr(path, "user.note"),
        path.unlink,
        link.unlink,
        lambda: path.rename(path.with_name("elsewhere")),
        lambda: link.rename(path.with_name("elsewhere")),
        lambda: other.rename(path),
        lambda: other.rename(link),
        lambda: exchange(path, other),
        lambda: exchange(other, link),
    ]


def study(archive, name="study"):
    folder = archive.share / name
    folder.mkdir()
    path, other = folder / "image", folder / "other"
    path.write_bytes(b"image" * 1000)
    os.setxattr(path, "user.note", b"kept")
    os.link(path, folder / "link to it")
    other.write_bytes(b"other")
    return path, other


def kill_mount(archive, mount, *words):
    """kill -9 of what serves the tree; another one that does."""
    mount.kill()
    mount.wait()
    subprocess.run(["umount", "-l", str(archive.mount)], check=False, capture_output=True)
    return archive.start("mount", *words)


def test_a_file_committed_as_backup_programs_do_it_survives_everything(tmp_path):
    with an_archive(tmp_path, serve=False) as archive:
        mount = archive.start("mount")
        archive.start("tierd")
        archive.vna("repository", "set", "archive", "--retention", "governance", "--retain-for", "1h")
        path, other = study(archive)
        date = int(time.time()) + 30 * 86400
        subprocess.run(["touch", "-a", "-d", f"@{date}", path], check=True)
        subprocess.run(["chmod", "a-w", path], check=True)
        for again in range(2):
            for attack in every_attack(path, other):
                refused(attack)
            refused(lambda: path.parent.rename(archive.share / "moved"))
            refused(lambda: exchange(path.parent, archive.share / "beside"), errno.ENOENT)
            os.link(path, path.with_name(f"again {again}"))
            refused(path.with_name(f"again {again}").unlink)
            assert path.read_bytes() == b"image" * 1000
            assert json.loads(os.getxattr(path, "user.vna.retention"))["mode"] == "governance"
            mount = kill_mount(archive, mount)
        subprocess.run(["touch", "-a", "-d", f"@{date + 86400}", path], check=True)
        archive.wait()
        [row] = archive.vna("retention", path)
        assert (row["mode"], row["until_ns"]) == ("governance", (date + 86400) * 10**9)
        assert row["who"] == {"by": "mount", "uid": os.geteuid()}
        archive.evict(path)
        refused(path.unlink)
        assert path.read_bytes() == b"image" * 1000
        archive.vna("retain", path, "--for", "1s", check=0)
        refused(path.unlink)
        archive.vna("retain", path, "--for", "1s", "--shorten", check=3)
        archive.vna("retain", path, "--for", "1s", "--shorten", "--reason", "a test")
        until(lambda: not os.path.lexists(path) or _removed(path), "the file can be removed", 30)
        assert archive.vna("status")["retention_lag_seconds"] < 10
        noted = archive.vna("retention", "--audit")
        assert [what["action"] for what in noted] == ["rules changed", "shortened"]
        assert noted[-1]["reason"] == "a test"
        assert {what["who"]["uid"] for what in noted} == {os.geteuid()}


def _removed(path):
    try:
        path.unlink()
    except PermissionError:
        return False
    return True


def test_files_are_committed_by_themselves_and_directories_by_command(tmp_path):
    with an_archive(tmp_path) as archive:
        archive.vna("repository", "set", "archive", "--retention", "compliance", "--retain-for", "1y")
        first = archive.share / "first"
        first.write_bytes(b"before the rule")
        archive.vna("repository", "set", "archive", "--autocommit-after", "2s")
        folder = archive.share / "upload"
        folder.mkdir()
        (folder / "x.tmp").write_bytes(b"image")
        (folder / "x.tmp").rename(folder / "x.dcm")
        os.utime(folder / "x.dcm", (5, 5))
        for path in (first, folder / "x.dcm"):
            until(lambda path=path: _has(path, "user.vna.retention"), f"{path} is committed", 60)
            refused(path.unlink)
            assert archive.vna("retention", path)[0]["who"] == {"by": "system"}
        refused(lambda: folder.rename(archive.share / "moved"))
        archive.vna("repository", "set", "archive", "--retention", "off", "--reason", "why not", check=3)
        other = archive.vna("repository", "add", "plain")
        assert other["retention"] == "off"
        plain = archive.mount / "plain"
        (plain / "f").write_bytes(b"1")
        archive.vna("retain", plain / "f", "--for", "1d", check=3)
        archive.vna("retain", plain, "--for", "1d", check=3)
        archive.vna("repository", "set", "plain", "--retention", "governance")
        assert archive.vna("retain", plain, "--for", "1d", "--recursive") == {"files": 1, "changed": 1}
        refused((plain / "f").unlink)


def test_a_mount_that_dies_while_files_are_committed_goes_on_with_it(tmp_path):
    with an_archive(tmp_path, serve=False) as archive:
        mount = archive.start("mount")
        archive.start("tierd")
        rules = ("--retention", "governance", "--retain-for", "1y", "--autocommit-after", "1s")
        archive.vna("repository", "set", "archive", *rules)
        mount = kill_mount(archive, mount, "--fault", "retention.committed=kill")
        for number in range(5):
            (archive.share / f"{number}").write_bytes(b"%d" % number)
        assert mount.wait(60) == -signal.SIGKILL
        subprocess.run(["umount", "-l", str(archive.mount)], check=False, capture_output=True)
        archive.start("mount")
        for number in range(5):
            path = archive.share / f"{number}"
            until(lambda path=path: _has(path, "user.vna.retention"), f"{path} is committed", 60)
            refused(path.unlink)


def _has(path, name):
    try:
        return bool(os.getxattr(path, name))
    except OSError as problem:
        if problem.errno != errno.ENODATA:
            raise
        return False


def test_holds_keep_a_directory_until_the_last_one_is_removed(tmp_path):
    with an_archive(tmp_path, serve=False) as archive:
        mount = archive.start("mount")
        archive.start("tierd")
        path, other = study(archive)
        folder = path.parent
        archive.wait()
        archive.vna("hold", "add", folder, "--id", "case-7", "--reason", "a letter")
        archive.vna("hold", "add", archive.share, "--id", "case-8", "--reason", "another letter")
        for name in ("case-7", "case-8"):
            for attack in every_attack(path, other):
                refused(attack)
            mount = kill_mount(archive, mount)
            assert name in json.loads(os.getxattr(path, "user.vna.hold"))
            (folder / f"new {name}").write_bytes(b"comes later")
            archive.wait()
            refused((folder / f"new {name}").unlink)
            [shown] = archive.vna("status", path)
            assert name in {hold["id"] for hold in shown["retention"]["holds"]}
            place = folder if name == "case-7" else archive.share
            archive.vna("hold", "remove", place, "--id", name, "--reason", "the end")
        assert archive.vna("hold", "list") == []
        path.unlink()
        (folder / "new case-7").unlink()
        assert len(archive.vna("retention", "--audit")) == 4
