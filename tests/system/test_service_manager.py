"""`vna serve --keep-mount` under a service manager that keeps descriptors: it may die, be upgraded or be restarted."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bench.takeover import SETTINGS, not_taken_over
from tests.servers.servicestore import ManagerProcess, managed
from tests.system.archives import VNA, Archive, an_archive, in_background

pytestmark = pytest.mark.system

KEPT = ["vnafs-estate", "vnafs-mount"]


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Archive]:
    with an_archive(tmp_path, settings=SETTINGS, serve=False) as made:
        yield made


@contextlib.contextmanager
def service(archive: Archive, *words: str) -> Iterator[ManagerProcess]:
    with tempfile.TemporaryDirectory() as short:  # unix(7) allows 107 bytes
        command = [*VNA, "serve", *(words or ("--keep-mount",)), "--archive", str(archive.archive)]
        with managed(Path(short) / "notify", archive.log, command, os.environ) as manager:
            yield manager


def names(manager: ManagerProcess) -> list[str]:
    """Of what is kept."""
    return list(manager.do("state")["names"])


@contextlib.contextmanager
def opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    yield descriptor
    os.close(descriptor)


def test_a_service_is_ready_when_the_mount_answers_and_its_mount_is_kept(archive: Archive) -> None:
    with service(archive) as manager:
        assert archive.is_mounted()
        assert manager.do("state") == {"names": KEPT, "times_ready": 1, "unknown": []}


def test_clients_notice_nothing_when_the_service_is_killed(archive: Archive) -> None:
    with service(archive) as manager:
        connection = os.stat(archive.mount).st_dev
        with opened(archive.share / "f") as handle:
            os.write(handle, b"before")
            inode = os.fstat(handle).st_ino
            manager.do("kill")
            manager.begin("start")
            os.mkdir(archive.share / "made meanwhile")  # waits for the next one
            manager.end()
            assert os.write(handle, b" after") == 6
            os.fsync(handle)
            assert os.stat(archive.share / "f").st_ino == inode
        assert (archive.share / "f").read_bytes() == b"before after"
        assert os.stat(archive.mount).st_dev == connection
        assert names(manager) == KEPT


def test_a_restart_is_no_stop(archive: Archive) -> None:
    with service(archive) as manager:
        with opened(archive.share / "f") as handle:
            os.write(handle, b"before")
            manager.do("restart")
            assert os.write(handle, b" after") == 6
        assert (archive.share / "f").read_bytes() == b"before after"
        archive.wait()  # a handle that nobody has would keep its file open


def test_clients_notice_nothing_of_many_deaths_of_the_service(archive: Archive) -> None:
    expected: dict[Path, bytes] = {}
    with service(archive) as manager:

        def work() -> None:
            path, data = archive.share / f"n{len(expected)}", os.urandom(30_000)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
            assert os.write(descriptor, data) == len(data)
            moved = path.with_suffix(".moved")
            path.rename(moved)
            assert os.pread(descriptor, len(data) + 1, 0) == data
            os.close(descriptor)
            expected[moved] = data

        with in_background(work):
            for deed in ("kill", "start", "restart", "kill", "start"):
                manager.do(deed)
        assert {path: path.read_bytes() for path in archive.share.iterdir()} == expected
        assert not_taken_over(archive) == []
        archive.wait()  # a handle that nobody has would keep its file open


def test_after_a_stop_nothing_is_kept_and_unmount_takes_away_what_is_left(archive: Archive) -> None:
    with service(archive) as manager:
        (archive.share / "f").write_bytes(b"bytes")
        assert archive.vna("unmount", check=3) is not None, "which is refused while it is served"
        assert manager.do("stop") == 0
        assert not archive.is_mounted()
        assert os.path.ismount(archive.mount), "a dead mount"
        assert archive.vna("unmount") == {"mount": str(archive.mount), "unmounted": True, "shares_closed": []}
        assert not os.path.ismount(archive.mount)
        assert archive.vna("unmount") == {"mount": str(archive.mount), "unmounted": False, "shares_closed": []}
        manager.do("start")
        assert (archive.share / "f").read_bytes() == b"bytes"


def test_without_keep_mount_a_service_takes_its_mount_away(archive: Archive) -> None:
    with service(archive, "--log-level", "info") as manager:
        (archive.share / "f").write_bytes(b"bytes")
        assert names(manager) == []
        assert manager.do("stop") == 0
        assert not os.path.ismount(archive.mount)


def test_a_crash_that_nobody_restarts_leaves_a_dead_mount_that_the_next_start_clears(archive: Archive) -> None:
    with service(archive) as manager:
        (archive.share / "f").write_bytes(b"bytes")
        manager.do("kill")
        for name in KEPT:
            manager.do("lose", name)
        assert not archive.is_mounted()
        manager.do("start")
        assert (archive.share / "f").read_bytes() == b"bytes"
        assert names(manager) == KEPT


def test_another_engine_does_not_go_on_with_the_mount_and_serves_anew(archive: Archive) -> None:
    with service(archive) as manager:
        (archive.share / "f").write_bytes(b"bytes")
        manager.do("kill")
        config = archive.archive / "vnafs.toml"
        config.write_text(config.read_text().replace('engine = "kernel"', 'engine = "pyfuse3"'))
        manager.do("start")
        assert (archive.share / "f").read_bytes() == b"bytes"
        assert b"not_taken_over" in archive.log.read_bytes()
        assert names(manager) == []


def test_another_mount_point_is_mounted_anew_and_nothing_is_left_at_the_old_one(archive: Archive) -> None:
    before = archive.mount
    with service(archive) as manager:
        (archive.share / "closed").write_bytes(b"closed")
        handle = os.open(archive.share / "open", os.O_RDWR | os.O_CREAT, 0o644)
        os.write(handle, b"open")
        config = archive.archive / "vnafs.toml"
        archive.mount = archive.folder / "other"
        config.write_text(config.read_text().replace(str(before), str(archive.mount)))
        manager.do("restart")
        assert archive.is_mounted()
        assert not os.path.ismount(before)
        with pytest.raises(OSError, match=os.strerror(errno.ENOTCONN)):
            os.fstat(handle)
        with pytest.raises(OSError, match=os.strerror(errno.ENOTCONN)):
            os.close(handle)
        share = archive.mount / archive.share.name
        assert {path.name: path.read_bytes() for path in share.iterdir()} == {"closed": b"closed", "open": b"open"}
        (share / "made").write_bytes(b"bytes")
        manager.do("restart")
        assert (share / "made").read_bytes() == b"bytes"
        assert names(manager) == KEPT


def test_half_of_what_was_kept_is_worth_nothing(archive: Archive) -> None:
    with service(archive) as manager:
        (archive.share / "f").write_bytes(b"bytes")
        manager.do("kill")
        manager.do("lose", "vnafs-estate")
        manager.do("start")
        assert (archive.share / "f").read_bytes() == b"bytes"
        assert names(manager) == KEPT


def test_nobody_who_keeps_a_mount_is_no_service_manager(archive: Archive) -> None:
    process = archive.start("serve", "--keep-mount", wait=False)
    assert process.wait(60) == 3
    assert b"NOTIFY_SOCKET" in archive.log.read_bytes()


def test_units_name_the_archive_and_systemd_understands_them(archive: Archive, tmp_path: Path) -> None:
    folder = tmp_path / "units"
    archive.vna("service", "render", "--into", folder)
    assert archive.vna("service", "render", "--into", folder, "--check") is not None
    text = (folder / "vnafs.service").read_text()
    assert f"serve --keep-mount --archive {archive.archive}" in text
    assert sys.executable in text
