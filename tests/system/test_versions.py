"""The past on a real mount: undelete, rollback and what a day with ransomware leaves."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import subprocess
import time

import pytest

from tests.system.archives import QUICK, an_archive, until


def test_a_deleted_and_an_overwritten_file_come_back_through_the_command_line(tmp_path):
    with an_archive(tmp_path) as archive:
        folder = archive.share / "study"
        folder.mkdir()
        path = folder / "image"
        path.write_bytes(b"first" * 1000)
        os.setxattr(path, "user.note", b"kept")
        archive.wait()
        path.write_bytes(b"second" * 1000)
        archive.wait()
        path.unlink()
        folder.rmdir()
        assert [row["name"] for row in archive.vna("versions", archive.share)] == ["study"]
        rows = archive.vna("versions", path)
        assert [row["size_bytes"] for row in rows] == [5000, 6000]
        assert all(row["kept"] for row in rows)
        archive.vna("undelete", path, check=3)
        assert not folder.exists()
        archive.vna("undelete", folder)
        archive.vna("undelete", path)
        assert path.read_bytes() == b"second" * 1000
        assert os.getxattr(path, "user.note") == b"kept"
        archive.vna("undelete", path, check=3)
        archive.vna("undelete", path, "--version", rows[0]["version"], "--to", folder / "old")
        assert (folder / "old").read_bytes() == b"first" * 1000
        archive.wait()


def digests(folder):
    return {
        str(path.relative_to(folder)): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mode)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def attack(folder):
    """What a ransomware script does: overwrite and rename, write beside and delete, overwrite in place."""
    for number, path in enumerate(sorted(path for path in folder.rglob("*") if path.is_file())):
        locked = path.with_name(path.name + ".locked")
        if number % 3 == 0:
            path.write_bytes(os.urandom(2000))
            path.rename(locked)
        elif number % 3 == 1:
            locked.write_bytes(os.urandom(2000))
            path.unlink()
        else:
            path.write_bytes(os.urandom(2000))
    (folder / "READ_ME.txt").write_text("pay")


def a_day(archive, files=240):
    """A share that was copied and then attacked; what it was, and the moment between."""
    for number in range(files):
        path = archive.share / f"study{number % 6}" / f"{number}.dcm"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"image %d " % number * 200)
    archive.wait()
    good = digests(archive.share)
    time.sleep(0.1)
    moment = f"@{time.time_ns() // 10**9}.{time.time_ns() % 10**9:09d}"
    time.sleep(0.1)
    attack(archive.share)
    return good, moment


def test_a_share_that_was_encrypted_is_rolled_back_and_forth(tmp_path):
    with an_archive(tmp_path) as archive:
        archive.vna("repository", "set", "archive", "--tripwire-per-minute", 100)
        good, moment = a_day(archive)
        archive.wait()
        [shown] = archive.vna("status")["repositories"]
        assert "overwritten" in shown["tripped_why"]
        bad = digests(archive.share)
        assert bad != good
        preview = archive.vna("rollback", "archive", "--to", moment, "--dry-run")
        assert preview["counts"]["restored"] == 240
        assert digests(archive.share) == bad
        done = archive.vna("rollback", "archive", "--to", moment)
        assert done["counts"] == preview["counts"]
        assert digests(archive.share) == good
        shown = archive.vna("repository", "set", "archive", "--reset-tripwire")
        assert not shown["tripped_ns"]
        (archive.share / "after").write_bytes(b"work goes on")
        since = done["since_ns"] - 1
        archive.vna("rollback", "archive", "--to", f"@{since // 10**9}.{since % 10**9:09d}")
        assert digests(archive.share) == bad
        archive.vna("rollback", "archive", "--to", moment)
        assert digests(archive.share) == good
        archive.wait()


def test_a_rollback_that_is_killed_goes_on_by_itself(tmp_path):
    with an_archive(tmp_path, serve=False) as archive:
        mount = archive.start("mount")
        archive.start("tierd")
        good, moment = a_day(archive)
        mount.kill()
        mount.wait()
        subprocess.run(["umount", "-l", str(archive.mount)], check=False, capture_output=True)
        for count in (1, 3):
            mount = archive.start("mount", "--fault", f"rollback.step=kill:{count}")
            if count == 1:
                archive.vna("rollback", "archive", "--to", moment, check=None)
            assert mount.wait(30) == -signal.SIGKILL
            subprocess.run(["umount", "-l", str(archive.mount)], check=False, capture_output=True)
        archive.start("mount")
        until(lambda: not archive.vna("repository", "list")[0]["rolling_to_ns"], "the end of the rollback")
        assert digests(archive.share) == good
        (archive.share / "after").write_bytes(b"work goes on")
        archive.wait()


def test_versions_that_end_while_their_pack_is_open_survive_the_death_of_both_daemons(tmp_path):
    slow = QUICK.replace("age_seconds_max = 0.5", "age_seconds_max = 60.0")
    with an_archive(tmp_path, settings=slow, serve=False) as archive:
        daemons = [archive.start("mount"), archive.start("tierd")]
        data = {name: os.urandom(100_000) for name in ("removed", "replaced", "emptied", "written to")}
        for name, content in data.items():
            (archive.share / name).write_bytes(content)
        until(lambda: all(archive.state(archive.share / name) == "sealed" for name in data), "their seals")
        (archive.share / "removed").unlink()
        (archive.share / "new").write_bytes(b"new")
        (archive.share / "new").rename(archive.share / "replaced")
        (archive.share / "emptied").write_bytes(b"encrypted")
        with open(archive.share / "written to", "r+b") as file:
            file.write(b"encrypted")
        assert archive.vna("status")["versions_to_pack"] == 4
        for daemon in daemons:
            daemon.kill()
            daemon.wait()
        subprocess.run(["umount", "-l", str(archive.mount)], check=False, capture_output=True)
        archive.start("mount")
        archive.start("tierd")
        archive.wait()
        assert archive.vna("status")["versions_to_pack"] == 0
        for name, content in data.items():
            path = archive.share / name
            first = archive.vna("versions", path)[0]
            archive.vna("undelete", path, "--version", first["version"], "--to", archive.share / f"back of {name}")
            assert (archive.share / f"back of {name}").read_bytes() == content, name
        assert (archive.share / "written to").read_bytes() == b"encrypted" + data["written to"][9:]
        assert (archive.share / "emptied").read_bytes() == b"encrypted"


def test_the_past_is_read_through_the_mount(tmp_path):
    with an_archive(tmp_path) as archive:
        folder = archive.share / "study"
        folder.mkdir()
        data = {f"{number}.dcm": os.urandom(300_000) for number in range(6)}
        for name, content in data.items():
            (folder / name).write_bytes(content)
        archive.wait()
        time.sleep(1.1)
        moment = time.strftime("@GMT-%Y.%m.%d-%H.%M.%S", time.gmtime())
        time.sleep(1.1)
        (folder / "0.dcm").write_bytes(b"encrypted")
        (folder / "1.dcm").unlink()
        (folder / "2.dcm").rename(folder / "2.locked")
        archive.wait()
        archive.evict(folder / "3.dcm")
        before = archive.share / ".as-of" / moment / "study"
        assert os.listdir(archive.share) == ["study"]
        assert sorted(os.listdir(before)) == sorted(data)
        assert {name: (before / name).read_bytes() for name in data} == data
        assert archive.state(folder / "3.dcm") == "stub", "nothing live was recalled"
        subprocess.run(["cp", "-a", before, tmp_path / "copy"], check=True)
        assert {name: (tmp_path / "copy" / name).read_bytes() for name in data} == data
        for change in (
            lambda: (before / "new").write_bytes(b"x"),
            lambda: (before / "0.dcm").write_bytes(b"x"),
            (before / "0.dcm").unlink,
            lambda: (before / "0.dcm").rename(folder / "moved"),
            lambda: (before / "0.dcm").chmod(0o600),
        ):
            with pytest.raises(OSError, match="Read-only") as refused:
                change()
            assert refused.value.errno == errno.EROFS
        assert not (archive.share / ".as-of" / "@GMT-1999.01.01-00.00.00").exists()
