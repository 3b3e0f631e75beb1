"""Quotas as administrators and clients meet them: `vna repository`, df, and an archive that is restored."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.system.archives import QUICK, ROOT, VNA, Archive, an_archive, until, with_engine

pytestmark = pytest.mark.system

MEBIBYTE = 1 << 20
SETTINGS = (
    QUICK
    + """
[manifests]
seconds_max = 0.3
"""
)


def rules(archive: Archive, name: str = "archive") -> Any:
    rows = archive.vna("repository", "list")
    assert isinstance(rows, list)
    [found] = [row for row in rows if row["name"] == name]
    return found


def said(archive: Archive, *words: str) -> str:
    """As a person sees it."""
    environ = {**os.environ, "VNA_ARCHIVE": str(archive.archive), "COLUMNS": "200"}
    return subprocess.run([*VNA, *words], env=environ, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_a_quota_is_set_shown_enforced_and_cleared(tmp_path: Path, fuse: str) -> None:
    settings = with_engine(QUICK, fuse)
    with an_archive(tmp_path, settings=settings) as archive:
        (archive.share / "f").write_bytes(bytes(MEBIBYTE))
        found = archive.vna("repository", "set", "archive", "--quota-bytes", "2MiB", "--quota-files", 3)
        assert isinstance(found, dict)
        assert (found["quota_bytes"], found["quota_files"]) == (2 * MEBIBYTE, 3)
        assert (found["used_bytes"], found["used_files"]) == (MEBIBYTE, 2)
        shown = os.statvfs(archive.share)
        assert shown.f_blocks * shown.f_frsize == 2 * MEBIBYTE
        assert shown.f_bavail * shown.f_frsize == MEBIBYTE
        assert (shown.f_files, shown.f_favail) == (3, 1)
        df = subprocess.run(["df", "--output=size,avail", archive.share], capture_output=True, text=True, check=True)
        assert df.stdout.split()[-2:] == ["2048", "1024"]
        with pytest.raises(OSError, match="quota") as refused:
            (archive.share / "g").write_bytes(bytes(MEBIBYTE + 1))
        assert refused.value.errno == errno.EDQUOT
        with pytest.raises(OSError, match="quota"):
            (archive.share / "d").mkdir()
        archive.vna("repository", "set", "archive", "--quota-bytes", "none", "--quota-files", 0)
        assert (rules(archive)["quota_bytes"], rules(archive)["quota_files"]) == (0, 0)
        (archive.share / "d").mkdir()
        (archive.share / "g").write_bytes(bytes(2 * MEBIBYTE))
        until(lambda: os.statvfs(archive.share).f_blocks != shown.f_blocks, "no quota any more")


def test_a_repository_is_made_with_a_quota(tmp_path: Path) -> None:
    with an_archive(tmp_path) as archive:
        archive.vna("repository", "add", "ct", "--quota-bytes", "10T", "--quota-files", "5000000")
        assert rules(archive, "ct")["quota_bytes"] == 10 * 1024**4
        text = said(archive, "repository", "list")
        assert "0 B of 10.0 TiB, 1 of 5000000 files" in text
        for wrong in ("10 apples", "-5", "1.5T"):
            archive.vna("repository", "set", "ct", f"--quota-bytes={wrong}", check=3)
        archive.vna("repository", "set", "ct", "--quota-files", "many", check=3)
        assert rules(archive, "ct")["quota_files"] == 5_000_000


def test_without_a_quota_statfs_shows_what_the_target_takes(tmp_path: Path) -> None:
    settings = with_engine(QUICK, "kernel")
    shared_memory = Path("/dev/shm") / f"vnafs-test-{os.getpid()}"
    shared_memory.mkdir()
    try:
        with an_archive(tmp_path, {"one": f"file://{shared_memory}/one"}, settings=settings) as archive:
            target = os.statvfs(shared_memory)
            size_bytes = target.f_blocks * target.f_frsize

            def is_shown() -> bool:
                shown = os.statvfs(archive.share)
                return shown.f_blocks * shown.f_frsize == size_bytes // shown.f_frsize * shown.f_frsize

            until(is_shown, "the size of the target")
            disk = os.statvfs(archive.archive)
            assert os.statvfs(archive.mount).f_blocks == (disk.f_blocks * disk.f_frsize - MEBIBYTE) // 4096
    finally:
        shutil.rmtree(shared_memory)


def test_a_restored_archive_has_the_same_quotas_and_counts(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    new.mkdir()
    target = f"file://{tmp_path}/one"
    with an_archive(old, {"one": target}, settings=SETTINGS) as archive:
        archive.vna("repository", "set", "archive", "--quota-bytes", "1M", "--quota-files", 7)
        (archive.share / "d").mkdir()
        for number in range(3):
            (archive.share / "d" / f"f{number}").write_bytes(os.urandom(1000 + number))
        os.link(archive.share / "d" / "f0", archive.share / "again")
        os.symlink("d", archive.share / "link")
        (archive.share / "gone").write_bytes(b"x" * 5000)
        archive.wait()
        (archive.share / "gone").unlink()
        before = rules(archive)
        assert (before["used_files"], before["used_bytes"]) == (6, 3003)

        def is_sent() -> bool:
            status = archive.vna("status")
            assert isinstance(status, dict)
            manifests = status["manifests"]
            return all(row["number"] == manifests["number"] for row in manifests["targets"].values())

        until(is_sent, "manifests sent", 60)
        (archive.share / "late").write_bytes(b"")
        archive.wait()
        until(is_sent, "manifests sent", 60)
        (archive.share / "late").unlink()
    shutil.rmtree(archive.archive)
    archive = Archive(new, {"one": target}, {}, SETTINGS)
    try:
        archive.vna("restore", "--from", target, "--into", archive.archive, "--mount", archive.mount, "--no-serve")
        archive.start("serve")
        after = rules(archive)
        for key in ("quota_bytes", "quota_files", "used_bytes"):
            assert after[key] == before[key]
        names = [name for _, folders, files in os.walk(archive.share) for name in folders + files]
        assert {"d", "f0", "f1", "f2", "again", "link"} <= set(names)
        # one of these files has two names, and the repository itself counts; what went last may have come back
        assert after["used_files"] == len(names)
        with pytest.raises(OSError, match="quota"):
            (archive.share / "large").write_bytes(bytes(MEBIBYTE))
        assert (archive.share / "d" / "f0").stat().st_size == 1000
    finally:
        archive.stop()
