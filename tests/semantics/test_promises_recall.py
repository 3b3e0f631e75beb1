"""SEMANTICS.md, who may make bytes come back: P-53 to P-55, on a real mount with real targets."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from tests.servers.endpoints import S3Endpoint
from tests.servers.moto import moto
from tests.system.archives import QUICK, Archive, an_archive, until

pytestmark = pytest.mark.system
RANGED = QUICK.replace("[spool]", "recall_whole_bytes_max = 100000\n\n[spool]")
PROGRAM = "import os, sys; sys.exit(0 if os.open(sys.argv[1], int(sys.argv[2])) >= 0 else 1)"


def stubs(archive: Archive, **files: bytes) -> list[Path]:
    paths = [archive.share / name for name in files]
    for path, data in zip(paths, files.values(), strict=True):
        path.write_bytes(data)
    archive.wait()
    until(lambda: all(archive.state(path) == "replicated" for path in paths), "replicated")
    archive.vna("evict", *paths)
    return paths


def refusal(path: Path) -> int:
    """The errno of reading a whole file that the kernel does not remember."""
    try:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            file.read()
    except OSError as error:
        return error.errno or 0
    raise AssertionError("it was read")


def refused(archive: Archive) -> dict[str, int]:
    status = archive.vna("status")
    assert isinstance(status, dict)
    return dict(status["recalls_refused"])


def as_program(name: str, folder: Path, path: Path, flags: int) -> subprocess.CompletedProcess[str]:
    """Open a file in a process that runs under *name*."""
    script = folder / name
    script.write_text(f"#!{sys.executable}\nopen('/proc/self/comm', 'w').write({name!r})\n{PROGRAM}\n")
    script.chmod(0o700)
    words = [str(script), str(path), str(flags)]
    return subprocess.run(words, capture_output=True, text=True, check=False)


def test_p53_processes_and_users_that_never_recall_are_refused_at_open(tmp_path: Path) -> None:
    settings = RANGED + '\n[recall]\nnever_processes = ["spotlight"]\nnever_uids = [65534]\n'
    with an_archive(tmp_path, settings=settings) as archive:
        small, large, cut = stubs(archive, small=b"s" * 9_000, large=os.urandom(300_000), cut=b"c" * 9_000)
        for path in (small, large):
            done = as_program("spotlight", tmp_path, path, os.O_RDONLY)
            assert "PermissionError" in done.stderr, done.stderr
            assert archive.state(path) == "stub"
        assert "PermissionError" in as_program("spotlight", tmp_path, small, os.O_RDWR).stderr
        assert as_program("spotlight", tmp_path, cut, os.O_WRONLY | os.O_TRUNC).returncode == 0
        os.chmod(archive.share, 0o755)
        small.chmod(0o644)
        shell = ["setpriv", "--reuid", "65534", "--clear-groups", "cat", str(small)]
        if os.geteuid() == 0:
            os.chmod(tmp_path, 0o755)
            assert "Permission denied" in subprocess.run(shell, capture_output=True, text=True, check=False).stderr
        before = refused(archive)["RecallForbidden"]
        assert before >= 3
        assert sorted(os.listdir(archive.share)) == ["cut", "large", "small"]
        assert as_program("other", tmp_path, small, os.O_RDONLY).returncode == 0
        assert as_program("spotlight", tmp_path, small, os.O_RDONLY).returncode == 0  # it is local now
        assert len(large.read_bytes()) == 300_000
        assert refused(archive)["RecallForbidden"] == before


def test_p54_past_the_days_budget_nothing_is_recalled_and_local_bytes_are_read(tmp_path: Path) -> None:
    with an_archive(tmp_path, settings=RANGED) as archive:
        small, large = stubs(archive, small=os.urandom(20_000), large=os.urandom(300_000))
        archive.vna("repository", "set", "archive", "--recall-bytes-per-day", 150_000)
        assert len(small.read_bytes()) == 20_000
        assert refusal(large) == errno.EDQUOT
        archive.stop()
        archive.start("serve")
        archive.vna("evict", small)
        used = archive.vna("status")["recalled_today"]  # type: ignore[index,call-overload] # a document
        assert used[0]["repository"] == "archive"
        assert 20_000 <= used[0]["size_bytes"] <= 150_000
        archive.vna("repository", "set", "archive", "--recall-bytes-per-day", used[0]["size_bytes"] + 1)
        assert refusal(small) == errno.EDQUOT
        (archive.share / "new").write_bytes(b"local")
        assert (archive.share / "new").read_bytes() == b"local"
        answer = archive.vna("recall", small, check=1)
        assert "may recall" in answer["failed"][0]["why"]  # type: ignore[index,call-overload] # a document
        archive.vna("repository", "set", "archive", "--recall-bytes-per-day", 0, "--recall-requests-per-day", 1000)
        assert len(small.read_bytes()) == 20_000
        assert refused(archive)["RecallBudgetSpent"] >= 1


def restores(server: S3Endpoint, how: object) -> None:
    """When the server has what it is asked to bring back."""
    rule = {"model_name": "s3::keyrestore", "transition": how}
    address = f"{server.url}/moto-api/state-manager/set-transition"
    urllib.request.urlopen(urllib.request.Request(address, json.dumps(rule).encode())).close()


def test_p55_bytes_in_an_archive_class_are_asked_back_once_and_answered_at_once(tmp_path: Path) -> None:
    with moto() as server:
        bucket = server.make_bucket()
        restores(server, {"progression": "manual", "times": 10**6})
        targets = {"cold": server.target_url(bucket)}
        with an_archive(tmp_path, targets, environ=server.environ(), settings=RANGED) as archive:
            data = os.urandom(20_000), os.urandom(300_000)
            paths = stubs(archive, small=data[0], large=data[1])
            archive.stop()
            shutil.rmtree(archive.archive / "cache")
            client = server.client()
            listed = client.list_objects_v2(Bucket=bucket, Prefix="packs/")["Contents"]
            for key in [row["Key"] for row in listed]:
                source = {"Bucket": bucket, "Key": key}
                client.copy_object(Bucket=bucket, Key=key, CopySource=source, StorageClass="DEEP_ARCHIVE")
            archive.start("serve")
            for path, number in zip(paths, (errno.EAGAIN, errno.ETIMEDOUT), strict=True):
                began = time.monotonic()
                assert refusal(path) == number
                assert time.monotonic() - began < 5
            [row] = archive.vna("status", paths[0])  # type: ignore[misc] # a document
            assert row["state"] == "stub"
            assert row["rehydrating"]["until"] - row["rehydrating"]["since"] == 12 * 3600 * 10**9
            assert refused(archive)["Rehydrating"] >= 2
            assert "asked_back" in archive.log.read_text()
            asked = archive.log.read_text().count("recall.asked_back")
            assert asked == len(listed)
            restores(server, {"progression": "immediate"})
            archive.stop()  # so that nobody waits a minute before looking again
            archive.start("serve")
            for path, content in zip(paths, data, strict=True):
                assert path.read_bytes() == content
            assert archive.log.read_text().count("recall.asked_back") == asked
            [row] = archive.vna("status", paths[0])  # type: ignore[misc] # a document
            assert row["rehydrating"] is None
